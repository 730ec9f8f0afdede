package chain

import (
	"varve/overlay"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
)

// Merges and exports ask a view where its content stands, so that the host can
// share blocks instead of copying them (overlay.Placed). An answer holds within
// the grace section in which it was given.

var (
	_ overlay.Placed = (*node)(nil)
	_ overlay.Placed = ownSource{}
	_ overlay.Placed = liveSource{}
)

// Place implements overlay.Placed for the node's view.
func (n *node) Place(off, length int64) (f hostfs.File, host, run int64, err error) {
	if n.absorbing.Load() {
		return n.placeLive(off, length)
	}
	r, err := n.region(off >> regionBits)
	if err != nil {
		return nil, 0, 0, err
	}
	s := r.whole(r.find(uint32(off - r.base)))
	run = min(length, s.end-off)
	if s.kind != extent.Data {
		return nil, 0, run, nil
	}
	return s.layer.file, s.host + off - s.start, run, nil
}
