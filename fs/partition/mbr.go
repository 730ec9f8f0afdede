package partition

import (
	"encoding/binary"
	"fmt"

	"github.com/diskfs/go-diskfs/partition/mbr"
)

// The first sector of an MBR disk, and of each extended partition: four entries
// and a signature at the end.
const (
	sector     = 512
	entriesAt  = 446
	entrySize  = 16
	primaries  = 4
	typeAt     = 4 // within an entry
	startAt    = 8
	lengthAt   = 12
	signature  = 0xaa55 // little endian
	firstLogic = 5      // the number of the first logical partition
	// mostEmptyLinks is how many links of a chain of extended partitions are followed
	// without a partition among them, as in Linux.
	mostEmptyLinks = 100
)

// signed says whether a sector ends as one with a partition table does.
func signed(s []byte) bool { return binary.LittleEndian.Uint16(s[sector-2:]) == signature }

// protective says whether an MBR is there for programs that do not know GPT: an
// entry of the type 0xee. Such a disk has its partitions in the GPT, or none.
func protective(s []byte) bool {
	for i := range primaries {
		if mbr.Type(s[entriesAt+i*entrySize+typeAt]) == mbr.GPTProtective {
			return true
		}
	}
	return false
}

func extended(kind mbr.Type) bool {
	return kind == mbr.ExtendedCHS || kind == mbr.ExtendedLBA || kind == mbr.LinuxExtended
}

// readMBR reads the primary partitions and goes along the extended ones. The
// numbers in an MBR are of sectors of 512 bytes: it does not say what the disk's
// sectors are, and other ones are rare.
func (r *reader) readMBR(first []byte) ([]Partition, error) {
	table, err := mbr.Read(memory(first), sector, sector)
	if err != nil {
		// Code where the entries would be: a file system's boot sector has the
		// same signature. Linux takes it so too.
		return nil, fmt.Errorf("%w: the first sector is a boot sector without one", ErrNone)
	}
	var list []Partition
	next := firstLogic
	for _, p := range table.Partitions {
		start, length := bytesOf(uint64(p.Start), sector), bytesOf(uint64(p.Size), sector)
		if length == 0 {
			continue
		}
		if !extended(p.Type) {
			if q, ok := r.within(p.Index, start, length); ok {
				list = append(list, q)
			}
			continue
		}
		// Linux shows of an extended partition its first two sectors.
		if q, ok := r.within(p.Index, start, min(length, 2*sector)); ok {
			list = append(list, q)
		}
		logical, used, err := r.readExtended(start, length, next)
		if err != nil {
			return nil, err
		}
		next = used
		list = append(list, logical...)
	}
	return list, nil
}

// readExtended goes along the chain of an extended partition, which begins at first
// and is length bytes long, as Linux does (block/partitions/msdos.c, parse_extended).
// Each link is a sector with four entries. Those that are not extended name logical
// partitions, relative to the link. Usually the first entry alone does, but OS/2 used
// all four; what the third and the fourth name outside of the link or of the whole is
// garbage. The first extended entry names the next link, relative to first. A sector
// without a signature ends the chain, and so do too many links without a partition
// and the highest number: a chain may be a ring. next is the number after the last one
// that was used.
func (r *reader) readExtended(first, length int64, number int) (list []Partition, next int, err error) {
	next = number
	link, end := first, first+length
	for empty := 0; empty < mostEmptyLinks && link <= r.size-sector; {
		var s [sector]byte
		if err := r.fill(s[:], link); err != nil {
			return nil, next, err
		}
		if !signed(s[:]) {
			break
		}
		empty++
		for slot := range primaries {
			e := entryAt(s[:], slot)
			if e.length == 0 || extended(e.kind) {
				continue
			}
			start := link + e.start
			if slot >= 2 && (e.start+e.length > length || start+e.length > end) {
				continue
			}
			if next > MaxNumber {
				return list, next, nil
			}
			// One that lies outside of the disk keeps its number, as in Linux, but is
			// not shown.
			if p, ok := r.within(next, start, e.length); ok {
				list = append(list, p)
			}
			next, empty = next+1, 0
		}
		e, ok := nextLink(s[:])
		if !ok {
			break
		}
		link, length = first+e.start, e.length
	}
	return list, next, nil
}

// nextLink is the first extended entry of a link.
func nextLink(s []byte) (mbrEntry, bool) {
	for slot := range primaries {
		if e := entryAt(s, slot); e.length > 0 && extended(e.kind) {
			return e, true
		}
	}
	return mbrEntry{}, false
}

// mbrEntry is an entry of a link; start and length are in bytes, below 2 TiB.
type mbrEntry struct {
	kind          mbr.Type
	start, length int64
}

func entryAt(s []byte, slot int) mbrEntry {
	e := s[entriesAt+slot*entrySize:]
	return mbrEntry{
		kind:   mbr.Type(e[typeAt]),
		start:  sector * int64(binary.LittleEndian.Uint32(e[startAt:])),
		length: sector * int64(binary.LittleEndian.Uint32(e[lengthAt:])),
	}
}
