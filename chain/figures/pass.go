package figures

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"varve/chain/view"
	"varve/overlay"
	"varve/overlay/extent"
	"varve/overlay/qcow2"
)

// counter runs passes over the tables, one at a time, when a look needs one. It
// has no goroutine while nobody looks.
type counter struct {
	figures *Figures
	done    sync.WaitGroup
	// waiting is how many looks wait for the pass, which then does not pause.
	waiting atomic.Int64
	stop    context.CancelFunc
	ctx     context.Context

	mu     sync.Mutex
	pass   *pass // under way; nil when there is none
	closed bool
}

// pass is one run. err is set when ended is closed.
type pass struct {
	started time.Time
	ended   chan struct{}
	err     error
}

func (c *counter) init(f *Figures) {
	c.figures = f
	c.ctx, c.stop = context.WithCancel(context.Background())
}

// start begins a pass unless one runs; nil when the disk is being closed.
func (c *counter) start() *pass {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	if c.pass == nil {
		p := &pass{started: time.Now(), ended: make(chan struct{})}
		c.pass = p
		c.done.Go(func() { c.run(p) })
	}
	return c.pass
}

func (c *counter) run(p *pass) {
	defer close(p.ended)
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.pass = nil
	}()
	defer func() {
		// A bug, or a table that shows one, costs a figure and not the mount.
		if bug := recover(); bug != nil {
			c.figures.in.Log.Error("counting failed by a bug in varve; please report it", "panic", bug, "stack", string(debug.Stack()))
			p.err = fmt.Errorf("counting failed: %v", bug)
		}
	}()
	p.err = c.figures.countAllViews(c.ctx)
	if p.err == nil {
		c.figures.in.Store()
	}
}

// await waits for a pass, for a while at most.
func (c *counter) await(p *pass, most time.Duration) bool {
	c.waiting.Add(1)
	defer c.waiting.Add(-1)
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-p.ended:
		return true
	case <-timer.C:
		return false
	}
}

// close ends the pass under way and lets none begin any more.
func (c *counter) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stop()
	c.done.Wait()
}

// rest keeps a pass for which nobody waits to a third of a processor.
func (c *counter) rest(worked time.Duration) {
	if c.waiting.Load() > 0 {
		return
	}
	select {
	case <-c.ctx.Done():
	case <-time.After(2 * worked):
	}
}

// countAllViews counts what is not counted yet, the leaf's chain first and then
// what stands beside it.
func (f *Figures) countAllViews(ctx context.Context) error {
	for {
		before, nodes := f.in.Tree()
		tips := []*view.Node{f.in.Leaf()}
		for _, l := range before.Layers {
			if n := nodes[l.ID]; n != nil && len(before.Children(l.ID)) == 0 && n != tips[0] {
				tips = append(tips, n)
			}
		}
		var err error
		for _, tip := range tips {
			if err = f.countPath(ctx, tip); err != nil {
				break
			}
		}
		if err == nil {
			err = f.recountLeaf(ctx)
		}
		if now, _ := f.in.Tree(); err == nil || now == before || !errors.Is(err, os.ErrClosed) && !errors.Is(err, errTreeChanged) {
			if errors.Is(err, errTreeChanged) {
				err = nil // by a job that has not ended: the next look tries again
			}
			return err
		}
	}
}

// recountLeaf counts what changed in the leaf, in pieces: a look that comes meanwhile
// waits for one of them.
func (f *Figures) recountLeaf(ctx context.Context) error {
	for ctx.Err() == nil {
		n := f.in.Leaf()
		l := n.Layer()
		if l == nil {
			return nil
		}
		started := time.Now()
		known, done, err := f.recountPiece(n, l)
		if done || err != nil || !known {
			return err
		}
		if p := n.Parent(); p != nil && p.Absorbing() {
			return nil
		}
		f.counter.rest(time.Since(started))
	}
	return ctx.Err()
}

// recountPiece counts for a moment; known is false where all of the leaf is yet to
// be counted.
func (f *Figures) recountPiece(n *view.Node, l *view.Layer) (known, done bool, err error) {
	c := &f.of(n).live
	c.mu.Lock()
	defer c.mu.Unlock()
	known = l.Over() != nil && c.of(l, n.Parent())
	done, err = f.recountLive(c, n, l, n.Parent(), time.Now().Add(recountBudget/4))
	return known, done, err
}

var errTreeChanged = errors.New("the tree changed")

// passLayer is a layer of the path that a pass goes through.
type passLayer struct {
	node    *view.Node
	counts  *nodeFigures // of node
	link    view.Link
	layer   *view.Layer
	over    *overlay.Overlay // nil for a frozen layer
	unknown bool             // to be counted
	live    bool             // the leaf, and not frozen
	raw     bool             // a raw image
	view    uint64           // counts.view.forgotten before the pass
	ownOf   uint64           // counts.own.forgotten before the pass
	hidesOf uint64           // counts.hides.forgotten before the pass

	touched uint64
	extents []extent.Extent
	more    int64 // than the view below, so far
	own     int64
	hides   int64        // of the layer below, see nodeFigures.hides
	regions regionCounts // of the leaf
}

// countPath counts the views of a node and all below it that are not known, in one
// pass over guest space: the layers are asked from the top down, since a merge
// moves things down, and a set of sectors that are data is built from the bottom up.
func (f *Figures) countPath(ctx context.Context, tip *view.Node) error {
	path, need := f.passPath(tip)
	if !need {
		return nil
	}
	size := int64(0)
	for i := range path {
		if path[i].unknown {
			size = max(size, path[i].node.Size())
		}
	}
	for off := int64(0); off < size; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		started := time.Now()
		var err error
		if off, err = f.countSpans(path, off, size); err != nil {
			return err
		}
		tellSoFar(path)
		if worked := time.Since(started); worked > time.Millisecond {
			f.counter.rest(worked)
		}
	}
	f.keepCounts(path)
	return nil
}

// passPath is the path from a node to the bottom, bottom first, and whether there
// is something to count.
func (f *Figures) passPath(tip *view.Node) (path []passLayer, need bool) {
	for n := tip; n != nil; n = n.Parent() {
		if n.Absorbing() {
			return nil, false // until the merge ends
		}
		link := n.Link()
		if link.Layer == nil {
			continue
		}
		c := f.of(n)
		p := passLayer{node: n, counts: c, link: link, layer: link.Layer, over: link.Layer.Over(),
			view: c.view.forgotten.Load(), ownOf: c.own.forgotten.Load(), hidesOf: c.hides.forgotten.Load()}
		p.live = p.over != nil && n == f.in.Leaf()
		p.raw = link.Layer.Raw()
		if p.live {
			c.live.mu.Lock()
			p.unknown = !c.live.of(link.Layer, link.Parent)
			c.live.mu.Unlock()
		} else {
			_, view := c.view.get(link.Layer)
			_, own := c.own.get(link.Layer)
			_, hides := c.hides.get(link.Layer)
			hides = hides || link.Parent == nil || !link.Parent.Frozen()
			p.unknown = !view || (!own || !hides) && p.over == nil
		}
		need = need || p.unknown
		path = append(path, p)
	}
	slices.Reverse(path)
	return path, need
}

// countSpans counts, of the first 1 GiB at or behind off in which a layer holds
// anything, the regions in which one that is to be counted does, and says where to go
// on.
func (f *Figures) countSpans(path []passLayer, off, size int64) (next int64, err error) {
	f.in.Cache.Step()
	section := f.in.Readers.Enter()
	defer f.in.Readers.Exit(section)
	for i := range path {
		if p := &path[i]; p.node.Link() != p.link || p.node.Absorbing() {
			return off, errTreeChanged
		}
	}
	if off, err = nextOfPath(path, off); err != nil || off >= size {
		return off, err
	}
	off &^= view.RegionSize - 1
	wanted := uint64(0)
	for i := range path {
		if path[i].unknown {
			if err := touched(path, i, off); err != nil {
				return off, err
			}
			wanted |= path[i].touched
		}
	}
	for i := range path {
		if wanted != 0 && !path[i].unknown {
			if err := touched(path, i, off); err != nil {
				return off, err
			}
		}
	}
	for w := wanted; w != 0; w &= w - 1 {
		r := bits.TrailingZeros64(w)
		if at := off + int64(r)<<view.RegionBits; at < size {
			if err := countPassRegion(path, at, r); err != nil {
				return off, err
			}
		}
	}
	return off + qcow2.TouchedSpans*view.RegionSize, nil
}

// nextOfPath is where, at off or behind it, one of the layers of a path may hold
// something, whatever hides what; math.MaxInt64 when nothing follows.
func nextOfPath(path []passLayer, off int64) (int64, error) {
	best := int64(math.MaxInt64)
	for i := range path {
		next, err := path[i].layer.NextOwn(off)
		if err != nil {
			return 0, err
		}
		if best = min(best, next); best <= off {
			break
		}
	}
	return best, nil
}

// touched asks a layer of the path in which regions it maps something.
func touched(path []passLayer, i int, off int64) (err error) {
	p := &path[i]
	if p.touched, err = p.layer.Touched(off); err != nil {
		return err
	}
	if i > 0 && path[i-1].node.Size() > p.node.Size() {
		// What is below shows no further than this layer goes (M2).
		if from := p.node.Size() - off; from < qcow2.TouchedSpans*view.RegionSize {
			p.touched |= ^uint64(0) << (max(0, from) >> view.RegionBits)
		}
	}
	return nil
}

func countPassRegion(path []passLayer, at int64, r int) error {
	for i := range slices.Backward(path) {
		p := &path[i]
		p.extents = p.extents[:0]
		if p.live && p.unknown {
			p.over.TakeChanged(at) // before it is read; see recountLive
		}
		if p.touched>>r&1 == 0 {
			continue
		}
		var err error
		if p.extents, err = p.layer.Extents(p.extents, at, view.RegionSize); err != nil {
			return err
		}
	}
	var data sectorSet
	below := int64(0)
	for i := range path {
		p := &path[i]
		own := int64(0)
		for _, e := range p.extents {
			if e.Kind == extent.Unallocated {
				continue
			}
			data.put(e.Start-at, e.End()-at, e.Kind != extent.Zero && e.Kind != extent.Damaged)
			if e.Kind == extent.Damaged {
				continue // it is told of by itself
			}
			if p.raw && e.Kind == extent.Zero {
				continue // a hole: a raw image has only what the host holds
			}
			own += max(0, min(e.End(), p.node.Size())-e.Start)
		}
		here := data.bytes(p.node.Size() - at)
		if p.unknown && p.touched>>r&1 != 0 {
			p.more += here - below
			p.own += own
			hides := int64(0)
			if i > 0 {
				hides = view.HiddenBytes(path[i-1].extents, p.extents)
			}
			p.hides += hides
			if p.live && at < p.node.Size() {
				*p.regions.at(at >> view.RegionBits) = regionCount{int32(here - below), int32(own), int32(hides)}
			}
		}
		below = here
	}
	return nil
}

// tellSoFar lets looks see how far the pass is.
func tellSoFar(path []passLayer) {
	below := int64(0)
	for i := range path {
		p := &path[i]
		view, ok := p.counts.view.get(p.layer)
		if !ok {
			view = below + p.more
			p.counts.view.last.Store(view)
		}
		if _, ok := p.counts.own.get(p.layer); !ok && p.unknown {
			p.counts.own.last.Store(p.own)
		}
		below = view
	}
}

// keepCounts keeps what a pass has counted, of layers that nobody wrote meanwhile.
func (f *Figures) keepCounts(path []passLayer) {
	below := int64(0)
	for i := range path {
		p := &path[i]
		view, known := p.counts.view.get(p.layer)
		switch {
		case p.node.Link() != p.link || p.node.Absorbing():
			return
		case p.live:
			if c := &p.counts.live; p.unknown {
				c.mu.Lock()
				c.layer, c.parent, c.regions = p.layer, p.link.Parent, p.regions
				c.view, c.mapped, c.hidden = p.more, p.own, p.hides
				c.mu.Unlock()
			}
			return // it is the last one
		case p.unknown:
			if !known {
				view = below + p.more
				p.counts.view.set(p.layer, p.view, view)
			}
			if p.over == nil {
				p.counts.own.set(p.layer, p.ownOf, p.own)
				if i == 0 || path[i-1].over == nil {
					p.counts.hides.set(p.layer, p.hidesOf, p.hides)
				}
			}
		}
		below = view
	}
}

const sectorBits = 9

// sectorSet says which sectors of a region are data, in whole or in part.
type sectorSet struct {
	words [view.RegionSize >> sectorBits / 64]uint64
	count int64
}

// put makes [from, to), in bytes within the region, data or not.
func (s *sectorSet) put(from, to int64, data bool) {
	const round = 1<<sectorBits - 1
	if data {
		from, to = from>>sectorBits, (to+round)>>sectorBits
	} else {
		from, to = (from+round)>>sectorBits, to>>sectorBits
	}
	for from < to {
		word := &s.words[from>>6]
		n := min(64-from&63, to-from)
		mask := ^uint64(0) >> (64 - n) << (from & 63)
		before := bits.OnesCount64(*word)
		if data {
			*word |= mask
		} else {
			*word &^= mask
		}
		s.count += int64(bits.OnesCount64(*word) - before)
		from += n
	}
}

// bytes is how many bytes before limit are data.
func (s *sectorSet) bytes(limit int64) int64 {
	total := s.count << sectorBits
	if limit > 0 && limit < view.RegionSize && limit&(1<<sectorBits-1) != 0 {
		if last := limit >> sectorBits; s.words[last>>6]>>(last&63)&1 != 0 {
			total -= 1<<sectorBits - limit&(1<<sectorBits-1)
		}
	}
	return total
}
