package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"varve/integration/hostile"
	"varve/integration/imagetest"
	"varve/integration/patience"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// ownDisk is a settled layer of ours with 4 MiB of data in it, and where its first L2
// table stands.
func ownDisk(t *testing.T) (path string, l2 int64) {
	t.Helper()
	path = t.TempDir() + "/layer.qcow2"
	must(t, Create(hostfs.OS(), path, CreateOptions{Size: 8 << 30}))
	o, err := OpenOverlay(hostfs.OS(), path, OverlayOptions{})
	must(t, err)
	for c := range int64(32) {
		must(t, o.WriteAt(bytes.Repeat([]byte{byte(c + 1)}, 1<<defaultClusterBits), c<<defaultClusterBits, nil))
	}
	must(t, o.Settle())
	must(t, o.Close())
	data, err := os.ReadFile(path)
	must(t, err)
	return path, int64(hostile.MapImage(data).L2[0])
}

func readOwn(o *Overlay, p []byte, off int64) error {
	extents, err := o.Map(nil, off, int64(len(p)))
	if err != nil {
		return err
	}
	for _, e := range extents {
		part := p[e.Start-off : e.End()-off]
		switch e.Kind {
		case extent.Data, extent.Damaged:
			if err := o.ReadExtent(part, e, e.Start); err != nil {
				return err
			}
		default:
			clear(part)
		}
	}
	return nil
}

// A damaged entry of a layer that is written stays as it stands in the file, whatever
// is written, discarded, flushed and settled beside it; the cluster that it names by
// accident is never taken for its own, also when it is given out later.
func TestDamagedEntryOfAWrittenLayer(t *testing.T) {
	const cs = 1 << defaultClusterBits
	for _, c := range []struct {
		name  string
		entry func(end int64) []byte
	}{
		{"a reserved bit", func(int64) []byte { return append(imagetest.BE64(qcow2.CopiedFlag|5*cs|2), imagetest.BE64(allSub)...) }},
		{"the next cluster that is given out", func(end int64) []byte {
			return append(imagetest.BE64(qcow2.CopiedFlag|uint64(end)), imagetest.BE64(allSub)...)
		}},
		{"a table", func(int64) []byte { return append(imagetest.BE64(qcow2.CopiedFlag|3*cs), imagetest.BE64(allSub)...) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			path, l2 := ownDisk(t)
			info, err := os.Stat(path)
			must(t, err)
			entry := c.entry(info.Size())
			imagetest.Patch(t, path, l2+16*3, entry...)
			o, err := OpenOverlay(hostfs.OS(), path, OverlayOptions{MaxSlices: 1})
			must(t, err)
			defer o.Close()
			// Clusters are given out before anybody has looked at the entry.
			far := int64(512 << 20)
			for i := range int64(4) {
				must(t, o.WriteAt(bytes.Repeat([]byte{0xa0 + byte(i)}, cs), far+i*cs, nil))
			}
			must(t, o.Flush())
			p := make([]byte, 4096)
			judge := func(when string) {
				t.Helper()
				for at := int64(0); at < 8; at++ {
					err := readOwn(o, p, at*cs)
					if at == 3 {
						imagetest.JudgeError(t, err, qcow2.ErrCorrupt, path, "guest offset 0x60000")
						continue
					}
					if err != nil || p[0] != byte(at+1) {
						t.Errorf("%s: cluster %d: %#x, %v", when, at, p[0], err)
					}
				}
			}
			judge("at first")
			for what, do := range map[string]func() error{
				"write":   func() error { return o.WriteAt(p, 3*cs+4096, nil) },
				"discard": func() error { return o.Discard(3*cs, cs, nil) },
				"reserve": func() error { return o.Reserve(3*cs, cs) },
				"unmap":   func() error { return o.Unmap(3*cs, cs) },
			} {
				if err := do(); !errors.Is(err, qcow2.ErrCorrupt) {
					t.Errorf("%s: %v", what, err)
				}
			}
			must(t, o.WriteAt(bytes.Repeat([]byte{3}, cs), 2*cs, nil))
			must(t, o.Discard(40*cs, cs, nil))
			must(t, o.WriteAt(p[:512], 50*cs, nil)) // a change of the same slice
			must(t, o.Flush())
			for i := range int64(64) { // the slice is dropped, and read again
				must(t, o.WriteAt(p, far+i*256*cs, nil))
			}
			must(t, o.Flush())
			judge("after writes")
			must(t, o.Settle())
			data, err := os.ReadFile(path)
			must(t, err)
			if got := data[l2+16*3 : l2+16*4]; !bytes.Equal(got, entry) {
				t.Errorf("the entry is %x, was %x", got, entry)
			}
		})
	}
}

// Where a sector of a table cannot be read its entries are lost for the moment, and no
// flush writes it. What the host can read again is read again.
func TestUnreadableSectorOfAWrittenLayer(t *testing.T) {
	const cs = 1 << defaultClusterBits
	path, l2 := ownDisk(t)
	f, err := hostfs.OS().Open(path, os.O_RDWR, 0)
	must(t, err)
	spot := &hostile.SpotFile{File: f}
	o, err := NewOverlay(spot, OverlayOptions{})
	must(t, err)
	defer o.Close()
	before, err := os.ReadFile(path)
	must(t, err)
	spot.Set([2]int64{l2, l2 + 512}) // entries 0 to 31
	p := make([]byte, 4096)
	if err := readOwn(o, p, 5*cs); !errors.Is(err, hostfs.ErrUnreadable) {
		t.Errorf("a read: %v", err)
	}
	if err := o.WriteAt(p, 5*cs, nil); !errors.Is(err, hostfs.ErrUnreadable) {
		t.Errorf("a write: %v", err)
	}
	must(t, o.WriteAt(bytes.Repeat([]byte{9}, 4096), 40*cs, nil)) // in another sector of the slice
	must(t, o.Flush())
	now, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(now[l2:l2+512], before[l2:l2+512]) {
		t.Error("the sector was written")
	}
	if now[l2+16*40+7] == before[l2+16*40+7] && bytes.Equal(now[l2+16*40:l2+16*41], before[l2+16*40:l2+16*41]) {
		t.Error("the entry beside it was not")
	}
	spot.Set()
	for end := time.Now().Add(patience.Hang); ; {
		if err = readOwn(o, p, 5*cs); err == nil || time.Now().After(end) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil || p[0] != 6 {
		t.Errorf("when it can be read again: %#x, %v", p[0], err)
	}
	if err := readOwn(o, p, 40*cs); err != nil || p[0] != 9 {
		t.Errorf("what was written beside it: %#x, %v", p[0], err)
	}
	must(t, o.WriteAt(p, 5*cs, nil))
	must(t, o.Settle())
}

// failingSource is content in memory, of which sectors cannot be read.
type failingSource struct {
	data []byte
	bad  map[int64]bool
}

func (s failingSource) Map(dst []extent.Extent, off, length int64) ([]extent.Extent, error) {
	return append(dst, extent.Extent{Start: off, Length: length, Kind: extent.Data}), nil
}

func (s failingSource) ReadAt(p []byte, off int64) error {
	for at := off / extent.SectorSize; at*extent.SectorSize < off+int64(len(p)); at++ {
		if s.bad[at] {
			return fmt.Errorf("sector %d: %w", at, hostfs.ErrUnreadable)
		}
	}
	clear(p)
	if off < int64(len(s.data)) {
		copy(p, s.data[off:])
	}
	return nil
}

// A salvage gives everything but the sectors that cannot be read.
func TestSalvage(t *testing.T) {
	source := failingSource{data: bytes.Repeat([]byte("varve"), 100_000)[:300<<10+100], bad: map[int64]bool{0: true, 7: true, 8: true, 255: true, 600: true}}
	want := bytes.Clone(source.data)
	for at := range source.bad {
		clear(want[at*extent.SectorSize : min(int64(len(want)), (at+1)*extent.SectorSize)])
	}
	for _, compress := range []bool{false, true} {
		s := NewSalvage(source, int64(len(source.data)))
		path := t.TempDir() + "/out"
		f, err := hostfs.OS().Open(path, os.O_RDWR|os.O_CREATE, 0o600)
		must(t, err)
		e := Export{Source: s, Size: int64(len(source.data))}
		if compress {
			must(t, e.Qcow2(t.Context(), f, true))
		} else {
			must(t, e.Raw(t.Context(), f))
		}
		must(t, f.Close())
		got, err := os.ReadFile(path)
		must(t, err)
		if compress {
			got = imagetest.Truth(t, path)[:len(want)]
		}
		if !bytes.Equal(got, want) {
			t.Errorf("compress %v: another content", compress)
		}
		var lost [][2]int64
		for _, l := range s.Lost() {
			lost = append(lost, [2]int64{l.Start / extent.SectorSize, l.Length})
		}
		if w := [][2]int64{{0, 512}, {7, 1024}, {255, 512}, {600, 100}}; !slices.Equal(lost, w) {
			t.Errorf("lost %v, want %v", lost, w)
		}
	}
	failing := errors.New("another error")
	if err := NewSalvage(sourceOf{failing}, 4096).ReadAt(make([]byte, 4096), 0); !errors.Is(err, failing) {
		t.Errorf("an error that is no damage: %v", err)
	}
}

type sourceOf struct{ err error }

func (s sourceOf) Map(dst []extent.Extent, _, _ int64) ([]extent.Extent, error) { return dst, s.err }
func (s sourceOf) ReadAt([]byte, int64) error                                   { return s.err }
