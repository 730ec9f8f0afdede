package overlay

import (
	"sync"

	"varve/overlay/hostfs"
)

// copiedRanges is what a job has copied since the last flush, as far as the page
// cache is concerned: what nobody used before the job came is to be forgotten
// again, source and target, so that a copy of a whole disk does not drive out
// what guests read. What was in the cache before stays there.
//
// The kernel tells how much of a range is cached, not who reads it. So each block
// of coldBlock bytes is asked about long before the job reads it: when it enters
// the stretch before. What the kernel reads ahead behind a read would be taken for
// somebody's use otherwise.
type copiedRanges struct {
	mu     sync.Mutex
	blocks map[fileBlock]bool    // whether a block was cold
	at     map[hostfs.File]int64 // the stretch that is being read
	ranges []fileRange

	low, high int64 // of the target: written, and not told to the host yet
}

const (
	coldBlock = 1 << 20
	// coldStretch is how many blocks are asked about at once. Hosts read ahead by
	// 128 KiB to some MiB.
	coldStretch = 16
	// pushAt is how much is written before the host is told to begin with it, so
	// that the flush of a window does not find all of it still to be done.
	pushAt = 8 << 20
)

type fileBlock struct {
	file  hostfs.File
	block int64
}

type fileRange struct {
	file        hostfs.File
	off, length int64
}

// isCold says whether a range of a source is to be forgotten after the copy.
func (c *copiedRanges) isCold(f hostfs.File, off, n int64) bool {
	if f == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for b := off / coldBlock; b <= (off+n-1)/coldBlock; b++ {
		if !c.blockCold(fileBlock{f, b}) {
			return false
		}
	}
	return true
}

func (c *copiedRanges) blockCold(b fileBlock) bool {
	stretch := b.block / coldStretch
	if at, known := c.at[b.file]; !known || at != stretch {
		c.look(b.file, stretch)
		c.look(b.file, stretch+1)
		if c.at == nil {
			c.at = make(map[hostfs.File]int64)
		}
		c.at[b.file] = stretch
	}
	return c.blocks[b]
}

// look asks about the blocks of a stretch, unless that was done.
func (c *copiedRanges) look(f hostfs.File, stretch int64) {
	if c.blocks == nil {
		c.blocks = make(map[fileBlock]bool)
	}
	for i := range int64(coldStretch) {
		b := fileBlock{f, stretch*coldStretch + i}
		if _, known := c.blocks[b]; known {
			continue
		}
		cached, err := f.Cached(b.block*coldBlock, coldBlock)
		c.blocks[b] = err == nil && cached == 0
	}
}

// note remembers a copy.
func (c *copiedRanges) note(from hostfs.File, at int64, to hostfs.File, host, n int64, cold bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.high == 0 {
		c.low = host
	}
	c.low, c.high = min(c.low, host), max(c.high, host+n)
	if cold {
		c.add(fileRange{from, at, n})
		c.add(fileRange{to, host, n})
	}
}

// add appends a range, joined with one of the last two that ends where it starts.
func (c *copiedRanges) add(r fileRange) {
	for i := max(0, len(c.ranges)-2); i < len(c.ranges); i++ {
		if last := &c.ranges[i]; last.file == r.file && last.off+last.length == r.off {
			last.length += r.length
			return
		}
	}
	c.ranges = append(c.ranges, r)
}

// take gives what is to be forgotten and begins anew. What is known of the
// stretches that are being read, and of those behind them, stays.
func (c *copiedRanges) take() []fileRange {
	c.mu.Lock()
	defer c.mu.Unlock()
	ranges := c.ranges
	c.ranges, c.low, c.high = nil, 0, 0
	for b := range c.blocks {
		if at := c.at[b.file]; b.block/coldStretch < at || b.block/coldStretch > at+1 {
			delete(c.blocks, b)
		}
	}
	return ranges
}

// StartWriteBack has the host begin to write what was copied, once that is
// enough. It may wait for the disk's queue: call it without locks.
func (c *Copier) StartWriteBack() {
	r := &c.copied
	r.mu.Lock()
	low, high := r.low, r.high
	if high-low < pushAt {
		r.mu.Unlock()
		return
	}
	r.low, r.high = 0, 0
	r.mu.Unlock()
	// Nothing hangs on it: a write that fails is the next flush's error.
	_ = c.to.WriteBack(low, high-low)
}

// Copied takes note of what Copy has copied until now, from where nobody had it in
// the host's page cache before, and forget drops that from there. After a sync: what
// is not on the disk yet is not dropped. Its error is a host's that cannot; nothing is
// lost by it.
func (c *Copier) Copied() (forget func() error) {
	ranges := c.copied.take()
	return func() error {
		var first error
		for _, r := range ranges {
			if err := r.file.DropRange(r.off, r.length); err != nil && first == nil {
				first = err
			}
		}
		return first
	}
}

// StartWriteBack is that of Copier for what Fill and Overwrite have copied.
func (o *Overlay) StartWriteBack() { o.copier.StartWriteBack() }

// Copied is Copier.Copied for what Fill and Overwrite have copied; forget comes after
// a Flush.
func (o *Overlay) Copied() (forget func()) {
	drop := o.copier.Copied()
	return func() {
		if err := drop(); err != nil {
			o.log.Debug("cannot drop from the page cache", "file", o.file.Name(), "error", err)
		}
	}
}
