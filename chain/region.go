package chain

import (
	"cmp"
	"iter"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"varve/overlay/extent"
	"varve/overlay/measure"
	"varve/overlay/qcow2"
)

const (
	regionBits = 24 // 16 MiB of guest space
	regionSize = qcow2.ChangeSpan
)

var _ = [1]struct{}{}[regionSize-1<<regionBits] // they are the same

// region is a view's resolved answer for one stretch of guest space: which
// layer's file holds what, found once by asking the layers in turn, so that
// later reads cost the same at any depth. It never changes; regions of a view
// through layers that a job writes are dropped and resolved again (M1).
type region struct {
	spans  []span // in order, without gaps, from 0 on
	layers []*layer
	base   int64 // guest offset

	node *node
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
func (r *region) cost() int64 {
	return int64(cap(r.spans))*spanBytes + int64(cap(r.layers))*8 + 160
}

// find is the index of the span that holds an offset within the region.
func (r *region) find(in uint32) int {
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
func (r *region) read(p []byte, off int64, in uint32) error {
	if len(p) >= aheadFrom {
		r.readAhead(in, in+uint32(len(p)))
	}
	for i := r.find(in); len(p) > 0; i++ {
		s := &r.spans[i]
		end := uint32(regionSize)
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
func (r *region) readAhead(in, end uint32) {
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
		host, n, file := s.host+int64(from-s.start), int64(stop-from), r.layers[s.layer].file
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

// regionIndex finds a node's regions without a lock, in two steps.
type regionIndex struct {
	top atomic.Pointer[[]atomic.Pointer[regionChunk]]
	mu  sync.Mutex // growing top
}

const chunkRegions = 256

type regionChunk [chunkRegions]atomic.Pointer[region]

func (x *regionIndex) get(i int64) *region {
	top := x.top.Load()
	if top == nil || i/chunkRegions >= int64(len(*top)) {
		return nil
	}
	c := (*top)[i/chunkRegions].Load()
	if c == nil {
		return nil
	}
	return c[i%chunkRegions].Load()
}

// slot is the place of a region, made where there is none.
func (x *regionIndex) slot(i int64) *atomic.Pointer[region] {
	x.mu.Lock()
	defer x.mu.Unlock()
	var top []atomic.Pointer[regionChunk]
	if p := x.top.Load(); p != nil {
		top = *p
	}
	if need := i/chunkRegions + 1; need > int64(len(top)) {
		grown := make([]atomic.Pointer[regionChunk], max(need, 2*int64(len(top))))
		for j := range top {
			grown[j].Store(top[j].Load())
		}
		top = grown
		x.top.Store(&top)
	}
	c := top[i/chunkRegions].Load()
	if c == nil {
		c = new(regionChunk)
		top[i/chunkRegions].Store(c)
	}
	return &c[i%chunkRegions]
}

// regionCache bounds the memory of all regions of a disk with a clock hand.
type regionCache struct {
	mu         sync.Mutex
	limit      int64 // bytes
	bytes      int64
	ring       []*region
	hand       int
	generation atomic.Uint64 // raised, under mu, whenever regions are dropped

	hits, misses measure.Counter // regions asked for that were there, or had to be resolved
	evictions    measure.Counter // regions that gave way to others
	steps        measure.Counter // what walks over guest space looked at, piece by piece
}

// step counts a piece of guest space that a walk has looked at.
func (c *regionCache) step() { c.steps.Inc() }

// stepsTaken is how many there were: what a walk costs, whatever the machine.
func (c *regionCache) stepsTaken() int64 { return c.steps.Load() }

// insert publishes a region that was resolved at a generation. When regions
// were dropped meanwhile it may show what is about to be punched, and is not
// kept; its reader may use it, within its grace section.
func (c *regionCache) insert(r *region, generation uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.generation.Load() != generation {
		return
	}
	slot := r.node.regions.slot(r.at)
	if slot.Load() != nil {
		return // somebody was faster
	}
	r.used.Store(true)
	slot.Store(r)
	c.ring = append(c.ring, r)
	c.bytes += r.cost()
	for c.bytes > c.limit && len(c.ring) > 1 {
		c.hand %= len(c.ring)
		if old := c.ring[c.hand]; old == r || old.used.Swap(false) {
			c.hand++
			continue
		}
		c.remove(c.hand)
		c.evictions.Inc()
	}
}

// remove drops the region at a place of the ring; c.mu is held.
func (c *regionCache) remove(i int) {
	r := c.ring[i]
	r.node.regions.slot(r.at).CompareAndSwap(r, nil)
	c.bytes -= r.cost()
	last := len(c.ring) - 1
	c.ring[i] = c.ring[last]
	c.ring[last] = nil
	c.ring = c.ring[:last]
}

// drop forgets the regions of some nodes in a range of guest bytes. Sections
// that began before may still use them: synchronize before the data goes.
func (c *regionCache) drop(affected map[*node]bool, off, length int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.generation.Add(1)
	for i := 0; i < len(c.ring); {
		r := c.ring[i]
		if affected[r.node] && r.base < off+length && r.base+regionSize > off {
			c.remove(i)
			continue
		}
		i++
	}
}

// forget drops the regions of nodes that are gone. They would stay until the hand
// comes by, and hold what costs far more than is counted for them: their layers,
// with the tables. Called when nobody can come to these nodes any more, or a
// reader would put them in again.
func (c *regionCache) forget(gone map[*node]bool) {
	if len(gone) > 0 {
		c.drop(gone, 0, math.MaxInt64-regionSize)
	}
}

// region is the node's resolved region with an index, from the cache or made.
func (n *node) region(i int64) (*region, error) {
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
func (n *node) resolve(i int64) (*region, error) {
	n.cache.step()
	b := buildRegion(i)
	for at := n; at != nil && b.open(); {
		if at != n && !at.absorbing.Load() {
			if below := at.regions.get(i); below != nil {
				b.take(below)
				break
			}
		}
		l := at.link.Load()
		if l.layer != nil {
			if err := b.ask(l.layer); err != nil {
				return nil, err
			}
		}
		at = l.parent
	}
	r := b.finish(extent.Zero)
	r.node = n
	return r, nil
}

// regionBuilder makes a region of what layers say, from the top down: what one says
// stands, what it leaves open the next one is asked.
type regionBuilder struct {
	region  *region
	holes   []extent.Extent // what no layer has said anything of, in order
	spare   []extent.Extent // room for the next list of holes
	pieces  []span
	extents []extent.Extent
	last    *layer
	lastAt  uint16
}

// builders keep the room that a resolution needs besides its result: of a region
// in small pieces that is ten times as much.
var builders = sync.Pool{New: func() any { return new(regionBuilder) }}

// buildRegion begins the region with an index. End it with finish, but after an error.
func buildRegion(i int64) *regionBuilder {
	b := builders.Get().(*regionBuilder)
	b.region = &region{base: i << regionBits, at: i}
	b.holes = append(b.holes[:0], extent.Extent{Start: b.region.base, Length: regionSize})
	return b
}

// open says whether something is not answered yet.
func (b *regionBuilder) open() bool { return len(b.holes) > 0 }

// ask has a layer answer what is open. It asks once for the stretch from the first hole
// to the last: with every upper layer there are more of them, and each question is a
// read of the file.
func (b *regionBuilder) ask(l *layer) error {
	start, end := b.holes[0].Start, b.holes[len(b.holes)-1].End()
	var err error
	if b.extents, err = l.extents(b.extents[:0], start, end-start); err == nil {
		b.fill(l, b.extents)
		return nil
	} else if len(b.holes) == 1 {
		return err
	}
	// A place that the host cannot tell of is nobody's concern where the layers above
	// hide it.
	holes := slices.Clone(b.holes)
	var left []extent.Extent
	for _, h := range holes {
		if b.extents, err = l.extents(b.extents[:0], h.Start, h.Length); err != nil {
			return err
		}
		b.holes = append(b.holes[:0], h)
		b.fill(l, b.extents)
		left = append(left, b.holes...)
	}
	b.holes = left
	return nil
}

// fill takes what extents of a layer, in order and without gaps, say of what is open.
func (b *regionBuilder) fill(l *layer, extents []extent.Extent) {
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
func (b *regionBuilder) take(below *region) {
	for _, h := range b.holes {
		in, end := uint32(h.Start-below.base), uint32(h.End()-below.base)
		for i := below.find(in); i < len(below.spans) && below.spans[i].start < end; i++ {
			s := below.spans[i]
			var l *layer
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

func (b *regionBuilder) add(start int64, l *layer, kind extent.Kind, host int64) {
	s := span{start: uint32(start - b.region.base), kind: kind, host: host}
	if l != nil {
		s.layer = b.index(l)
	}
	b.pieces = append(b.pieces, s)
}

func (b *regionBuilder) index(l *layer) uint16 {
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

// finish gives the region, with one answer for all that is still open. The builder is
// not to be used any more.
func (b *regionBuilder) finish(rest extent.Kind) *region {
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

// regionSpan is a run of guest bytes with one answer.
type regionSpan struct {
	start, end int64  // guest offsets
	layer      *layer // nil for zeros, and for what nobody was asked of
	kind       extent.Kind
	host       int64 // of Data, in the layer's file
}

// whole is span i of a region.
func (r *region) whole(i int) regionSpan {
	s := r.spans[i]
	w := regionSpan{start: r.base + int64(s.start), end: r.base + regionSize, kind: s.kind, host: s.host}
	if i+1 < len(r.spans) {
		w.end = r.base + int64(r.spans[i+1].start)
	}
	if s.kind != extent.Zero && s.kind != extent.Unallocated {
		w.layer = r.layers[s.layer]
	}
	return w
}

// each gives the spans of a region that have a byte of [from, to), cut to it.
func (r *region) each(from, to int64) iter.Seq[regionSpan] {
	return func(yield func(regionSpan) bool) {
		from := max(from, r.base)
		to := min(to, r.base+regionSize)
		if from >= to {
			return
		}
		for i := r.find(uint32(from - r.base)); i < len(r.spans); i++ {
			s := r.whole(i)
			if s.start >= to {
				return
			}
			if s.start < from {
				if s.kind == extent.Data {
					s.host += from - s.start
				}
				s.start = from
			}
			s.end = min(s.end, to)
			if !yield(s) {
				return
			}
		}
	}
}

// cursor begins at a region's start.
func (r *region) cursor() regionCursor { return regionCursor{r: r} }

// regionCursor goes along a region's spans.
type regionCursor struct {
	r *region
	i int
}

// at is the span that holds a guest offset. Offsets only grow.
func (c *regionCursor) at(off int64) regionSpan {
	in := off - c.r.base
	for c.i+1 < len(c.r.spans) && int64(c.r.spans[c.i+1].start) <= in {
		c.i++
	}
	return c.r.whole(c.i)
}

// cacheMetrics are the figures of a cache: how often a region was there, was not and gave
// way to another, and what the regions take and may take, in bytes.
type cacheMetrics struct {
	Hits, Misses, Evictions int64
	Bytes, Limit            int64
}

// metrics are the figures of the cache.
func (c *regionCache) metrics() cacheMetrics {
	c.mu.Lock()
	defer c.mu.Unlock()
	return cacheMetrics{
		Hits: c.hits.Load(), Misses: c.misses.Load(), Evictions: c.evictions.Load(),
		Bytes: c.bytes, Limit: c.limit,
	}
}

// newRegionCache is a cache of so many bytes.
func newRegionCache(limit int64) *regionCache { return &regionCache{limit: limit} }
