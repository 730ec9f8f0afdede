package overlay

import (
	"errors"
	"fmt"
	"time"

	"varve/overlay/extent"
	"varve/overlay/qcow2"
)

// A layer that is written keeps a damaged entry as it stands in the file, and takes
// no change of it. One whose L1 table or refcounts are damaged is not opened for
// writing at all (OpenOverlay); package chain keeps it as a frozen layer.

// badEntry stands in a slice for an entry that cannot be used, with no bit in its
// bitmap. No entry of the file is like it: as a host offset it is none.
const badEntry = ^uint64(0)

// Once an entry is found that cannot be used its table remembers it: what another write
// allocates later may be what it names.

// ownEntry is an entry as it stands in the file.
type ownEntry struct {
	word, bitmap uint64
	reason       error
}

// noteBad remembers an entry of a table that cannot be used. Called by who loads a
// slice of it.
func (t *table) noteBad(i int64, e ownEntry) {
	t.badMu.Lock()
	defer t.badMu.Unlock()
	if t.bad == nil {
		t.bad = make(map[int64]ownEntry)
	}
	t.bad[i] = e
}

// badAt is the entry with an index in the table, if it cannot be used.
func (t *table) badAt(i int64) (e ownEntry, ok bool) {
	t.badMu.Lock()
	defer t.badMu.Unlock()
	e, ok = t.bad[i]
	return e, ok
}

// lookupBad is Lookup at an entry that cannot be used for writing. One that only varve
// does not write, such as one without the COPIED flag, can be read all the same.
func (o *Overlay) lookupBad(off, length int64) (extent.Extent, error) {
	cluster := off >> o.clusterBits
	start := cluster << o.clusterBits
	list := extent.List{Low: off, High: min(off+length, start+o.clusterSize())}
	s, i, err := o.findSlice(cluster)
	if err != nil {
		return extent.Extent{}, err
	}
	if e, ok := s.table.badAt(int64(s.index)*sliceEntries + int64(i)); ok {
		if !errors.Is(e.reason, ErrNotPlain) {
			return extent.Extent{Start: list.Low, Length: list.High - list.Low, Kind: extent.Damaged}, nil
		}
		format := qcow2.EntryFormat{Version: 3, ClusterBits: o.clusterBits, Extended: true, FileSize: o.alloc.opened << o.clusterBits}
		if err := format.Add(&list, start, e.word, e.bitmap); err == nil && list.Extents[0].Kind != extent.Compressed {
			return list.Extents[0], nil
		}
	} else if s.readAgain() {
		return o.Lookup(off, length)
	}
	return extent.Extent{Start: list.Low, Length: list.High - list.Low, Kind: extent.Damaged}, nil
}

// unreadFor is how long a sector that the host could not read is not tried again: a
// disk may take seconds to say that it cannot.
const unreadFor = time.Second

// readAgain drops a slice of which a sector could not be read, so that who looks for it
// reads it once more; false when it is too early, or changes of it wait for a flush.
func (s *slice) readAgain() bool {
	return s.lacks != 0 && time.Since(s.read) > unreadFor && s.evict()
}

// whyBad is what is wrong with a cluster's entry, of which ReadExtent was given a
// Damaged extent.
func (o *Overlay) whyBad(off int64) error {
	s, i, err := o.findSlice(off >> o.clusterBits)
	if err != nil {
		return err
	}
	if s != nil && s.offset[i].Load() == badEntry {
		return o.badReason(s, i, off)
	}
	return fmt.Errorf("read at %d of %s: %w", off, o.file.Name(), qcow2.ErrReadable)
}

// badReason says why an entry cannot be used.
func (o *Overlay) badReason(s *slice, i int, off int64) error {
	reason := s.unread
	if e, ok := s.table.badAt(int64(s.index)*sliceEntries + int64(i)); ok {
		reason = e.reason
	}
	return fmt.Errorf("L2 entry at 0x%x of %s, of guest offset 0x%x: %w",
		s.at()+int64(i)*qcow2.EntrySize, o.file.Name(), off&^(o.clusterSize()-1), reason)
}

// changeable is nil where an entry can be changed: where it is one that varve has
// written.
func (o *Overlay) changeable(s *slice, i int, cluster int64) error {
	if s.offset[i].Load() == badEntry {
		return o.badReason(s, i, cluster<<o.clusterBits)
	}
	return nil
}
