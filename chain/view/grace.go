package view

import (
	"sync"
	"sync/atomic"
	"time"
)

// Grace lets a job wait until everybody who might still use what it took out
// of sight has finished, without a lock on the reading side: a merge punches
// its source, and a layer's file is closed, only after Synchronize (M1).
//
// Readers count themselves in one of two counters. Synchronize turns new
// readers to the other counter and waits for the old one to run empty.
type Grace struct {
	mu    sync.Mutex // one Synchronize at a time
	phase atomic.Uint32
	count [2]struct {
		n atomic.Int64
		_ [56]byte // a cache line of its own
	}
}

// Enter begins a reading section; what was taken out of sight before is not
// seen in it. Its result goes to exit.
func (g *Grace) Enter() uint32 {
	for {
		p := g.phase.Load() & 1
		g.count[p].n.Add(1)
		// The phase turned between the two: Synchronize may not have seen us.
		if g.phase.Load()&1 == p {
			return p
		}
		g.count[p].n.Add(-1)
	}
}

func (g *Grace) Exit(p uint32) { g.count[p].n.Add(-1) }

// Synchronize returns when every section that had begun before the call has
// ended. Not to be called from within a section.
func (g *Grace) Synchronize() {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.phase.Add(1) - 1
	for pause := time.Microsecond; g.count[old&1].n.Load() != 0; pause = min(2*pause, time.Millisecond) {
		time.Sleep(pause)
	}
}
