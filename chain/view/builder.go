package view

import (
	"cmp"
	"slices"
	"sync"

	"varve/overlay/extent"
)

// Builder makes a region of what layers say, from the top down: what one says
// stands, what it leaves open the next one is asked.
type Builder struct {
	region  *Region
	holes   []extent.Extent // what no layer has said anything of, in order
	spare   []extent.Extent // room for the next list of holes
	pieces  []span
	extents []extent.Extent
	last    *Layer
	lastAt  uint16
}

// builders keep the room that a resolution needs besides its result: of a region
// in small pieces that is ten times as much.
var builders = sync.Pool{New: func() any { return new(Builder) }}

// Build begins the region with an index. End it with Finish; after an
// error drop it.
func Build(i int64) *Builder {
	b := builders.Get().(*Builder)
	b.region = &Region{base: i << RegionBits, at: i}
	b.holes = append(b.holes[:0], extent.Extent{Start: b.region.base, Length: RegionSize})
	return b
}

// Open says whether something is not answered yet.
func (b *Builder) Open() bool { return len(b.holes) > 0 }

// Ask has a layer answer what is open. It asks once for the stretch from the first hole
// to the last: with every upper layer there are more of them, and each question is a
// read of the file.
func (b *Builder) Ask(l *Layer) error {
	start, end := b.holes[0].Start, b.holes[len(b.holes)-1].End()
	var err error
	if b.extents, err = l.Extents(b.extents[:0], start, end-start); err == nil {
		b.Fill(l, b.extents)
		return nil
	} else if len(b.holes) == 1 {
		return err
	}
	// A place that the host cannot tell of is nobody's concern where the layers above
	// hide it.
	holes := slices.Clone(b.holes)
	var left []extent.Extent
	for _, h := range holes {
		if b.extents, err = l.Extents(b.extents[:0], h.Start, h.Length); err != nil {
			return err
		}
		b.holes = append(b.holes[:0], h)
		b.Fill(l, b.extents)
		left = append(left, b.holes...)
	}
	b.holes = left
	return nil
}

// Fill takes what extents of a layer, in order and without gaps, say of what is open.
func (b *Builder) Fill(l *Layer, extents []extent.Extent) {
	if len(extents) == 1 && extents[0].Kind == extent.Unallocated {
		return
	}
	left := b.spare[:0]
	i := 0
	for _, h := range b.holes {
		for extents[i].End() <= h.Start {
			i++
		}
		for k := i; k < len(extents) && extents[k].Start < h.End(); k++ {
			e := extents[k]
			start, end := max(e.Start, h.Start), min(e.End(), h.End())
			if e.Kind == extent.Unallocated {
				left = append(left, extent.Extent{Start: start, Length: end - start})
				continue
			}
			if e.Kind == extent.Data {
				e.Host += start - e.Start
			}
			b.add(start, l, e.Kind, e.Host)
		}
	}
	b.holes, b.spare = left, b.holes
}

// take answers all that is open from the resolved region of a view below.
func (b *Builder) take(below *Region) {
	for _, h := range b.holes {
		in, end := uint32(h.Start-below.base), uint32(h.End()-below.base)
		for i := below.find(in); i < len(below.spans) && below.spans[i].start < end; i++ {
			s := below.spans[i]
			var l *Layer
			if s.kind != extent.Zero {
				l = below.layers[s.layer]
			}
			if s.start < in {
				if s.kind == extent.Data {
					s.host += int64(in - s.start)
				}
				s.start = in
			}
			b.add(below.base+int64(s.start), l, s.kind, s.host)
		}
	}
	b.holes = b.holes[:0]
}

func (b *Builder) add(start int64, l *Layer, kind extent.Kind, host int64) {
	s := span{start: uint32(start - b.region.base), kind: kind, host: host}
	if l != nil {
		s.layer = b.index(l)
	}
	b.pieces = append(b.pieces, s)
}

func (b *Builder) index(l *Layer) uint16 {
	if b.last == l {
		return b.lastAt
	}
	i := slices.Index(b.region.layers, l)
	if i < 0 {
		i = len(b.region.layers)
		b.region.layers = append(b.region.layers, l)
	}
	b.last, b.lastAt = l, uint16(i)
	return b.lastAt
}

// Finish gives the region, with one answer for all that is still open. The builder is
// not to be used any more.
func (b *Builder) Finish(rest extent.Kind) *Region {
	for _, h := range b.holes {
		b.add(h.Start, nil, rest, 0)
	}
	// Pieces that continue each other are one span.
	p := b.pieces
	slices.SortFunc(p, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	out := p[:0]
	for _, s := range p {
		if n := len(out); n > 0 {
			last := &out[n-1]
			if s.kind == last.kind && (s.kind == extent.Zero || s.kind == extent.Unallocated || s.kind == extent.Damaged && s.layer == last.layer ||
				s.kind == extent.Data && s.layer == last.layer && s.host-last.host == int64(s.start-last.start)) {
				continue
			}
		}
		out = append(out, s)
	}
	r := b.region
	r.spans = append(make([]span, 0, len(out)), out...)
	r.layers = slices.Clip(r.layers)
	b.pieces, b.extents = b.pieces[:0], b.extents[:0]
	b.region, b.last = nil, nil // they hold layers, and these their files
	builders.Put(b)
	return r
}
