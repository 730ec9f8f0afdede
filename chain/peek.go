package chain

import (
	"fmt"
	"time"

	"varve/overlay/extent"
)

// PeekView fills p from a layer's view, by layer id, without opening it: a delete
// does not wait for it, and it waits for nothing. Bytes past the end read as zeros.
// ErrNotExist when there is no named layer with that id.
func (d *Disk) PeekView(id string, p []byte, off int64) error {
	section := d.readers.enter() // before the tree is looked at: what it has stays open
	defer d.readers.exit(section)
	n, err := d.namedNode(id)
	if err != nil {
		return err
	}
	return n.ReadAt(p, off)
}

// namedNode is the node of a layer that has a name.
func (d *Disk) namedNode(id string) (*node, error) {
	m, nodes := d.tree()
	rec := m.Layer(id)
	if rec == nil || rec.Name == "" || nodes[id] == nil {
		return nil, fmt.Errorf("layer %s: %w", id, ErrNotExist)
	}
	return nodes[id], nil
}

// DataBytes counts how much of the guest bytes from off to end is data, in the view
// of a named layer, by its id, or of the leaf for "". It stops at a region's end
// when until has passed, and says where: at is end when all was counted. What it
// looks up is not kept. ErrNotExist as of PeekView.
func (d *Disk) DataBytes(id string, off, end int64, until time.Time) (bytes, at int64, err error) {
	for at = off; at < end; {
		n, next, err := d.dataBytesOfRegion(id, at, end)
		if err != nil {
			return bytes, at, err
		}
		bytes, at = bytes+n, next
		if !until.IsZero() && time.Now().After(until) {
			break
		}
	}
	return bytes, at, nil
}

// dataBytesOfRegion counts up to the end of one region, or to end.
func (d *Disk) dataBytesOfRegion(id string, off, end int64) (bytes, next int64, err error) {
	section := d.readers.enter()
	defer d.readers.exit(section)
	n := d.leaf.Load()
	if id != "" {
		if n, err = d.namedNode(id); err != nil {
			return 0, off, err
		}
	}
	if next, err := n.nextHeld(off); err != nil || next > off {
		return 0, min(next, end), err
	}
	i := off >> regionBits
	var r *region
	if n.frozen() {
		r = n.regions.get(i)
	}
	if r == nil {
		if r, err = n.resolve(i); err != nil {
			return 0, off, err
		}
	}
	next = min(end, r.base+regionSize)
	return r.dataBetween(off-r.base, next-r.base), next, nil
}

// dataBetween is how much of a region is data from one offset within it to another.
func (r *region) dataBetween(from, to int64) int64 {
	var total int64
	for i := r.find(uint32(from)); i < len(r.spans) && int64(r.spans[i].start) < to; i++ {
		if k := r.spans[i].kind; k == extent.Zero || k == extent.Damaged {
			continue
		}
		stop := to
		if i+1 < len(r.spans) {
			stop = min(to, int64(r.spans[i+1].start))
		}
		total += stop - max(from, int64(r.spans[i].start))
	}
	return total
}
