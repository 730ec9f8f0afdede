package hostfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// OS gives the host's own file system.
//
// Its files go through os.File, so that a call that races with Close gets
// os.ErrClosed and never a descriptor number that has been given to another
// image meanwhile.
func OS() FS { return hostFS{} }

type hostFS struct{}

var _ FS = hostFS{}

func (hostFS) Open(path string, flag int, perm os.FileMode) (File, error) {
	f, err := os.OpenFile(path, flag, perm)
	if err != nil {
		return nil, err
	}
	return FileOf(f)
}

// FileOf makes an open file of the host a File, which then owns it: it is closed when
// that fails.
func FileOf(f *os.File) (File, error) { return FileNaming(f, nil) }

// FileNaming is FileOf where this process may not see who has a file locked, or
// will not: a function then says it as LockHolder does. nil for none.
func FileNaming(f *os.File, holder func(file string, at int64) string) (File, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", f.Name(), err)
	}
	return &hostFile{f: f, conn: conn, fd: int(f.Fd()), holder: holder}, nil
}

func (hostFS) Stat(path string) (Info, error) {
	st, err := os.Stat(path)
	if err != nil {
		return Info{}, err
	}
	if !isBlockDevice(st) {
		return hostInfo(st)
	}
	// Only an open descriptor tells a device's capacity.
	f, err := os.Open(path)
	if err != nil {
		return Info{}, err
	}
	defer f.Close()
	return (&hostFile{f: f}).Stat()
}

func (hostFS) ReadDir(path string) ([]string, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, entry := range entries {
		names[i] = entry.Name()
	}
	return names, nil
}

func (hostFS) Mkdir(path string, perm os.FileMode) error { return os.Mkdir(path, perm) }
func (hostFS) Rename(oldPath, newPath string) error      { return os.Rename(oldPath, newPath) }
func (hostFS) Link(oldPath, newPath string) error        { return os.Link(oldPath, newPath) }
func (hostFS) Remove(path string) error                  { return os.Remove(path) }

func (hostFS) SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	// The directory is only read: closing it can lose nothing.
	defer d.Close()
	return d.Sync()
}

func (hostFS) Free(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return FreeOf(&st), nil
}

// FreeOf is how many bytes a file system has free for this process: f_bavail of statfs(2),
// for root f_bfree, since the reserved blocks are root's. Of btrfs, f_bfree counts what only
// metadata can have (seen: 75 MiB of it with no room for a byte of data).
func FreeOf(st *unix.Statfs_t) int64 {
	if os.Geteuid() == 0 && st.Type != unix.BTRFS_SUPER_MAGIC {
		free := int64(st.Bfree)
		if st.Type == unix.EXT4_SUPER_MAGIC {
			// ext4 keeps a fiftieth, 4,096 blocks at most, for itself and counts it as free.
			free -= min(int64(st.Blocks)/50, 4096)
		}
		return max(free, int64(st.Bavail)) * st.Bsize
	}
	return int64(st.Bavail) * st.Bsize
}

// hostFile is a File on the host.
type hostFile struct {
	f    *os.File
	conn syscall.RawConn
	fd   int // for Fd only; calls go through control, which excludes Close

	// holder says who has a byte locked; nil: this process sees it itself.
	holder func(file string, at int64) string

	lockMu sync.Mutex // guards locked, and orders the calls that change locks
	locked LockMode

	noClone    atomic.Bool              // the file system shares no blocks
	cloneApart atomic.Pointer[hostFile] // a source on another file system
}

var _ File = (*hostFile)(nil)

func (h *hostFile) Name() string                             { return h.f.Name() }
func (h *hostFile) ReadAt(p []byte, off int64) (int, error)  { return h.f.ReadAt(p, off) }
func (h *hostFile) WriteAt(p []byte, off int64) (int, error) { return h.f.WriteAt(p, off) }
func (h *hostFile) Truncate(size int64) error                { return h.f.Truncate(size) }
func (h *hostFile) Fd() int                                  { return h.fd }

// Close drops the locks first: a child that this process has forked and that
// has not come to its exec yet holds the same open file description, and with
// it the locks, beyond close(2).
//
// Close is never retried: Linux has freed the descriptor even when close(2)
// says EINTR, and another thread may own the number by then.
func (h *hostFile) Close() error {
	h.lockMu.Lock()
	held := h.locked
	h.lockMu.Unlock()
	var err error
	if held != LockNone {
		err = h.Lock(LockNone)
	}
	if closeErr := h.f.Close(); closeErr != nil {
		return closeErr
	}
	return err
}

// control calls fn with the descriptor, held open meanwhile, again as long as
// a signal (Go's own preemption sends many) interrupts it.
func (h *hostFile) control(op string, fn func(fd int) error) error {
	var err error
	closed := h.conn.Control(func(fd uintptr) {
		for {
			if err = fn(int(fd)); err != unix.EINTR {
				return
			}
		}
	})
	if closed != nil { // the only reason for which Control fails
		err = os.ErrClosed
	}
	if err != nil {
		return &os.PathError{Op: op, Path: h.f.Name(), Err: err}
	}
	return nil
}

func (h *hostFile) Allocate(off, length int64) error {
	return h.fallocate("allocate", 0, off, length)
}

func (h *hostFile) PunchHole(off, length int64) error {
	return h.fallocate("punch hole", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
}

// fallocate fails with an error that is errors.ErrUnsupported where the file
// system has no such operation: EOPNOTSUPP and ENOSYS are, ENODEV (not a file
// with blocks) is made so.
func (h *hostFile) fallocate(op string, mode uint32, off, length int64) error {
	err := h.control(op, func(fd int) error { return unix.Fallocate(fd, mode, off, length) })
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: %w", err, errors.ErrUnsupported)
	}
	return err
}

// ZeroOut makes a range of a block device zeros, as the ioctl BLKZEROOUT does: by the
// device where it can, else the kernel writes them. off and length must be multiples of
// the device's sectors.
func (h *hostFile) ZeroOut(off, length int64) error {
	return h.fallocate("zero out", unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, length)
}

func (h *hostFile) Datasync() error {
	return h.control("fdatasync", unix.Fdatasync)
}

func (h *hostFile) Sync() error {
	return h.control("fsync", unix.Fsync)
}

func (h *hostFile) Stat() (Info, error) {
	st, err := h.f.Stat()
	if err != nil {
		return Info{}, err
	}
	info, err := hostInfo(st)
	if err != nil || !isBlockDevice(st) {
		return info, err
	}
	// The end of a block device is its capacity, what BLKGETSIZE64 says.
	if info.Size, err = h.f.Seek(0, io.SeekEnd); err != nil {
		return Info{}, err
	}
	return info, nil
}

func (h *hostFile) SeekData(off int64) (int64, error) {
	pos, err := h.seek("seek data", off, unix.SEEK_DATA)
	if errors.Is(err, errors.ErrUnsupported) {
		size, err := h.size()
		if err == nil && off >= size {
			err = io.EOF
		}
		return off, err
	}
	return pos, err
}

func (h *hostFile) SeekHole(off int64) (int64, error) {
	pos, err := h.seek("seek hole", off, unix.SEEK_HOLE)
	if errors.Is(err, errors.ErrUnsupported) {
		size, err := h.size()
		if err == nil && off >= size {
			err = io.EOF
		}
		return size, err
	}
	return pos, err
}

// seek moves the file's own position, which nothing else here uses. It gives
// io.EOF for ENXIO, and errors.ErrUnsupported where the host does not know
// about holes (block devices say EINVAL).
func (h *hostFile) seek(op string, off int64, whence int) (int64, error) {
	pos := int64(0)
	err := h.control(op, func(fd int) (err error) {
		pos, err = unix.Seek(fd, off, whence)
		return err
	})
	switch {
	case errors.Is(err, unix.ENXIO):
		return 0, io.EOF
	case errors.Is(err, unix.EINVAL):
		return 0, errors.ErrUnsupported
	}
	return pos, err
}

func (h *hostFile) size() (int64, error) {
	info, err := h.Stat()
	return info.Size, err
}

func (h *hostFile) DropCache() error {
	return h.control("drop cache", func(fd int) error {
		return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	})
}

func isBlockDevice(st fs.FileInfo) bool {
	return st.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice
}

func hostInfo(st fs.FileInfo) (Info, error) {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return Info{}, fmt.Errorf("stat %s: the host gives no inode: %w", st.Name(), errors.ErrUnsupported)
	}
	return Info{
		Size:      st.Size(),
		Blocks:    sys.Blocks * 512, // st_blocks counts 512 bytes, whatever the file system
		BlockSize: int64(sys.Blksize),
		ModTime:   st.ModTime(),
		Inode:     sys.Ino,
		Device:    sys.Dev,
		Links:     uint64(sys.Nlink),
		Mode:      st.Mode(),
	}, nil
}
