package overlay

import "testing"

// A layer that is written reads as zeros past its end, also where the one below
// is longer (M2).
func TestWrittenLayerClips(t *testing.T) {
	m := newOverlayModel(t, 1, 2<<20+1000, 4<<20, 0)
	for _, off := range []int64{0, 2<<20 + 1000 - 1, 2<<20 + 1000, 3 << 20} {
		extents, err := m.o.Map(nil, off, 4<<20-off)
		m.must(err)
		last := extents[len(extents)-1]
		if from := max(off, 2<<20+1000); last.Kind != Zero || last.Start != from || last.End() != 4<<20 {
			t.Errorf("from %d on: %v, want zeros from %d on", off, extents, from)
		}
	}
}

// QEMU leaves out of a layer, and of a base, what is less than a sector at its
// end: growth keeps it (M2).
func TestTailOfAnOddSize(t *testing.T) {
	const size = 3<<20 + 16384 + 513
	m := newOverlayModel(t, 2, size, size, 0)
	m.must(m.o.Grow(5<<20, m.backing()))
	m.want = append(m.want, make([]byte, 5<<20-size)...)
	m.compare()
	m.judge()
}
