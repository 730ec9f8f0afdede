package overlay

import (
	"errors"
	"fmt"
	"time"

	"varve/overlay/hostfs"
)

// Damage of an image's tables costs the guest bytes that the damaged entry maps, and
// no others (M22). Map gives them as Damaged: neither data nor zeros, and nothing shows
// through from below. ReadExtent says what is wrong there.
//
//	an entry that breaks a rule          the cluster, or the reach of the L2 table
//	a piece of a table that the host     what the entries in it map
//	cannot read
//
// A layer that is written keeps a damaged entry as it stands in the file, and takes
// no change of it. One whose L1 table or refcounts are damaged is not opened for
// writing at all (OpenOverlay); package chain keeps it as a frozen layer.

// ErrReadable says that a Damaged extent can be read by now: the host could not read
// a piece of a table, and can again. Whoever remembers extents asks Map anew.
var ErrReadable = errors.New("it can be read again")

// IsDamage says whether an error of a read comes from what stands in the file, or in
// a sector of the host, so that other places of the same image can still be read.
func IsDamage(err error) bool {
	return errors.Is(err, ErrCorrupt) || errors.Is(err, hostfs.ErrUnreadable)
}

// damageUnit is the least that is read of a table of which a larger piece cannot be
// read, in bytes: a sector, which a disk loses as a whole.
const damageUnit = SectorSize

// readPieces reads the entries of a table, of entryBytes each, into p, which is at
// file offset at. Where the host cannot read, it reads sector by sector, and tells
// broken of the entries that it cannot have, whose bytes in p are zeros then. read is
// ReadWhole or ReadPadded. Other errors are the caller's.
func readPieces(read func(hostfs.File, []byte, int64) error, f hostfs.File, p []byte, at, entryBytes int64, broken func(first, n int64, reason error) error) error {
	err := read(f, p, at)
	if !errors.Is(err, hostfs.ErrUnreadable) {
		return err
	}
	for off := int64(0); off < int64(len(p)); {
		end := min(int64(len(p)), (at+off)/damageUnit*damageUnit+damageUnit-at)
		if err := read(f, p[off:end], at+off); errors.Is(err, hostfs.ErrUnreadable) {
			clear(p[off:end])
			if err := broken(off/entryBytes, (end-off)/entryBytes, err); err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
		off = end
	}
	return nil
}

// broken appends [start, end), of which an image says nothing that can be used. A
// strict look ends with the reason.
func (l *extentList) broken(start, end int64, reason error) error {
	if l.strict && start < l.high && end > l.low {
		return reason
	}
	l.add(Damaged, start, end, 0)
	return nil
}

// whyDamaged is what is wrong with a Damaged extent, within the image.
func (im *Image) whyDamaged(off, length int64) error {
	list := extentList{low: off, high: off + length, strict: true}
	if err := im.mapTables(&list, off, off+length); err != nil {
		return err
	}
	return fmt.Errorf("read %d bytes at %d of %s: %w", length, off, im.file.Name(), ErrReadable)
}

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
func (o *Overlay) lookupBad(off, length int64) (Extent, error) {
	cluster := off >> o.clusterBits
	start := cluster << o.clusterBits
	list := extentList{low: off, high: min(off+length, start+o.clusterSize())}
	s, i, err := o.findSlice(cluster)
	if err != nil {
		return Extent{}, err
	}
	if e, ok := s.table.badAt(int64(s.index)*sliceEntries + int64(i)); ok {
		if !errors.Is(e.reason, ErrNotPlain) {
			return Extent{Start: list.low, Length: list.high - list.low, Kind: Damaged}, nil
		}
		format := l2Format{version: 3, clusterBits: o.clusterBits, extended: true, fileSize: o.alloc.opened << o.clusterBits}
		if err := format.add(&list, start, e.word, e.bitmap); err == nil && list.list[0].Kind != Compressed {
			return list.list[0], nil
		}
	} else if s.readAgain() {
		return o.Lookup(off, length)
	}
	return Extent{Start: list.low, Length: list.high - list.low, Kind: Damaged}, nil
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
	return fmt.Errorf("read at %d of %s: %w", off, o.file.Name(), ErrReadable)
}

// badReason says why an entry cannot be used.
func (o *Overlay) badReason(s *slice, i int, off int64) error {
	reason := s.unread
	if e, ok := s.table.badAt(int64(s.index)*sliceEntries + int64(i)); ok {
		reason = e.reason
	}
	return fmt.Errorf("L2 entry at 0x%x of %s, of guest offset 0x%x: %w",
		s.at()+int64(i)*entrySize, o.file.Name(), off&^(o.clusterSize()-1), reason)
}

// changeable is nil where an entry can be changed: where it is one that varve has
// written.
func (o *Overlay) changeable(s *slice, i int, cluster int64) error {
	if s.offset[i].Load() == badEntry {
		return o.badReason(s, i, cluster<<o.clusterBits)
	}
	return nil
}
