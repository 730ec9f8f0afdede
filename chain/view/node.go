package view

import (
	"errors"
	"sync/atomic"

	"varve/overlay"
	"varve/overlay/extent"
	"varve/overlay/qcow2"
)

// Node is one layer's place in the tree in memory, and its view: the layer
// over everything below it. A node is known by its layer's id; the file
// behind it and its parent change when layers are merged, both at once.
//
// Reads through a node are done within a grace section.
type Node struct {
	ID      string
	link    atomic.Pointer[Link]
	cache   *Cache
	regions regionIndex
	// absorbing is set while a merge writes what stands on this layer into it:
	// its own view, which is nobody's, changes and is not kept.
	absorbing atomic.Bool
}

// Link is what a node stands for at the moment.
type Link struct {
	Layer  *Layer // nil for a blank place: the leaf of a foreign image shown read-only
	Parent *Node  // nil at the bottom
}

// Absorbing says whether a merge writes into the node's layer what stands on it.
func (n *Node) Absorbing() bool { return n.absorbing.Load() }

// SetAbsorbing says when that begins and ends. What was resolved through the node is the
// caller's to drop.
func (n *Node) SetAbsorbing(yes bool) { n.absorbing.Store(yes) }

// Link is the node's layer and its parent at this moment, both of one instant.
func (n *Node) Link() Link { return *n.link.Load() }

// Replace has the node stand for another layer, or for one on another parent. What was
// resolved through it is the caller's to drop.
func (n *Node) Replace(l *Layer, parent *Node) { n.link.Store(&Link{Layer: l, Parent: parent}) }

func NewNode(id string, l *Layer, parent *Node, cache *Cache) *Node {
	n := &Node{ID: id, cache: cache}
	n.link.Store(&Link{Layer: l, Parent: parent})
	return n
}

func (n *Node) Layer() *Layer { return n.link.Load().Layer }
func (n *Node) Parent() *Node { return n.link.Load().Parent }

// Frozen says that the node's layer is not being written.
func (n *Node) Frozen() bool {
	l := n.Layer()
	return l == nil || l.Over() == nil
}

// Size is the view's size in guest bytes: whole sectors, but for a raw file.
func (n *Node) Size() int64 {
	l := n.link.Load()
	if l.Layer == nil {
		return extent.WholeSectors(l.Parent.Size())
	}
	return l.Layer.Size()
}

// Backing is the parent as what shows through below a layer. A nil *node in
// an interface would not be nil.
func (n *Node) Backing() overlay.Backing {
	if p := n.Parent(); p != nil {
		return p
	}
	return nil
}

// ReadAt implements overlay.Backing: it fills p from the view; zeros past its
// end.
func (n *Node) ReadAt(p []byte, off int64) error {
	if n.absorbing.Load() {
		return n.ReadLive(p, off)
	}
	return n.readResolved(p, off)
}

func (n *Node) readResolved(p []byte, off int64) error {
	for len(p) > 0 {
		r, err := n.region(off >> RegionBits)
		if err != nil {
			return err
		}
		in := off & (RegionSize - 1)
		part := p[:min(int64(len(p)), RegionSize-in)]
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
func (n *Node) IsZero(off, length int64) (bool, error) {
	if n.absorbing.Load() {
		return n.isZeroLive(off, length)
	}
	// What lies past the view's end is zeros (M2), and needs no look at regions.
	for end := min(off+length, n.Size()); off < end; {
		r, err := n.region(off >> RegionBits)
		if err != nil {
			return false, err
		}
		stop := min(end, r.base+RegionSize)
		for s := range r.Each(off, stop) {
			if s.Kind != extent.Zero {
				return false, nil
			}
		}
		off = stop
		if off < end {
			var err error
			if off, err = n.NextHeld(off); err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// Map gives the view's extents, Data or Zero, for merges: what is resolved has
// no host offset of its own.
func (n *Node) Map(dst []extent.Extent, off, length int64) ([]extent.Extent, error) {
	for end := off + length; off < end; {
		r, err := n.region(off >> RegionBits)
		if err != nil {
			return dst, err
		}
		stop := min(end, r.base+RegionSize)
		for s := range r.Each(off, stop) {
			e := extent.Extent{Start: s.Start, Length: s.End - s.Start, Kind: extent.Zero}
			if s.Kind != extent.Zero {
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
		next, err := n.NextHeld(off)
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
