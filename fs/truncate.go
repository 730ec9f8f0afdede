package fs

import (
	"math"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/overlay/extent"
)

// truncateDisk is truncate(2), ftruncate(2) and the O_TRUNC of an open(2), for
// which the kernel sends the same request: it grows the disk, by whole sectors, and
// never shrinks it.
//
// Programs that copy a file over another one empty that first and write no more
// than the data. Were disk.raw left as it is, its old bytes would stay where the
// new image has holes; were it emptied, a stray ">" would cost the disk. So both
// are refused, with the errno that a file has under a seal against shrinking
// (F_SEAL_SHRINK), and the log says the way out.
func (f *fileSystem) truncateDisk(size uint64, in *fuse.InHeader) error {
	if size > math.MaxInt64 {
		return refuse(unix.EFBIG, "the size is too large")
	}
	whole := extent.WholeSectors(int64(size))
	switch now := f.disk.Size(); {
	case whole < now:
		f.tellShrink(int64(size), now, in)
		return refuse(unix.EPERM, "a disk does not shrink")
	case whole == now:
		return nil
	}
	return f.disk.Resize(whole)
}

// wayOutOfShrink is what the log says to who wanted to copy an image into disk.raw.
const wayOutOfShrink = `to copy an image into the disk: "varve import FILE DISK", "qemu-img convert -n", or "dd conv=notrunc"`

// tellShrink logs that somebody wanted disk.raw to be smaller: the errno alone
// tells nobody why.
func (f *fileSystem) tellShrink(size, now int64, in *fuse.InHeader) {
	const what = "disk.raw was not truncated: a disk does not shrink, nor is it emptied"
	repeated, write := f.shrinks.pass(what, "", time.Now())
	if !write {
		return
	}
	who := openerOf(in.Pid)
	f.log.Warn(what, "size", size, "disk_size", now, "pid", who.PID, "command", who.Command, "repeated", repeated, "way_out", wayOutOfShrink)
}
