package overlay

import (
	"fmt"
	"math/bits"
	"sync"

	"varve/overlay/extent"
	"varve/overlay/hostfs"
)

// States of a subcluster of a layer that we write, as its cluster's entry
// shows them (qcow2 specification, "Extended L2 Entries"):
//
//	offset  allocated  zero
//	  0         0        0    unallocated: the backing layer answers
//	  h         0        0    unallocated; a host cluster is kept for it (M3)
//	 any        0        1    reads as zeros
//	  h         1        0    data at h
//	badEntry    0        0    the entry cannot be used; see damage.go
//
// An entry changes only under its cluster's stripe, after the data that the
// new state names was written.

// Lookup is the extent at off, at most length bytes of it and at most to the
// end of its cluster; where nothing is allocated far and wide it may be
// longer. It takes no lock.
func (o *Overlay) Lookup(off, length int64) (extent.Extent, error) {
	cluster := off >> o.clusterBits
	s, i, err := o.findSlice(cluster)
	if err != nil {
		return extent.Extent{}, err
	}
	if s == nil {
		return extent.Extent{Start: off, Length: o.nextTable(off, off+length) - off}, nil
	}
	bitmap := s.bitmap[i].Load()
	host := int64(s.offset[i].Load())
	in := off & (o.clusterSize() - 1)
	sub := uint(in >> o.subBits)
	kind, run := runAt(bitmap, sub)
	n := int64(sub+run)<<o.subBits - in
	e := extent.Extent{Start: off, Length: min(length, n), Kind: kind}
	if kind == extent.Data {
		e.Host = host + in
	} else if host < 0 { // badEntry
		return o.lookupBad(off, length)
	}
	return e, nil
}

// runAt is the state of a subcluster and how many from it on share it.
func runAt(bitmap uint64, sub uint) (extent.Kind, uint) {
	alloc, zero := uint32(bitmap)>>sub, uint32(bitmap>>32)>>sub
	left := 32 - sub
	switch {
	case alloc&1 != 0:
		return extent.Data, min(left, uint(bits.TrailingZeros32(^alloc)))
	case zero&1 != 0:
		return extent.Zero, min(left, uint(bits.TrailingZeros32(^zero)))
	default:
		return extent.Unallocated, min(left, uint(bits.TrailingZeros32(alloc|zero)))
	}
}

// Map implements Layer for a layer that is being written: each answer was
// right at some moment during the call.
func (o *Overlay) Map(dst []extent.Extent, off, length int64) ([]extent.Extent, error) {
	return mapLayer(dst, off, length, o.Size(), o.Lookup)
}

// mapLayer makes extents of lookups, merged, and Zero from size on (M2).
func mapLayer(dst []extent.Extent, off, length, size int64, lookup func(off, length int64) (extent.Extent, error)) ([]extent.Extent, error) {
	end := off + length
	for off < end {
		e := extent.Extent{Start: off, Length: end - off, Kind: extent.Zero}
		if off < size {
			var err error
			if e, err = lookup(off, min(end, size)-off); err != nil {
				return dst, err
			}
		}
		dst = extent.Append(dst, e)
		off = e.End()
	}
	return dst, nil
}

// ReadExtent implements Layer.
func (o *Overlay) ReadExtent(p []byte, e extent.Extent, off int64) error {
	if e.Kind == extent.Damaged {
		return o.whyBad(off)
	}
	return o.ReadHost(p, e.Host+off-e.Start)
}

// ReadHost reads the file at a host offset; past its end are zeros.
func (o *Overlay) ReadHost(p []byte, host int64) error {
	if err := hostfs.ReadPadded(o.file, p, host); err != nil {
		return fmt.Errorf("read %d bytes at 0x%x of %s: %w", len(p), host, o.file.Name(), err)
	}
	return nil
}

// WriteAt writes p at off. Subclusters that it covers in part are completed
// from below, which may be nil where nothing is below. The data is in the
// file, and found by reads, when it returns; it is durable after a Flush that
// starts later. p must lie within the layer. An error leaves each sector as it
// was or as p has it (D4).
func (o *Overlay) WriteAt(p []byte, off int64, below Backing) error {
	if err := o.Failed(); err != nil {
		return err
	}
	return o.byCluster(off, int64(len(p)), func(cluster, in, n int64) error {
		part := p[:n]
		p = p[n:]
		return o.writeCluster(part, cluster, in, below)
	})
}

// byCluster cuts a range at cluster boundaries; in is the offset within the
// cluster.
func (o *Overlay) byCluster(off, length int64, f func(cluster, in, n int64) error) error {
	for length > 0 {
		in := off & (o.clusterSize() - 1)
		n := min(length, o.clusterSize()-in)
		if err := f(off>>o.clusterBits, in, n); err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return nil
}

// subMask has a bit for every subcluster that [in, in+n) touches.
func (o *Overlay) subMask(in, n int64) uint32 {
	first, last := uint(in>>o.subBits), uint((in+n-1)>>o.subBits)
	return uint32(allSub) << first & (allSub >> (31 - last))
}

func (o *Overlay) stripe(cluster int64) *sync.RWMutex {
	return &o.stripes[cluster%stripeCount]
}

func (o *Overlay) writeCluster(p []byte, cluster, in int64, below Backing) error {
	mask := o.subMask(in, int64(len(p)))
	if done, err := o.writeInPlace(p, cluster, in, mask); done || err != nil {
		return err
	}
	m := o.stripe(cluster)
	m.Lock()
	defer m.Unlock()
	return o.writeOwned(p, cluster, in, mask, below)
}

// writeInPlace writes where every touched subcluster is allocated: no entry
// changes. It shares the stripe, so no punch and no discard runs beside it.
func (o *Overlay) writeInPlace(p []byte, cluster, in int64, mask uint32) (bool, error) {
	m := o.stripe(cluster)
	m.RLock()
	defer m.RUnlock()
	s, i, err := o.findSlice(cluster)
	if err != nil || s == nil || uint32(s.bitmap[i].Load())&mask != mask {
		return false, err
	}
	if err := hostfs.WriteWhole(o.file, p, int64(s.offset[i].Load())+in); err != nil {
		return false, err
	}
	o.wrote()
	return true, nil
}

// writeOwned writes with the stripe owned: completes what is covered in part,
// allocates the host cluster, and then sets the entry.
func (o *Overlay) writeOwned(p []byte, cluster, in int64, mask uint32, below Backing) error {
	s, i, err := o.ensureSlice(cluster)
	if err != nil {
		return err
	}
	host, bitmap := s.offset[i].Load(), s.bitmap[i].Load()
	missing := mask &^ uint32(bitmap)
	start, end := in, in+int64(len(p))
	sub := o.subSize()
	if first := start &^ (sub - 1); first != start && missing&o.subMask(first, 1) != 0 {
		start = first
	}
	if last := (end - 1) &^ (sub - 1); last+sub != end && missing&o.subMask(last, 1) != 0 {
		end = last + sub
	}
	data := p
	if start != in || end != in+int64(len(p)) {
		buf := getBuffer(end - start)
		defer putBuffer(buf)
		data = *buf
		base := cluster << o.clusterBits
		if err := o.readThrough(data[:in-start], base+start, bitmap, below); err != nil {
			return err
		}
		copy(data[in-start:], p)
		if err := o.readThrough(data[in-start+int64(len(p)):], base+in+int64(len(p)), bitmap, below); err != nil {
			return err
		}
	}
	if host, err = o.takeHost(cluster, host, bitmap); err != nil {
		return err
	}
	o.punch.cancel(cluster, mask)
	if err := o.writeNew(data, int64(host)+start); err != nil {
		return err
	}
	o.wrote()
	bitmap = (bitmap | uint64(mask)) &^ (uint64(mask) << 32)
	return o.setEntry(cluster, host, bitmap)
}

// takeHost gives a cluster, whose stripe is the caller's, a host cluster unless it
// has one. Its entry says so at once: what fails after it must not take a second.
func (o *Overlay) takeHost(cluster int64, host, bitmap uint64) (uint64, error) {
	if host != 0 {
		return host, nil
	}
	h, err := o.alloc.take(o.file, 1)
	if err != nil {
		return 0, err
	}
	return uint64(h), o.setEntry(cluster, uint64(h), bitmap)
}

// newAtOnce is how much one call writes to a new place. The host's page cache
// keeps in one folio what came in one call, and ext4 goes through all blocks of a
// folio for each later write into it: with 128 KiB at once rewriting 4 KiB pieces is
// a quarter slower, with 32 KiB writing in order is (docs/performance-log.md).
const newAtOnce = 64 << 10

// writeNew writes to a place that no entry shows yet.
func (o *Overlay) writeNew(p []byte, host int64) error {
	for len(p) > 0 {
		n := min(len(p), newAtOnce)
		if err := hostfs.WriteWhole(o.file, p[:n], host); err != nil {
			return err
		}
		p, host = p[n:], host+int64(n)
	}
	return nil
}

// readThrough reads what the guest sees within a single subcluster that is not
// allocated: zeros, or the layer below up to this layer's size (M2: what lies
// past it must be zeros when the disk grows).
func (o *Overlay) readThrough(p []byte, off int64, bitmap uint64, below Backing) error {
	if len(p) == 0 {
		return nil
	}
	sub := uint(off & (o.clusterSize() - 1) >> o.subBits)
	if n := max(0, o.Size()-off); n < int64(len(p)) {
		clear(p[n:])
		p = p[:n]
	}
	if below == nil || bitmap>>32>>sub&1 != 0 {
		clear(p)
		return nil
	}
	return below.ReadAt(p, off)
}

var bufferPool = sync.Pool{New: func() any { b := make([]byte, 0, 128<<10); return &b }}

// getBuffer lends a buffer of n bytes from a pool.
func getBuffer(n int64) *[]byte {
	b := bufferPool.Get().(*[]byte)
	if int64(cap(*b)) < n {
		*b = make([]byte, n)
	}
	*b = (*b)[:n]
	return b
}

func putBuffer(b *[]byte) { bufferPool.Put(b) }
