package chain

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"varve/chain/dirlock"

	"golang.org/x/sys/unix"
)

// TestLockedDirectory: who opens something beside the disk gets the directory that is locked,
// whatever its path leads to by then; and where that fails, nothing is locked afterwards.
func TestLockedDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d.varve")
	if _, err := Create(dir, CreateOptions{Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	refused := errors.New("refused")
	for _, want := range []error{refused, nil} {
		called := 0
		d, err := Open(dir, OpenOptions{Locked: func(fd int) error {
			called++
			if err := errors.Join(os.Rename(dir, dir+".moved"), os.Symlink("/", dir)); err != nil {
				t.Error(err)
			}
			fd, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			f := os.NewFile(uintptr(fd), "the directory")
			defer f.Close()
			if got, err := f.Stat(); err != nil || !os.SameFile(got, info) {
				t.Errorf("another directory: %v", err)
			}
			if err := errors.Join(os.Remove(dir), os.Rename(dir+".moved", dir)); err != nil {
				t.Error(err)
			}
			return want
		}})
		if !errors.Is(err, want) || called != 1 {
			t.Fatalf("%v, called %d times", err, called)
		}
		if err == nil {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, _, held, err := dirlock.Holder(dir); held || err != nil {
			t.Errorf("held: %v, %v", held, err)
		}
	}
}
