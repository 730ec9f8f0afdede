package overlay

import (
	"errors"
	"fmt"
	"sync/atomic"

	"varve/overlay/hostfs"
)

// Placed is a Source that knows where content stands in files of the host, so
// that blocks can be shared instead of copied.
type Placed interface {
	Source
	// Place says where the content at off stands: n bytes, at most length, in a
	// file from a host offset on. A nil file: it stands nowhere as it is (zeros,
	// compressed data), n bytes of it are to be read. The file stays open, and
	// what it holds there the same, as long as the source may be read.
	Place(off, length int64) (f hostfs.File, host, n int64, err error)
}

const (
	// copyPiece is how much is read and written at a time: a buffer of that size
	// stays in a core's own cache. On ext4 a merge of 1.5 GiB upwards took 1.35 s
	// with it and 3.1 s with 1 MiB.
	copyPiece = 256 << 10
	// aheadBytes is how much copyAhead does at a time.
	aheadBytes = 1 << 20
	// aheadShared is the same where the host shares blocks: a call costs the same
	// whether it shares 64 KiB or 16 MiB (xfs: 10 µs).
	aheadShared = 16 << 20
	// minClone: below it, reading and writing costs less than sharing blocks does,
	// and a file in small pieces costs all later readers.
	minClone = 16 << 10
)

// Copier copies content into a file of the host: it shares blocks where that can
// be done and reads and writes the rest. Copy may be called by several at a time, to
// different places, and Copied beside it.
type Copier struct {
	to     hostfs.File
	copied copiedRanges
	dealt  atomic.Int64 // bytes that Copy was given
	shared atomic.Int64 // those that took no copying
	shares atomic.Bool  // see judge
	thrift atomic.Bool  // see Overlay.Thrift
	ahead  readAhead    // of an export, which alone copies then
}

// judge takes note of how much of what was dealt with, in bytes, was shared: whether
// that is most of it says how large the next piece may be.
func (c *Copier) judge(all, shared int64) {
	if all > 0 {
		c.shares.Store(2*shared > all)
	}
}

// NewCopier copies into a file, which stays the caller's.
func NewCopier(to hostfs.File) *Copier { return &Copier{to: to} }

// Copy copies n bytes that source has at off to a host offset of the file. Errors
// are those of source and of the host; the range may be written in part then.
func (c *Copier) Copy(source Source, off, host, n int64) error {
	c.dealt.Add(n)
	if s, ok := source.(Sectioned); ok {
		return c.copySectioned(s, off, host, n)
	}
	placed, _ := source.(Placed)
	for n > 0 {
		piece := min(n, copyPiece)
		var from hostfs.File
		var at int64
		if placed != nil {
			f, h, length, err := placed.Place(off, n)
			if err != nil {
				return err
			}
			if f != nil {
				cloned, err := c.clone(f, h, host, length)
				if err != nil && !errors.Is(err, errors.ErrUnsupported) {
					return fmt.Errorf("share %d bytes at guest offset %d with %s: %w", length, off, c.to.Name(), err)
				}
				if cloned > 0 {
					c.shared.Add(cloned)
					off, host, n = off+cloned, host+cloned, n-cloned
					continue
				}
			}
			from, at, piece = f, h, min(piece, length)
			if head := -h & (hostfs.CloneUnit - 1); f != nil && head > 0 && head < piece && length >= c.leastClone() {
				piece = head // what follows may be shared
			}
		}
		if err := c.copyPiece(source, from, at, off, host, piece); err != nil {
			return err
		}
		off, host, n = off+piece, host+piece, n-piece
	}
	return nil
}

// leastClone is the least that is worth sharing, in bytes.
func (c *Copier) leastClone() int64 {
	if c.thrift.Load() {
		return hostfs.CloneUnit
	}
	return minClone
}

// clone shares as much of the range as is worth it, and says how many bytes from
// its start on that is: 0 where it has to be copied, with errors.ErrUnsupported where
// the host will not share it.
func (c *Copier) clone(f hostfs.File, at, host, n int64) (int64, error) {
	n &^= hostfs.CloneUnit - 1
	if n < c.leastClone() || (at|host)&(hostfs.CloneUnit-1) != 0 {
		return 0, nil
	}
	err := c.to.CloneRange(f, at, host, n)
	if err != nil {
		return 0, err
	}
	return n, nil
}

func (c *Copier) copyPiece(source Source, from hostfs.File, at, off, host, n int64) error {
	cold := c.copied.isCold(from, at, n)
	data := c.ahead.at(off, n)
	if data == nil {
		buf := getBuffer(n)
		defer putBuffer(buf)
		data = *buf
		if err := source.ReadAt(data, off); err != nil {
			return fmt.Errorf("copy %d bytes at guest offset %d into %s: %w", n, off, c.to.Name(), err)
		}
	}
	if err := hostfs.WriteWhole(c.to, data, host); err != nil {
		return err
	}
	c.copied.note(from, at, c.to, host, n, cold)
	return nil
}

// copyRange copies what source has at off into this file at a host offset of
// which nobody else knows yet, or whose stripe is the caller's. Only after it
// may an entry name the bytes.
func (o *Overlay) copyRange(source Source, off, host, n int64) error {
	defer o.wrote() // in place a part of it counts too
	return o.copier.Copy(source, off, host, n)
}

// copyRun copies n bytes of source into whole subclusters of one cluster that
// are not allocated, or all of whose content is to be replaced; the stripe is the
// caller's.
func (o *Overlay) copyRun(source Source, cluster, base, in, n int64) error {
	if left := o.Size() - (base + in); left < n {
		// What is past the end must be zeros when the disk grows (M2).
		buf := getBuffer(n)
		defer putBuffer(buf)
		clear((*buf)[max(0, left):])
		if err := source.ReadAt((*buf)[:max(0, left)], base+in); err != nil {
			return fmt.Errorf("copy %d bytes at guest offset %d into %s: %w", n, base+in, o.file.Name(), err)
		}
		return o.writeOwned(*buf, cluster, in, o.subMask(in, n), nil)
	}
	s, i, err := o.ensureSlice(cluster)
	if err != nil {
		return err
	}
	bitmap := s.bitmap[i].Load()
	host, err := o.takeHost(cluster, s.offset[i].Load(), bitmap)
	if err != nil {
		return err
	}
	mask := o.subMask(in, n)
	o.punch.cancel(cluster, mask)
	if err := o.copyRange(source, base+in, int64(host)+in, n); err != nil {
		return err
	}
	old := bitmap
	if bitmap = (bitmap | uint64(mask)) &^ (uint64(mask) << 32); bitmap == old {
		return nil // in place
	}
	return o.setEntry(cluster, host, bitmap)
}

// copyAhead copies whole clusters of which this layer has nothing, so that they
// stand in one piece in the file. No stripe is held while it copies: nobody knows
// these host clusters yet, and a writer waits for no more than an entry. What
// came to a cluster meanwhile wins (M8): its copy, or the part that is not wanted
// any more, is given up. It returns the bytes that were copied.
func (o *Overlay) copyAhead(source Source, cluster, n int64) (int64, error) {
	if err := o.Failed(); err != nil {
		return 0, err
	}
	host, err := o.alloc.take(o.file, n)
	if err != nil {
		return 0, err
	}
	cs := o.clusterSize()
	if err := o.copyRange(source, cluster<<o.clusterBits, host, n*cs); err != nil {
		o.giveUp(host, n)
		return 0, err
	}
	var copied int64
	for k := range n {
		c, err := o.publishCopy(source, cluster+k, host+k*cs)
		copied += c
		if err != nil {
			o.giveUp(host+(k+1)*cs, n-k-1)
			return copied, err
		}
	}
	return copied, nil
}

// publishCopy names a cluster that copyAhead has filled, as far as nothing came
// first. M8, M4: its data is in the file.
func (o *Overlay) publishCopy(source Source, cluster, host int64) (int64, error) {
	m := o.stripe(cluster)
	m.Lock()
	defer m.Unlock()
	s, i, err := o.ensureSlice(cluster)
	if err != nil {
		o.giveUp(host, 1)
		return 0, err
	}
	bitmap := s.bitmap[i].Load()
	free := allSub &^ (uint32(bitmap) | uint32(bitmap>>32))
	if s.offset[i].Load() != 0 || free == 0 {
		o.giveUp(host, 1)
		return o.fillCluster(source, cluster, free, 0)
	}
	return o.clusterSize(), o.setEntry(cluster, uint64(host), bitmap|uint64(free))
}

// giveUp gives the blocks back of clusters that no entry has ever named.
func (o *Overlay) giveUp(host, n int64) {
	if n == 0 {
		return
	}
	o.alloc.free(host>>o.clusterBits, n)
	if err := o.file.PunchHole(host, n<<o.clusterBits); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		o.log.Warn("cannot give back a cluster", "file", o.file.Name(), "host_offset", host, "error", err)
	}
}

// emptyRun is how many clusters from one on, at most limit, this layer has
// nothing of, not even a place.
func (o *Overlay) emptyRun(cluster, limit int64) (int64, error) {
	for n := int64(0); n < limit; n++ {
		s, i, err := o.findSlice(cluster + n)
		if err != nil {
			return 0, err
		}
		if s != nil && (s.offset[i].Load() != 0 || s.bitmap[i].Load() != 0) {
			return n, nil
		}
	}
	return limit, nil
}
