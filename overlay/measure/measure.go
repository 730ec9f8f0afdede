// Package measure counts what happens, for metrics: without a lock, without memory
// from the heap, and so that processors which count at the same time do not wait
// for each other.
package measure

import (
	"sync/atomic"
	"time"
	"unsafe"
)

// shards is over how many places a figure is spread, a power of two. A processor
// that adds to a cache line which another one has just changed waits for it.
const shards = 8

// cacheLine is in bytes. Processors fetch lines in pairs.
const cacheLine = 128

// shard chooses a place by where the caller's stack lies: each goroutine has one of
// its own, and comes to the same place again and again.
func shard() int {
	var here byte
	// Fibonacci hashing: stacks lie at multiples of their size, some KiB.
	return int(uint64(uintptr(unsafe.Pointer(&here))>>11) * 0x9e3779b97f4a7c15 >> 61)
}

// Counter is a number that only grows. The zero value counts from 0. Safe for
// concurrent use, and not to be copied.
type Counter struct {
	parts [shards]struct {
		n atomic.Uint64
		_ [cacheLine - 8]byte
	}
}

// Add adds n, which must not be negative.
func (c *Counter) Add(n int64) { c.parts[shard()].n.Add(uint64(n)) }

// Inc adds one.
func (c *Counter) Inc() { c.Add(1) }

// Load is the sum so far.
func (c *Counter) Load() (n int64) {
	for i := range c.parts {
		n += int64(c.parts[i].n.Load())
	}
	return n
}

// bounds are the upper ends of a Histogram's buckets, each included. They are the
// same for all, so that what two histograms tell can be compared.
var bounds = [...]time.Duration{
	10 * time.Microsecond, 20 * time.Microsecond, 50 * time.Microsecond,
	100 * time.Microsecond, 200 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond,
	10 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second,
}

// Buckets is how many a Histogram has; the last one has no upper end.
const Buckets = len(bounds) + 1

// Bound is the upper end of a bucket but the last.
func Bound(bucket int) time.Duration { return bounds[bucket] }

// Histogram counts durations by how long they are. The zero value is empty. Safe
// for concurrent use, and not to be copied.
type Histogram struct {
	parts [shards]struct {
		sum     atomic.Int64 // nanoseconds
		buckets [Buckets]atomic.Uint64
		_       [cacheLine - (8+8*Buckets)%cacheLine]byte
	}
}

// Observe counts one duration; a negative one, which a clock should not give, as 0.
func (h *Histogram) Observe(d time.Duration) {
	d = max(0, d)
	bucket := 0
	for bucket < len(bounds) && d > bounds[bucket] {
		bucket++
	}
	p := &h.parts[shard()]
	p.buckets[bucket].Add(1)
	p.sum.Add(int64(d))
}

// Distribution is what a Histogram has counted.
type Distribution struct {
	Buckets [Buckets]int64 // how many durations in each, not added up
	Sum     time.Duration
}

// Load is what was counted so far. Sum may lack what is being counted meanwhile.
func (h *Histogram) Load() (d Distribution) {
	for i := range h.parts {
		p := &h.parts[i]
		d.Sum += time.Duration(p.sum.Load())
		for b := range p.buckets {
			d.Buckets[b] += int64(p.buckets[b].Load())
		}
	}
	return d
}

// Count is how many durations there are.
func (d *Distribution) Count() (n int64) {
	for _, b := range d.Buckets {
		n += b
	}
	return n
}

// started is what Now counts from. It is read with the clock that never jumps.
var started = time.Now()

// Now is a moment, to be subtracted from a later one. It takes half of what time.Now
// takes, which looks at the wall clock too.
func Now() time.Duration { return time.Since(started) }
