package chain

import (
	"varve/overlay/extent"
	"varve/overlay/hostfs"
)

// A view whose layer is being written, or may be, is not resolved: its own tables are
// asked first, at each read, and then what is below.

// readLive reads the view of a layer that is being written: its own tables
// first, then what is below. It is right for a frozen one too.
func (n *node) readLive(p []byte, off int64) error {
	l := n.link.Load()
	if l.layer == nil {
		return l.parent.ReadAt(p, off)
	}
	o := l.layer.over()
	if o == nil {
		return n.readResolved(p, off)
	}
	if left := o.Size() - off; left < int64(len(p)) {
		clear(p[max(0, left):])
		p = p[:max(0, left)]
	}
	for len(p) > 0 {
		e, err := o.Lookup(off, int64(len(p)))
		if err != nil {
			return err
		}
		for e.Length < int64(len(p)) {
			next, err := o.Lookup(e.End(), int64(len(p))-e.Length)
			if err != nil {
				return err
			}
			if next.Kind != e.Kind || e.Kind == extent.Data && next.Host != e.Host+e.Length {
				break
			}
			e.Length += next.Length
		}
		part := p[:e.Length]
		switch {
		case e.Kind == extent.Data:
			if err = o.ReadHost(part, e.Host); err != nil {
				err = l.layer.failedRead(off, e.Length, e.Kind, err)
			}
		case e.Kind == extent.Unallocated && l.parent != nil:
			err = l.parent.ReadAt(part, off)
		case e.Kind == extent.Damaged:
			l.layer.lookAround(e)
			err = o.ReadExtent(part, e, off)
		default:
			clear(part)
		}
		if err != nil {
			return err
		}
		p, off = p[e.Length:], off+e.Length
	}
	return nil
}

// isZeroLive is IsZero for a layer that is being written.
func (n *node) isZeroLive(off, length int64) (bool, error) {
	l := n.link.Load()
	extents, err := l.layer.extents(nil, off, length)
	if err != nil {
		return false, err
	}
	for _, e := range extents {
		switch {
		case e.Kind == extent.Zero || e.Kind == extent.Unallocated && l.parent == nil:
		case e.Kind == extent.Unallocated:
			if zero, err := l.parent.IsZero(e.Start, e.Length); err != nil || !zero {
				return false, err
			}
		default:
			return false, nil
		}
	}
	return true, nil
}

// placeLive is Place for a layer that is, or may be, written meanwhile.
func (n *node) placeLive(off, length int64) (f hostfs.File, host, run int64, err error) {
	l := n.link.Load()
	if l.layer == nil {
		return l.parent.Place(off, length)
	}
	o := l.layer.over()
	if o == nil || off >= o.Size() {
		return nil, 0, length, nil
	}
	extents, err := o.Map(nil, off, min(length, o.Size()-off))
	if err != nil {
		return nil, 0, 0, err
	}
	e := extents[0]
	if e.Kind != extent.Data {
		return nil, 0, e.Length, nil
	}
	return l.layer.file, e.Host, e.Length, nil
}

// Place is that of the content as liveSource reads it.
func (s liveSource) Place(off, length int64) (f hostfs.File, host, run int64, err error) {
	return s.placeLive(off, length)
}

// ownSource is a node as the source of a merge of its layer alone: the
// layer's own extents, with the content as the node's view has it.
type ownSource struct{ *node }

// alone is the node as the source of a merge of its layer alone.
func (n *node) alone() ownSource { return ownSource{n} }

// aloneLive is the same of a layer that is, or may be, written meanwhile.
func (n *node) aloneLive() liveSource { return liveSource{ownSource{n}} }

func (s ownSource) Map(dst []extent.Extent, off, length int64) ([]extent.Extent, error) {
	return s.layer().extents(dst, off, length)
}

// liveSource is ownSource for a layer that is, or may be, written meanwhile.
type liveSource struct{ ownSource }

func (s liveSource) ReadAt(p []byte, off int64) error { return s.readLive(p, off) }
