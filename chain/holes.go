package chain

import (
	"io"
	"slices"

	"varve/overlay"
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
		off = off&^(regionSize-1) + regionSize
	}
	if data {
		return 0, io.EOF
	}
	return size, nil
}

// seekRegion looks within the region of off.
func (d *Disk) seekRegion(n *node, off int64, data bool) (at int64, found bool, err error) {
	section := d.readers.enter()
	defer d.readers.exit(section)
	r, err := n.resolved(off >> regionBits)
	if err != nil {
		return 0, false, err
	}
	for i := r.find(uint32(off - r.base)); i < len(r.spans); i++ {
		if (r.spans[i].kind != overlay.Zero) == data {
			return max(off, r.base+int64(r.spans[i].start)), true, nil
		}
	}
	return 0, false, nil
}

// resolved is the region of a view, cached where the view is frozen, made for
// the moment where its layer is being written.
func (n *node) resolved(i int64) (*region, error) {
	if l := n.layer(); l != nil && l.over() != nil {
		return n.resolve(i)
	}
	return n.region(i)
}

// dataBytes is how much of a region is data, up to the view's size.
func (r *region) dataBytes(size int64) int64 {
	var total int64
	for i, s := range r.spans {
		if s.kind == overlay.Zero {
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

// AllocatedBytes is how many bytes of the leaf's view are data.
func (d *Disk) AllocatedBytes() (bytes int64, err error) {
	err = d.recount(func() error {
		bytes, err = d.allocated(d.leaf.Load())
		return err
	})
	return bytes, err
}

// LayerAllocatedBytes is the same for a layer's view, by layer id.
func (d *Disk) LayerAllocatedBytes(id string) (bytes int64, err error) {
	err = d.recount(func() error {
		_, nodes := d.tree()
		n := nodes[id]
		if n == nil {
			bytes = 0
			return ErrNotExist
		}
		bytes, err = d.allocated(n)
		return err
	})
	return bytes, err
}

// allocated counts a view from the view below it, adding what differs where the
// layer itself maps something: a tall chain costs what its layers hold, not its
// height times its size.
func (d *Disk) allocated(n *node) (int64, error) {
	var path []*node // views that are not counted yet, top first
	for at := n; at != nil; at = at.parent() {
		if _, ok := at.view.get(at.layer(), 0); ok && at.frozen() {
			break
		}
		path = append(path, at)
	}
	var total int64
	for _, at := range slices.Backward(path) {
		var err error
		if total, err = d.countView(at); err != nil {
			return 0, err
		}
	}
	if len(path) == 0 {
		total, _ = n.view.get(n.layer(), 0)
	}
	return total, nil
}

// frozen says that the node's layer is not being written.
func (n *node) frozen() bool {
	l := n.layer()
	return l == nil || l.over() == nil
}

// countView counts a view whose parent's view is counted.
func (d *Disk) countView(n *node) (int64, error) {
	l, parent := n.layer(), n.parent()
	var below int64
	if parent != nil {
		var ok bool
		if below, ok = parent.view.get(parent.layer(), 0); !ok {
			var err error
			if below, err = d.allocatedWhole(parent); err != nil {
				return 0, err
			}
		}
		if parent.size() > n.size() { // an adopted layer that is shorter
			return d.allocatedWhole(n)
		}
	}
	if l == nil {
		return below, nil
	}
	over := l.over()
	c := &n.live
	c.mu.Lock()
	defer c.mu.Unlock()
	size := n.size()
	regions := int((size + regionSize - 1) >> regionBits)
	if fresh := c.layer != l || c.parent != parent; fresh || over == nil {
		c.layer, c.parent, c.total, c.regions = l, parent, 0, make([]int64, regions)
		if over != nil {
			for i := range c.regions { // from now on, only what changes
				over.TakeChanged(int64(i) << regionBits)
			}
		}
		if err := d.countOwn(c, n, l, size); err != nil {
			c.layer = nil
			return 0, err
		}
	} else {
		c.regions = append(c.regions, make([]int64, regions-len(c.regions))...)
		for i := range c.regions {
			// Asked before it is counted: a change while it is makes the next
			// one count again. The last region changes with the size too.
			if over.TakeChanged(int64(i)<<regionBits) || i == regions-1 {
				if err := d.countRegion(c, n, i, size); err != nil {
					c.layer = nil
					return 0, err
				}
			}
		}
	}
	total := below + c.total
	if over == nil {
		c.regions = nil // counted for good
		n.view.set(l, 0, total)
	}
	return total, nil
}

// countOwn counts the regions where the layer itself maps something.
func (d *Disk) countOwn(c *liveCount, n *node, l *layer, size int64) error {
	var extents []overlay.Extent
	const chunk = 1 << 30 // an L1 entry or some say at once that there is nothing
	for at := int64(0); at < size; at += chunk {
		var err error
		if extents, err = d.mapLayer(l, extents[:0], at, min(chunk, size-at)); err != nil {
			return err
		}
		last := -1
		for _, e := range extents {
			if e.Kind == overlay.Unallocated || e.Kind == overlay.Zero && n.parent() == nil {
				continue
			}
			for i := int(e.Start >> regionBits); i <= int((e.End()-1)>>regionBits); i++ {
				if i == last {
					continue
				}
				last = i
				if err := d.countRegion(c, n, i, size); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (d *Disk) mapLayer(l *layer, dst []overlay.Extent, off, length int64) ([]overlay.Extent, error) {
	section := d.readers.enter()
	defer d.readers.exit(section)
	return l.state.Load().Map(dst, off, length)
}

func (d *Disk) countRegion(c *liveCount, n *node, i int, size int64) error {
	more, err := d.regionBytes(n, int64(i), size)
	if err != nil {
		return err
	}
	if parent := n.parent(); parent != nil {
		less, err := d.regionBytes(parent, int64(i), parent.size())
		if err != nil {
			return err
		}
		more -= less
	}
	c.total += more - c.regions[i]
	c.regions[i] = more
	return nil
}

// allocatedWhole counts a view region by region.
func (d *Disk) allocatedWhole(n *node) (int64, error) {
	var total int64
	size := n.size()
	for off := int64(0); off < size; off += regionSize {
		bytes, err := d.regionBytes(n, off>>regionBits, size)
		if err != nil {
			return 0, err
		}
		total += bytes
	}
	return total, nil
}

func (d *Disk) regionBytes(n *node, i, size int64) (int64, error) {
	section := d.readers.enter()
	defer d.readers.exit(section)
	r := n.regions.get(i)
	if r == nil {
		// Counting must not push what is being read out of the cache.
		var err error
		if r, err = n.resolve(i); err != nil {
			return 0, err
		}
	}
	return r.dataBytes(size), nil
}
