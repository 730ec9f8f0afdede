package chain

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"varve/overlay"
)

// Errors that callers tell apart with errors.Is; fs maps them to errnos, cmd
// to exit codes.
var (
	ErrExist    = errors.New("exists already")          // EEXIST
	ErrNotExist = errors.New("does not exist")          // ENOENT
	ErrInvalid  = errors.New("invalid")                 // EINVAL
	ErrBusy     = errors.New("busy")                    // EBUSY
	ErrReadOnly = errors.New("read-only")               // EROFS
	ErrChanged  = errors.New("changed behind our back") // a fingerprint does not match
	ErrInUse    = errors.New("in use by another varve") // the directory's lock is held
)

// OpenOptions are the options of Open.
type OpenOptions struct {
	FS         overlay.FS    // nil: the host's
	ReadOnly   bool          // write nothing anywhere
	Mountpoint string        // recorded in the lock file; "" for work on the directory
	CacheBytes int64         // bound on resolved regions and table slices; 0: the default
	Log        *slog.Logger  // nil: discard
	LockWait   time.Duration // how long to wait for another varve to let go
}

// Opener says who opened a file of the mount.
type Opener struct {
	PID     int
	Command string
}

// Disk is an open disk directory. All methods are safe for concurrent use.
type Disk struct{}

// Open locks a disk directory, checks the fingerprints of its layers, brings it
// in order after a crash, and resumes its job.
func Open(dir string, o OpenOptions) (*Disk, error) { panic("todo") }

// Close flushes, settles the leaf, stops the job (it goes on at the next Open)
// and releases the lock. Its error means that the last writes may be lost.
func (d *Disk) Close() error { panic("todo") }

func (d *Disk) Dir() string    { panic("todo") } // absolute path of the disk directory
func (d *Disk) ReadOnly() bool { panic("todo") }
func (d *Disk) Size() int64    { panic("todo") } // guest bytes of the leaf

// ReadAt fills p from the leaf's view; bytes past the end read as zeros.
func (d *Disk) ReadAt(p []byte, off int64) error { panic("todo") }

// WriteAt writes p, which must lie within the disk (ErrInvalid otherwise).
func (d *Disk) WriteAt(p []byte, off int64) error { panic("todo") }

// Flush makes every write that was completed before the call durable.
func (d *Disk) Flush() error { panic("todo") }

// Discard makes the range read as zeros and gives its blocks back.
func (d *Disk) Discard(off, length int64) error { panic("todo") }

// Reserve gives the range space on the host; its content stays.
func (d *Disk) Reserve(off, length int64) error { panic("todo") }

// Resize grows the disk; ErrInvalid for a smaller size.
func (d *Disk) Resize(size int64) error { panic("todo") }

// SeekData finds the first offset >= off that is not in a hole of the leaf's
// view; io.EOF when only a hole follows. SeekHole: the first offset >= off in
// a hole, Size() at the latest; io.EOF when off >= Size().
func (d *Disk) SeekData(off int64) (int64, error) { panic("todo") }
func (d *Disk) SeekHole(off int64) (int64, error) { panic("todo") }

// AllocatedBytes is how many guest bytes of the leaf's view are data.
func (d *Disk) AllocatedBytes() (int64, error) { panic("todo") }

// Times are the last write's time and the disk's creation time.
func (d *Disk) ModTime() time.Time     { panic("todo") }
func (d *Disk) SetModTime(t time.Time) { panic("todo") }

// OpenDisk registers an open of disk.raw; it waits while a revert runs.
func (d *Disk) OpenDisk(ctx context.Context, who Opener, write bool) (*Handle, error) { panic("todo") }

// OpenView registers an open of a layer's view, by layer id. ErrNotExist when
// there is no such named layer.
func (d *Disk) OpenView(ctx context.Context, id string, who Opener) (*View, error) { panic("todo") }

// Handle is an open of disk.raw.
type Handle struct{}

func (h *Handle) Close() { panic("todo") }

// View reads the disk as it is seen from one frozen layer.
type View struct{}

func (v *View) ReadAt(p []byte, off int64) error  { panic("todo") } // zeros past the end
func (v *View) Size() int64                       { panic("todo") }
func (v *View) SeekData(off int64) (int64, error) { panic("todo") }
func (v *View) SeekHole(off int64) (int64, error) { panic("todo") }
func (v *View) Close()                            { panic("todo") }

// Layers lists the layers without counting anything: cheap, from memory.
// OwnBytes and HostBytes are 0.
func (d *Disk) Layers() []LayerStatus { panic("todo") }

// LayerAllocatedBytes is View's AllocatedBytes for a layer id, without opening it.
func (d *Disk) LayerAllocatedBytes(id string) (int64, error) { panic("todo") }

// Status is Layers with everything counted, the open files and the job.
func (d *Disk) Status() (Status, error) { panic("todo") }

// Snapshot freezes the leaf under a name and goes on in a new leaf.
func (d *Disk) Snapshot(name string) error { panic("todo") }

// Revert sets the leaf aside and starts a new one on the named layer ("base"
// too). ErrBusy while disk.raw is open.
func (d *Disk) Revert(name string) error { panic("todo") }

// Delete removes a name and queues the merge. It returns the job's id, or ""
// when nothing was left to do, once that is durable.
func (d *Disk) Delete(name string) (job string, err error) { panic("todo") }

// DeleteUnnamed goes on with merging unnamed layers that have one child.
func (d *Disk) DeleteUnnamed() (job string, err error) { panic("todo") }

// Flatten copies into a snapshot, or "leaf", all that it needs.
func (d *Disk) Flatten(name string) (job string, err error) { panic("todo") }

func (d *Disk) Rename(oldName, newName string) error { panic("todo") }

// Cancel stops the job with that id; ErrNotExist when there is none such.
func (d *Disk) Cancel(job string) error { panic("todo") }

// WaitJob waits until the job is no longer running and gives its last state.
func (d *Disk) WaitJob(ctx context.Context, job string) (JobStatus, error) { panic("todo") }

// OnChange registers a function that is called, outside all locks, after the
// tree, the size or the content of disk.raw changed otherwise than by a write.
func (d *Disk) OnChange(f func(Change)) { panic("todo") }

// Change says what OnChange is told.
type Change struct {
	Size    bool // disk.raw's size
	Content bool // disk.raw's content (a revert)
	Layers  bool // names in layers/
}

// CreateOptions are the options of Create.
type CreateOptions struct {
	FS     overlay.FS
	Size   int64  // guest bytes of a blank disk; with Base: 0, or a size at least the base's
	Base   string // path of a foreign image; "" for a blank disk
	Format string // raw, qcow2 or "" (raw unless Base ends in .qcow2)
}

// Created says what Create made and which foreign files the disk reads.
type Created struct {
	Dir   string
	Files []ForeignFile // top first
}

// ForeignFile is a file that an adopted disk reads.
type ForeignFile struct {
	Layer, Path, Format string
}

// Create makes a disk directory. Nothing of it is left when it fails.
func Create(dir string, o CreateOptions) (Created, error) { panic("todo") }

// DirFor is the disk directory that belongs to an image by default: beside
// the image's resolved path, its name plus ".varve". ErrInvalid for a block
// device and on tmpfs or devtmpfs.
func DirFor(image string) (string, error) { panic("todo") }

// Accept takes the present state of a changed layer's file as right.
func Accept(dir, layer string, o OpenOptions) error { panic("todo") }
