package figures

import (
	"sync"
	"sync/atomic"
	"time"

	"varve/chain/manifest"
	"varve/chain/view"
	"varve/overlay/extent"
)

// What stat and status tell of bytes stands in tables that may be many: of a disk
// of 1 TiB with 128 layers hundreds of MiB. Nobody waits for them.
//
//	frozen view, frozen layer   counted once, kept in chain.json (Note)
//	leaf                        its regions counted once after the open, then only
//	                            those that changed
//	not counted yet             a pass goes through the tables in the background
//	                            (pass.go); until it ends the figure so far is told
//	layer that a job writes,    the last figure is told, and that it is old
//	and what stands on it
const (
	// countPatience is how long a look waits for a pass that may be done in a moment.
	countPatience = 80 * time.Millisecond
	// recountBudget is how long a look goes on counting what the guest changed.
	recountBudget = 20 * time.Millisecond
)

// count remembers a number of bytes that was counted in a layer's tables, and the
// last figure that there was.
type count struct {
	p    atomic.Pointer[countAt]
	last atomic.Int64
	// forgotten counts how often what was counted stopped being right.
	forgotten atomic.Uint64
}

type countAt struct {
	layer     *view.Layer
	forgotten uint64
	bytes     int64
}

func (c *count) get(l *view.Layer) (int64, bool) {
	at := c.p.Load()
	if at == nil || at.layer != l || at.forgotten != c.forgotten.Load() {
		return 0, false
	}
	return at.bytes, true
}

// set is for what was counted since forgotten was looked at.
func (c *count) set(l *view.Layer, forgotten uint64, bytes int64) {
	c.p.Store(&countAt{layer: l, forgotten: forgotten, bytes: bytes})
	c.last.Store(bytes)
}

func (c *count) forget() {
	c.forgotten.Add(1)
	c.p.Store(nil) // or it would hold a layer that is gone
}

// liveCount remembers of each region of the leaf's view what the leaf maps there,
// how many bytes more of it are data than of the view below, and how many bytes of
// data of the layer below it hides, so that a look counts only where something
// changed since the last one.
type liveCount struct {
	mu      sync.Mutex
	layer   *view.Layer // nil: not counted yet
	parent  *view.Node
	regions regionCounts
	view    int64 // sum of more
	mapped  int64 // sum of own
	hidden  int64 // sum of hides
}

// regionCount is what is counted of a region, which has 16 MiB.
type regionCount struct{ more, own, hides int32 }

// countChunk is how many counts of regions stand together.
const countChunk = 256

// regionCounts has those of the regions in which something was counted, and none of a
// hole.
type regionCounts map[int64]*[countChunk]regionCount

// at is the place of a region's count.
func (c *regionCounts) at(i int64) *regionCount {
	if *c == nil {
		*c = make(regionCounts)
	}
	chunk := (*c)[i/countChunk]
	if chunk == nil {
		chunk = new([countChunk]regionCount)
		(*c)[i/countChunk] = chunk
	}
	return &chunk[i%countChunk]
}

func (c *liveCount) put(i int64, now regionCount) {
	was := c.regions.at(i)
	c.view += int64(now.more) - int64(was.more)
	c.mapped += int64(now.own) - int64(was.own)
	c.hidden += int64(now.hides) - int64(was.hides)
	*was = now
}

// View is how many bytes of a view are data. When it is not known, it is the
// last or partial figure, and ok is false.
func (f *Figures) View(n *view.Node, until time.Time) (bytes int64, ok bool, err error) {
	l, parent := n.Layer(), n.Parent()
	if l == nil {
		return f.View(parent, until)
	}
	c := f.of(n)
	if n != f.in.Leaf() || n.Frozen() {
		if bytes, ok = c.view.get(l); ok {
			return bytes, true, nil
		}
		return c.view.last.Load(), false, nil
	}
	below, known := int64(0), true
	if parent != nil {
		if below, known = f.of(parent).view.get(parent.Layer()); !known || parent.Absorbing() {
			return c.view.last.Load(), false, nil
		}
	}
	c.live.mu.Lock()
	defer c.live.mu.Unlock()
	done, err := f.recountLive(&c.live, n, l, parent, until)
	if err != nil || !c.live.of(l, parent) {
		return c.view.last.Load(), false, err
	}
	bytes = below + c.live.view
	c.view.last.Store(bytes)
	c.own.last.Store(c.live.mapped)
	return bytes, done, nil
}

// OfTheLeaf is what is known of the leaf, for the moment in which it is frozen.
func (f *Figures) OfTheLeaf(n *view.Node) (counts manifest.Counts, ok bool) {
	l, parent := n.Layer(), n.Parent()
	if parent != nil {
		if counts.View, ok = f.of(parent).view.get(parent.Layer()); !ok {
			return counts, false
		}
	}
	c := f.of(n)
	c.live.mu.Lock()
	defer c.live.mu.Unlock()
	done, err := f.recountLive(&c.live, n, l, parent, time.Now().Add(recountBudget))
	counts.Own, counts.Hides = c.live.mapped, c.live.hidden
	counts.View += c.live.view
	return counts, done && err == nil
}

// forget has everything counted again.
func (c *liveCount) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.layer, c.parent, c.regions = nil, nil, nil
	c.view, c.mapped, c.hidden = 0, 0, 0
}

func (c *liveCount) of(l *view.Layer, parent *view.Node) bool {
	return c.layer == l && c.parent == parent
}

// recountLive counts the regions of the leaf that changed; false when that is not
// done, for want of time or because all of it is yet to be counted. Called with
// c.mu held.
func (f *Figures) recountLive(c *liveCount, n *view.Node, l *view.Layer, parent *view.Node, until time.Time) (done bool, err error) {
	over := l.Over()
	if over == nil || !c.of(l, parent) || parent != nil && parent.Absorbing() {
		return false, nil
	}
	size := n.Size()
	for at, more := over.NextChanged(0); more; at, more = over.NextChanged(at + view.RegionSize) {
		f.in.Cache.Step()
		// Asked before it is counted: a change while it is makes the next look
		// count again.
		if !over.TakeChanged(at) {
			continue
		}
		if time.Now().After(until) {
			over.MarkChanged(at, 1)
			return false, nil
		}
		if err := f.recountRegion(c, n, l, at>>view.RegionBits, size); err != nil {
			over.MarkChanged(at, 1)
			return false, err
		}
	}
	return true, nil
}

func (f *Figures) recountRegion(c *liveCount, n *view.Node, l *view.Layer, i int64, size int64) error {
	own, err := f.mappedBytes(l, i<<view.RegionBits, size)
	if err != nil {
		return err
	}
	more, err := n.RegionBytes(f.in.Readers, i, size)
	if err != nil {
		return err
	}
	if parent := n.Parent(); parent != nil {
		less, err := parent.RegionBytes(f.in.Readers, i, parent.Size())
		if err != nil {
			return err
		}
		more -= less
	}
	hides, err := n.HiddenIn(f.in.Readers, i<<view.RegionBits)
	if err != nil {
		return err
	}
	c.put(i, regionCount{int32(more), int32(own), int32(hides)})
	return nil
}

// mappedBytes is how much of a region a layer itself maps.
func (f *Figures) mappedBytes(l *view.Layer, off, size int64) (total int64, err error) {
	section := f.in.Readers.Enter()
	defer f.in.Readers.Exit(section)
	extents, err := l.Extents(nil, off, min(view.RegionSize, max(0, size-off)))
	for _, e := range extents {
		if e.Kind != extent.Unallocated && e.Kind != extent.Damaged {
			total += e.Length
		}
	}
	return total, err
}

// Own is how many bytes a layer itself maps, as view tells it.
func (f *Figures) Own(n *view.Node, until time.Time) (bytes int64, ok bool, err error) {
	l := n.Layer()
	if l == nil {
		return 0, true, nil
	}
	c := f.of(n)
	if n != f.in.Leaf() || n.Frozen() {
		if bytes, ok = c.own.get(l); ok && n.Frozen() {
			return bytes, true, nil
		}
		return c.own.last.Load(), false, nil
	}
	c.live.mu.Lock()
	defer c.live.mu.Unlock()
	parent := n.Parent()
	done, err := f.recountLive(&c.live, n, l, parent, until)
	if err != nil || !c.live.of(l, parent) {
		return c.own.last.Load(), false, err
	}
	c.own.last.Store(c.live.mapped)
	return c.live.mapped, done, nil
}
