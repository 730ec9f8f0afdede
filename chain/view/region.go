package view

import (
	"iter"
	"sync/atomic"

	"varve/overlay/extent"
	"varve/overlay/qcow2"
)

const (
	RegionBits = 24 // 16 MiB of guest space
	RegionSize = qcow2.ChangeSpan
)

var _ = [1]struct{}{}[RegionSize-1<<RegionBits] // they are the same

// Region is a view's resolved answer for one stretch of guest space: which
// layer's file holds what, found once by asking the layers in turn, so that
// later reads cost the same at any depth. It never changes; regions of a view
// through layers that a job writes are dropped and resolved again (M1).
type Region struct {
	spans  []span // in order, without gaps, from 0 on
	layers []*Layer
	base   int64 // guest offset

	node *Node
	at   int64 // index within the node
	used atomic.Bool
}

// span is the start of a run with one answer; the next span's start ends it.
type span struct {
	start uint32 // within the region
	layer uint16 // index into region.layers
	kind  extent.Kind
	host  int64
}

const spanBytes = 16

// cost is the memory that a region takes, in bytes.
func (r *Region) cost() int64 {
	return int64(cap(r.spans))*spanBytes + int64(cap(r.layers))*8 + 160
}

// find is the index of the span that holds an offset within the region.
func (r *Region) find(in uint32) int {
	lo, hi := 0, len(r.spans)
	for hi-lo > 1 {
		mid := int(uint(lo+hi) >> 1)
		if r.spans[mid].start <= in {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}

// read fills p from guest offset off, which is in within the region.
func (r *Region) read(p []byte, off int64, in uint32) error {
	if len(p) >= aheadFrom {
		r.readAhead(in, in+uint32(len(p)))
	}
	for i := r.find(in); len(p) > 0; i++ {
		s := &r.spans[i]
		end := uint32(RegionSize)
		if i+1 < len(r.spans) {
			end = r.spans[i+1].start
		}
		part := p[:min(len(p), int(end-in))]
		if s.kind == extent.Zero {
			clear(part)
		} else {
			e := extent.Extent{Start: r.base + int64(s.start), Length: int64(end - s.start), Host: s.host, Kind: s.kind}
			l := r.layers[s.layer]
			if err := l.state.Load().ReadExtent(part, e, off); err != nil {
				return l.failedRead(off, int64(len(part)), s.kind, err)
			}
			if l.isDamaged() {
				l.readWell(off, int64(len(part)))
			}
		}
		p, off, in = p[len(part):], off+int64(len(part)), in+uint32(len(part))
	}
	return nil
}

// aheadFrom is from how many bytes on a read looks whether its pieces are in the
// page cache: a smaller one has few of them.
const aheadFrom = 64 << 10

// readAhead has the host begin to read all pieces of a range at once, when the first
// of several is not in its page cache. One after the other each would wait for the
// disk; the host reads ahead within a file, and these are in many.
func (r *Region) readAhead(in, end uint32) {
	cold := false
	for i := r.find(in); i < len(r.spans) && r.spans[i].start < end; i++ {
		s := &r.spans[i]
		stop := end
		if i+1 < len(r.spans) {
			stop = min(stop, r.spans[i+1].start)
		}
		if s.kind != extent.Data || s.start <= in && stop == end {
			continue
		}
		from := max(s.start, in)
		host, n, file := s.host+int64(from-s.start), int64(stop-from), r.layers[s.layer].File
		if !cold {
			if cached, err := file.Cached(host, n); err != nil || cached >= n {
				return
			}
			cold = true // and it is read next
			continue
		}
		_ = file.WillNeed(host, n) // the read comes in any case
	}
}

// Span is a run of guest bytes with one answer.
type Span struct {
	Start, End int64  // guest offsets
	Layer      *Layer // nil for zeros, and for what nobody was asked of
	Kind       extent.Kind
	Host       int64 // of Data, in the layer's file
}

// whole is span i of a region.
func (r *Region) whole(i int) Span {
	s := r.spans[i]
	w := Span{Start: r.base + int64(s.start), End: r.base + RegionSize, Kind: s.kind, Host: s.host}
	if i+1 < len(r.spans) {
		w.End = r.base + int64(r.spans[i+1].start)
	}
	if s.kind != extent.Zero && s.kind != extent.Unallocated {
		w.Layer = r.layers[s.layer]
	}
	return w
}

// Each gives the spans of a region that have a byte of [from, to), cut to it.
func (r *Region) Each(from, to int64) iter.Seq[Span] {
	return func(yield func(Span) bool) {
		from := max(from, r.base)
		to := min(to, r.base+RegionSize)
		if from >= to {
			return
		}
		for i := r.find(uint32(from - r.base)); i < len(r.spans); i++ {
			s := r.whole(i)
			if s.Start >= to {
				return
			}
			if s.Start < from {
				if s.Kind == extent.Data {
					s.Host += from - s.Start
				}
				s.Start = from
			}
			s.End = min(s.End, to)
			if !yield(s) {
				return
			}
		}
	}
}

// Cursor begins at a region's start.
func (r *Region) Cursor() Cursor { return Cursor{r: r} }

// Cursor goes along a region's spans.
type Cursor struct {
	r *Region
	i int
}

// At is the span that holds a guest offset. Offsets only grow.
func (c *Cursor) At(off int64) Span {
	in := off - c.r.base
	for c.i+1 < len(c.r.spans) && int64(c.r.spans[c.i+1].start) <= in {
		c.i++
	}
	return c.r.whole(c.i)
}

// region is the node's resolved region with an index, from the cache or made.
func (n *Node) region(i int64) (*Region, error) {
	if r := n.regions.get(i); r != nil {
		if !r.used.Load() {
			r.used.Store(true)
		}
		n.cache.hits.Inc()
		return r, nil
	}
	n.cache.misses.Inc()
	generation := n.cache.generation.Load()
	r, err := n.resolve(i)
	if err != nil {
		return nil, err
	}
	if !n.absorbing.Load() {
		n.cache.insert(r, generation)
	}
	return r, nil
}

// resolve asks the layers from the node's own downwards, each only about what
// those above left open, and stops at a view whose region is resolved.
func (n *Node) resolve(i int64) (*Region, error) {
	n.cache.Step()
	b := Build(i)
	for at := n; at != nil && b.Open(); {
		if at != n && !at.absorbing.Load() {
			if below := at.regions.get(i); below != nil {
				b.take(below)
				break
			}
		}
		l := at.link.Load()
		if l.Layer != nil {
			if err := b.Ask(l.Layer); err != nil {
				return nil, err
			}
		}
		at = l.Parent
	}
	r := b.Finish(extent.Zero)
	r.node = n
	return r, nil
}
