package mounts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrAnother is that a path leads to another mount than the one that is meant.
var ErrAnother = errors.New("another file system was mounted there meanwhile")

// errLink is of a path that had no link in it when it was looked up.
var errLink = errors.New("a symbolic link was put into the path meanwhile")

// OpenDirectory opens a directory with O_PATH by a path without symbolic links, as the mount
// table and Resolve give it. Who owns a directory above it can put one there meanwhile, which
// leads root anywhere. The caller closes the descriptor. Errors are *os.PathError.
func OpenDirectory(path string) (fd int, err error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
	for {
		if fd, err = unix.Openat2(unix.AT_FDCWD, path, &how); err != unix.EINTR {
			break
		}
	}
	if err == unix.ENOSYS || err == unix.EPERM { // before Linux 5.6, and in containers that do not know it
		fd, err = unix.Open(path, int(how.Flags), 0)
	}
	switch {
	case err == unix.ELOOP:
		err = errLink
	case err == nil:
		return fd, nil
	}
	return -1, &os.PathError{Op: "open", Path: path, Err: err}
}

// Unmount is umount2(2) of the mount of a device at a path, and of no other, whatever was put
// there since the mount table was read: ErrAnother then. It asks nothing of the mount's
// daemon. flags are MNT_DETACH and the like; a link is never followed.
func Unmount(path string, device uint64, flags int) error {
	dir, err := OpenDirectory(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer unix.Close(dir) // of O_PATH: nothing can be lost
	name := filepath.Base(path)
	var st unix.Statx_t
	// Without a field, which the kernel would have to ask the daemon for.
	if err := unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return &os.PathError{Op: "look at", Path: path, Err: err}
	}
	if is := unix.Mkdev(st.Dev_major, st.Dev_minor); is != device {
		return &os.PathError{Op: "unmount", Path: path, Err: ErrAnother}
	}
	// The directory above is held, and what is mounted in it cannot be renamed.
	at := strings.Join([]string{"/proc/self/fd", fmt.Sprint(dir), name}, "/")
	for {
		if err := unix.Unmount(at, flags|unix.UMOUNT_NOFOLLOW); err != unix.EINTR {
			return err
		}
	}
}
