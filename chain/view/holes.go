package view

import (
	"io"

	"varve/overlay/extent"
)

// Seek finds the first offset at or behind off that is in a hole of the view, or is not;
// for a hole the size at the latest. io.EOF when off is at or past the end, or only a
// hole follows.
func (n *Node) Seek(readers *Grace, off int64, data bool) (int64, error) {
	size := n.Size()
	if off < 0 || off >= size {
		return 0, io.EOF
	}
	for off < size {
		at, found, err := n.seekRegion(readers, off, data)
		if err != nil {
			return 0, err
		}
		if found && at < size {
			return at, nil
		}
		off = at
	}
	if data {
		return 0, io.EOF
	}
	return size, nil
}

// seekRegion looks within the region of off, or goes over the hole that begins at off.
// Where it finds nothing at is where to go on.
func (n *Node) seekRegion(readers *Grace, off int64, data bool) (at int64, found bool, err error) {
	section := readers.Enter()
	defer readers.Exit(section)
	if next, err := n.NextHeld(off); err != nil || next > off {
		if !data {
			return off, true, err
		}
		return next, false, err
	}
	r, err := n.resolved(off >> RegionBits)
	if err != nil {
		return 0, false, err
	}
	for s := range r.Each(off, r.base+RegionSize) {
		if (s.Kind != extent.Zero) == data {
			return s.Start, true, nil
		}
	}
	return r.base + RegionSize, false, nil
}

// resolved is the region of a view, cached where the view is frozen, made for
// the moment where its layer is being written.
func (n *Node) resolved(i int64) (*Region, error) {
	if l := n.Layer(); l != nil && l.Over() != nil {
		return n.resolve(i)
	}
	return n.region(i)
}

// DataBytes is how much of a region is data, up to the view's size. What is damaged
// does not count: nobody knows whether it is.
func (r *Region) DataBytes(size int64) int64 { return r.DataBetween(r.base, size) }

// heldBytes is DataBytes with what is damaged: of which a copy is to be made, or fails.
func (r *Region) heldBytes(size int64) (total int64) {
	for s := range r.Each(r.base, size) {
		if s.Kind != extent.Zero {
			total += s.End - s.Start
		}
	}
	return total
}

// RegionBytes is how much of a region of the view is data.
func (n *Node) RegionBytes(readers *Grace, i, size int64) (int64, error) {
	return n.sumRegion(readers, i, func(r *Region) int64 { return r.DataBytes(size) })
}

// RegionHeld is RegionBytes with what is damaged.
func (n *Node) RegionHeld(readers *Grace, i, size int64) (int64, error) {
	return n.sumRegion(readers, i, func(r *Region) int64 { return r.heldBytes(size) })
}

func (n *Node) sumRegion(readers *Grace, i int64, sum func(r *Region) int64) (int64, error) {
	section := readers.Enter()
	defer readers.Exit(section)
	r, err := n.Peek(i)
	if err != nil {
		return 0, err
	}
	return sum(r), nil
}

// Peek is the region with an index without keeping it: counting must not push what is
// being read out of the cache. Called within a grace section.
func (n *Node) Peek(i int64) (*Region, error) {
	if r := n.regions.get(i); r != nil && n.Frozen() {
		return r, nil
	}
	return n.resolve(i)
}

// DataBetween is how much of a region is data between two guest offsets.
func (r *Region) DataBetween(from, to int64) (total int64) {
	for s := range r.Each(from, to) {
		if s.Kind != extent.Zero && s.Kind != extent.Damaged {
			total += s.End - s.Start
		}
	}
	return total
}

// HiddenIn is how many bytes of data of the layer directly below the node's own layer
// hides, in the region that begins at off.
func (n *Node) HiddenIn(readers *Grace, off int64) (int64, error) {
	section := readers.Enter()
	defer readers.Exit(section)
	link := n.Link()
	if link.Layer == nil || link.Parent == nil || link.Parent.Layer() == nil {
		return 0, nil
	}
	below, err := link.Parent.Alone().Map(nil, off, RegionSize)
	if err != nil {
		return 0, err
	}
	own, err := link.Layer.Extents(nil, off, RegionSize)
	return HiddenBytes(below, own), err
}

// HiddenBytes is how much data of below lies where above maps something, both being
// in order and without gaps. Map gives zeros past a layer's size, so what a shorter
// layer cuts off is hidden too (M2).
func HiddenBytes(below, above []extent.Extent) (total int64) {
	i := 0
	for _, e := range below {
		if e.Kind != extent.Data && e.Kind != extent.Compressed {
			continue
		}
		for i < len(above) && above[i].End() <= e.Start {
			i++
		}
		for k := i; k < len(above) && above[k].Start < e.End(); k++ {
			if above[k].Kind != extent.Unallocated && above[k].Kind != extent.Damaged {
				total += min(e.End(), above[k].End()) - max(e.Start, above[k].Start)
			}
		}
	}
	return total
}
