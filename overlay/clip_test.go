package overlay

import (
	"testing"

	"varve/overlay/extent"
)

// A layer that is written reads as zeros past its end, also where the one below
// is longer (M2).
func TestWrittenLayerClips(t *testing.T) {
	m := newOverlayModel(t, 1, 2<<20+1024, 4<<20, 0)
	for _, off := range []int64{0, 2<<20 + 1000 - 1, 2<<20 + 1000, 3 << 20} {
		extents, err := m.o.Map(nil, off, 4<<20-off)
		m.must(err)
		last := extents[len(extents)-1]
		if from := max(off, 2<<20+1024); last.Kind != extent.Zero || last.Start != from || last.End() != 4<<20 {
			t.Errorf("from %d on: %v, want zeros from %d on", off, extents, from)
		}
	}
}

// What the layer below has past the end never comes into the last subcluster,
// neither with a write to part of it nor with a copy: growth would show it once
// nothing is below any more (M2).
func TestEndOfALayerWithoutBacking(t *testing.T) {
	const size = 1<<20 + 1024
	for _, write := range []bool{true, false} {
		m := newOverlayModel(t, 1, size, 2<<20, 0)
		for i := range m.below {
			m.below[i] = 7
		}
		copy(m.want, m.below)
		if write {
			m.must(m.write(1, size-100, 100))
		}
		_, err := m.o.Fill(&gatedBelow{memory: m.below}, 0, size, nil)
		m.must(err)
		m.must(m.o.SetBacking("", ""))
		m.below = nil
		m.must(m.o.Grow(2<<20, nil))
		m.want = append(m.want, make([]byte, 2<<20-size)...)
		m.compare()
		m.judge()
	}
}
