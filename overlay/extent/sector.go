package extent

import "math"

// SectorSize is the unit of a disk in bytes. QEMU counts disks in sectors: it rounds
// the size in a qcow2 header down, and the length of a raw file up. So a disk whose
// size is no whole number of sectors would not be the same disk to everybody, and
// no header that varve writes has such a size.
const SectorSize = 512

// WholeSectors rounds a size in bytes up to whole sectors.
func WholeSectors(size int64) int64 {
	if size > math.MaxInt64-(SectorSize-1) {
		return math.MaxInt64 &^ (SectorSize - 1)
	}
	return (size + SectorSize - 1) &^ (SectorSize - 1)
}

// Uneven says whether a size in bytes is no whole number of sectors.
func Uneven(size int64) bool { return size%SectorSize != 0 }
