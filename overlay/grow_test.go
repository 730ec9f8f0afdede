package overlay

import (
	"testing"

	"varve/overlay/hostfs"
)

// A refcount table that is full is not ENOSPC: it moves to a larger place, and
// the header follows.
func TestRefcountTableGrows(t *testing.T) {
	m := newOverlayModel(t, 1, 8<<20, 8<<20, 14)
	old := m.o.Header()
	// The last clusters that a table of one cluster counts; the file is sparse.
	perBlock := int64(1) << (14 - 1)
	full := int64(old.RefcountTableClusters) * old.ClusterSize() / 8 * perBlock
	m.o.alloc.next, m.o.alloc.end = full-20, full-20
	for i := range int64(200) {
		m.must(m.write(byte(i), i*32768, 4096))
		if i%50 == 0 {
			m.must(m.o.Flush())
		}
	}
	m.must(m.o.Flush())
	if h := m.o.Header(); h.RefcountTableClusters <= old.RefcountTableClusters {
		t.Fatalf("the table has %d clusters, had %d", h.RefcountTableClusters, old.RefcountTableClusters)
	}
	m.must(m.o.Close()) // killed
	qemuCheck(t, m.path, true)
	m.open(true)
	m.compare()
	m.must(m.write(1, 7<<20, 4096))
	m.judge()
}

// countingBacking is zeros, and counts how often that is asked.
type countingBacking struct{ asked int }

func (c *countingBacking) ReadAt(p []byte, _ int64) error { clear(p); return nil }
func (c *countingBacking) IsZero(_, _ int64) (bool, error) {
	c.asked++
	return true, nil
}

// TestGrowFar: growing by a petabyte looks at what is below in steps that grow,
// too, up to what one L2 table maps.
func TestGrowFar(t *testing.T) {
	path := t.TempDir() + "/layer.qcow2"
	must(t, Create(hostfs.OS(), path, CreateOptions{Size: 1 << 20, Backing: "base.raw", BackingFormat: "raw"}))
	o, err := OpenOverlay(hostfs.OS(), path, OverlayOptions{})
	must(t, err)
	defer o.Close()
	below := &countingBacking{}
	must(t, o.Grow(1<<50, below))
	if most := 1<<20 + 10; below.asked > most {
		t.Errorf("asked %d times, at most %d are needed", below.asked, most)
	}
}

// A layer that shrinks keeps what is left, gives back what was behind, and shows zeros
// there when it grows again; also within a subcluster, and with a longer L1 table.
func TestShrink(t *testing.T) {
	for _, size := range []int64{3<<20 + 5120, 3 << 20, 512, 4<<20 - 512} {
		m := newOverlayModel(t, 1, 4<<20, 8<<20, 0)
		m.must(m.write(7, 0, 4<<20))
		m.must(m.o.Grow(1<<30, m.backing()))
		m.must(m.o.Shrink(size, m.backing()))
		m.want = m.want[:size]
		m.compare()
		m.must(m.o.Flush())
		m.must(m.o.Punch())
		info, err := m.o.File().Stat()
		m.must(err)
		const tables = 512 << 10
		if rest := (size + 4095) &^ 4095; info.Blocks > rest+tables {
			t.Errorf("%d bytes are left on the host of a layer that shrank to %d", info.Blocks, size)
		}
		m.must(m.o.Close()) // killed
		qemuCheck(t, m.path, true)
		m.open(true)
		m.compare()
		m.must(m.o.Grow(6<<20, m.backing()))
		m.want = append(m.want, make([]byte, 6<<20-size)...)
		m.compare()
		m.must(m.write(9, 5<<20, 4096))
		m.judge()
	}
}
