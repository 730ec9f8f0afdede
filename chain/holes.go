package chain

import (
	"io"

	"varve/overlay/extent"
)

// seek finds the first offset at or behind off that is in a hole of the view, or is not;
// for a hole the size at the latest. io.EOF when off is at or past the end, or only a
// hole follows.
func (n *node) seek(readers *grace, off int64, data bool) (int64, error) {
	size := n.size()
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
func (n *node) seekRegion(readers *grace, off int64, data bool) (at int64, found bool, err error) {
	section := readers.enter()
	defer readers.exit(section)
	if next, err := n.nextHeld(off); err != nil || next > off {
		if !data {
			return off, true, err
		}
		return next, false, err
	}
	r, err := n.resolved(off >> regionBits)
	if err != nil {
		return 0, false, err
	}
	for s := range r.each(off, r.base+regionSize) {
		if (s.kind != extent.Zero) == data {
			return s.start, true, nil
		}
	}
	return r.base + regionSize, false, nil
}

// resolved is the region of a view, cached where the view is frozen, made for
// the moment where its layer is being written.
func (n *node) resolved(i int64) (*region, error) {
	if l := n.layer(); l != nil && l.over() != nil {
		return n.resolve(i)
	}
	return n.region(i)
}

// dataBytes is how much of a region is data, up to the view's size. What is damaged
// does not count: nobody knows whether it is.
func (r *region) dataBytes(size int64) int64 { return r.dataBetween(r.base, size) }

// heldBytes is dataBytes with what is damaged: of which a copy is to be made, or fails.
func (r *region) heldBytes(size int64) (total int64) {
	for s := range r.each(r.base, size) {
		if s.kind != extent.Zero {
			total += s.end - s.start
		}
	}
	return total
}

// regionBytes is how much of a region of the view is data.
func (n *node) regionBytes(readers *grace, i, size int64) (int64, error) {
	return n.sumRegion(readers, i, func(r *region) int64 { return r.dataBytes(size) })
}

// regionHeld is regionBytes with what is damaged.
func (n *node) regionHeld(readers *grace, i, size int64) (int64, error) {
	return n.sumRegion(readers, i, func(r *region) int64 { return r.heldBytes(size) })
}

func (n *node) sumRegion(readers *grace, i int64, sum func(r *region) int64) (int64, error) {
	section := readers.enter()
	defer readers.exit(section)
	r, err := n.peek(i)
	if err != nil {
		return 0, err
	}
	return sum(r), nil
}

// peek is the region with an index without keeping it: counting must not push what is
// being read out of the cache. Called within a grace section.
func (n *node) peek(i int64) (*region, error) {
	if r := n.regions.get(i); r != nil && n.frozen() {
		return r, nil
	}
	return n.resolve(i)
}

// dataBetween is how much of a region is data between two guest offsets.
func (r *region) dataBetween(from, to int64) (total int64) {
	for s := range r.each(from, to) {
		if s.kind != extent.Zero && s.kind != extent.Damaged {
			total += s.end - s.start
		}
	}
	return total
}
