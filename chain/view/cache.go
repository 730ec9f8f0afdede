package view

import (
	"math"
	"sync"
	"sync/atomic"

	"varve/overlay/measure"
)

// regionIndex finds a node's regions without a lock, in two steps.
type regionIndex struct {
	top atomic.Pointer[[]atomic.Pointer[regionChunk]]
	mu  sync.Mutex // growing top
}

const chunkRegions = 256

type regionChunk [chunkRegions]atomic.Pointer[Region]

func (x *regionIndex) get(i int64) *Region {
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
func (x *regionIndex) slot(i int64) *atomic.Pointer[Region] {
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

// Cache bounds the memory of all regions of a disk with a clock hand.
type Cache struct {
	mu         sync.Mutex
	limit      int64 // bytes
	bytes      int64
	ring       []*Region
	hand       int
	generation atomic.Uint64 // raised, under mu, whenever regions are dropped

	hits, misses measure.Counter // regions asked for that were there, or had to be resolved
	evictions    measure.Counter // regions that gave way to others
	steps        measure.Counter // what walks over guest space looked at, piece by piece
}

// Step counts a piece of guest space that a walk has looked at.
func (c *Cache) Step() { c.steps.Inc() }

// Steps is how many there were: what a walk costs, whatever the machine.
func (c *Cache) Steps() int64 { return c.steps.Load() }

// insert publishes a region that was resolved at a generation. When regions
// were dropped meanwhile it may show what is about to be punched, and is not
// kept; its reader may use it, within its grace section.
func (c *Cache) insert(r *Region, generation uint64) {
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
func (c *Cache) remove(i int) {
	r := c.ring[i]
	r.node.regions.slot(r.at).CompareAndSwap(r, nil)
	c.bytes -= r.cost()
	last := len(c.ring) - 1
	c.ring[i] = c.ring[last]
	c.ring[last] = nil
	c.ring = c.ring[:last]
}

// Drop forgets the regions of some nodes in a range of guest bytes. Sections
// that began before may still use them: Grace.Synchronize before the data goes.
func (c *Cache) Drop(affected map[*Node]bool, off, length int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.generation.Add(1)
	for i := 0; i < len(c.ring); {
		r := c.ring[i]
		if affected[r.node] && r.base < off+length && r.base+RegionSize > off {
			c.remove(i)
			continue
		}
		i++
	}
}

// Forget drops the regions of nodes that are gone. They would stay until the hand
// comes by, and hold what costs far more than is counted for them: their layers,
// with the tables. Called when nobody can come to these nodes any more, or a
// reader would put them in again.
func (c *Cache) Forget(gone map[*Node]bool) {
	if len(gone) > 0 {
		c.Drop(gone, 0, math.MaxInt64-RegionSize)
	}
}

// CacheMetrics are the figures of a cache: how often a region was there, was not and gave
// way to another, and what the regions take and may take, in bytes.
type CacheMetrics struct {
	Hits, Misses, Evictions int64
	Bytes, Limit            int64
}

// Metrics are the figures of the cache.
func (c *Cache) Metrics() CacheMetrics {
	c.mu.Lock()
	defer c.mu.Unlock()
	return CacheMetrics{
		Hits: c.hits.Load(), Misses: c.misses.Load(), Evictions: c.evictions.Load(),
		Bytes: c.bytes, Limit: c.limit,
	}
}

// NewCache is a cache of so many bytes.
func NewCache(limit int64) *Cache { return &Cache{limit: limit} }
