package fs

import (
	"math"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// diskFile is an open of disk.raw.
type diskFile struct{ handle }

func (o *diskFile) close() { o.Close() }

// openDisk waits while a revert runs.
func (f *fileSystem) openDisk(cancel <-chan struct{}, in *fuse.OpenIn, write bool) (openFile, error) {
	ctx := &fuse.Context{Caller: in.Caller, Cancel: cancel}
	h, err := f.disk.OpenDisk(ctx, openerOf(in.Pid), write)
	if err != nil {
		return nil, err
	}
	return &diskFile{h}, nil
}

func (f *fileSystem) readDisk(in *fuse.ReadIn, buf []byte, off int64) ([]byte, fuse.Status) {
	buf, status := clipRead(in, buf, off, f.disk.Size())
	if len(buf) > 0 {
		if err := f.disk.ReadAt(buf, off); err != nil {
			return nil, f.status("read disk.raw", err)
		}
	}
	return buf, status
}

// writeDisk writes to the leaf. The disk's end is a device's end: a write over
// it is cut short, one behind it is ENOSPC. Growing is asked for by name.
func (f *fileSystem) writeDisk(in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	off := int64(in.Offset)
	if misaligned(in.Flags, off, int64(len(data))) {
		return 0, fuse.EINVAL
	}
	if len(data) > 0 {
		data = clip(data, off, f.disk.Size())
		if len(data) == 0 {
			return 0, fuse.Status(unix.ENOSPC)
		}
	}
	if err := f.disk.WriteAt(data, off); err != nil {
		return 0, f.diskStatus("write disk.raw", err)
	}
	// M9: with FOPEN_DIRECT_IO no FSYNC follows a synchronous write. The
	// kernel sets O_DSYNC here for O_DSYNC and O_SYNC of the open file and
	// for RWF_DSYNC and RWF_SYNC of the call alike.
	if in.Flags&unix.O_DSYNC != 0 {
		if err := f.disk.Flush(); err != nil {
			return 0, f.diskStatus("flush a synchronous write", err)
		}
	}
	return uint32(len(data)), fuse.OK
}

// Fallocate: punching a hole and zeroing a range are a discard, and allocating
// reserves space. What would extend a plain file, a range over the end without
// FALLOC_FL_KEEP_SIZE, grows the disk first: posix_fallocate promises that size, and
// qemu-img resize --preallocation=falloc grows that way.
func (f *fileSystem) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if in.NodeId != nodeDisk {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	if f.disk.ReadOnly() {
		return fuse.EROFS
	}
	do := f.disk.Discard
	grow := in.Mode&unix.FALLOC_FL_KEEP_SIZE == 0
	switch in.Mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case 0:
		do = f.disk.Reserve
	case unix.FALLOC_FL_PUNCH_HOLE:
		if grow {
			return fuse.Status(unix.EOPNOTSUPP)
		}
	case unix.FALLOC_FL_ZERO_RANGE:
	default:
		return fuse.Status(unix.EOPNOTSUPP)
	}
	if in.Length > math.MaxInt64 || in.Offset > math.MaxInt64-in.Length {
		return fuse.Status(unix.EFBIG)
	}
	off, end := int64(in.Offset), int64(in.Offset+in.Length)
	if size := f.disk.Size(); grow && end > size {
		if in.Mode == 0 {
			if err := f.disk.CheckGrowth(end, end-max(off, size)); err != nil {
				return f.status("grow the disk", err)
			}
		}
		if err := f.disk.Resize(end); err != nil {
			return f.status("grow the disk", err)
		}
	}
	end = min(end, f.disk.Size())
	if off >= end {
		return fuse.OK
	}
	return f.diskStatus("fallocate disk.raw", do(off, end-off))
}
