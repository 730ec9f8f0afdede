// Package dirlock is the lock of a disk directory, and the file that has it.
//
// The lock keeps two varves from working on one disk (D22). The file says in words who holds
// the lock, and how the last ones who held it ended (D30). Nothing of these words is needed to
// open a disk, so none is made durable: the lock itself is the kernel's.
//
// The package knows nothing of layers, of chain.json or of what the lock guards.
package dirlock

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/diskdir"
	"varve/overlay/hostfs"
)

// Name is the lock file's name in a disk directory.
const Name = "lock"

// poll is how often a lock that somebody else has is tried again.
const poll = 20 * time.Millisecond

var (
	// ErrInUse is that another varve holds the lock.
	ErrInUse = errors.New("in use by another varve")
	// ErrReadOnly is of an exclusive lock on a medium that is only read.
	ErrReadOnly = errors.New("read-only")
)

// Lock is the held lock of a disk directory. It is an OFD lock: it goes with
// the descriptor, whatever way the process ends, and two opens in one process
// exclude each other too. It is not safe for concurrent use.
type Lock struct {
	// Failed is why what the lock guards could not be closed in order: ClosedInOrder and
	// Session tell of it after Unlock.
	Failed error
	// Leave lets the directory go with the lock; nil where the caller does.
	Leave func() error

	options Options
	fs      hostfs.FS // of what is in the directory
	f       *os.File  // nil where nothing is locked
	words   lockWords // of an exclusive lock, what it says
}

// Options are how a directory is locked.
type Options struct {
	Exclusive  bool          // to write; else to read
	Mountpoint string        // recorded in the lock file; "" for work on the directory
	Wait       time.Duration // how long to wait for another varve to let go
	// MakeRoom makes room on a host that is too full to change the lock file, and says
	// whether it did; nil for no way.
	MakeRoom func() bool
}

// Take takes the lock of a disk directory (D22), exclusively for whoever writes,
// shared for whoever only reads; the latter writes nothing, so it goes on
// without a lock where there is no lock file or the medium knows no locks. Another
// holder is waited for at most as long as Options.Wait, then the error wraps ErrInUse and
// names the holder. Exclusive on a read-only medium is ErrReadOnly. A simulated
// file system is not locked.
func Take(fs hostfs.FS, dir string, o Options) (*Lock, error) {
	if !diskdir.OnHost(fs) {
		return &Lock{}, nil
	}
	deadline := time.Now().Add(o.Wait)
	for {
		lock, err := try(fs, dir, o)
		if !errors.Is(err, ErrInUse) || !time.Now().Before(deadline) {
			return lock, err
		}
		time.Sleep(min(poll, time.Until(deadline)))
	}
}

func try(fs hostfs.FS, dir string, o Options) (*Lock, error) {
	path := filepath.Join(dir, Name)
	flag, kind := os.O_RDONLY, int16(unix.F_RDLCK)
	if o.Exclusive {
		flag, kind = os.O_RDWR|os.O_CREATE, unix.F_WRLCK
	}
	f, err := openIn(fs, path, flag)
	switch {
	case err == nil:
	case !o.Exclusive && errors.Is(err, os.ErrNotExist):
		return &Lock{}, nil
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
			return nil, fmt.Errorf("%s: %w: the other process is closing it at this moment; try again", dir, ErrInUse)
		}
		return nil, fmt.Errorf("%s: %w: %v", dir, ErrInUse, holder)
	default:
		f.Close()
		if !o.Exclusive {
			return &Lock{}, nil
		}
		return nil, fmt.Errorf("lock %s: the file system gives no locks: %w", dir, err)
	}
	lock := &Lock{options: o, fs: fs, f: f}
	if err := lock.entered(path); err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	return lock, nil
}

// openIn opens the lock file of a directory that was entered.
func openIn(fs hostfs.FS, path string, flag int) (*os.File, error) {
	if d, ok := fs.(*diskdir.Dir); ok {
		return d.OpenFile(path, flag, 0o600)
	}
	return openFile(path, flag)
}

// openFile opens a lock file: no link, and no FIFO, which would make it wait for
// ever.
func openFile(path string, flag int) (*os.File, error) {
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
func (l *Lock) entered(path string) error {
	var held unix.Stat_t
	if err := unix.Fstat(int(l.f.Fd()), &held); err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	there, err := l.fs.Stat(path)
	if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	if held.Ino != there.Inode || uint64(held.Dev) != there.Device {
		return fmt.Errorf("lock %s: %w: it was replaced meanwhile", path, ErrInUse)
	}
	if !l.options.Exclusive {
		return nil
	}
	old, _ := readWords(l.f)
	l.words = lockWords{PID: os.Getpid(), Mountpoint: l.options.Mountpoint, Session: newSession()}.follow(old)
	if err := l.say(l.words); hostfs.IsFull(err) {
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
func (l *Lock) say(w lockWords) error {
	text, err := json.Marshal(w)
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
func (l *Lock) cut(size int64) error {
	err := l.f.Truncate(size)
	if hostfs.IsFull(err) && l.options.MakeRoom != nil && l.options.MakeRoom() {
		err = l.f.Truncate(size)
	}
	return err
}

// Unlock lets the lock go. It is free afterwards, whatever the error. Again it does nothing.
func (l *Lock) Unlock() (err error) {
	if leave := l.Leave; leave != nil {
		l.Leave = nil
		defer func() { err = errors.Join(err, leave()) }()
	}
	if l.f == nil {
		return nil
	}
	if l.options.Exclusive {
		// A holder that crashed leaves its words. What a full host has no room for an empty
		// file says, or none.
		if err = l.say(l.words.ended(l.Failed)); hostfs.IsFull(err) && l.Failed == nil {
			if err = l.cut(0); hostfs.IsFull(err) {
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
