package chain

import (
	"context"

	"varve/chain/view"
	"varve/overlay/extent"
)

// hiddenBatch is about how many pieces of a layer's file are given back after one
// flush.
const hiddenBatch = 4096

// punchHidden gives back what c, the one layer that stands on x, hides of x's data:
// all that their merge gains, and nothing is copied for it. Nobody sees x but through
// c, whose entries never go again before the merge has written x there (copyDown) or
// x is gone. x's tables stay as they are, as in punchSource. Called while a job merges
// both, before it copies anything.
func (d *Disk) punchHidden(j *job, x, c *view.Node) error {
	m, _ := d.tree()
	if m.Layer(x.ID).Foreign {
		return nil
	}
	var hidden []extent.Extent
	for off, size := int64(0), min(x.Size(), c.Size()); off < size; off += view.RegionSize {
		next, err := d.nextOfAny([]*view.Node{x}, off)
		if err != nil {
			return err
		}
		if off = min(next, size-1) &^ (view.RegionSize - 1); next < size {
			if hidden, err = d.hiddenExtents(hidden, x, c, off, min(view.RegionSize, size-off)); err != nil {
				return err
			}
		}
		if len(hidden) < hiddenBatch && off+view.RegionSize < size || len(hidden) == 0 {
			continue
		}
		if j.ctx.Err() != nil {
			return context.Cause(j.ctx)
		}
		// M1: what hides it is durable first, and who looked before it was hidden has read.
		err = d.withRoom(j, func() error {
			return d.survive(j, func() error {
				if err := c.Layer().Over().Flush(); err != nil {
					return err
				}
				d.readers.Synchronize()
				return d.punchExtents(x.Layer(), hidden)
			})
		})
		if err != nil {
			return err
		}
		hidden = hidden[:0]
	}
	return nil
}

// hiddenExtents adds to dst the pieces of x's data in a range that c hides.
func (d *Disk) hiddenExtents(dst []extent.Extent, x, c *view.Node, off, length int64) ([]extent.Extent, error) {
	section := d.readers.Enter()
	defer d.readers.Exit(section)
	below, err := x.Alone().Map(nil, off, length)
	if err != nil {
		return nil, err
	}
	above, err := c.Alone().Map(nil, off, length)
	if err != nil {
		return nil, err
	}
	for _, e := range below {
		if e.Kind != extent.Data {
			continue
		}
		for _, a := range above {
			start, end := max(e.Start, a.Start), min(e.End(), a.End())
			if start >= end || a.Kind == extent.Unallocated || a.Kind == extent.Damaged {
				continue
			}
			dst = append(dst, extent.Extent{Start: start, Length: end - start, Host: e.Host + start - e.Start, Kind: extent.Data})
		}
	}
	return dst, nil
}
