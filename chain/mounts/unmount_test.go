package mounts

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Root takes away the mount that is meant, and no other to which the owner of a directory
// above it has the path lead by then.
func TestUnmountOfWhatWasPutThere(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts: root only")
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	device := map[string]uint64{}
	for _, name := range []string{"own", "victim"} {
		at := filepath.Join(dir, name, "m")
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("none", at, "tmpfs", 0, "size=4k"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(at, 0) }) // it may be gone
		var st unix.Stat_t
		if err := unix.Stat(at, &st); err != nil {
			t.Fatal(err)
		}
		device[name] = st.Dev
	}
	path := func(elements ...string) string { return filepath.Join(append([]string{dir}, elements...)...) }
	if err := os.Rename(path("own"), path("own.moved")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("victim", path("own")); err != nil {
		t.Fatal(err)
	}
	if err := Unmount(path("own", "m"), device["own"], 0); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("a link above it: %v", err)
	}
	if err := os.Remove(path("own")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path("victim"), path("own")); err != nil {
		t.Fatal(err)
	}
	for _, flags := range []int{0, unix.MNT_DETACH} {
		if err := Unmount(path("own", "m"), device["own"], flags); !errors.Is(err, ErrAnother) {
			t.Errorf("another directory above it, flags %d: %v", flags, err)
		}
	}
	if err := os.Rename(path("own"), path("victim")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path("own.moved"), path("own")); err != nil {
		t.Fatal(err)
	}
	busy, err := os.Open(path("own", "m"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmount(path("own", "m"), device["own"], 0); !errors.Is(err, unix.EBUSY) {
		t.Errorf("in use: %v", err)
	}
	busy.Close()
	for _, name := range []string{"own", "victim"} {
		if err := Unmount(path(name, "m"), device[name], 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
