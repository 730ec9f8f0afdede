package chain

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
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/diskdir"
	"varve/chain/mounts"
	"varve/overlay/hostfs"
	"varve/overlay/procs"
)

const (
	lockName = "lock"
	// lockPoll is how often a lock that somebody else has is tried again.
	lockPoll = 20 * time.Millisecond
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

// dirLock is the held lock of a disk directory. It is an OFD lock: it goes with
// the descriptor, whatever way the process ends, and two opens in one process
// exclude each other too.
type dirLock struct {
	fs        hostfs.FS // of what is in the directory
	f         *os.File  // nil where nothing is locked
	exclusive bool
	words     lockWords // of an exclusive lock, what it says
	// failed is why what the lock guarded could not be closed in order: ClosedInOrder and
	// Session see that.
	failed error
	leave  func() error // lets the directory go with the lock; nil where the caller does
}

// lockDir takes the lock of a disk directory (D22), exclusively for whoever writes,
// shared for whoever only reads; the latter writes nothing, so it goes on
// without a lock where there is no lock file or the medium knows no locks. Another
// holder is waited for at most as long as wait, then the error wraps ErrInUse and
// names the holder. Exclusive on a read-only medium is ErrReadOnly. A simulated
// file system is not locked.
func lockDir(fs hostfs.FS, dir string, exclusive bool, mountpoint string, wait time.Duration) (*dirLock, error) {
	if !isHost(fs) {
		return &dirLock{}, nil
	}
	deadline := time.Now().Add(wait)
	for {
		lock, err := tryLockDir(fs, dir, exclusive, mountpoint)
		if !errors.Is(err, ErrInUse) || !time.Now().Before(deadline) {
			return lock, err
		}
		time.Sleep(min(lockPoll, time.Until(deadline)))
	}
}

func tryLockDir(fs hostfs.FS, dir string, exclusive bool, mountpoint string) (*dirLock, error) {
	path := filepath.Join(dir, lockName)
	flag, kind := os.O_RDONLY, int16(unix.F_RDLCK)
	if exclusive {
		flag, kind = os.O_RDWR|os.O_CREATE, unix.F_WRLCK
	}
	f, err := openLockIn(fs, path, flag)
	switch {
	case err == nil:
	case !exclusive && errors.Is(err, os.ErrNotExist):
		return &dirLock{}, nil
	case errors.Is(err, unix.EROFS):
		return nil, fmt.Errorf("lock %s: %w: %w", dir, ErrReadOnly, err)
	default:
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	err = fcntlLock(f, unix.F_OFD_SETLK, &unix.Flock_t{Type: kind})
	switch {
	case err == nil:
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		holder, held := findHolder(f, dir)
		f.Close() // nothing was written
		if !held {
			// It went between the two questions: as if it were still there.
			return nil, fmt.Errorf("%s: %w: it is just being let go", dir, ErrInUse)
		}
		return nil, fmt.Errorf("%s: %w: %v", dir, ErrInUse, holder)
	default:
		f.Close()
		if !exclusive {
			return &dirLock{}, nil
		}
		return nil, fmt.Errorf("lock %s: the file system gives no locks: %w", dir, err)
	}
	lock := &dirLock{fs: fs, f: f, exclusive: exclusive}
	if err := lock.entered(fs, path, mountpoint); err != nil {
		return nil, errors.Join(err, lock.unlock())
	}
	return lock, nil
}

// openLockIn opens the lock file of a directory that was entered.
func openLockIn(fs hostfs.FS, path string, flag int) (*os.File, error) {
	if d, ok := fs.(*diskdir.Dir); ok {
		return d.OpenFile(path, flag, 0o600)
	}
	return openLock(path, flag)
}

// openLock opens a lock file: no link, and no FIFO, which would make it wait for
// ever.
func openLock(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", path)
	}
	if err != nil {
		f.Close() // nothing was written
		return nil, err
	}
	return f, nil
}

// entered checks that the file that is locked is still the one at path, and
// says in it who holds it.
func (l *dirLock) entered(fs hostfs.FS, path, mountpoint string) error {
	var held unix.Stat_t
	if err := unix.Fstat(int(l.f.Fd()), &held); err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	there, err := fs.Stat(path)
	if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	if held.Ino != there.Inode || uint64(held.Dev) != there.Device {
		return fmt.Errorf("lock %s: %w: it was replaced meanwhile", path, ErrInUse)
	}
	if !l.exclusive {
		return nil
	}
	old, _ := readLockWords(l.f)
	l.words = lockWords{PID: os.Getpid(), Mountpoint: mountpoint, Session: newSession()}.follow(old)
	if err := l.say(l.words); isFull(err) {
		// A full host has no block for the words. The lock holds without them, and a
		// byte that is a hole tells ClosedInOrder what they would.
		if err := l.cut(1); err != nil {
			return fmt.Errorf("lock %s: %w", path, err)
		}
	} else if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	if err := l.f.Chmod(0o600); err != nil && !errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	return nil
}

// say writes words into the lock file. Readers take the first JSON value: they never see
// half of one, nor the rest of a longer one that stood here.
func (l *dirLock) say(words lockWords) error {
	text, err := json.Marshal(words)
	if err != nil {
		return err
	}
	text = append(text, '\n')
	if _, err := l.f.WriteAt(text, 0); err != nil {
		return err
	}
	return l.cut(int64(len(text)))
}

// cut sets the length of the lock file. A btrfs can be too full even for that, but not
// to remove the file that is kept as a reserve.
func (l *dirLock) cut(size int64) error {
	err := l.f.Truncate(size)
	if isFull(err) && giveReserve(l.fs, filepath.Dir(l.f.Name())) {
		err = l.f.Truncate(size)
	}
	return err
}

// unlock lets the lock go. It is free afterwards, whatever the error.
func (l *dirLock) unlock() (err error) {
	if leave := l.leave; leave != nil {
		l.leave = nil
		defer func() { err = errors.Join(err, leave()) }()
	}
	if l.f == nil {
		return nil
	}
	if l.exclusive {
		// A holder that crashed leaves its words. What a full host has no room for an empty
		// file says, or none.
		if err = l.say(l.words.ended(l.failed)); isFull(err) && l.failed == nil {
			if err = l.cut(0); isFull(err) {
				err = l.fs.Remove(l.f.Name())
			}
		}
	}
	// Let go before it is closed: a child that is between fork and exec shares
	// the open file and would keep the lock for a moment.
	err = errors.Join(err, fcntlLock(l.f, unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK}), l.f.Close())
	l.f = nil
	return err
}

// Holder tells who holds a disk directory's lock: its pid (0 where it cannot be
// told) and mountpoint ("" for none). ok is false when nobody does. It takes no
// lock.
func Holder(dir string) (pid int, mountpoint string, ok bool, err error) {
	f, err := openLock(filepath.Join(dir, lockName), os.O_RDONLY)
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
	f, err := openLock(filepath.Join(dir, lockName), os.O_RDONLY)
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
		if err != nil || filepath.Base(target) != lockName || !describes(file, f) {
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

// fcntlLock is fcntl(2) on the whole file, again as long as a signal interrupts
// it.
func fcntlLock(f *os.File, command int, lock *unix.Flock_t) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		for {
			if failed = unix.FcntlFlock(fd, command, lock); failed != unix.EINTR {
				return
			}
		}
	})
	return errors.Join(err, failed)
}
