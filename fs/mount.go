package fs

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/chain/mounts"
	"varve/fs/device"
)

// Options are the options of Mount.
type Options struct {
	AllowOther bool        // let other users in, as far as the modes do
	UID, GID   uint32      // owner of the files; control/ stays the mounting user's
	Umask      os.FileMode // taken from 0666 and 0777
	// MountOptions are further options as of "mount -o"; see mountOptions.
	MountOptions []string
	FsName       string // what the mount table shows as the source; "": the disk's path
	Debug        bool   // log every request
	Log          *slog.Logger
	ReadOnly     bool   // mount read-only; of itself where the disk is
	Version      string // of this program, for metrics
}

// Server is a mount that is being served.
type Server struct {
	fs         *fileSystem
	kernel     *device.Conn
	mountpoint string
	direct     bool          // mounted by mount(2), not by fusermount3
	device     uint64        // of the mount's files; 0 when it could not be told
	abort      *device.Abort // ends the connection; nil where there is no way
	byOther    func() error  // see UnmountBy; nil for none
	identified chan struct{} // closed when abort is there, or cannot be had
	done       chan struct{} // closed when the last request was answered
	left       chan struct{} // closed by Abandon where the connection cannot be ended
}

// Mount shows a disk at a directory and returns when it can be used. The disk
// stays the caller's: it is closed after Wait.
func Mount(d *chain.Disk, mountpoint string, o Options) (*Server, error) {
	return mount(chainDisk{d}, mountpoint, o)
}

func mount(d disk, mountpoint string, o Options) (*Server, error) {
	mountpoint, err := resolved(mountpoint)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", mountpoint, err)
	}
	f := newFileSystem(d, o)
	s := &Server{fs: f, mountpoint: mountpoint, direct: os.Geteuid() == 0, identified: make(chan struct{}), done: make(chan struct{}), left: make(chan struct{})}
	options, err := s.fuseOptions(d, o)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", mountpoint, err)
	}
	if s.kernel, err = device.Mount(f, mountpoint, device.Options{Fuse: options, Log: f.log, Direct: s.direct, Meter: &f.requests}); err != nil {
		return nil, fmt.Errorf("mount %s: %w", mountpoint, err)
	}
	if s.direct && s.kernel.Can(fuse.CAP_PASSTHROUGH) {
		f.through.begin(s.kernel, d, f.log)
	}
	d.OnChange(f.changed)
	go f.notify.run(f.tell(s.kernel))
	go s.serve()
	s.refusePolls()
	s.identify()
	close(s.identified)
	if s.direct {
		if err := raiseReadahead(mountpoint); err != nil {
			f.log.Debug("readahead stays as it is", "error", err)
		}
	}
	return s, nil
}

// identify finds out which connection the mount has.
func (s *Server) identify() {
	m, ok, err := mounts.At(s.mountpoint)
	if err != nil || !ok {
		s.fs.log.Warn("cannot find out the device number of the mount", "error", err)
		return
	}
	s.device = m.Device
	abort, err := device.OpenAbort(unix.Minor(s.device))
	if err != nil {
		s.fs.log.Info("copies of the mount in other mount namespaces will keep it alive", "error", err)
		return
	}
	// Nobody has taken the mount away meanwhile, so that its number was another's.
	if now, ok, err := mounts.At(s.mountpoint); err != nil || !ok || now.ID != m.ID || now.Device != m.Device {
		_ = abort.Close() // nothing was written
		return
	}
	s.abort = abort
}

// resolved is a path as the mount table shows it.
func resolved(mountpoint string) (string, error) {
	abs, err := filepath.Abs(mountpoint)
	if err != nil {
		return mountpoint, err
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return abs, err
	}
	return real, nil
}

// serve answers requests until the mount is gone.
func (s *Server) serve() {
	defer close(s.done)
	s.kernel.Serve()
	s.fs.notify.end()
	s.fs.open.closeAll()
	if err := s.kernel.Close(); err != nil {
		s.fs.log.Warn("cannot close the connection to the kernel", "error", err)
	}
	<-s.identified // the mount may have gone at once
	if s.abort != nil {
		_ = s.abort.Close() // nothing is held back until then
	}
}

// Wait returns when the mount is gone and every request has been answered, or after Abandon.
// Then the disk can be closed.
func (s *Server) Wait() {
	select {
	case <-s.done:
	case <-s.left:
	}
}

func (s *Server) fuseOptions(d disk, o Options) (*fuse.MountOptions, error) {
	if d.ReadOnly() || o.ReadOnly {
		o.MountOptions = append([]string{"ro"}, o.MountOptions...)
	}
	given, err := mountOptions(o.MountOptions)
	if err != nil {
		return nil, err
	}
	if o.FsName == "" {
		o.FsName = d.Dir()
	}
	m := KernelOptions()
	m.AllowOther = o.AllowOther || given.allowOther
	m.FsName, m.Name = o.FsName, "varve"
	m.Options = append([]string{"default_permissions"}, given.kernel...) // M19, D24
	m.EnableLocks = false                                                // M19
	m.DirectMountFlags = given.flags
	m.PanicHandler, m.Debug = s.fs.panicked, o.Debug
	if !s.direct {
		m.Options = append(m.Options, given.words...)
	}
	level := slog.LevelWarn
	if o.Debug {
		level = slog.LevelDebug
	}
	m.Logger = slog.NewLogLogger(s.fs.log.Handler(), level)
	return &m, nil
}

// refusePolls has the kernel ask once whether files can be polled, by opening a
// name that go-fuse answers for itself. Otherwise it would ask when this process
// opens a file of its own mount, and Go's runtime may then have no thread left to
// answer (go-fuse, fuse/poll.go). Nothing depends on its success: a user who
// mounts for another may be refused.
func (s *Server) refusePolls() {
	fd, err := unix.Open(filepath.Join(s.mountpoint, ".go-fuse-epoll-hack"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
}

// panicked answers a request whose handler panicked: a bug is an I/O error of
// one request, and serving goes on.
func (f *fileSystem) panicked(value any) fuse.Status {
	f.log.Error("a request failed by a bug in varve; please report it", "panic", value, "stack", string(debug.Stack()))
	return fuse.EIO
}
