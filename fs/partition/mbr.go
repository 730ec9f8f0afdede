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
	signature  = 0xaa55 // little endian
	firstLogic = 5      // the number of the first logical partition
	// mostExtended bounds the chain of extended partitions, as in Linux.
	mostExtended = 100
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

func extended(p *mbr.Partition) bool {
	return p.Type == mbr.ExtendedCHS || p.Type == mbr.ExtendedLBA || p.Type == mbr.LinuxExtended
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
		if !extended(p) {
			if q, ok := r.within(p.Index, start, length); ok {
				list = append(list, q)
			}
			continue
		}
		// Linux shows of an extended partition its first two sectors.
		if q, ok := r.within(p.Index, start, min(length, 2*sector)); ok {
			list = append(list, q)
		}
		logical, err := r.readExtended(start, next)
		if err != nil {
			return nil, err
		}
		next += len(logical)
		list = append(list, logical...)
	}
	return list, nil
}

// readExtended goes along a chain of extended partitions that begins at an offset:
// each begins with a sector whose first entries name a logical partition, relative
// to that sector, and the next one of the chain, relative to the first. A sector
// without a signature ends it, and so does one that was there before.
func (r *reader) readExtended(first int64, number int) ([]Partition, error) {
	var list []Partition
	seen := map[int64]bool{}
	for at := first; len(seen) < mostExtended && !seen[at] && at <= r.size-sector; {
		seen[at] = true
		var s [sector]byte
		if err := r.fill(s[:], at); err != nil {
			return nil, err
		}
		if !signed(s[:]) {
			break
		}
		// The third and the fourth entry say nothing, and hold garbage at times.
		clear(s[entriesAt+2*entrySize : sector-2])
		table, err := mbr.Read(memory(s[:]), sector, sector)
		if err != nil {
			break
		}
		next := int64(-1)
		for _, p := range table.Partitions {
			switch start, length := bytesOf(uint64(p.Start), sector), bytesOf(uint64(p.Size), sector); {
			case length == 0:
			case extended(p) && next < 0:
				next = first + start
			case extended(p):
			default:
				// One that lies outside keeps its number, as in Linux, but is not
				// shown.
				q, ok := r.within(number+len(list), at+start, length)
				if !ok {
					q = Partition{Number: number + len(list)}
				}
				list = append(list, q)
			}
		}
		if next < 0 {
			break
		}
		at = next
	}
	return list, nil
}
