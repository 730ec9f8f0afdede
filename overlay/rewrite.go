package overlay

import (
	"errors"
	"fmt"
	"sync/atomic"

	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// switchHeader makes a header that differs in its first sector the one in
// force: one sector write, so that a crash leaves the old or the new one
// (M15). All that it names must be durable. Called with flushMu held.
func (o *Overlay) switchHeader(h *qcow2.Header) error {
	sector, err := encodeHeader(h)
	if err != nil {
		return err
	}
	if err := hostfs.WriteWhole(o.file, sector, 0); err != nil {
		return err
	}
	if err := o.sync(); err != nil {
		return err
	}
	o.header = h
	return nil
}

// SetBacking changes the name and format of the backing file in the header; ""
// for none. The new backing file must give the layer the same view (M15, D15).
func (o *Overlay) SetBacking(name, format string) error {
	if len(name) > qcow2.MaxBackingName {
		return fmt.Errorf("%s: the backing name has %d bytes, at most %d are possible", o.file.Name(), len(name), qcow2.MaxBackingName)
	}
	o.flushMu.Lock()
	defer o.flushMu.Unlock()
	if err := o.flushLocked(); err != nil {
		return err
	}
	h := *o.header
	h.BackingName, h.BackingFormat, h.BackingOffset = name, format, 0
	h.HasBackingFormat = name != ""
	if name != "" {
		h.BackingOffset = freeNameSlot(o.header)
		if err := hostfs.WriteWhole(o.file, []byte(name), int64(h.BackingOffset)); err != nil {
			return o.failUnlessFull(err)
		}
		if err := o.sync(); err != nil {
			return o.fail(err)
		}
	}
	return o.failUnlessFull(o.switchHeader(&h))
}

// failUnlessFull is fail, but for what met a full host in a write and can be done
// again: a name that no header names yet, a header of one sector, refcounts that are
// high still.
func (o *Overlay) failUnlessFull(err error) error {
	if err == nil || noRoom(err) {
		return err
	}
	return o.fail(err)
}

// freeNameSlot is a place in cluster 0 that the present name does not use.
func freeNameSlot(h *qcow2.Header) uint64 {
	end := h.BackingOffset + uint64(len(h.BackingName))
	if h.BackingOffset < nameSlotA+qcow2.MaxBackingName && end > nameSlotA {
		return nameSlotB
	}
	return nameSlotA
}

// MaxSize is the largest guest size in bytes to which the layer can grow: what
// the largest L1 table that qcow2 allows can map.
func (o *Overlay) MaxSize() int64 {
	return qcow2.MaxL1Bytes / 8 << (o.tableBits + o.clusterBits)
}

// Grow makes the layer larger, by whole sectors. Where below would show through in the new part
// it gets zero bits, durable before the larger size (M2). Writes and reads may
// go on; a growth excludes others and flushes.
func (o *Overlay) Grow(size int64, below Backing) error {
	old, size := o.Size(), extent.WholeSectors(size)
	if size <= old {
		return nil
	}
	if err := o.Failed(); err != nil {
		return err
	}
	if err := o.growL1(l1EntriesFor(size, o.clusterBits)); err != nil {
		return err
	}
	o.changed.resize(size)
	if err := o.clearBehind(old); err != nil {
		return err
	}
	if below == nil {
		if err := o.clearTail(old, nil); err != nil {
			return err
		}
	} else {
		if err := o.KeepTail(old, below); err != nil {
			return err
		}
		if err := o.discard(old, size-old, below); err != nil {
			return err
		}
	}
	return o.setSize(size)
}

// Shrink makes the layer smaller, to whole sectors, of which nobody looks at what lies behind any more.
// That is given back by the next Punch after a Flush, and reads as zeros when the layer
// grows again. The L1 table keeps its length. Writes before the new end may go on; it
// excludes growths and flushes.
func (o *Overlay) Shrink(size int64, below Backing) error {
	old, size := o.Size(), extent.WholeSectors(size)
	if size >= old {
		return nil
	}
	if err := o.Failed(); err != nil {
		return err
	}
	if err := o.clearTail(size, below); err != nil {
		return err
	}
	if err := o.clearBehind(size); err != nil {
		return err
	}
	return o.setSize(size)
}

// clearBehind leaves no entries behind the subcluster of a layer's end: QEMU keeps the
// rest of the last cluster when it makes an image smaller.
func (o *Overlay) clearBehind(end int64) error {
	cluster, in := end>>o.clusterBits, end&(o.clusterSize()-1)
	first := (in + o.subSize() - 1) &^ (o.subSize() - 1)
	for behind := int64(len(*o.tables.Load())) << o.tableBits; cluster < behind; first = 0 {
		if o.findTable(cluster) == nil {
			cluster = o.nextTable(cluster<<o.clusterBits, behind<<o.clusterBits) >> o.clusterBits
			continue
		}
		if first < o.clusterSize() {
			if err := o.unmapCluster(cluster, first, o.clusterSize()-first); err != nil {
				return err
			}
		}
		cluster++
	}
	return nil
}

// clearTail makes zeros of what the end's own subcluster has behind it, if that has data.
func (o *Overlay) clearTail(end int64, below Backing) error {
	in := end & (o.subSize() - 1)
	if in == 0 {
		return nil
	}
	cluster := end >> o.clusterBits
	m := o.stripe(cluster)
	m.Lock()
	defer m.Unlock()
	e, err := o.Lookup(end, o.subSize()-in)
	if err != nil || e.Kind != extent.Data {
		return err
	}
	return o.zeroPart(cluster, end&(o.clusterSize()-1), o.subSize()-in, below)
}

// setSize makes all that is published durable, and then the size.
func (o *Overlay) setSize(size int64) error {
	o.flushMu.Lock()
	defer o.flushMu.Unlock()
	if err := o.flushLocked(); err != nil {
		return err
	}
	h := *o.header
	h.Size = size
	end := min(o.Size(), size)
	if err := o.switchHeader(&h); err != nil {
		return o.failUnlessFull(err)
	}
	o.size.Store(size)
	o.changed.mark(end, 1) // how much counts of what is there is another now
	return nil
}

// growL1 makes the L1 table hold at least n entries: in place while its last
// cluster has room, else in a new place to which the header switches.
func (o *Overlay) growL1(n int64) error {
	if n*8 > qcow2.MaxL1Bytes {
		return fmt.Errorf("%s: an L1 table of %d entries is more than qcow2 allows", o.file.Name(), n)
	}
	o.flushMu.Lock()
	defer o.flushMu.Unlock()
	// Everything published first: the table on disk is then the one in memory,
	// but for tables made from here on, which stay in dirtyL1.
	if err := o.flushLocked(); err != nil {
		return err
	}
	o.tableMu.Lock()
	defer o.tableMu.Unlock()
	tables := *o.tables.Load()
	if n <= int64(len(tables)) {
		return nil
	}
	h := *o.header
	cs := o.clusterSize()
	have := (int64(h.L1Entries)*8 + cs - 1) >> o.clusterBits
	// The tail of the last cluster must be zeros to be taken as entries; a new
	// place is, and all that we write keeps it so.
	if n*8 > max(have, 1)<<o.clusterBits {
		old := make([]byte, int64(h.L1Entries)*8)
		if err := hostfs.ReadPadded(o.file, old, h.L1Offset); err != nil {
			return fmt.Errorf("read L1 table at 0x%x of %s: %w", h.L1Offset, o.file.Name(), err)
		}
		want := (n*8 + cs - 1) >> o.clusterBits
		host, err := o.alloc.takeTables(o.file, want)
		if err != nil {
			return err
		}
		if err := o.linkRefcountBlocks(); err != nil {
			return o.fail(err)
		}
		err = o.reserve(host, want*cs)
		if err == nil {
			err = hostfs.WriteWhole(o.file, old, host)
		}
		if err != nil {
			o.alloc.free(host>>o.clusterBits, want)
			return fmt.Errorf("make an L1 table at 0x%x of %s: %w", host, o.file.Name(), err)
		}
		if err := o.sync(); err != nil {
			return o.fail(err)
		}
		o.alloc.free(h.L1Offset>>o.clusterBits, max(have, 1))
		h.L1Offset = host
	} else if err := o.reserve(h.L1Offset, n*8); err != nil {
		return fmt.Errorf("reserve L1 table at 0x%x of %s: %w", h.L1Offset, o.file.Name(), err)
	}
	h.L1Entries = uint32(n)
	if err := o.switchHeader(&h); err != nil {
		return o.fail(err)
	}
	grown := make([]atomic.Pointer[table], n)
	for i := range tables {
		grown[i].Store(tables[i].Load())
	}
	o.tables.Store(&grown)
	o.index.Store(o.index.Load().Grown(len(grown)))
	return nil
}

// reserve gives tables their blocks on the host, where it can.
func (o *Overlay) reserve(off, length int64) error {
	if err := o.file.Allocate(off, length); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}

// free notes clusters that no longer serve. Their refcounts stay 1, a leak at
// worst, until the layer is settled.
func (a *allocator) free(first, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := first; c < first+n; c++ {
		a.freed = append(a.freed, c)
	}
}

// Settle flushes, punches what is due, makes the refcounts exact and cuts the
// file behind its last cluster, so that qemu-img check finds no leak. Nobody
// may write the layer meanwhile. It can be written on afterwards; settle it
// again then.
func (o *Overlay) Settle() error {
	o.flushMu.Lock()
	defer o.flushMu.Unlock()
	if err := o.flushLocked(); err != nil {
		return err
	}
	if err := o.Punch(); err != nil {
		return err
	}
	next, end, freed, table := o.alloc.unused()
	if next == end && len(freed) == 0 {
		return nil
	}
	err := func() error {
		if err := o.linkRefcountBlocks(); err != nil {
			return err
		}
		for _, c := range freed {
			if err := setRefcounts(o.file, table, o.clusterBits, c, c+1, 0); err != nil {
				return err
			}
		}
		if err := setRefcounts(o.file, table, o.clusterBits, next, end, 0); err != nil {
			return err
		}
		if err := o.file.Truncate(next << o.clusterBits); err != nil {
			return err
		}
		return o.sync()
	}()
	if err != nil {
		o.alloc.putBack(end, freed)
		return o.failUnlessFull(err)
	}
	for _, c := range freed {
		if err := o.file.PunchHole(c<<o.clusterBits, o.clusterSize()); err != nil {
			o.log.Warn("cannot give back a cluster", "file", o.file.Name(), "cluster", c, "error", err)
		}
	}
	return nil
}

// unused takes what is given out ahead and what was freed; the allocator goes
// on behind next.
func (a *allocator) unused() (next, end int64, freed []int64, table []int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	next, end, freed, table = a.next, max(a.end, a.ahead), a.freed, a.table
	a.end, a.ahead, a.freed, a.batch = a.next, 0, nil, minBatch
	return next, end, freed, table
}

// putBack takes unused back, when not all of it could be written.
func (a *allocator) putBack(end int64, freed []int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ahead, a.freed = max(a.ahead, end), append(a.freed, freed...)
}

// OwnBytes is how many guest bytes the layer itself maps, as Image.OwnBytes. It
// reads all tables, without keeping them in memory.
func (o *Overlay) OwnBytes() (int64, error) {
	var total int64
	size := o.Size()
	tables, index := *o.tables.Load(), o.index.Load()
	for l1, ok := index.Next(0); ok && l1 < int64(len(tables)); l1, ok = index.Next(l1 + 1) {
		t := tables[l1].Load()
		if t == nil { // it is being made
			continue
		}
		for si := range t.slices {
			s := t.slices[si].Load()
			if s == nil {
				var err error
				if s, err = o.readSlice(t, si); err != nil {
					return 0, err
				}
			}
			base := (l1<<o.tableBits + int64(si)*sliceEntries) << o.clusterBits
			total += s.ownBytes(base, size, o.clusterBits)
		}
	}
	return total, nil
}

func (s *slice) ownBytes(base, size int64, clusterBits uint32) int64 {
	var total int64
	for i := range s.bitmap {
		bitmap := s.bitmap[i].Load()
		cluster := base + int64(i)<<clusterBits
		if s.offset[i].Load() == badEntry { // it may hold all of the cluster
			total += max(0, min(size, cluster+1<<clusterBits)-cluster)
		}
		if bitmap == 0 {
			continue
		}
		for sub := uint(0); sub < 32; {
			kind, run := runAt(bitmap, sub)
			from := cluster + int64(sub)<<(clusterBits-5)
			to := min(size, from+int64(run)<<(clusterBits-5))
			if kind != extent.Unallocated && to > from {
				total += to - from
			}
			sub += run
		}
	}
	return total
}
