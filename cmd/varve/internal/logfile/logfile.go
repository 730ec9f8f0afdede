// Package logfile writes a log that never grows without bound: one file of at
// most a given size, and the one before it under the same name with ".old".
package logfile

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Name is what the log of a disk is called in its directory.
const Name = "varve.log"

// File is a capped log file, an io.WriteCloser that is safe for concurrent
// use. One Write is one entry and is never split over two files.
type File struct {
	path string
	max  int64
	dir  *os.File // held: another directory may be at its path later

	mu   sync.Mutex // guards what follows
	file *os.File
	size int64
}

// Open opens the log at path to append to it, or makes it with mode 0600, in the directory
// of the descriptor dirFD, which stays the caller's: path is for errors but for its last
// part. The log holds at most max bytes. The Go runtime's report of a crash goes there too.
func Open(dirFD int, path string, max int64) (*File, error) {
	fd, err := unix.FcntlInt(uintptr(dirFD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	dir := os.NewFile(uintptr(fd), filepath.Dir(path))
	f := &File{path: path, max: max, dir: dir}
	if err := f.open(); err != nil {
		dir.Close() // only read
		return nil, err
	}
	return f, nil
}

func (f *File) open() error {
	file, made, err := f.openAt()
	if err != nil {
		return fmt.Errorf("open the log: %w", &os.PathError{Op: "open", Path: f.path, Err: err})
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", f.path)
	}
	if err == nil {
		err = f.belongs(file, info, made)
	}
	if err != nil {
		file.Close()
		return fmt.Errorf("open the log: %w", err)
	}
	if err := debug.SetCrashOutput(file, debug.CrashOptions{}); err != nil {
		file.Close()
		return fmt.Errorf("send crash reports to the log: %w", err)
	}
	f.file, f.size = file, info.Size()
	return nil
}

// openAt opens the log; made says that it was not there.
func (f *File) openAt() (file *os.File, made bool, err error) {
	// No link, which could lead to a file of somebody else, and no FIFO, which would
	// be waited for: the directory may be another user's.
	const flag = unix.O_WRONLY | unix.O_APPEND | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	for range 100 {
		fd, err := unix.Openat(int(f.dir.Fd()), filepath.Base(f.path), flag, 0)
		made := err == unix.ENOENT
		if made {
			fd, err = unix.Openat(int(f.dir.Fd()), filepath.Base(f.path), flag|unix.O_CREAT|unix.O_EXCL, 0o600)
		}
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), f.path), made, nil
		case unix.EINTR, unix.EEXIST: // somebody else has made it meanwhile
		default:
			return nil, false, err
		}
	}
	return nil, false, unix.EEXIST
}

// belongs gives a log that root has made to the owner of its directory, who reads it, and
// refuses one that is a second name of somebody else's file. One that was there stays whose
// it is: the owner of the directory can have given any file of root's that name.
func (f *File) belongs(file *os.File, info os.FileInfo, made bool) error {
	dir, err := f.dir.Stat()
	if err != nil {
		return err
	}
	own, ok := info.Sys().(*syscall.Stat_t)
	owner, known := dir.Sys().(*syscall.Stat_t)
	switch {
	case !ok || !known || own.Uid == owner.Uid || os.Geteuid() != 0:
		return nil
	case own.Nlink > 1:
		return fmt.Errorf("%s is a second name of a file of uid %d; remove it", f.path, own.Uid)
	case !made:
		return nil
	}
	return file.Chown(int(owner.Uid), int(owner.Gid))
}

// Write appends one entry, after putting the file aside when the entry would
// take it beyond its bound.
func (f *File) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.size > 0 && f.size+int64(len(p)) > f.max {
		if err := f.rotate(); err != nil {
			return 0, err
		}
	}
	n, err := f.file.Write(p)
	f.size += int64(n)
	return n, err
}

func (f *File) rotate() error {
	name := filepath.Base(f.path)
	if err := unix.Renameat(int(f.dir.Fd()), name, int(f.dir.Fd()), name+".old"); err != nil {
		return fmt.Errorf("put the log aside: %w", &os.LinkError{Op: "rename", Old: f.path, New: f.path + ".old", Err: err})
	}
	old := f.file
	if err := f.open(); err != nil {
		return err
	}
	return old.Close()
}

// Close closes the file. Crash reports go to stderr again.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.dir.Close() // only read
	if err := debug.SetCrashOutput(nil, debug.CrashOptions{}); err != nil {
		f.file.Close()
		return err
	}
	return f.file.Close()
}
