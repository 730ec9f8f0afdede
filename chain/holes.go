package chain

import (
	"io"

	"varve/overlay/extent"
)

// SeekData finds the first offset at or behind off that is not in a hole of
// the leaf's view; io.EOF when only a hole follows, or off is at or past the
// end.
func (d *Disk) SeekData(off int64) (int64, error) { return d.seek(d.leaf.Load(), off, true) }

// SeekHole finds the first offset at or behind off that is in a hole of the
// leaf's view, the size at the latest; io.EOF when off is at or past the end.
func (d *Disk) SeekHole(off int64) (int64, error) { return d.seek(d.leaf.Load(), off, false) }

func (d *Disk) seek(n *node, off int64, data bool) (int64, error) {
	size := n.size()
	if off < 0 || off >= size {
		return 0, io.EOF
	}
	for off < size {
		at, found, err := d.seekRegion(n, off, data)
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
func (d *Disk) seekRegion(n *node, off int64, data bool) (at int64, found bool, err error) {
	section := d.readers.enter()
	defer d.readers.exit(section)
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
	for i := r.find(uint32(off - r.base)); i < len(r.spans); i++ {
		if (r.spans[i].kind != extent.Zero) == data {
			return max(off, r.base+int64(r.spans[i].start)), true, nil
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
func (r *region) dataBytes(size int64) int64 {
	return r.sumOf(size, func(k extent.Kind) bool { return k != extent.Zero && k != extent.Damaged })
}

// heldBytes is dataBytes with what is damaged: of which a copy is to be made, or fails.
func (r *region) heldBytes(size int64) int64 {
	return r.sumOf(size, func(k extent.Kind) bool { return k != extent.Zero })
}

// sumOf is how many bytes of a region, up to the view's size, are of a kind.
func (r *region) sumOf(size int64, is func(extent.Kind) bool) int64 {
	var total int64
	for i, s := range r.spans {
		if !is(s.kind) {
			continue
		}
		end := int64(regionSize)
		if i+1 < len(r.spans) {
			end = int64(r.spans[i+1].start)
		}
		end = min(end, size-r.base)
		if start := int64(s.start); end > start {
			total += end - start
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
	r := n.regions.get(i)
	if r == nil {
		// Counting must not push what is being read out of the cache.
		var err error
		if r, err = n.resolve(i); err != nil {
			return 0, err
		}
	}
	return sum(r), nil
}
