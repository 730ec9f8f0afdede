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

// File is a capped log file, an io.WriteCloser that is safe for concurrent
// use. One Write is one entry and is never split over two files.
type File struct {
	path string
	max  int64

	mu   sync.Mutex // guards what follows
	file *os.File
	size int64
}

// Open opens the log at path to append to it, or makes it with mode 0600. It
// holds at most max bytes. The Go runtime's report of a crash goes there too.
func Open(path string, max int64) (*File, error) {
	f := &File{path: path, max: max}
	if err := f.open(); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *File) open() error {
	// No link, which could lead to a file of somebody else, and no FIFO, which would
	// be waited for: the directory may be another user's.
	file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", f.path)
	}
	if err == nil {
		err = f.belongs(file, info)
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

// belongs gives a log that root makes to the owner of its directory, who reads it, and
// refuses one that is a second name of somebody else's file.
func (f *File) belongs(file *os.File, info os.FileInfo) error {
	dir, err := os.Stat(filepath.Dir(f.path))
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
	if err := os.Rename(f.path, f.path+".old"); err != nil {
		return fmt.Errorf("put the log aside: %w", err)
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
	if err := debug.SetCrashOutput(nil, debug.CrashOptions{}); err != nil {
		f.file.Close()
		return err
	}
	return f.file.Close()
}
