package main

import (
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/cmd/varve/internal/where"
	"varve/overlay/qcow2"
)

// openShared opens a snapshot of a mounted disk as an export does.
func openShared(t *testing.T, mnt, name string) *sharedView {
	t.Helper()
	where, err := where.Find(mnt)
	if err != nil {
		t.Fatal(err)
	}
	e, closeSource, err := exportSourceOf(where, name, true, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := closeSource(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	shared, ok := e.Source.(*sharedView)
	if !ok {
		t.Fatalf("an export reads %T", e.Source)
	}
	return shared
}

// Another user's daemon is not asked of which files a view is made: it could name any
// that root can open.
func TestSectionsOfTrustedDaemonsOnly(t *testing.T) {
	dir, mnt := mounted(t, 8<<20, 1<<20)
	must(t, dir, "snapshot", "mnt", "one")
	where, err := where.Find(mnt)
	if err != nil {
		t.Fatal(err)
	}
	if where.Owner != os.Geteuid() {
		t.Errorf("the mount is of user %d", where.Owner)
	}
	for owner, want := range map[int]bool{os.Geteuid(): true, 0: true, nobody: false} {
		where.Owner = owner
		e, closeSource, err := exportSourceOf(where, "one", true, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if _, shared := e.Source.(*sharedView); shared != want {
			t.Errorf("a mount of user %d: %T", owner, e.Source)
		}
		if err := closeSource(); err != nil {
			t.Error(err)
		}
	}
}

// wordAt reads some bytes of a section, "" where there is none to be had.
func wordAt(t *testing.T, s *sharedView, off int64, n int) string {
	t.Helper()
	p := make([]byte, n)
	places := s.Enter()
	if places == nil {
		return ""
	}
	defer s.Leave(0, nil)
	if err := places.ReadAt(p, off); err != nil {
		t.Error(err)
	}
	return string(p)
}

// again lets a view try a section at once.
func (s *sharedView) again() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end()
	s.next = time.Time{}
}

// A section ends by itself, also when nobody comes to leave it: a job waits for no
// longer.
func TestSectionEnds(t *testing.T) {
	dir, mnt := mounted(t, 8<<20, 1<<20)
	put(t, mnt, "first", 3<<20)
	must(t, dir, "snapshot", "mnt", "one")
	s := openShared(t, mnt, "one")
	if got := wordAt(t, s, 3<<20, 5); got != "first" {
		t.Fatalf("a section shows %q", got)
	}
	s.mu.Lock()
	if s.section == nil {
		t.Error("a section ends at once")
	}
	s.mu.Unlock()
	time.Sleep(longestSection + 100*time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.section != nil {
		t.Error("a section does not end")
	}
	files, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if to, err := os.Readlink(file); err == nil && strings.HasPrefix(to, dir+"/vm.raw") {
			t.Errorf("%s is open still", to)
		}
	}
}

// What the daemon has open counts, not what stands at the paths: neither another file
// there, nor another snapshot by the name.
func TestSectionIsOfTheView(t *testing.T) {
	dir, mnt := mounted(t, 8<<20, 1<<20)
	put(t, mnt, "first", 3<<20)
	must(t, dir, "snapshot", "mnt", "one")
	put(t, mnt, "other", 3<<20)
	s := openShared(t, mnt, "one")
	must(t, dir, "rename", "mnt", "one", "two")
	must(t, dir, "snapshot", "mnt", "one")
	if got := wordAt(t, s, 3<<20, 5); got != "first" {
		t.Errorf("after a rename a section shows %q", got)
	}
	for _, file := range []string{"vm.raw", "vm.raw.varve/layers/000002.qcow2"} {
		s.again()
		path := filepath.Join(dir, file)
		if err := os.Rename(path, path+".kept"); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("cp", path+".kept", path).CombinedOutput(); err != nil {
			t.Fatalf("%s", out)
		}
		if got := wordAt(t, s, 3<<20, 5); got != "" {
			t.Errorf("with another file at %s a section shows %q", file, got)
		}
		if err := os.Rename(path+".kept", path); err != nil {
			t.Fatal(err)
		}
		if s.next.IsZero() {
			t.Error("it is tried again at once")
		}
		s.again()
		if got := wordAt(t, s, 3<<20, 5); got != "first" {
			t.Errorf("with %s put back a section shows %q", file, got)
		}
	}
	// A section that is open is waited for.
	must(t, dir, "delete", "mnt", "one")
}

// Where nothing can be shared no section is tried any more.
func TestSectionsEndWhereNothingIsShared(t *testing.T) {
	dir, mnt := mounted(t, 8<<20, 1<<20)
	must(t, dir, "snapshot", "mnt", "one")
	refused := &os.PathError{Op: "clone", Path: "out", Err: unix.EXDEV}
	elsewhere := errors.Join(refused, errors.ErrUnsupported)
	leave := func(s *sharedView, shared int64, err error) bool {
		if s.Enter() == nil {
			return false
		}
		s.Leave(shared, err)
		return true
	}
	s := openShared(t, mnt, "one")
	if !leave(s, 0, unix.EOPNOTSUPP) || leave(s, 0, nil) || s.section != nil {
		t.Error("a section is had on a file system that shares nothing")
	}
	s = openShared(t, mnt, "one")
	if leave(s, 0, qcow2.ErrCorrupt); leave(s, 0, nil) {
		t.Error("a section is had at once after one that could not be read")
	}
	for _, shared := range []int64{0, 4096} {
		s = openShared(t, mnt, "one")
		leave(s, shared, nil)
		for range refusedMost {
			leave(s, 0, elsewhere)
		}
		if leave(s, 0, nil) != (shared > 0) {
			t.Errorf("after %d bytes were shared, and all others refused: never %v", shared, s.never)
		}
	}
}
