package diskdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"varve/overlay/hostfs"
)

// nobody is the group of a process without one.
const nobody = 65534

// fchown is fchown(2); a test has it fail.
var fchown = unix.Fchown

// owner is whose a disk directory is.
type owner struct{ uid, gid int }

func ownerOf(info os.FileInfo) owner {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return owner{int(st.Uid), int(st.Gid)}
	}
	return owner{os.Geteuid(), os.Getegid()}
}

// anothers says that root acts in a directory of somebody else.
func (o owner) anothers() bool { return os.Geteuid() == 0 && o.uid != 0 }

// give makes the directory's owner the owner of what root made in it, which would not be
// taken from there otherwise. Where the file system has no owners it is so already.
func (o owner) give(fd int) error {
	if !o.anothers() {
		return nil
	}
	err := fchown(fd, o.uid, o.gid)
	if err == nil {
		return nil
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil && int(st.Uid) == o.uid {
		return nil
	}
	return fmt.Errorf("what root makes there cannot be given to uid %d, who owns the directory: %w; do it as that user, or chown -R the directory to root", o.uid, err)
}

// accepts refuses a file in the directory that belongs to neither its owner, root, nor
// the caller, and of these one with another name, which may be a link of the owner's to it.
// Root takes none of its own in a directory of somebody else either: the owner can move one
// there from any other directory of theirs, and could neither read nor write it.
func (o owner) accepts(st unix.Stat_t) error {
	uid := int(st.Uid)
	switch {
	case uid == o.uid:
		return nil
	case uid != 0 && uid != os.Geteuid() || o.anothers():
		return foreignf("it belongs to uid %d, and the directory to uid %d; chown it to that one", uid, o.uid)
	case st.Nlink > 1:
		return foreignf("it has a second name (a hard link) and belongs to uid %d, the directory to uid %d; put a copy in its place", uid, o.uid)
	}
	return nil
}

// openElsewhere opens a file outside the directory: with the rights of the directory's
// owner where that is not the one who opens it.
func (d *Dir) openElsewhere(path string, flag int, perm os.FileMode) (hostfs.File, error) {
	if !d.owner.anothers() {
		f, err := os.OpenFile(path, flag, perm)
		if err != nil {
			return nil, err
		}
		return d.image(f)
	}
	f, err := d.owner.open(path, flag)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w: uid %d, who owns %s, may not read it; give that user the right to, or chown -R the disk directory to root", err, d.owner.uid, d.path)
	}
	if err != nil {
		return nil, err
	}
	return d.image(f)
}

// open opens a file as this user: on a thread of its own, which ends with its rights.
func (o owner) open(path string, flag int) (*os.File, error) {
	type opened struct {
		f   *os.File
		err error
	}
	result := make(chan opened)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this function
		err := o.become()
		var f *os.File
		if err == nil {
			f, err = openWithoutMagic(path, flag)
		}
		result <- opened{f, err}
	}()
	r := <-result
	return r.f, r.err
}

// openWithoutMagic opens a file by a path that no link of /proc is in: such a link, as to a
// descriptor of this process or into the root directory of another one, leads past
// everything that keeps a user from the file.
func openWithoutMagic(path string, flag int) (*os.File, error) {
	fail := func(err error) (*os.File, error) { return nil, &os.PathError{Op: "open", Path: path, Err: err} }
	how := unix.OpenHow{
		Flags:   uint64(flag | unix.O_NONBLOCK | unix.O_CLOEXEC), // what is no file must not make it wait
		Resolve: unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &how)
	for err == unix.EINTR {
		fd, err = unix.Openat2(unix.AT_FDCWD, path, &how)
	}
	switch {
	case err == unix.ELOOP:
		return fail(foreignf("it leads through a link of /proc, or in a circle; name the file itself"))
	case err == unix.ENOSYS: // before Linux 5.6
		if strings.HasPrefix(path, "/proc/") {
			return fail(foreignf("it lies in /proc; name the file itself"))
		}
		fd, err = openAt(unix.AT_FDCWD, path, flag|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return fail(err)
	}
	if err := afterOpen(fd, flag); err != nil {
		unix.Close(fd) // only read
		return fail(err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// become gives this thread the rights of the user on file systems. The calls are those of
// one thread (setfsuid(2)); the libraries' would be of all.
func (o owner) become() error {
	// A user whom the host does not know has no group of anybody's.
	groups, group := []uint32{}, nobody
	if u, err := user.LookupId(strconv.Itoa(o.uid)); err == nil {
		if group, err = strconv.Atoi(u.Gid); err != nil {
			return fmt.Errorf("look up the group of uid %d: %w", o.uid, err)
		}
		names, err := u.GroupIds()
		if err != nil {
			return fmt.Errorf("look up the groups of uid %d: %w", o.uid, err)
		}
		for _, name := range names {
			if id, err := strconv.ParseUint(name, 10, 32); err == nil {
				groups = append(groups, uint32(id))
			}
		}
	}
	var list unsafe.Pointer
	if len(groups) > 0 {
		list = unsafe.Pointer(&groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(list), 0); errno != 0 {
		return fmt.Errorf("take the groups of uid %d: %w", o.uid, errno)
	}
	runtime.KeepAlive(groups)
	for _, call := range []struct {
		number uintptr
		id     int
	}{{unix.SYS_SETFSGID, group}, {unix.SYS_SETFSUID, o.uid}} {
		unix.RawSyscall(call.number, uintptr(call.id), 0, 0)
		// It says what was before, and no error: asked again with what cannot be, it says
		// what is.
		if is, _, _ := unix.RawSyscall(call.number, ^uintptr(0), 0, 0); int(is) != call.id {
			return fmt.Errorf("take the rights of uid %d: %w", o.uid, unix.EPERM)
		}
	}
	return nil
}
