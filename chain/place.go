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
	in := uint32(off - r.base)
	i := r.find(in)
	end := int64(regionSize)
	if i+1 < len(r.spans) {
		end = int64(r.spans[i+1].start)
	}
	s := r.spans[i]
	run = min(length, end-int64(in))
	if s.kind != extent.Data {
		return nil, 0, run, nil
	}
	return r.layers[s.layer].file, s.host + int64(in-s.start), run, nil
}

// placeLive is Place for a layer that is, or may be, written meanwhile.
func (n *node) placeLive(off, length int64) (f hostfs.File, host, run int64, err error) {
	l := n.link.Load()
	if l.layer == nil {
		return l.parent.Place(off, length)
	}
	o := l.layer.over()
	if o == nil || off >= o.Size() {
		return nil, 0, length, nil
	}
	extents, err := o.Map(nil, off, min(length, o.Size()-off))
	if err != nil {
		return nil, 0, 0, err
	}
	e := extents[0]
	if e.Kind != extent.Data {
		return nil, 0, e.Length, nil
	}
	return l.layer.file, e.Host, e.Length, nil
}

// Place is that of the content as liveSource reads it.
func (s liveSource) Place(off, length int64) (f hostfs.File, host, run int64, err error) {
	return s.placeLive(off, length)
}
