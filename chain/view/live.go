package view

import (
	"varve/overlay/extent"
	"varve/overlay/hostfs"
)

// A view whose layer is being written, or may be, is not resolved: its own tables are
// asked first, at each read, and then what is below.

// ReadLive reads the view of a layer that is being written: its own tables
// first, then what is below. It is right for a frozen one too.
func (n *Node) ReadLive(p []byte, off int64) error {
	l := n.link.Load()
	if l.Layer == nil {
		return l.Parent.ReadAt(p, off)
	}
	o := l.Layer.Over()
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
				err = l.Layer.failedRead(off, e.Length, e.Kind, err)
			}
		case e.Kind == extent.Unallocated && l.Parent != nil:
			err = l.Parent.ReadAt(part, off)
		case e.Kind == extent.Damaged:
			l.Layer.lookAround(e)
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
func (n *Node) isZeroLive(off, length int64) (bool, error) {
	l := n.link.Load()
	extents, err := l.Layer.Extents(nil, off, length)
	if err != nil {
		return false, err
	}
	for _, e := range extents {
		switch {
		case e.Kind == extent.Zero || e.Kind == extent.Unallocated && l.Parent == nil:
		case e.Kind == extent.Unallocated:
			if zero, err := l.Parent.IsZero(e.Start, e.Length); err != nil || !zero {
				return false, err
			}
		default:
			return false, nil
		}
	}
	return true, nil
}

// placeLive is Place for a layer that is, or may be, written meanwhile.
func (n *Node) placeLive(off, length int64) (f hostfs.File, host, run int64, err error) {
	l := n.link.Load()
	if l.Layer == nil {
		return l.Parent.Place(off, length)
	}
	o := l.Layer.Over()
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
	return l.Layer.File, e.Host, e.Length, nil
}

// Place is that of the content as Live reads it.
func (s Live) Place(off, length int64) (f hostfs.File, host, run int64, err error) {
	return s.placeLive(off, length)
}

// Own is a node as the source of a merge of its layer alone: the
// layer's own extents, with the content as the node's view has it.
type Own struct{ *Node }

// Alone is the node as the source of a merge of its layer alone.
func (n *Node) Alone() Own { return Own{n} }

// AloneLive is the same of a layer that is, or may be, written meanwhile.
func (n *Node) AloneLive() Live { return Live{Own{n}} }

func (s Own) Map(dst []extent.Extent, off, length int64) ([]extent.Extent, error) {
	return s.Layer().Extents(dst, off, length)
}

// Live is Own for a layer that is, or may be, written meanwhile.
type Live struct{ Own }

func (s Live) ReadAt(p []byte, off int64) error { return s.ReadLive(p, off) }
