package chain

import (
	"sync"
	"sync/atomic"
)

// count remembers a number of bytes that was counted in tables, as long as
// they stay as they were.
type count struct {
	p atomic.Pointer[countAt]
}

type countAt struct {
	layer   *layer
	version uint64
	bytes   int64
}

func (c *count) get(l *layer, version uint64) (int64, bool) {
	at := c.p.Load()
	if at == nil || at.layer != l || at.version != version {
		return 0, false
	}
	return at.bytes, true
}

func (c *count) set(l *layer, version uint64, bytes int64) {
	c.p.Store(&countAt{layer: l, version: version, bytes: bytes})
}

// version tells whether a count is still right: of a frozen layer's tables and
// view it is, they do not change; of a layer that is being written it is as
// long as no entry changed.
func (n *node) version() uint64 {
	if l := n.layer(); l != nil {
		if o := l.over(); o != nil {
			version := o.Changes()
			if p := n.parent(); p != nil && p.absorbing.Load() {
				version += p.version()
			}
			return version
		}
	}
	return 0
}

// liveCount remembers, for each region of the leaf's view, how many bytes more
// of it are data than of the view below, so that a look at disk.raw counts only
// where something changed since the last one.
type liveCount struct {
	mu      sync.Mutex
	layer   *layer
	parent  *node
	regions []int64
	total   int64 // their sum
}
