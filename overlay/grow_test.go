package overlay

import "testing"

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
