package hostfs

import (
	"os"
	"time"
)

// FS is the host file system as overlay and chain use it: everything that
// either does to a file on the host goes through it, so that a test can record
// it, fail it or cut the power under it. Paths are absolute. Errors are
// *os.PathError where the os package gives them. Safe for concurrent use.
type FS interface {
	// Open opens a file with os.O_* flags; perm counts when O_CREATE is set.
	Open(path string, flag int, perm os.FileMode) (File, error)
	// Stat follows symbolic links.
	Stat(path string) (Info, error)
	// ReadDir lists the names in a directory, sorted.
	ReadDir(path string) ([]string, error)
	Mkdir(path string, perm os.FileMode) error
	Rename(oldPath, newPath string) error
	Link(oldPath, newPath string) error
	// Remove unlinks a file or an empty directory.
	Remove(path string) error
	// SyncDir makes creations, renames and removals in a directory durable.
	SyncDir(path string) error
	// Free is how many bytes the file system that a path is on has free for this
	// process. errors.ErrUnsupported where it cannot tell.
	Free(path string) (int64, error)
}

// File is an open host file. Offsets and lengths are bytes. Safe for
// concurrent use.
type File interface {
	Name() string
	// ReadAt is io.ReaderAt: io.EOF with a short count at the end of the file.
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Truncate(size int64) error
	// Allocate gives the range blocks on the host that read as zeros, and
	// extends the file when it ends before the range does.
	Allocate(off, length int64) error
	// PunchHole gives the range's blocks back; it reads as zeros; the size
	// stays. errors.ErrUnsupported where the host cannot.
	PunchHole(off, length int64) error
	// CloneRange makes a range of this file share the blocks of a range of src:
	// as a write of what src has there, durable after a sync, but without copying.
	// errors.ErrUnsupported where the host cannot, which may be so for this range
	// only: read and write it. Any other error leaves parts of it written.
	CloneRange(src File, srcOff, off, length int64) error
	// WriteBack asks the host to begin writing the range to the disk. It makes
	// nothing durable and may do nothing.
	WriteBack(off, length int64) error
	// Cached is how many bytes of the range the host holds in its page cache.
	// errors.ErrUnsupported where it cannot tell.
	Cached(off, length int64) (int64, error)
	// WillNeed asks the host to begin reading the range into its page cache.
	WillNeed(off, length int64) error
	// DropRange asks the kernel to forget clean cached pages that lie within the
	// range.
	DropRange(off, length int64) error
	// Datasync is fdatasync(2).
	Datasync() error
	// Sync is fsync(2): also the times are durable then, which fdatasync leaves
	// out, and on a mount with lazytime for hours.
	Sync() error
	Stat() (Info, error)
	// SeekData and SeekHole are lseek(2) with SEEK_DATA and SEEK_HOLE.
	// SeekData gives io.EOF when only a hole follows. Where the host cannot
	// tell, the whole file is data.
	SeekData(off int64) (int64, error)
	SeekHole(off int64) (int64, error)
	// DropCache asks the kernel to forget clean cached pages (all of the file).
	DropCache() error
	// Lock takes the image locks of a mode (M18) or changes the mode that is
	// held. It fails with ErrLocked, naming the holder where the kernel tells.
	// Each image is opened once in a process: two descriptions conflict.
	Lock(mode LockMode) error
	// Fd is the descriptor, or -1 where there is none (a simulated file).
	Fd() int
	Close() error
}

// Info is what Stat tells of a host file.
type Info struct {
	Size      int64 // bytes; of a block device its capacity
	Blocks    int64 // bytes that it occupies on the host
	BlockSize int64 // bytes: the unit in which holes can be punched
	ModTime   time.Time
	Inode     uint64
	Device    uint64
	Links     uint64 // how many names the file has; 0 of one that was removed while it is open
	Mode      os.FileMode
}

// LockMode says for what an image file is held (M18).
type LockMode uint8

const (
	// LockNone holds nothing.
	LockNone LockMode = iota
	// LockFrozen: read-only, as QEMU holds a backing file; others may read,
	// nobody may write.
	LockFrozen
	// LockWritable: the leaf, or a layer that a job writes; nobody else may
	// open it with locks at all.
	LockWritable
)
