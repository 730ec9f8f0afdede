package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/overlay/extent"
)

// Files that are open with O_DIRECT take what ext4 and xfs take on a device with sectors
// of 512 bytes, and refuse the rest with EINVAL. Programs find the alignment by what is
// refused: QEMU reads 1 byte, then 512, and where the first succeeds it believes in none
// and takes 4096, with which a disk of an odd number of sectors cannot be written. So a
// hole refuses too, which ext4 and xfs let pass.
//
// The kernel sends the flags that the open file has at the moment (fcntl(2) changes
// O_DIRECT) with each request. Its own requests, for pages of a mapping and when it reads
// ahead, carry them as well; they are whole pages.

// misaligned says whether a request is one that a file open with O_DIRECT refuses.
func misaligned(flags uint32, off, n int64) bool {
	return flags&unix.O_DIRECT != 0 && (off|n)%extent.SectorSize != 0
}

// clipRead is the part of buf that a read of a file of size bytes fills. Behind the end
// every read is empty, also one that is not aligned, as in ext4 and xfs.
func clipRead(in *fuse.ReadIn, buf []byte, off, size int64) ([]byte, fuse.Status) {
	asked := int64(len(buf))
	buf = clip(buf, off, size)
	if len(buf) > 0 && misaligned(in.Flags, off, asked) {
		return nil, fuse.EINVAL
	}
	return buf, fuse.OK
}
