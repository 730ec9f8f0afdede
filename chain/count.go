package chain

import (
	"sync"
	"sync/atomic"
	"time"

	"varve/overlay/extent"
)

// What stat and status tell of bytes stands in tables that may be many: of a disk
// of 1 TiB with 128 layers hundreds of MiB. Nobody waits for them.
//
//	frozen view, frozen layer   counted once, kept in chain.json (counts_store.go)
//	leaf                        its regions counted once after the open, then only
//	                            those that changed
//	not counted yet             a pass goes through the tables in the background
//	                            (countpass.go); until it ends the figure so far is told
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
	layer     *layer
	forgotten uint64
	bytes     int64
}

func (c *count) get(l *layer) (int64, bool) {
	at := c.p.Load()
	if at == nil || at.layer != l || at.forgotten != c.forgotten.Load() {
		return 0, false
	}
	return at.bytes, true
}

// set is for what was counted since forgotten was looked at.
func (c *count) set(l *layer, forgotten uint64, bytes int64) {
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
	layer   *layer // nil: not counted yet
	parent  *node
	regions regionCounts
	view    int64 // sum of more
	mapped  int64 // sum of own
	hidden  int64 // sum of hides
}

// regionCount is what is counted of a region, which has 16 MiB.
type regionCount struct{ more, own, hides int32 }

// regionCounts has those of the regions in which something was counted, and none of a
// hole.
type regionCounts map[int64]*[chunkRegions]regionCount

// at is the place of a region's count.
func (c *regionCounts) at(i int64) *regionCount {
	if *c == nil {
		*c = make(regionCounts)
	}
	chunk := (*c)[i/chunkRegions]
	if chunk == nil {
		chunk = new([chunkRegions]regionCount)
		(*c)[i/chunkRegions] = chunk
	}
	return &chunk[i%chunkRegions]
}

func (c *liveCount) put(i int64, now regionCount) {
	was := c.regions.at(i)
	c.view += int64(now.more) - int64(was.more)
	c.mapped += int64(now.own) - int64(was.own)
	c.hidden += int64(now.hides) - int64(was.hides)
	*was = now
}

// frozen says that the node's layer is not being written.
func (n *node) frozen() bool {
	l := n.layer()
	return l == nil || l.over() == nil
}

// viewCount is how many bytes of a view are data. When it is not known, it is the
// last or partial figure, and ok is false.
func (d *Disk) viewCount(n *node, until time.Time) (bytes int64, ok bool, err error) {
	l, parent := n.layer(), n.parent()
	if l == nil {
		return d.viewCount(parent, until)
	}
	if n != d.leaf.Load() || n.frozen() {
		if bytes, ok = n.view.get(l); ok {
			return bytes, true, nil
		}
		return n.view.last.Load(), false, nil
	}
	below, known := int64(0), true
	if parent != nil {
		if below, known = parent.view.get(parent.layer()); !known || parent.absorbing.Load() {
			return n.view.last.Load(), false, nil
		}
	}
	n.live.mu.Lock()
	defer n.live.mu.Unlock()
	done, err := d.recountLive(n, l, parent, until)
	if err != nil || !n.live.of(l, parent) {
		return n.view.last.Load(), false, err
	}
	bytes = below + n.live.view
	n.view.last.Store(bytes)
	n.own.last.Store(n.live.mapped)
	return bytes, done, nil
}

// frozenCount is what is known of the leaf, for the moment in which it is frozen.
func (d *Disk) frozenCount(n *node) (counts storedCounts, ok bool) {
	l, parent := n.layer(), n.parent()
	if parent != nil {
		if counts.View, ok = parent.view.get(parent.layer()); !ok {
			return counts, false
		}
	}
	n.live.mu.Lock()
	defer n.live.mu.Unlock()
	done, err := d.recountLive(n, l, parent, time.Now().Add(recountBudget))
	counts.Own, counts.Hides = n.live.mapped, n.live.hidden
	counts.View += n.live.view
	return counts, done && err == nil
}

// forget has everything counted again.
func (c *liveCount) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.layer, c.parent, c.regions = nil, nil, nil
	c.view, c.mapped, c.hidden = 0, 0, 0
}

func (c *liveCount) of(l *layer, parent *node) bool { return c.layer == l && c.parent == parent }

// recountLive counts the regions of the leaf that changed; false when that is not
// done, for want of time or because all of it is yet to be counted. Called with
// n.live.mu held.
func (d *Disk) recountLive(n *node, l *layer, parent *node, until time.Time) (done bool, err error) {
	c, over := &n.live, l.over()
	if over == nil || !c.of(l, parent) || parent != nil && parent.absorbing.Load() {
		return false, nil
	}
	size := n.size()
	for at, more := over.NextChanged(0); more; at, more = over.NextChanged(at + regionSize) {
		d.cache.steps.Inc()
		// Asked before it is counted: a change while it is makes the next look
		// count again.
		if !over.TakeChanged(at) {
			continue
		}
		if time.Now().After(until) {
			over.MarkChanged(at, 1)
			return false, nil
		}
		if err := d.recountRegion(c, n, l, at>>regionBits, size); err != nil {
			over.MarkChanged(at, 1)
			return false, err
		}
	}
	return true, nil
}

func (d *Disk) recountRegion(c *liveCount, n *node, l *layer, i int64, size int64) error {
	own, err := d.mappedBytes(l, i<<regionBits, size)
	if err != nil {
		return err
	}
	more, err := d.regionBytes(n, i, size)
	if err != nil {
		return err
	}
	if parent := n.parent(); parent != nil {
		less, err := d.regionBytes(parent, i, parent.size())
		if err != nil {
			return err
		}
		more -= less
	}
	hides, err := d.hiddenIn(n, i<<regionBits)
	if err != nil {
		return err
	}
	c.put(i, regionCount{int32(more), int32(own), int32(hides)})
	return nil
}

// mappedBytes is how much of a region a layer itself maps.
func (d *Disk) mappedBytes(l *layer, off, size int64) (total int64, err error) {
	section := d.readers.enter()
	defer d.readers.exit(section)
	extents, err := l.extents(nil, off, min(regionSize, max(0, size-off)))
	for _, e := range extents {
		if e.Kind != extent.Unallocated && e.Kind != extent.Damaged {
			total += e.Length
		}
	}
	return total, err
}

// ownCount is how many bytes a layer itself maps, as viewCount tells it.
func (d *Disk) ownCount(n *node, until time.Time) (bytes int64, ok bool, err error) {
	l := n.layer()
	if l == nil {
		return 0, true, nil
	}
	if n != d.leaf.Load() || n.frozen() {
		if bytes, ok = n.own.get(l); ok && n.frozen() {
			return bytes, true, nil
		}
		return n.own.last.Load(), false, nil
	}
	n.live.mu.Lock()
	defer n.live.mu.Unlock()
	parent := n.parent()
	done, err := d.recountLive(n, l, parent, until)
	if err != nil || !n.live.of(l, parent) {
		return n.own.last.Load(), false, err
	}
	n.own.last.Store(n.live.mapped)
	return n.live.mapped, done, nil
}

// waiting looks until a figure is known, at most for countPatience from the start of
// the pass on that counts it in the background: of many looks only the first wait.
func (d *Disk) waiting(look func(until time.Time) (ok bool, err error)) (ok bool, err error) {
	// One pass may have been under way already, on what was there when it began.
	for range 3 {
		if ok, err = look(time.Now().Add(recountBudget)); ok || err != nil {
			return ok, err
		}
		pass := d.counter.start()
		if pass == nil || !d.counter.await(pass, time.Until(pass.started.Add(countPatience))) {
			return false, nil
		}
		if pass.err != nil {
			return false, pass.err
		}
	}
	return look(time.Now().Add(recountBudget))
}

// AllocatedBytes is how many bytes of the leaf's view are data. counted says
// whether that is what it is now; otherwise it is the best figure so far, and
// counting goes on in the background. It takes some 100 ms at most.
func (d *Disk) AllocatedBytes() (bytes int64, counted bool, err error) {
	return d.viewBytes(func() (*node, error) { return d.leaf.Load(), nil })
}

// LayerAllocatedBytes is the same for a layer's view, by layer id. ErrNotExist.
func (d *Disk) LayerAllocatedBytes(id string) (bytes int64, counted bool, err error) {
	return d.viewBytes(func() (*node, error) {
		_, nodes := d.tree()
		if n := nodes[id]; n != nil {
			return n, nil
		}
		return nil, ErrNotExist
	})
}

func (d *Disk) viewBytes(find func() (*node, error)) (bytes int64, counted bool, err error) {
	err = d.recount(func() error {
		counted, err = d.waiting(func(until time.Time) (ok bool, err error) {
			n, err := find()
			if err == nil {
				bytes, ok, err = d.viewCount(n, until)
			}
			return ok, err
		})
		if err == nil {
			_, err = find() // it may have gone while we waited
		}
		return err
	})
	if err != nil {
		return 0, false, err
	}
	return bytes, counted, nil
}
