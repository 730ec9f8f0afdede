package fs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/integration/harness"
	"varve/integration/patience"
)

// TestUnmountEndsCopies: a copy of the mount in another mount namespace keeps nothing
// alive when no file is open there, and keeps all while one is; what was written there is
// not lost.
func TestUnmountEndsCopies(t *testing.T) {
	for _, held := range []bool{false, true} {
		dir, d, s := mounted(t, mib, Options{})
		// It has the copy when it says ready, and looks at it when its input ends.
		script := `echo ready; read line; cat "$1" >/dev/null 2>"$2"; true`
		if held {
			script = `exec 7<>"$1"; ` + script
		}
		said := filepath.Join(t.TempDir(), "said")
		c := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", filepath.Join(dir, nameDisk), said)
		end := harness.Keep(t, c)
		if held {
			for range 2 { // its mountpoint is free to go, or gone
				if err := s.Unmount(); !errors.Is(err, unix.EBUSY) {
					t.Fatalf("unmount while a file is open in another mount namespace: %v", err)
				}
			}
			if len(names(t, dir)) == 0 {
				t.Error("the mount was taken away under its user")
			}
			end()
		}
		if err := s.Unmount(); err != nil {
			t.Fatalf("held %v: %v", held, err)
		}
		s.Wait()
		if left := d.opens(); len(left) != 0 {
			t.Errorf("left open: %v", left)
		}
		if held {
			continue
		}
		end()
		words, err := os.ReadFile(said)
		if err != nil || !strings.Contains(string(words), "Transport endpoint is not connected") {
			t.Errorf("whoever opens the copy is told %q, %v", words, err)
		}
	}
}

// TestUnmountLeavesBinds: the mount is found where it was moved to, and goes although a
// bind mount of it is there, which then is dead.
func TestUnmountLeavesBinds(t *testing.T) {
	dir, _, s := mounted(t, mib, Options{})
	moved, bound := t.TempDir(), filepath.Join(t.TempDir(), "bound.raw")
	if err := unix.Mount(dir, moved, "", unix.MS_MOVE, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bound, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(filepath.Join(moved, nameDisk), bound, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(bound, unix.MNT_DETACH) })
	file := open(t, bound, os.O_RDWR)
	if err := s.Unmount(); !errors.Is(err, unix.EBUSY) {
		t.Fatalf("unmount while a bind mount is open: %v", err)
	}
	if _, err := file.WriteAt([]byte("still here"), 0); err != nil {
		t.Error(err)
	}
	file.Close()
	if err := s.Unmount(); err != nil {
		t.Fatal(err)
	}
	s.Wait()
	if len(names(t, moved)) != 0 {
		t.Error("the mount is still there")
	}
	if _, err := os.Open(bound); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("the bind mount says %v", err)
	}
}

// TestUnmountOfWhatIsOutOfSight: after a lazy unmount it goes on until its files are
// closed, and then is not kept by a copy.
func TestUnmountOfWhatIsOutOfSight(t *testing.T) {
	dir, d, s := mounted(t, mib, Options{})
	harness.Keep(t, exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; read line"))
	file := open(t, filepath.Join(dir, nameDisk), os.O_RDWR)
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := s.Unmount(); !errors.Is(err, ErrNotMounted) {
		t.Fatalf("unmount of what is out of sight, with a file open: %v", err)
	}
	if _, err := file.WriteAt([]byte("late"), 0); err != nil {
		t.Error(err)
	}
	file.Close()
	if err := s.Unmount(); err != nil {
		t.Fatal(err)
	}
	s.Wait()
	if left := d.opens(); len(left) != 0 {
		t.Errorf("left open: %v", left)
	}
}

// TestAbandon: a mount that is left behind is one that nobody uses, and is dead afterwards, also
// where its connection cannot be ended from outside.
func TestAbandon(t *testing.T) {
	for _, way := range []bool{true, false} {
		dir, d, s := mounted(t, mib, Options{})
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // which a test that fails leaves behind
		if !way {
			s.abort = nil
		}
		file := open(t, filepath.Join(dir, nameDisk), os.O_RDWR)
		if err := s.Abandon(); !errors.Is(err, unix.EBUSY) {
			t.Fatalf("with a file open: %v", err)
		}
		if _, err := file.WriteAt([]byte("goes on"), 0); err != nil {
			t.Error(err)
		}
		file.Close()
		for deadline := time.Now().Add(patience.Hang); errors.Is(s.Abandon(), unix.EBUSY); time.Sleep(time.Millisecond) { // the kernel tells of a close late
			if time.Now().After(deadline) {
				t.Fatal("it stays in use")
			}
		}
		s.Wait()
		if left := d.opens(); len(left) != 0 {
			t.Errorf("left open: %v", left)
		}
		if f, err := os.Open(filepath.Join(dir, nameDisk)); !errors.Is(err, unix.ENOTCONN) {
			f.Close()
			t.Errorf("an open says %v", err)
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil { // as "varve umount" does
			t.Error(err)
		}
	}
}
