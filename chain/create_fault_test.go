package chain

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"varve/overlay/hostfs"
)

// failingFS is the host's file system with one call that fails with EIO,
// counted from 1 over all of its files. It is not the host's to isHost.
type failingFS struct {
	hostfs.FS
	failAt          int
	failAfterRename bool // every rename happens and says that it failed

	mu     sync.Mutex
	calls  int
	failed string // the call that failed
}

func (s *failingFS) step(call, path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.calls != s.failAt {
		return nil
	}
	s.failed = call
	return &os.PathError{Op: call, Path: path, Err: unix.EIO}
}

func (s *failingFS) Open(path string, flag int, perm os.FileMode) (hostfs.File, error) {
	if err := s.step("open", path); err != nil {
		return nil, err
	}
	f, err := s.FS.Open(path, flag, perm)
	if err != nil {
		return nil, err
	}
	return &failingFile{File: f, fs: s}, nil
}

func (s *failingFS) Stat(path string) (hostfs.Info, error) {
	if err := s.step("stat", path); err != nil {
		return hostfs.Info{}, err
	}
	return s.FS.Stat(path)
}

func (s *failingFS) ReadDir(path string) ([]string, error) {
	if err := s.step("readdir", path); err != nil {
		return nil, err
	}
	return s.FS.ReadDir(path)
}

func (s *failingFS) Mkdir(path string, perm os.FileMode) error {
	if err := s.step("mkdir", path); err != nil {
		return err
	}
	return s.FS.Mkdir(path, perm)
}

func (s *failingFS) Rename(oldPath, newPath string) error {
	if err := s.step("rename", oldPath); err != nil {
		return err
	}
	err := s.FS.Rename(oldPath, newPath)
	if err == nil && s.failAfterRename {
		return &os.PathError{Op: "rename", Path: oldPath, Err: unix.EIO}
	}
	return err
}

func (s *failingFS) Remove(path string) error {
	if err := s.step("remove", path); err != nil {
		return err
	}
	return s.FS.Remove(path)
}

func (s *failingFS) SyncDir(path string) error {
	if err := s.step("syncdir", path); err != nil {
		return err
	}
	return s.FS.SyncDir(path)
}

type failingFile struct {
	hostfs.File
	fs *failingFS
}

func (f *failingFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.fs.step("read", f.Name()); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *failingFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fs.step("write", f.Name()); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *failingFile) Truncate(size int64) error {
	if err := f.fs.step("truncate", f.Name()); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f *failingFile) Datasync() error {
	if err := f.fs.step("datasync", f.Name()); err != nil {
		return err
	}
	return f.File.Datasync()
}

// Close closes always, as close(2) does, whatever it says.
func (f *failingFile) Close() error {
	err := f.File.Close()
	if failed := f.fs.step("close", f.Name()); failed != nil {
		return failed
	}
	return err
}
