package chain

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

// nextHeld is where, at off or behind it, one of a view's layers may hold something:
// before that the view reads as zeros. It is math.MaxInt64 when nothing follows. It costs
// as much as the chain is deep. Called within a grace section.
func (n *node) nextHeld(off int64) (int64, error) {
	n.cache.step()
	best, limit := int64(math.MaxInt64), int64(math.MaxInt64)
	for at := n; at != nil && best > off; {
		l := at.link.Load()
		if l.layer != nil {
			state := l.layer.state.Load()
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
		at = l.parent
	}
	return best, nil
}

// nextOwn is nextHeld of one layer alone.
func (n *node) nextOwn(off int64) (int64, error) {
	l := n.layer()
	if l == nil {
		return math.MaxInt64, nil
	}
	return l.nextOwn(off)
}

// nextOwn is where, at off or behind it, a layer may hold something itself, math.MaxInt64
// when nothing follows.
func (l *layer) nextOwn(off int64) (int64, error) {
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
func (n *node) Next(off int64) (int64, error) {
	for range nextRegions {
		var err error
		if off, err = n.nextHeld(off); err != nil || off == math.MaxInt64 || n.absorbing.Load() {
			return off, err
		}
		r, err := n.region(off >> regionBits)
		if err != nil {
			return 0, err
		}
		for i := r.find(uint32(off - r.base)); i < len(r.spans); i++ {
			if r.spans[i].kind != extent.Zero {
				return max(off, r.base+int64(r.spans[i].start)), nil
			}
		}
		off = r.base + regionSize
	}
	return off, nil
}

// Next is where the layer alone may hold something.
func (s ownSource) Next(off int64) (int64, error) { return s.nextOwn(off) }

var (
	_ overlay.Skipper = (*node)(nil)
	_ overlay.Skipper = ownSource{}
)
