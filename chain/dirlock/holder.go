package dirlock

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"varve/chain/mounts"
	"varve/overlay/procs"
)

// lockHolder is what the lock file says of who holds it.
type lockHolder struct {
	PID        int    `json:"pid"`
	Mountpoint string `json:"mountpoint"` // "" for work on the directory
}

func (h lockHolder) String() string {
	who := "another process"
	if h.PID != 0 {
		who = procs.Title(h.PID, procs.Command(h.PID))
	}
	if h.Mountpoint != "" {
		return who + " has it mounted at " + h.Mountpoint
	}
	return who + " works on it"
}

// Holder tells who holds a disk directory's lock: its pid (0 where it cannot be
// told) and mountpoint ("" for none). ok is false when nobody does. It takes no
// lock.
func Holder(dir string) (pid int, mountpoint string, ok bool, err error) {
	f, err := openFile(filepath.Join(dir, Name), os.O_RDONLY)
	if errors.Is(err, os.ErrNotExist) {
		return 0, "", false, nil
	}
	if err != nil {
		return 0, "", false, fmt.Errorf("look who holds %s: %w", dir, err)
	}
	defer f.Close() // read only
	holder, held := findHolder(f, dir)
	return holder.PID, holder.Mountpoint, held, nil
}

// HeldBy says whether a process holds the lock of a disk directory, exclusively or to read;
// false also where that cannot be seen. It takes no lock.
func HeldBy(dir string, pid int) (bool, error) {
	f, err := openFile(filepath.Join(dir, Name), os.O_RDONLY)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look who holds %s: %w", dir, err)
	}
	defer f.Close() // read only
	known, ok := holds(pid, f)
	return known && ok, nil
}

// findHolder tells who else holds the lock on f, dir's lock file. Only who
// holds it exclusively says so in the file; the others are looked for in /proc
// and in the table of mounts.
func findHolder(f *os.File, dir string) (holder lockHolder, held bool) {
	test := unix.Flock_t{Type: unix.F_WRLCK}
	if err := fcntlLock(f, unix.F_OFD_GETLK, &test); err != nil || test.Type == unix.F_UNLCK {
		return lockHolder{}, false
	}
	if test.Type == unix.F_WRLCK {
		text := io.NewSectionReader(f, 0, 1<<16)
		if err := json.NewDecoder(text).Decode(&holder); err == nil && holder.PID > 0 {
			// A daemon in a container writes what it is called there, and here that
			// may be anybody.
			said := holder.PID
			if known, ok := holds(said, f); !ok {
				if holder.PID = pidHolding(f); holder.PID == 0 && !known {
					holder.PID = said
				}
			}
			return holder, true
		}
	}
	return lockHolder{PID: pidHolding(f), Mountpoint: mountOf(dir)}, true
}

// holds says whether a process holds a lock on f. Where that is not known, of one that is
// another user's it is taken for granted, and of one that shows no open file, as a kernel
// thread and one that is just ending, ok is false.
func holds(pid int, f *os.File) (known, ok bool) {
	inode, ok := inodeOf(f)
	if !ok {
		return false, true
	}
	dir := fmt.Sprintf("/proc/%d/fdinfo", pid)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return true, false
	}
	if err != nil {
		return false, true
	}
	for _, e := range entries {
		if file := filepath.Join(dir, e.Name()); locksInode(file, inode) && describes(file, f) {
			return true, true
		}
	}
	entries, err = os.ReadDir(dir)
	return err == nil && len(entries) > 0, false // it may have ended meanwhile
}

// inodeOf is the inode of f as a "lock:" line ends its numbers.
func inodeOf(f *os.File) (inode string, ok bool) {
	info, err := f.Stat()
	if err != nil {
		return "", false
	}
	sys, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", false
	}
	// The device before the inode is not compared: on btrfs and overlayfs the
	// kernel shows another one than stat does. describes tells the rest.
	return fmt.Sprintf(":%d", sys.Ino), true
}

// pidHolding finds a process that holds a lock on f: of OFD locks the kernel
// tells no pid, but /proc/PID/fdinfo has a "lock:" line with the inode
// (proc_pid_fdinfo(5)). 0 when there is none that may be read. It asks no file
// system for a file that a process has open: it could be in a FUSE mount that hangs.
func pidHolding(f *os.File) int {
	inode, ok := inodeOf(f)
	if !ok {
		return 0
	}
	files, err := filepath.Glob("/proc/[0-9]*/fdinfo/*")
	if err != nil {
		return 0
	}
	for _, file := range files {
		if !locksInode(file, inode) {
			continue
		}
		target, err := os.Readlink(strings.Replace(file, "/fdinfo/", "/fd/", 1))
		if err != nil || filepath.Base(target) != Name || !describes(file, f) {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(file, "/")[2]); err == nil {
			return pid
		}
	}
	return 0
}

// describes says whether /proc/PID/fdinfo/N is of the file f. Its inode number alone could
// be another file's: on a file system of their own, a user can have a file of any number.
func describes(fdinfo string, f *os.File) bool {
	var theirs, ours unix.Statx_t
	const mask = unix.STATX_INO
	err := unix.Statx(unix.AT_FDCWD, strings.Replace(fdinfo, "/fdinfo/", "/fd/", 1), unix.AT_STATX_DONT_SYNC, mask, &theirs)
	if err == nil {
		err = unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, mask, &ours)
	}
	return err == nil && theirs.Ino == ours.Ino && theirs.Dev_major == ours.Dev_major && theirs.Dev_minor == ours.Dev_minor
}

func locksInode(fdinfo, inode string) bool {
	text, err := os.ReadFile(fdinfo)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		// lock:	1: OFDLCK  ADVISORY  WRITE -1 fe:00:9980029 0 EOF
		field := strings.Fields(line)
		if len(field) >= 7 && field[0] == "lock:" && strings.HasSuffix(field[6], inode) {
			return true
		}
	}
	return false
}

// mountOf is where a disk directory is mounted, "" for nowhere: a varve mount
// names its disk directory as its source.
func mountOf(dir string) string {
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		resolved = dir
	}
	list, err := mounts.List()
	if err != nil {
		return ""
	}
	at := ""
	for _, m := range list {
		if m.Source == dir || m.Source == resolved {
			at = m.Mountpoint
		}
	}
	return at
}
