// Package diskdir is the host's file system as one disk directory may use it.
//
// Whoever mounts a disk trusts neither the directory nor its surroundings: root mounts
// what users own. So the directory is opened once, and everything in it is reached from
// that descriptor, one component after the other: no symbolic link in it is followed,
// nothing but regular files is opened, no open waits, and what belongs to a stranger is
// refused (M21, D26). Whoever moves the directory takes the disk along, and whatever is put
// in its place is not touched (D27). A path that leads elsewhere, such as to the base, is
// opened with the rights of the directory's owner where root does it.
//
// The package knows nothing of disks, layers or their formats.
package diskdir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"varve/overlay/hostfs"
)

// ErrForeign is that something in the directory is not what a disk directory has: a link,
// a pipe, a file of a stranger. Such an error is an fs.ErrPermission too.
var ErrForeign = errors.New("not of this disk")

// errNoFile is of a pipe, a device or the like.
var errNoFile = foreignf("it is no regular file, and every file of a disk directory is one")

// foreignError is an ErrForeign in its own words, which say all.
type foreignError string

func foreignf(format string, args ...any) error { return foreignError(fmt.Sprintf(format, args...)) }

func (e foreignError) Error() string { return string(e) }
func (e foreignError) Is(target error) bool {
	return target == ErrForeign || target == fs.ErrPermission
}

// Dir is the host's file system for a disk directory. Safe for concurrent use, but for
// Close.
type Dir struct {
	host  hostfs.FS // for paths elsewhere
	path  string    // absolute; names of files are below it
	root  *os.File
	owner owner
	namer atomic.Pointer[func(file string, at int64, fd int) string] // see NameLockHolders
}

var _ hostfs.FS = (*Dir)(nil)

// Open opens a disk directory. Errors are those of open(2).
func Open(path string) (*Dir, error) {
	root, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	info, err := root.Stat()
	if err != nil {
		root.Close() // only read
		return nil, err
	}
	return &Dir{host: hostfs.OS(), path: filepath.Clean(path), root: root, owner: ownerOf(info)}, nil
}

// OnHost says whether a file system is the host's own, with processes, locks and owners.
func OnHost(fs hostfs.FS) bool {
	_, entered := fs.(*Dir)
	return entered || fs == hostfs.OS()
}

// Path is the absolute path at which the directory was.
func (d *Dir) Path() string { return d.path }

// Descriptor is that of the directory, until Close.
func (d *Dir) Descriptor() int { return int(d.root.Fd()) }

// Owner is the user id whose the directory is.
func (d *Dir) Owner() int { return d.owner.uid }

// ActsForOwner says that files elsewhere are opened with the rights of the directory's owner,
// who is not the user of this process: that is root.
func (d *Dir) ActsForOwner() bool { return d.owner.anothers() }

// Close closes the descriptor of the directory. Files that were opened stay open.
func (d *Dir) Close() error { return d.root.Close() }

// Moved says whether the path of the directory leads to another one by now, or to none.
func (d *Dir) Moved() error {
	held, err := d.root.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(d.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s was moved or removed while it was in use; move it back", d.path)
	case err != nil:
		return err
	case !os.SameFile(held, there):
		return fmt.Errorf("%s was moved while it was in use, and another directory is in its place; move the first one back", d.path)
	}
	return nil
}

// split gives the components of a path below the directory; inside is false for one that
// is elsewhere.
func (d *Dir) split(path string) (parts []string, inside bool) {
	path = filepath.Clean(path)
	if path == d.path {
		return nil, true
	}
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(d.path, "/")+"/")
	if !ok {
		return nil, false
	}
	return strings.Split(rest, "/"), true
}

// parent opens the directory that has the last of parts, which must not be empty, and
// calls fn with its descriptor.
func (d *Dir) parent(op, path string, parts []string, fn func(dir int, name string) error) error {
	dir := int(d.root.Fd())
	if len(parts) == 0 {
		return &os.PathError{Op: op, Path: path, Err: syscall.EINVAL}
	}
	for _, part := range parts[:len(parts)-1] {
		next, err := openFolder(dir, part, unix.O_PATH)
		if dir != int(d.root.Fd()) {
			unix.Close(dir) // of O_PATH: nothing can be lost
		}
		if err != nil {
			return d.explain(op, path, err)
		}
		dir = next
	}
	if dir != int(d.root.Fd()) {
		defer unix.Close(dir)
	}
	return d.explain(op, path, fn(dir, parts[len(parts)-1]))
}

// openAt is openat(2), again as long as a signal interrupts it.
func openAt(dir int, name string, flag int, perm uint32) (fd int, err error) {
	for {
		if fd, err = unix.Openat(dir, name, flag|unix.O_CLOEXEC, perm); err != unix.EINTR {
			return fd, err
		}
	}
}

// openFolder opens a directory; a link to one is ELOOP.
func openFolder(dir int, name string, flag int) (fd int, err error) {
	fd, err = openAt(dir, name, flag|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err == unix.ENOTDIR {
		var st unix.Stat_t
		if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			err = unix.ELOOP
		}
	}
	return fd, err
}

// explain makes an error of a path; that of a link says so.
func (d *Dir) explain(op, path string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ELOOP):
		err = foreignf("it is a symbolic link, and no file of a disk directory is one; put the file itself there")
	}
	var at *os.PathError
	if errors.As(err, &at) {
		return err
	}
	return &os.PathError{Op: op, Path: path, Err: err}
}

// Open opens a file, see the package's words.
func (d *Dir) Open(path string, flag int, perm os.FileMode) (hostfs.File, error) {
	parts, inside := d.split(path)
	if !inside {
		return d.openElsewhere(path, flag, perm)
	}
	f, err := d.open(path, parts, flag, perm)
	if err != nil {
		return nil, err
	}
	return d.image(f)
}

// NameLockHolders has somebody else say who has a file locked, as hostfs.LockHolder does of
// this process: who has confined itself does not see it.
func (d *Dir) NameLockHolders(namer func(file string, at int64, fd int) string) {
	d.namer.Store(&namer)
}

// lockHolder is for the file that is open by a descriptor of this process.
func (d *Dir) lockHolder(fd int) func(file string, at int64) string {
	return func(file string, at int64) string {
		if namer := d.namer.Load(); namer != nil {
			return (*namer)(file, at, fd)
		}
		return hostfs.LockHolder(file, at, os.Getpid(), fd)
	}
}

// image makes an open file one that names those who have it locked.
func (d *Dir) image(f *os.File) (hostfs.File, error) {
	return hostfs.FileNaming(f, d.lockHolder(int(f.Fd())))
}

// OpenFile is Open for a file in the directory that is no image, such as its lock.
func (d *Dir) OpenFile(path string, flag int, perm os.FileMode) (*os.File, error) {
	parts, inside := d.split(path)
	if !inside {
		return nil, &os.PathError{Op: "open", Path: path, Err: syscall.EINVAL}
	}
	return d.open(path, parts, flag, perm)
}

func (d *Dir) open(path string, parts []string, flag int, perm os.FileMode) (f *os.File, err error) {
	err = d.parent("open", path, parts, func(dir int, name string) error {
		f, err = d.openInside(dir, name, path, flag, perm)
		return err
	})
	return f, err
}

func (d *Dir) openInside(dir int, name, path string, flag int, perm os.FileMode) (*os.File, error) {
	// Whether the file is made here decides whose it becomes.
	create := flag&os.O_CREATE != 0
	flag = flag&^os.O_CREATE | unix.O_NOFOLLOW | unix.O_NONBLOCK
	for range 100 {
		fd, err := -1, error(unix.ENOENT)
		if !create || flag&os.O_EXCL == 0 {
			fd, err = openAt(dir, name, flag&^os.O_EXCL, 0)
		}
		made := false
		if create && err == unix.ENOENT {
			fd, err = openAt(dir, name, flag|unix.O_CREAT|unix.O_EXCL, uint32(perm.Perm()))
			if err == unix.EEXIST && flag&os.O_EXCL == 0 {
				continue // somebody else made it meanwhile
			}
			made = err == nil
		}
		if err != nil {
			if err == unix.ENXIO { // of a pipe or a socket that nobody reads
				err = errNoFile
			}
			return nil, err
		}
		if err := d.take(fd, made, flag); err != nil {
			unix.Close(fd) // nothing was written
			if made {
				err = errors.Join(err, unix.Unlinkat(dir, name, 0))
			}
			return nil, err
		}
		return os.NewFile(uintptr(fd), path), nil
	}
	return nil, unix.EEXIST
}

// take looks at what was opened, and gives what was made to the directory's owner.
func (d *Dir) take(fd int, made bool, flag int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errNoFile
	}
	var err error
	if made {
		err = d.owner.give(fd)
	} else {
		err = d.owner.accepts(st)
	}
	if err != nil {
		return err
	}
	return afterOpen(fd, flag)
}

// afterOpen takes O_NONBLOCK away, which was for the open only.
func afterOpen(fd, flag int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flag&(unix.O_APPEND|unix.O_DIRECT))
	return err
}

// Stat is of what is there itself: a link in the directory is an error.
func (d *Dir) Stat(path string) (hostfs.Info, error) {
	parts, inside := d.split(path)
	if !inside {
		return d.host.Stat(path)
	}
	var st unix.Stat_t
	if len(parts) == 0 {
		if err := unix.Fstat(int(d.root.Fd()), &st); err != nil {
			return hostfs.Info{}, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		return infoOf(st), nil
	}
	err := d.parent("stat", path, parts, func(dir int, name string) error {
		if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return unix.ELOOP
		}
		return nil
	})
	if err != nil {
		return hostfs.Info{}, err
	}
	return infoOf(st), nil
}

func infoOf(st unix.Stat_t) hostfs.Info {
	info := hostfs.Info{
		Size: st.Size, Blocks: st.Blocks * 512, BlockSize: int64(st.Blksize),
		ModTime: time.Unix(st.Mtim.Unix()), Inode: st.Ino, Device: uint64(st.Dev), Links: uint64(st.Nlink),
		Mode: os.FileMode(st.Mode & 0o777),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		info.Mode |= os.ModeDir
	case unix.S_IFIFO:
		info.Mode |= os.ModeNamedPipe
	case unix.S_IFSOCK:
		info.Mode |= os.ModeSocket
	case unix.S_IFCHR:
		info.Mode |= os.ModeDevice | os.ModeCharDevice
	case unix.S_IFBLK:
		info.Mode |= os.ModeDevice
	}
	return info
}

// openDir opens the directory itself or one in it.
func (d *Dir) openDir(path string, parts []string) (*os.File, error) {
	if len(parts) == 0 {
		parts = []string{"."}
	}
	var f *os.File
	err := d.parent("open", path, parts, func(dir int, name string) error {
		fd, err := openFolder(dir, name, unix.O_RDONLY)
		if err == nil {
			f = os.NewFile(uintptr(fd), path)
		}
		return err
	})
	return f, err
}

// ReadDir lists the names in a directory, sorted.
func (d *Dir) ReadDir(path string) ([]string, error) {
	parts, inside := d.split(path)
	if !inside {
		return d.host.ReadDir(path)
	}
	f, err := d.openDir(path, parts)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	var names []string
	for {
		some, err := f.Readdirnames(4096)
		names = append(names, some...)
		switch {
		case errors.Is(err, io.EOF):
			slices.Sort(names)
			return names, nil
		case err != nil:
			return nil, err
		case len(names) > mostNames:
			return nil, &os.PathError{Op: "readdir", Path: path, Err: foreignf("it has more than %d files, more than a disk ever has; move what is not the disk's elsewhere", mostNames)}
		}
	}
}

// mostNames is how many files of a directory are looked at: more than chain.json has room
// to name.
const mostNames = 200_000

// Mkdir makes a directory, the owner's of the one that it is in.
func (d *Dir) Mkdir(path string, perm os.FileMode) error {
	parts, inside := d.split(path)
	if !inside {
		return d.host.Mkdir(path, perm)
	}
	return d.parent("mkdir", path, parts, func(dir int, name string) error {
		if err := unix.Mkdirat(dir, name, uint32(perm.Perm())); err != nil {
			return err
		}
		fd, err := openFolder(dir, name, unix.O_RDONLY)
		if err != nil {
			return err
		}
		made := os.NewFile(uintptr(fd), path)
		defer made.Close() // only read
		if err := d.takeFolder(made); errors.Is(err, ErrForeign) {
			return err
		} else if err != nil {
			return errors.Join(err, unix.Unlinkat(dir, name, unix.AT_REMOVEDIR))
		}
		return nil
	})
}

// takeFolder gives a directory that was just made to the owner. Whoever may write its parent can
// have put another one in its place before it was opened, which is not to be given away: what
// this process makes is its own, and empty.
func (d *Dir) takeFolder(made *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(made.Fd()), &st); err != nil {
		return err
	}
	names, err := made.Readdirnames(1)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if len(names) > 0 || d.owner.anothers() && int(st.Uid) != os.Geteuid() && int(st.Uid) != d.owner.uid {
		return foreignf("another directory was put in the place of the one that was just made")
	}
	return d.owner.give(int(made.Fd()))
}

// both calls fn with the places of two paths, which are in the directory.
func (d *Dir) both(op, from, to string, fn func(fromDir int, fromName string, toDir int, toName string) error) (inside bool, err error) {
	fromParts, fromInside := d.split(from)
	toParts, toInside := d.split(to)
	if !fromInside && !toInside {
		return false, nil
	}
	if !fromInside || !toInside {
		return true, &os.LinkError{Op: op, Old: from, New: to, Err: syscall.EXDEV}
	}
	return true, d.parent(op, from, fromParts, func(fromDir int, fromName string) error {
		return d.parent(op, to, toParts, func(toDir int, toName string) error { return fn(fromDir, fromName, toDir, toName) })
	})
}

// Rename renames within the directory, or elsewhere.
func (d *Dir) Rename(from, to string) error {
	inside, err := d.both("rename", from, to, unix.Renameat)
	if !inside {
		return d.host.Rename(from, to)
	}
	return err
}

// Link makes a second name of a file within the directory, or elsewhere.
func (d *Dir) Link(from, to string) error {
	inside, err := d.both("link", from, to, func(fromDir int, fromName string, toDir int, toName string) error {
		return unix.Linkat(fromDir, fromName, toDir, toName, 0)
	})
	if !inside {
		return d.host.Link(from, to)
	}
	return err
}

// Remove unlinks a file or an empty directory.
func (d *Dir) Remove(path string) error {
	parts, inside := d.split(path)
	if !inside || len(parts) == 0 {
		return d.host.Remove(path)
	}
	return d.parent("remove", path, parts, func(dir int, name string) error {
		err := unix.Unlinkat(dir, name, 0)
		if err == unix.EISDIR || err == unix.EPERM {
			if asDir := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); asDir != unix.ENOTDIR {
				return asDir
			}
		}
		return err
	})
}

// SyncDir makes creations, renames and removals in a directory durable.
func (d *Dir) SyncDir(path string) error {
	parts, inside := d.split(path)
	if !inside {
		return d.host.SyncDir(path)
	}
	f, err := d.openDir(path, parts)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	return f.Sync()
}

// Chmod sets the mode of a file or directory in the directory, or elsewhere.
func (d *Dir) Chmod(path string, mode os.FileMode) error {
	parts, inside := d.split(path)
	switch {
	case !inside:
		return os.Chmod(path, mode)
	case len(parts) == 0:
		return d.root.Chmod(mode)
	}
	return d.parent("chmod", path, parts, func(dir int, name string) error {
		fd, err := openAt(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd) // only read
		return unix.Fchmod(fd, uint32(mode.Perm()))
	})
}

// Free is what the file system of a path has free.
func (d *Dir) Free(path string) (int64, error) {
	if _, inside := d.split(path); !inside {
		return d.host.Free(path)
	}
	st, err := d.Statfs()
	if err != nil {
		return 0, err
	}
	return hostfs.FreeOf(&st), nil
}

// Statfs is statfs(2) of the directory's file system.
func (d *Dir) Statfs() (st unix.Statfs_t, err error) {
	if err := unix.Fstatfs(int(d.root.Fd()), &st); err != nil {
		return st, &os.PathError{Op: "statfs", Path: d.path, Err: err}
	}
	return st, nil
}

// Syncfs is syncfs(2) of the directory's file system.
func (d *Dir) Syncfs() error {
	if err := unix.Syncfs(int(d.root.Fd())); err != nil {
		return &os.PathError{Op: "syncfs", Path: d.path, Err: err}
	}
	return nil
}
