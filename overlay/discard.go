package overlay

import (
	"sync"

	"varve/overlay/extent"
)

// Discard makes a range read as zeros (D5). Whole subclusters get zero bits and
// their blocks are punched after the next Flush, by Punch (M6); the host
// cluster stays theirs (M3). What already reads as zeros is left alone. The
// ends that cover a subcluster in part are written as zeros.
func (o *Overlay) Discard(off, length int64, below Backing) error {
	if err := o.Failed(); err != nil {
		return err
	}
	return o.discard(off, min(length, o.Size()-off), below)
}

func (o *Overlay) discard(off, length int64, below Backing) error {
	far := minFar
	for length > 0 {
		n, err := o.skipZero(off, length, far, below)
		if err != nil {
			return err
		}
		if n <= o.clusterSize() {
			far = minFar
		} else {
			far = min(2*far, maxFar)
		}
		if n == 0 {
			in := off & (o.clusterSize() - 1)
			n = min(length, o.clusterSize()-in)
			if err := o.discardCluster(off>>o.clusterBits, in, n, below); err != nil {
				return err
			}
		}
		off, length = off+n, length-n
	}
	return nil
}

// How far skipZero looks below at once. It doubles as long as all is zeros: the
// growth by a petabyte must not look at each 16 MiB of it.
const (
	minFar = int64(16 << 20)
	maxFar = int64(1 << 40)
)

// skipZero is how many bytes from off on need no discard because this layer
// says nothing and what is below, looked at as far as far says, is zero.
func (o *Overlay) skipZero(off, length, far int64, below Backing) (int64, error) {
	e, err := o.Lookup(off, length)
	if err != nil || e.Kind == extent.Data || e.Kind == extent.Damaged {
		return 0, err
	}
	if e.Kind == extent.Zero || below == nil {
		return e.Length, nil
	}
	// Far first, then only this cluster: one look per cluster must not cost a
	// scan of everything up to the next data.
	for _, n := range []int64{far, o.clusterSize() - off&(o.clusterSize()-1)} {
		n = min(n, e.Length)
		zero, err := below.IsZero(off, n)
		if err != nil {
			return 0, err
		}
		if zero {
			return n, nil
		}
	}
	return 0, nil
}

func (o *Overlay) discardCluster(cluster, in, n int64, below Backing) error {
	m := o.stripe(cluster)
	m.Lock()
	defer m.Unlock()
	sub := o.subSize()
	first := (in + sub - 1) &^ (sub - 1)
	last := (in + n) &^ (sub - 1)
	// The tail of the disk's last subcluster is nobody's.
	if cluster<<o.clusterBits+in+n == o.Size() {
		last = (in + n + sub - 1) &^ (sub - 1)
	}
	if first > last { // within one subcluster
		return o.zeroPart(cluster, in, n, below)
	}
	if in < first {
		if err := o.zeroPart(cluster, in, min(first-in, n), below); err != nil {
			return err
		}
	}
	if last < in+n {
		if err := o.zeroPart(cluster, last, in+n-last, below); err != nil {
			return err
		}
	}
	if first == last {
		return nil
	}
	s, i, err := o.ensureSlice(cluster)
	if err != nil {
		return err
	}
	mask := o.subMask(first, last-first)
	return o.clearSubclusters(s, i, cluster, mask, true)
}

// clearSubclusters takes subclusters out of allocation, to zero or to
// unallocated, and queues the punch of those that held data. The stripe is
// the caller's.
func (o *Overlay) clearSubclusters(s *slice, i int, cluster int64, mask uint32, zero bool) error {
	if err := o.changeable(s, i, cluster); err != nil {
		return err
	}
	host, old := s.offset[i].Load(), s.bitmap[i].Load()
	bitmap := old &^ (uint64(mask) | uint64(mask)<<32)
	if zero {
		bitmap |= uint64(mask) << 32
	}
	if bitmap == old {
		return nil
	}
	if err := o.setEntry(cluster, host, bitmap); err != nil {
		return err
	}
	o.wrote()
	if held := uint32(old) & mask; held != 0 {
		o.punch.add(cluster, held, !zero)
	}
	return nil
}

// zeroPart makes part of one subcluster zeros; the stripe is the caller's.
func (o *Overlay) zeroPart(cluster, in, n int64, below Backing) error {
	off := cluster<<o.clusterBits + in
	skip, err := o.skipZero(off, n, minFar, below)
	if err != nil || skip >= n {
		return err
	}
	buf := getBuffer(n)
	defer putBuffer(buf)
	clear(*buf)
	return o.writeOwned(*buf, cluster, in, o.subMask(in, n), below)
}

// Unmap takes a range, of whole subclusters or to the layer's end, out of the
// layer: the layer below answers for it again. The blocks are punched after the
// next Flush, by Punch or PunchBefore. For merges only: it changes what the layer itself says.
func (o *Overlay) Unmap(off, length int64) error {
	if err := o.Failed(); err != nil {
		return err
	}
	for end := min(off+length, o.Size()); off < end; {
		if o.findTable(off>>o.clusterBits) == nil {
			off = o.nextTable(off, end)
			continue
		}
		in := off & (o.clusterSize() - 1)
		n := min(end-off, o.clusterSize()-in)
		if err := o.unmapCluster(off>>o.clusterBits, in, n); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// unmapCluster is Unmap within a cluster for which there is a table.
func (o *Overlay) unmapCluster(cluster, in, n int64) error {
	m := o.stripe(cluster)
	m.Lock()
	defer m.Unlock()
	s, i, err := o.findSlice(cluster)
	if err != nil {
		return err
	}
	return o.clearSubclusters(s, i, cluster, o.subMask(in, n), false)
}

// Reserve gives a range space on the host, so that later writes to it do not
// meet ENOSPC. What it reads as stays.
func (o *Overlay) Reserve(off, length int64) error {
	if err := o.Failed(); err != nil {
		return err
	}
	return o.byCluster(off, min(length, o.Size()-off), func(cluster, in, n int64) error {
		m := o.stripe(cluster)
		m.Lock()
		defer m.Unlock()
		s, i, err := o.ensureSlice(cluster)
		if err != nil {
			return err
		}
		host, err := o.takeHost(cluster, s.offset[i].Load(), s.bitmap[i].Load())
		if err != nil {
			return err
		}
		o.punch.cancel(cluster, o.subMask(in, n))
		o.wrote()
		return o.file.Allocate(int64(host)+in, n)
	})
}

// punchQueue holds the holes that are to be punched once the entries that
// make them dead are durable (M6).
type punchQueue struct {
	running  sync.Mutex // held by Punch, so that none is under way once Settle's returned
	mu       sync.Mutex
	captured uint64 // flushes that have captured entries
	durable  uint64 // the last of them that completed
	pending  map[int64]*pendingPunch
}

type pendingPunch struct {
	mask     uint32
	seq      uint64 // the flush whose completion makes it due
	unmapped bool   // some of it, by Unmap
}

// add queues subclusters whose entry was changed already: a flush that
// captures from now on has the change.
func (q *punchQueue) add(cluster int64, mask uint32, unmapped bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	p := q.pending[cluster]
	if p == nil {
		p = new(pendingPunch)
		q.pending[cluster] = p
	}
	p.mask |= mask
	p.unmapped = p.unmapped || unmapped
	p.seq = q.captured + 1
}

// cancel forgets subclusters that are about to be written. The caller owns the
// cluster's stripe, as Punch does while it punches.
func (q *punchQueue) cancel(cluster int64, mask uint32) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if p := q.pending[cluster]; p != nil {
		if p.mask &^= mask; p.mask == 0 {
			delete(q.pending, cluster)
		}
	}
}

// forget empties the queue.
func (q *punchQueue) forget() {
	q.mu.Lock()
	defer q.mu.Unlock()
	clear(q.pending)
}

// due is which clusters have holes to be punched, from end on none that Unmap made.
func (q *punchQueue) due(end int64) []int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	var clusters []int64
	for c, p := range q.pending {
		if q.isDue(c, p, end) {
			clusters = append(clusters, c)
		}
	}
	return clusters
}

// duePunch is what of a cluster is due. The caller owns its stripe, so that nothing
// is added meanwhile.
func (q *punchQueue) duePunch(cluster, end int64) pendingPunch {
	q.mu.Lock()
	defer q.mu.Unlock()
	if p := q.pending[cluster]; p != nil && q.isDue(cluster, p, end) {
		return *p
	}
	return pendingPunch{}
}

// putBack queues again what was due and could not be punched. The caller owns the
// clusters' stripes.
func (q *punchQueue) putBack(taken map[int64]pendingPunch) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for cluster, p := range taken {
		if p.mask != 0 {
			q.pending[cluster] = &p
		}
	}
}

func (q *punchQueue) isDue(cluster int64, p *pendingPunch, end int64) bool {
	return (cluster < end || !p.unmapped) && p.seq <= q.durable
}
