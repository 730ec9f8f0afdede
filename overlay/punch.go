package overlay

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
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
func (o *Overlay) Punch() error {
	if o.Failed() != nil {
		return nil // what is durable is not known any more
	}
	o.punch.running.Lock()
	defer o.punch.running.Unlock()
	clusters := o.punch.due()
	slices.Sort(clusters)
	for _, c := range clusters {
		if err := o.punchCluster(c); err != nil {
			if errors.Is(err, errors.ErrUnsupported) {
				return nil // a host without holes: discarded blocks stay in use
			}
			return err
		}
	}
	return nil
}

// punchCluster owns the stripe, so that no write to the cluster is under way,
// and looks again: a write since the discard took its subclusters off the
// queue, and only bits that are not allocated may go.
func (o *Overlay) punchCluster(cluster int64) error {
	m := o.stripe(cluster)
	m.Lock()
	defer m.Unlock()
	mask := o.punch.dueMask(cluster)
	if mask == 0 {
		return nil
	}
	s, i, err := o.findSlice(cluster)
	if err != nil {
		return err
	}
	o.punch.cancel(cluster, mask)
	if s == nil {
		return nil
	}
	host, bitmap := int64(s.offset[i].Load()), s.bitmap[i].Load()
	mask &^= uint32(bitmap)
	if host == 0 {
		return nil
	}
	for mask != 0 {
		first := bits.TrailingZeros32(mask)
		n := bits.TrailingZeros32(^(mask >> first))
		at := host + int64(first)<<o.subBits
		if err := o.file.PunchHole(at, int64(n)<<o.subBits); err != nil {
			return fmt.Errorf("punch %d bytes at 0x%x of %s: %w", int64(n)<<o.subBits, at, o.file.Name(), err)
		}
		o.activity.Punched.Add(int64(n) << o.subBits)
		mask &^= uint32((uint64(1)<<n - 1) << first)
	}
	return nil
}
