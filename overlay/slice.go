package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// sliceCache bounds the clean slices in memory with a clock hand.
type sliceCache struct {
	mu    sync.Mutex
	limit int
	ring  []*slice
	hand  int
}

// findTable is the L2 table of a guest cluster, or nil.
func (o *Overlay) findTable(cluster int64) *table {
	tables := *o.tables.Load()
	i := cluster >> o.tableBits
	if i >= int64(len(tables)) {
		return nil
	}
	return tables[i].Load()
}

// findSlice is the slice of a guest cluster and the entry's index in it; nil
// when the L1 table says nothing there. It reads the slice when it is not in
// memory.
func (o *Overlay) findSlice(cluster int64) (*slice, int, error) {
	t := o.findTable(cluster)
	if t == nil {
		return nil, 0, nil
	}
	inTable := cluster & (1<<o.tableBits - 1)
	si, ei := int(inTable/sliceEntries), int(inTable%sliceEntries)
	if s := t.slices[si].Load(); s != nil {
		if !s.used.Load() {
			s.used.Store(true)
		}
		return s, ei, nil
	}
	s, err := o.loadSlice(t, si)
	return s, ei, err
}

func (o *Overlay) loadSlice(t *table, si int) (*slice, error) {
	mu := &o.loadMu[(int(t.host>>o.clusterBits)+si)%len(o.loadMu)]
	mu.Lock()
	defer mu.Unlock()
	if s := t.slices[si].Load(); s != nil {
		return s, nil
	}
	s, err := o.readSlice(t, si)
	if err != nil {
		return nil, err
	}
	t.slices[si].Store(s)
	o.cache.add(s)
	return s, nil
}

// readSlice reads a slice from the file without caching it.
func (o *Overlay) readSlice(t *table, si int) (*slice, error) {
	var p [sliceBytes]byte
	at := t.host + int64(si)*sliceBytes
	s := &slice{table: t, index: si}
	s.used.Store(true)
	err := hostfs.ReadPadded(o.file, p[:], at)
	if errors.Is(err, hostfs.ErrUnreadable) {
		err = o.readSectors(s, p[:], at)
	}
	if err != nil {
		return nil, fmt.Errorf("read L2 table at 0x%x of %s: %w", at, o.file.Name(), err)
	}
	written := t.written.Load()>>si&1 != 0
	for i := 0; i < sliceEntries; i++ {
		if s.offset[i].Load() == badEntry {
			continue
		}
		e := ownEntry{word: binary.BigEndian.Uint64(p[i*qcow2.EntrySize:]), bitmap: binary.BigEndian.Uint64(p[i*qcow2.EntrySize+8:])}
		if !o.usable(t, int64(si)*sliceEntries+int64(i), e, written) {
			s.offset[i].Store(badEntry)
			continue
		}
		s.offset[i].Store(e.word & qcow2.OffsetMask)
		s.bitmap[i].Store(e.bitmap)
	}
	return s, nil
}

// usable says whether an entry, by its index in its table, is one that this layer has
// written. written is for a slice that a flush has written since the layer was opened:
// before that no entry can name a cluster that was given out since.
func (o *Overlay) usable(t *table, i int64, e ownEntry, written bool) bool {
	if e.word|e.bitmap == 0 {
		return true
	}
	if _, bad := t.badAt(i); bad {
		return false
	}
	if e.reason = badOwnEntry(e.word, e.bitmap, o.clusterSize()); e.reason == nil {
		e.reason = o.alloc.checkData(int64(e.word&qcow2.OffsetMask), written)
	}
	if e.reason != nil {
		t.noteBad(i, e)
	}
	return e.reason == nil
}

// readSectors reads what of a slice the host can read. The entries of the rest cannot
// be used, and no flush writes them.
func (o *Overlay) readSectors(s *slice, p []byte, at int64) error {
	s.read = time.Now()
	return qcow2.ReadPieces(hostfs.ReadPadded, o.file, p, at, qcow2.EntrySize, func(first, n int64, reason error) error {
		s.unread = reason
		s.lacks |= 1 << (first * qcow2.EntrySize / qcow2.DamageUnit)
		for i := first; i < first+n; i++ {
			s.offset[i].Store(badEntry)
		}
		return nil
	})
}

// badOwnEntry says what is wrong with an extended L2 entry for a layer that we
// write (qcow2 specification, "Extended L2 Entries"): ErrNotPlain for what
// another tool may rightly have written, ErrCorrupt for the rest.
func badOwnEntry(e, bitmap uint64, clusterSize int64) error {
	host := int64(e & qcow2.OffsetMask)
	switch {
	case e&(1<<62) != 0:
		return fmt.Errorf("compressed cluster: %w", ErrNotPlain)
	case e&^(qcow2.CopiedFlag|qcow2.OffsetMask) != 0:
		return fmt.Errorf("reserved bits in 0x%x: %w", e, qcow2.ErrCorrupt)
	case host&(clusterSize-1) != 0:
		return fmt.Errorf("host offset 0x%x is not aligned: %w", host, qcow2.ErrCorrupt)
	case host != 0 && e&qcow2.CopiedFlag == 0:
		return fmt.Errorf("no COPIED flag: %w", ErrNotPlain)
	case uint32(bitmap)&uint32(bitmap>>32) != 0:
		return fmt.Errorf("subclusters both allocated and zero in 0x%x: %w", bitmap, qcow2.ErrCorrupt)
	case host == 0 && uint32(bitmap) != 0:
		return fmt.Errorf("allocated subclusters without a host cluster: %w", qcow2.ErrCorrupt)
	}
	return nil
}

// badOwnL1Entry is badOwnEntry for an L1 entry that is not 0.
func badOwnL1Entry(e uint64) error {
	switch {
	case e&qcow2.L1Reserved != 0:
		return fmt.Errorf("reserved bits in 0x%x: %w", e, qcow2.ErrCorrupt)
	case e&qcow2.CopiedFlag == 0:
		return fmt.Errorf("no COPIED flag: %w", ErrNotPlain)
	}
	return nil
}

// encode writes the slice's entries as they are now. Called with s.mu held.
func (s *slice) encode(p []byte) {
	for i := 0; i < sliceEntries; i++ {
		e := s.offset[i].Load()
		if e == badEntry { // it stays as it is
			bad, _ := s.table.badAt(int64(s.index)*sliceEntries + int64(i))
			binary.BigEndian.PutUint64(p[i*qcow2.EntrySize:], bad.word)
			binary.BigEndian.PutUint64(p[i*qcow2.EntrySize+8:], bad.bitmap)
			continue
		}
		if e != 0 {
			e |= qcow2.CopiedFlag
		}
		binary.BigEndian.PutUint64(p[i*qcow2.EntrySize:], e)
		binary.BigEndian.PutUint64(p[i*qcow2.EntrySize+8:], s.bitmap[i].Load())
	}
}

// at is where the slice stands in the file.
func (s *slice) at() int64 { return s.table.host + int64(s.index)*sliceBytes }

// change sets an entry and marks the slice dirty. False when the slice was
// evicted meanwhile: find it again.
func (o *Overlay) change(s *slice, i int, offset, bitmap uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.evicted {
		return false
	}
	o.activity.changed(s.offset[i].Load(), s.bitmap[i].Load(), offset, bitmap, o.subSize())
	s.offset[i].Store(offset) // before the bitmap: readers look at the bitmap first
	s.bitmap[i].Store(bitmap)
	o.changes.Add(1)
	if !s.dirty {
		o.markDirty(s)
	}
	return true
}

// markDirty queues a slice for the next flush; s.mu is held.
func (o *Overlay) markDirty(s *slice) {
	s.dirty = true
	o.dirtyMu.Lock()
	defer o.dirtyMu.Unlock()
	o.dirty = append(o.dirty, s)
	o.dirtyCount.Add(1)
}

// setEntry changes the entry of a cluster whose stripe the caller owns and
// whose table exists.
func (o *Overlay) setEntry(cluster int64, offset, bitmap uint64) error {
	for {
		s, i, err := o.findSlice(cluster)
		if err == nil {
			err = o.changeable(s, i, cluster)
		}
		if err != nil {
			return err
		}
		if o.change(s, i, offset, bitmap) {
			o.changed.mark(cluster<<o.clusterBits, o.clusterSize())
			return nil
		}
	}
}

// ensureSlice is findSlice for who changes the entry: it makes the L2 table where there
// is none, and refuses an entry that cannot be changed.
func (o *Overlay) ensureSlice(cluster int64) (*slice, int, error) {
	s, i, err := o.findSlice(cluster)
	if s == nil && err == nil {
		if err := o.makeTable(cluster >> o.tableBits); err != nil {
			return nil, 0, err
		}
		s, i, err = o.findSlice(cluster)
	}
	if err != nil {
		return nil, 0, err
	}
	return s, i, o.changeable(s, i, cluster)
}

// makeTable allocates an L2 table. Its blocks on the host are reserved now, so
// that ENOSPC is met by the write that needs the table and not by a later
// flush (M10, D6). The cluster was never used, so it reads as zeros, which is an
// empty table: the L1 entry may become durable before the table's content.
func (o *Overlay) makeTable(l1 int64) error {
	o.tableMu.Lock()
	defer o.tableMu.Unlock()
	tables := *o.tables.Load()
	if l1 >= int64(len(tables)) {
		return fmt.Errorf("%s: no L1 entry %d of %d", o.file.Name(), l1, len(tables))
	}
	if tables[l1].Load() != nil {
		return nil
	}
	host, err := o.alloc.takeTables(o.file, 1)
	if err != nil {
		return err
	}
	if err := o.reserve(host, o.clusterSize()); err != nil {
		// What of it could be had is what others need now.
		if punch := o.file.PunchHole(host, o.clusterSize()); punch != nil {
			o.log.Debug("cannot give back a part of a table", "file", o.file.Name(), "error", punch)
		}
		o.alloc.giveBack(host)
		return fmt.Errorf("reserve L2 table at 0x%x of %s: %w", host, o.file.Name(), err)
	}
	o.index.Load().Set(int(l1)) // who finds the table may set an entry at once
	t := o.newTable(host)
	t.written.Store(^uint64(0))
	tables[l1].Store(t)
	o.dirtyMu.Lock()
	o.dirtyL1 = append(o.dirtyL1, int(l1))
	o.dirtyMu.Unlock()
	return nil
}

func (c *sliceCache) add(s *slice) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.ring) < c.limit {
		c.ring = append(c.ring, s)
		return
	}
	// One turn of the clock at most; when all are in use or dirty the ring
	// grows, and the next flush makes them evictable.
	for range 2 * len(c.ring) {
		c.hand = (c.hand + 1) % len(c.ring)
		old := c.ring[c.hand]
		if old.used.Swap(false) || !old.evict() {
			continue
		}
		c.ring[c.hand] = s
		c.shrink()
		return
	}
	c.ring = append(c.ring, s)
}

// shrink drops what the ring holds over its limit, as far as it is clean.
func (c *sliceCache) shrink() {
	for len(c.ring) > c.limit {
		last := len(c.ring) - 1
		if !c.ring[last].evict() {
			return
		}
		c.ring = c.ring[:last]
	}
	c.hand %= len(c.ring)
}

func (s *slice) evict() bool {
	if !s.mu.TryLock() {
		return false
	}
	defer s.mu.Unlock()
	if s.dirty || s.writing {
		return false
	}
	s.evicted = true
	s.table.slices[s.index].CompareAndSwap(s, nil) // readAgain may have put in another one
	return true
}
