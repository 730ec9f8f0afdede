package view

import (
	"varve/overlay"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
)

// Merges and exports ask a view where its content stands, so that the host can
// share blocks instead of copying them (overlay.Placed). An answer holds within
// the grace section in which it was given.

var (
	_ overlay.Placed = (*Node)(nil)
	_ overlay.Placed = Own{}
	_ overlay.Placed = Live{}
)

// Place implements overlay.Placed for the node's view.
func (n *Node) Place(off, length int64) (f hostfs.File, host, run int64, err error) {
	if n.absorbing.Load() {
		return n.placeLive(off, length)
	}
	r, err := n.region(off >> RegionBits)
	if err != nil {
		return nil, 0, 0, err
	}
	s := r.whole(r.find(uint32(off - r.base)))
	run = min(length, s.End-off)
	if s.Kind != extent.Data {
		return nil, 0, run, nil
	}
	return s.Layer.File, s.Host + off - s.Start, run, nil
}
