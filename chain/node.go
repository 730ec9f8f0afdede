package chain

import (
	"errors"
	"sync/atomic"

	"varve/overlay"
	"varve/overlay/extent"
	"varve/overlay/qcow2"
)

// node is one layer's place in the tree in memory, and its view: the layer
// over everything below it. A node is known by its layer's id; the file
// behind it and its parent change when layers are merged, both at once.
//
// Reads through a node are done within a grace section.
type node struct {
	id      string
	link    atomic.Pointer[link]
	cache   *regionCache
	regions regionIndex
	// absorbing is set while a merge writes what stands on this layer into it:
	// its own view, which is nobody's, changes and is not kept.
	absorbing atomic.Bool
}

// link is what a node stands for at the moment.
type link struct {
	layer  *layer // nil for a blank place: the leaf of a foreign image shown read-only
	parent *node  // nil at the bottom
}

// isAbsorbing says whether a merge writes into the node's layer what stands on it.
func (n *node) isAbsorbing() bool { return n.absorbing.Load() }

// setAbsorbing says when that begins and ends. What was resolved through the node is the
// caller's to drop.
func (n *node) setAbsorbing(yes bool) { n.absorbing.Store(yes) }

// place is what the node stands for at this moment.
func (n *node) place() link { return *n.link.Load() }

// replace has the node stand for another layer, or for one on another parent. What was
// resolved through it is the caller's to drop.
func (n *node) replace(l *layer, parent *node) { n.link.Store(&link{layer: l, parent: parent}) }

func newNode(id string, l *layer, parent *node, cache *regionCache) *node {
	n := &node{id: id, cache: cache}
	n.link.Store(&link{layer: l, parent: parent})
	return n
}

func (n *node) layer() *layer { return n.link.Load().layer }
func (n *node) parent() *node { return n.link.Load().parent }

// frozen says that the node's layer is not being written.
func (n *node) frozen() bool {
	l := n.layer()
	return l == nil || l.over() == nil
}

// size is the view's size in guest bytes: whole sectors, but for a raw file.
func (n *node) size() int64 {
	l := n.link.Load()
	if l.layer == nil {
		return extent.WholeSectors(l.parent.size())
	}
	return l.layer.size()
}

// backing is the parent as what shows through below a layer. A nil *node in
// an interface would not be nil.
func (n *node) backing() overlay.Backing {
	if p := n.parent(); p != nil {
		return p
	}
	return nil
}

// ReadAt implements overlay.Backing: it fills p from the view; zeros past its
// end.
func (n *node) ReadAt(p []byte, off int64) error {
	if n.absorbing.Load() {
		return n.readLive(p, off)
	}
	return n.readResolved(p, off)
}

func (n *node) readResolved(p []byte, off int64) error {
	for len(p) > 0 {
		r, err := n.region(off >> regionBits)
		if err != nil {
			return err
		}
		in := off & (regionSize - 1)
		part := p[:min(int64(len(p)), regionSize-in)]
		err = r.read(part, off, uint32(in))
		if errors.Is(err, qcow2.ErrReadable) {
			err = n.readAnew(part, off)
		}
		if err != nil {
			return err
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

// IsZero implements overlay.Backing.
func (n *node) IsZero(off, length int64) (bool, error) {
	if n.absorbing.Load() {
		return n.isZeroLive(off, length)
	}
	// What lies past the view's end is zeros (M2), and needs no look at regions.
	for end := min(off+length, n.size()); off < end; {
		r, err := n.region(off >> regionBits)
		if err != nil {
			return false, err
		}
		stop := min(end, r.base+regionSize)
		for s := range r.each(off, stop) {
			if s.kind != extent.Zero {
				return false, nil
			}
		}
		off = stop
		if off < end {
			var err error
			if off, err = n.nextHeld(off); err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// Map gives the view's extents, Data or Zero, for merges: what is resolved has
// no host offset of its own.
func (n *node) Map(dst []extent.Extent, off, length int64) ([]extent.Extent, error) {
	for end := off + length; off < end; {
		r, err := n.region(off >> regionBits)
		if err != nil {
			return dst, err
		}
		stop := min(end, r.base+regionSize)
		for s := range r.each(off, stop) {
			e := extent.Extent{Start: s.start, Length: s.end - s.start, Kind: extent.Zero}
			if s.kind != extent.Zero {
				e.Kind = extent.Data
			}
			if k := len(dst); k > 0 && dst[k-1].Kind == e.Kind && dst[k-1].End() == e.Start {
				dst[k-1].Length += e.Length
			} else {
				dst = append(dst, e)
			}
		}
		off = stop
		if off == end {
			break
		}
		next, err := n.nextHeld(off)
		if err != nil {
			return dst, err
		}
		if hole := min(next, end) - off; hole > 0 {
			if last := &dst[len(dst)-1]; last.Kind == extent.Zero {
				last.Length += hole
			} else {
				dst = append(dst, extent.Extent{Start: off, Length: hole, Kind: extent.Zero})
			}
			off += hole
		}
	}
	return dst, nil
}
