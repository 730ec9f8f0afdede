package qcow2

import (
	"errors"
	"fmt"

	"varve/overlay/extent"
	"varve/overlay/hostfs"
)

// Damage of an image's tables costs the guest bytes that the damaged entry maps, and
// no others (M22). Map gives them as Damaged: neither data nor zeros, and nothing shows
// through from below. ReadExtent says what is wrong there.
//
//	an entry that breaks a rule          the cluster, or the reach of the L2 table
//	a piece of a table that the host     what the entries in it map
//	cannot read

// DamageUnit is the least that is read of a table of which a larger piece cannot be
// read, in bytes: a sector, which a disk loses as a whole.
const DamageUnit = extent.SectorSize

// ReadPieces reads the entries of a table, of entryBytes each, into p, which is at
// file offset at. Where the host cannot read, it reads sector by sector, and tells
// broken of the entries that it cannot have, whose bytes in p are zeros then. read is
// ReadWhole or ReadPadded. Other errors are the caller's.
func ReadPieces(read func(hostfs.File, []byte, int64) error, f hostfs.File, p []byte, at, entryBytes int64, broken func(first, n int64, reason error) error) error {
	err := read(f, p, at)
	if !errors.Is(err, hostfs.ErrUnreadable) {
		return err
	}
	for off := int64(0); off < int64(len(p)); {
		end := min(int64(len(p)), (at+off)/DamageUnit*DamageUnit+DamageUnit-at)
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

// whyDamaged is what is wrong with a Damaged extent, within the image.
func (im *Image) whyDamaged(off, length int64) error {
	list := extent.List{Low: off, High: off + length, Strict: true}
	if err := im.mapTables(&list, off, off+length); err != nil {
		return err
	}
	return fmt.Errorf("read %d bytes at %d of %s: %w", length, off, im.file.Name(), ErrReadable)
}
