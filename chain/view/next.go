package view

import (
	"math"

	"varve/overlay"
	"varve/overlay/extent"
)

// A walk over a view goes from one place of which a layer says something to the next.
// What lies between is a hole of the view, however long, and nothing of it is looked
// at: no region is resolved there, and no L1 entry read.
//
//	leaf     ....XX....................................
//	s1       ....................YY....................
//	base     ZZ......................................ZZ
//	looked   ^^..^^..............^^..................^^
//
// Layers are asked from the top down, as for a region, since a merge moves things down,
// and what it copies up stays where it was until its readers are gone (M1). A place at
// which a table was once made stays one: the layer may hold something there.

// NextHeld is where, at off or behind it, one of a view's layers may hold something:
// before that the view reads as zeros. It is math.MaxInt64 when nothing follows. It costs
// as much as the chain is deep. Called within a grace section.
func (n *Node) NextHeld(off int64) (int64, error) {
	n.cache.Step()
	best, limit := int64(math.MaxInt64), int64(math.MaxInt64)
	for at := n; at != nil && best > off; {
		l := at.link.Load()
		if l.Layer != nil {
			state := l.Layer.state.Load()
			// What this layer and those below hold shows no further than it goes (M2); what
			// those above hold does.
			limit = min(limit, state.Size())
			if off >= limit {
				break
			}
			next, err := state.Next(off)
			if err != nil {
				return 0, err
			}
			if next < limit {
				best = min(best, next)
			}
		}
		at = l.Parent
	}
	return best, nil
}

// NextOwn is NextHeld of one layer alone.
func (n *Node) NextOwn(off int64) (int64, error) {
	l := n.Layer()
	if l == nil {
		return math.MaxInt64, nil
	}
	return l.NextOwn(off)
}

// NextOwn is where, at off or behind it, a layer may hold something itself, math.MaxInt64
// when nothing follows.
func (l *Layer) NextOwn(off int64) (int64, error) {
	state := l.state.Load()
	next, err := state.Next(off)
	if err == nil && next >= state.Size() {
		next = math.MaxInt64
	}
	return next, err
}

// nextRegions is how many regions Next looks at at once.
const nextRegions = 64

// Next implements overlay.Skipper for the view: it goes over zeros that a layer says
// too, as far as some regions reach.
func (n *Node) Next(off int64) (int64, error) {
	for range nextRegions {
		var err error
		if off, err = n.NextHeld(off); err != nil || off == math.MaxInt64 || n.absorbing.Load() {
			return off, err
		}
		r, err := n.region(off >> RegionBits)
		if err != nil {
			return 0, err
		}
		for i := r.find(uint32(off - r.base)); i < len(r.spans); i++ {
			if r.spans[i].kind != extent.Zero {
				return max(off, r.base+int64(r.spans[i].start)), nil
			}
		}
		off = r.base + RegionSize
	}
	return off, nil
}

// Next is where the layer alone may hold something.
func (s Own) Next(off int64) (int64, error) { return s.NextOwn(off) }

var (
	_ overlay.Skipper = (*Node)(nil)
	_ overlay.Skipper = Own{}
)
