package chain

import (
	"fmt"
	"time"

	"varve/chain/view"
)

// PeekView fills p from a layer's view, by layer id, without opening it: a delete
// does not wait for it, and it waits for nothing. Bytes past the end read as zeros.
// ErrNotExist when there is no named layer with that id.
func (d *Disk) PeekView(id string, p []byte, off int64) error {
	section := d.readers.Enter() // before the tree is looked at: what it has stays open
	defer d.readers.Exit(section)
	n, err := d.namedNode(id)
	if err != nil {
		return err
	}
	return n.ReadAt(p, off)
}

// namedNode is the node of a layer that has a name.
func (d *Disk) namedNode(id string) (*view.Node, error) {
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
	section := d.readers.Enter()
	defer d.readers.Exit(section)
	n := d.leaf.Load()
	if id != "" {
		if n, err = d.namedNode(id); err != nil {
			return 0, off, err
		}
	}
	if next, err := n.NextHeld(off); err != nil || next > off {
		return 0, min(next, end), err
	}
	r, err := n.Peek(off >> view.RegionBits)
	if err != nil {
		return 0, off, err
	}
	next = min(end, (off>>view.RegionBits+1)<<view.RegionBits)
	return r.DataBetween(off, next), next, nil
}
