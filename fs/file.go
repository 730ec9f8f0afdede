package fs

import (
	"io"
	"math"
	"os"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// writes says whether open(2) flags ask for more than reading. O_TRUNC never
// arrives: the kernel sends a SETATTR of size 0 instead.
func writes(flags uint32) bool {
	return flags&unix.O_ACCMODE != unix.O_RDONLY
}

// Open opens a file. default_permissions has checked the mode bits for all but
// root; what must hold for root too is checked here.
func (f *fileSystem) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	write := writes(in.Flags)
	if write && f.disk.ReadOnly() {
		return fuse.EROFS
	}
	var o openFile
	var err error
	switch node := in.NodeId; {
	case node == nodeDisk:
		out.OpenFlags = DiskOpenFlags
		o, err = f.openDisk(cancel, in, write)
	case isLayer(node) && !write:
		o, err = f.openLayer(cancel, in, out)
	case isPart(node) && !write:
		o, err = f.openPart(cancel, in, out)
	case isLayer(node), isPart(node), write && isText(node):
		return fuse.EACCES
	case isText(node):
		out.OpenFlags = fuse.FOPEN_DIRECT_IO
		o, err = f.openText(&fuse.Context{Caller: in.Caller, Cancel: cancel}, node)
	default:
		c, ok := commandOf(node)
		if !ok {
			return fuse.Status(unix.ESTALE)
		}
		out.OpenFlags = fuse.FOPEN_DIRECT_IO
		o = f.openControl(node, c)
	}
	if err != nil {
		return f.status("open", err)
	}
	var status fuse.Status
	out.Fh, status = f.open.add(o)
	return status
}

// ReadInto reads from an open file into buf, and gives what of it was filled.
func (f *fileSystem) ReadInto(in *fuse.ReadIn, buf []byte) ([]byte, fuse.Status) {
	if in.Offset > math.MaxInt64 {
		return nil, fuse.EINVAL
	}
	off := int64(in.Offset)
	if in.NodeId == nodeDisk {
		return f.readDisk(in, buf, off)
	}
	switch o := f.open.get(in.Fh).(type) {
	case *layerFile:
		return f.readLayer(in, o, buf, off)
	case *partFile:
		return f.readPart(in, o, buf, off)
	case *textFile:
		return readText(o.content, buf, off), fuse.OK
	case *controlFile:
		return f.readControl(o, buf, off)
	}
	return nil, fuse.EBADF
}

// Read is ReadInto as go-fuse calls it.
func (f *fileSystem) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	data, status := f.ReadInto(in, buf)
	if status != fuse.OK {
		return nil, status
	}
	return fuse.ReadResultData(data), fuse.OK
}

// Write writes to an open file.
func (f *fileSystem) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if in.Offset > math.MaxInt64-uint64(len(data)) {
		return 0, fuse.Status(unix.EFBIG)
	}
	if in.NodeId == nodeDisk {
		return f.writeDisk(in, data)
	}
	if o, ok := f.open.get(in.Fh).(*controlFile); ok {
		return f.writeControl(o, in, data)
	}
	return 0, fuse.EBADF
}

// Writev leaves the work to Write: a request has its data in one piece.
func (f *fileSystem) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}

// Fsync makes disk.raw durable. Nothing else can have been written.
func (f *fileSystem) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if in.NodeId != nodeDisk {
		return fuse.OK
	}
	return f.diskStatus("fsync", f.disk.Flush())
}

// Flush, which close(2) sends, is not implemented: a close promises nothing,
// and the kernel then spares the round trip. It still writes dirty pages of a
// mapping back first, which FOPEN_NOFLUSH would switch off.
func (f *fileSystem) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	return fuse.ENOSYS
}

// Lseek finds data and holes. It must never be ENOSYS: the kernel would not
// ask again for any file.
func (f *fileSystem) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	if in.Offset > math.MaxInt64 {
		return fuse.Status(unix.ENXIO)
	}
	var s seeker
	switch o := f.open.get(in.Fh).(type) {
	case *diskFile:
		s = f.disk
	case *layerFile:
		s = o.view
	case *partFile:
		s = o
	case *textFile:
		s = allData(len(o.content))
	case *controlFile:
		s = allData(len(o.text()))
	default:
		return fuse.EBADF
	}
	find := s.SeekData
	if in.Whence == unix.SEEK_HOLE {
		find = s.SeekHole
	}
	pos, err := find(int64(in.Offset))
	if err == io.EOF {
		return fuse.Status(unix.ENXIO)
	}
	if err != nil {
		return f.status("lseek", err)
	}
	out.Offset = uint64(pos)
	return fuse.OK
}

// seeker tells data from holes as chain.Disk does.
type seeker interface {
	SeekData(off int64) (int64, error)
	SeekHole(off int64) (int64, error)
}

// allData is a file of that many bytes without holes.
type allData int64

func (n allData) SeekData(off int64) (int64, error) {
	if off >= int64(n) {
		return 0, io.EOF
	}
	return off, nil
}

func (n allData) SeekHole(off int64) (int64, error) {
	if off >= int64(n) {
		return 0, io.EOF
	}
	return int64(n), nil
}

// Ioctl: there are none, as on any file that is no device.
func (f *fileSystem) Ioctl(cancel <-chan struct{}, in *fuse.IoctlIn, inbuf []byte, out *fuse.IoctlOut, outbuf []byte) fuse.Status {
	return fuse.Status(unix.ENOTTY)
}

// CopyFileRange is left to the kernel, which then copies by reading and
// writing.
func (f *fileSystem) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}

// StatFs tells the space of the host file system that holds the disk.
func (f *fileSystem) StatFs(cancel <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	st, err := f.hostSpace()
	if err != nil {
		return f.status("statfs", err)
	}
	out.FromStatfsT(st)
	out.NameLen = unix.NAME_MAX
	return fuse.OK
}

func (f *fileSystem) hostSpace() (*syscall.Statfs_t, error) {
	var st syscall.Statfs_t
	if err := ignoringEINTR(func() error { return syscall.Statfs(f.disk.Dir(), &st) }); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: f.disk.Dir(), Err: err}
	}
	return &st, nil
}

func ignoringEINTR(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// clip is the part of buf that a file of size bytes can fill from off on.
func clip(buf []byte, off, size int64) []byte {
	if off >= size {
		return nil
	}
	if left := size - off; int64(len(buf)) > left {
		return buf[:left]
	}
	return buf
}
