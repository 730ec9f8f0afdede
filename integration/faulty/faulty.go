// Package faulty is a host file system of which one call fails.
package faulty

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"varve/overlay/hostfs"
)

// FS is a host file system with one call that fails with EIO, counted from 1 over all of its
// files. It is not the host's own (diskdir.OnHost). Safe for concurrent use.
type FS struct {
	hostfs.FS
	FailAt          int
	FailAfterRename bool // every rename happens and says that it failed

	mu     sync.Mutex
	calls  int
	Failed string // the call that failed; "" for none
}

func (s *FS) step(call, path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.calls != s.FailAt {
		return nil
	}
	s.Failed = call
	return &os.PathError{Op: call, Path: path, Err: unix.EIO}
}

func (s *FS) Open(path string, flag int, perm os.FileMode) (hostfs.File, error) {
	if err := s.step("open", path); err != nil {
		return nil, err
	}
	f, err := s.FS.Open(path, flag, perm)
	if err != nil {
		return nil, err
	}
	return &file{File: f, fs: s}, nil
}

func (s *FS) Stat(path string) (hostfs.Info, error) {
	if err := s.step("stat", path); err != nil {
		return hostfs.Info{}, err
	}
	return s.FS.Stat(path)
}

func (s *FS) ReadDir(path string) ([]string, error) {
	if err := s.step("readdir", path); err != nil {
		return nil, err
	}
	return s.FS.ReadDir(path)
}

func (s *FS) Mkdir(path string, perm os.FileMode) error {
	if err := s.step("mkdir", path); err != nil {
		return err
	}
	return s.FS.Mkdir(path, perm)
}

func (s *FS) Rename(oldPath, newPath string) error {
	if err := s.step("rename", oldPath); err != nil {
		return err
	}
	err := s.FS.Rename(oldPath, newPath)
	if err == nil && s.FailAfterRename {
		return &os.PathError{Op: "rename", Path: oldPath, Err: unix.EIO}
	}
	return err
}

func (s *FS) Remove(path string) error {
	if err := s.step("remove", path); err != nil {
		return err
	}
	return s.FS.Remove(path)
}

func (s *FS) SyncDir(path string) error {
	if err := s.step("syncdir", path); err != nil {
		return err
	}
	return s.FS.SyncDir(path)
}

type file struct {
	hostfs.File
	fs *FS
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if err := f.fs.step("read", f.Name()); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fs.step("write", f.Name()); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *file) Truncate(size int64) error {
	if err := f.fs.step("truncate", f.Name()); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f *file) Datasync() error {
	if err := f.fs.step("datasync", f.Name()); err != nil {
		return err
	}
	return f.File.Datasync()
}

// Close closes always, as close(2) does, whatever it says.
func (f *file) Close() error {
	err := f.File.Close()
	if failed := f.fs.step("close", f.Name()); failed != nil {
		return failed
	}
	return err
}
