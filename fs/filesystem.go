package fs

import (
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"varve/fs/control"
	"varve/fs/device"
)

// fileSystem answers the kernel's requests. Handlers run concurrently.
type fileSystem struct {
	fuse.RawFileSystem // answers ENOSYS to what the methods here leave out: locks, which are off (M19)

	disk disk
	log  *slog.Logger

	uid, gid uint32 // owner of everything but control/
	daemon   uint32 // uid of the mounting user: the owner of control/
	daemonG  uint32
	umask    uint32
	mounted  time.Time
	version  string // of this program
	requests device.Meter

	open       openFiles
	through    passthrough
	parts      partTables
	owner      diskOwner
	layers     layerOwners
	remembered remembered
	notify     notifier
	unexpected repeatFilter
	shrinks    repeatFilter // truncations that were refused

	// last holds the outcome of the last write to each control file, in the
	// order of commands.
	last []atomic.Pointer[control.Outcome]
	// textSize holds how long status, status.json, map.svg and metrics were when
	// they were last opened, in bytes.
	textSize [nodeMetrics - nodeStatus + 1]atomic.Int64
	// layersChanged is when names in layers/ last changed, in Unix
	// nanoseconds.
	layersChanged atomic.Int64
}

func newFileSystem(d disk, o Options) *fileSystem {
	f := &fileSystem{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		disk:          d,
		log:           o.Log,
		uid:           o.UID,
		gid:           o.GID,
		daemon:        uint32(os.Geteuid()),
		daemonG:       uint32(os.Getegid()),
		umask:         uint32(o.Umask.Perm()),
		mounted:       time.Now(),
		version:       o.Version,
		last:          make([]atomic.Pointer[control.Outcome], len(commands())),
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	f.layersChanged.Store(f.mounted.UnixNano())
	f.owner = diskOwner{mode: 0o666 &^ f.umask, uid: o.UID, gid: o.GID}
	f.notify.init()
	return f
}

// String is the name that go-fuse shows where none is set.
func (f *fileSystem) String() string { return "varve" }

// SetDebug is go-fuse's hook for its own debugging; the mount option does it.
func (f *fileSystem) SetDebug(bool) {}

// Forget: node ids are fixed, so nothing is kept for one.
func (f *fileSystem) Forget(nodeid, nlookup uint64) {}

// diskOwner is what chmod and chown of disk.raw changed, and its access time,
// for the life of the mount.
type diskOwner struct {
	mu       sync.Mutex // guards all below; held for no call
	mode     uint32     // permission bits
	uid, gid uint32
	atime    time.Time // zero: as the modification time
}

func (o *diskOwner) get() (mode, uid, gid uint32, atime time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mode, o.uid, o.gid, o.atime
}
