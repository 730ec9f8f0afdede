package overlay

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"sync"
)

// PunchesWait says whether there is anything for Punch, now or after a flush.
func (o *Overlay) PunchesWait() bool {
	o.punch.mu.Lock()
	defer o.punch.mu.Unlock()
	return len(o.punch.pending) > 0
}

// Punch gives back the blocks of discarded and unmapped subclusters whose
// entries a completed Flush made durable. Nothing is lost when it fails: the
// blocks stay in use.
func (o *Overlay) Punch() error { return o.PunchBefore(math.MaxInt64) }

// PunchBefore is Punch without the blocks of what Unmap took out from a guest offset
// on, a whole cluster's: they have readers still.
func (o *Overlay) PunchBefore(end int64) error {
	if o.Failed() != nil {
		return nil // what is durable is not known any more
	}
	o.punch.running.Lock()
	defer o.punch.running.Unlock()
	end >>= o.clusterBits
	clusters := o.punch.due(end)
	slices.Sort(clusters)
	for batch := range slices.Chunk(clusters, punchBatch) {
		if err := o.punchAll(batch, end); err != nil {
			if errors.Is(err, errors.ErrUnsupported) {
				o.punch.forget() // a host without holes: discarded blocks stay in use
				return nil
			}
			return err
		}
	}
	return nil
}

const (
	// holeBytes bounds one hole: writers to its clusters wait for it. Many small
	// ones cost more: 384 MiB of ext4 in holes of 128 KiB, 1 MiB and 16 MiB took
	// 1.1, 0.2 and 0.1 s.
	holeBytes = 1 << 20
	// punchBatch is for how many clusters it is looked up where they stand before
	// the first hole.
	punchBatch = 4096
)

// punchAll goes through clusters as they stand in the file, which is not as they
// stand in the guest: neighbours there go in one call. end is a cluster, as for due.
func (o *Overlay) punchAll(clusters []int64, end int64) error {
	type place struct{ host, cluster int64 }
	places := make([]place, len(clusters))
	for i, c := range clusters {
		s, n, err := o.findSlice(c)
		if err != nil {
			return err
		}
		places[i].cluster = c
		if s != nil {
			places[i].host = int64(s.offset[n].Load()) // never changes once it is set (M3)
		}
	}
	slices.SortFunc(places, func(a, b place) int { return cmp.Compare(a.host, b.host) })
	var run []int64
	for i, p := range places {
		if len(run) > 0 && (p.host != places[i-1].host+o.clusterSize() || int64(len(run))<<o.clusterBits >= holeBytes) {
			if err := o.punchRun(run, end); err != nil {
				return err
			}
			run = run[:0]
		}
		run = append(run, p.cluster)
	}
	return o.punchRun(run, end)
}

// punchRun punches clusters that stand one behind the other in the file.
func (o *Overlay) punchRun(clusters []int64, end int64) error {
	for len(clusters) > 0 {
		n, err := o.punchSome(clusters, end)
		if err != nil {
			return err
		}
		clusters = clusters[n:]
	}
	return nil
}

// punchSome punches the first clusters of a run, as many as can be had without
// waiting, and at least one. It owns their stripes, so that no write to them is under
// way, and looks again: a write since the discard took its subclusters off the queue,
// Unmap may have added some that have readers, and only bits that are not allocated
// may go.
func (o *Overlay) punchSome(clusters []int64, end int64) (n int, err error) {
	n, unlock := o.ownStripes(clusters)
	defer unlock()
	taken := make(map[int64]pendingPunch)
	defer func() {
		if err != nil { // a full host may need room for a hole: another try
			o.punch.putBack(taken)
		}
	}()
	var from, to int64 // the hole so far
	for _, c := range clusters[:n] {
		host, p, err := o.takePunch(c, end)
		if err != nil {
			return 0, errors.Join(err, o.punchHole(from, to))
		}
		taken[c] = p
		mask := p.mask
		for mask != 0 {
			first := bits.TrailingZeros32(mask)
			n := bits.TrailingZeros32(^(mask >> first))
			mask &^= uint32((uint64(1)<<n - 1) << first)
			at := host + int64(first)<<o.subBits
			if at != to {
				if err := o.punchHole(from, to); err != nil {
					return 0, err
				}
				from = at
			}
			to = at + int64(n)<<o.subBits
		}
	}
	return n, o.punchHole(from, to)
}

// ownStripes owns the stripes of the first n clusters. It waits for the first one
// alone: who writes to that one waits for no other's copy.
func (o *Overlay) ownStripes(clusters []int64) (n int, unlock func()) {
	var owned []*sync.RWMutex
	unlock = func() {
		for _, m := range owned {
			m.Unlock()
		}
	}
	for i, c := range clusters {
		m := o.stripe(c)
		if slices.Contains(owned, m) {
			continue
		}
		if i == 0 {
			m.Lock()
		} else if !m.TryLock() {
			return i, unlock
		}
		owned = append(owned, m)
	}
	return len(clusters), unlock
}

// takePunch takes a cluster, whose stripe is the caller's, off the queue, and gives
// its place in the file and what of it may go.
func (o *Overlay) takePunch(cluster, end int64) (host int64, p pendingPunch, err error) {
	p = o.punch.duePunch(cluster, end)
	if p.mask == 0 {
		return 0, p, nil
	}
	s, i, err := o.findSlice(cluster)
	if err != nil {
		return 0, pendingPunch{}, err
	}
	o.punch.cancel(cluster, p.mask)
	if s == nil || s.offset[i].Load() == badEntry {
		return 0, pendingPunch{}, nil
	}
	host, bitmap := int64(s.offset[i].Load()), s.bitmap[i].Load()
	p.mask &^= uint32(bitmap)
	if host == 0 {
		return 0, pendingPunch{}, nil
	}
	return host, p, nil
}

func (o *Overlay) punchHole(from, to int64) error {
	if from == to {
		return nil
	}
	if err := o.file.PunchHole(from, to-from); err != nil {
		return fmt.Errorf("punch %d bytes at 0x%x of %s: %w", to-from, from, o.file.Name(), err)
	}
	o.activity.Punched.Add(to - from)
	return nil
}
