package client

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/overlay/qcow2"
)

// sharedDisk is a mounted disk with "first" in it and the snapshot "one" of that.
func sharedDisk(t *testing.T) (dir, mnt string, d Disk) {
	t.Helper()
	mnt, _ = mount(t, disk(t, 8<<20))
	put(t, mnt, "first", 3<<20)
	d = opened(t, mnt)
	done(t, d.Snapshot("one"))
	return filepath.Dir(mnt), mnt, d
}

// openShared opens a snapshot of a mounted disk as an export does.
func openShared(t *testing.T, d Disk, name string) *sharedView {
	t.Helper()
	view, err := d.View(name, true)
	done(t, err)
	t.Cleanup(func() {
		if err := view.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	shared, ok := view.Source.(*sharedView)
	if !ok {
		t.Fatalf("an export reads %T", view.Source)
	}
	return shared
}

// Another user's daemon is not asked of which files a view is made: it could name any
// that root can open.
func TestSectionsOfTrustedDaemonsOnly(t *testing.T) {
	_, mnt, _ := sharedDisk(t)
	at := found(t, mnt)
	if at.Owner != os.Geteuid() {
		t.Errorf("the mount is of user %d", at.Owner)
	}
	for owner, want := range map[int]bool{os.Geteuid(): true, 0: true, 65534: false} {
		at.Owner = owner
		d, err := Open(at, Options{ReadOnly: true})
		done(t, err)
		view, err := d.View("one", true)
		done(t, err)
		if _, shared := view.Source.(*sharedView); shared != want {
			t.Errorf("a mount of user %d: %T", owner, view.Source)
		}
		done(t, view.Close())
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
	dir, _, d := sharedDisk(t)
	s := openShared(t, d, "one")
	before := opens(t, dir+"/vm.raw")
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
	if after := opens(t, dir+"/vm.raw"); before == 0 || after != before {
		t.Errorf("the base is open %d times, and was %d times before", after, before)
	}
}

// opens counts how often this process, which serves the mount too, has a file open.
func opens(t *testing.T, path string) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/self/fd/*")
	done(t, err)
	for _, file := range files {
		if to, err := os.Readlink(file); err == nil && to == path {
			n++
		}
	}
	return n
}

// What the daemon has open counts, not what stands at the paths: neither another file
// there, nor another snapshot by the name.
func TestSectionIsOfTheView(t *testing.T) {
	dir, mnt, d := sharedDisk(t)
	put(t, mnt, "other", 3<<20)
	s := openShared(t, d, "one")
	done(t, d.Rename("one", "two"))
	done(t, d.Snapshot("one"))
	if got := wordAt(t, s, 3<<20, 5); got != "first" {
		t.Errorf("after a rename a section shows %q", got)
	}
	for _, file := range []string{"vm.raw", "vm.varve/layers/000002.qcow2"} {
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
	job, err := d.Delete("one")
	done(t, err)
	if job.ID != "" {
		_, err = d.Wait(t.Context(), job, func(_, _ int64) {})
		done(t, err)
	}
}

// Where nothing can be shared no section is tried any more.
func TestSectionsEndWhereNothingIsShared(t *testing.T) {
	_, _, d := sharedDisk(t)
	refused := &os.PathError{Op: "clone", Path: "out", Err: unix.EXDEV}
	elsewhere := errors.Join(refused, errors.ErrUnsupported)
	leave := func(s *sharedView, shared int64, err error) bool {
		if s.Enter() == nil {
			return false
		}
		s.Leave(shared, err)
		return true
	}
	s := openShared(t, d, "one")
	if !leave(s, 0, unix.EOPNOTSUPP) || leave(s, 0, nil) || s.section != nil {
		t.Error("a section is had on a file system that shares nothing")
	}
	s = openShared(t, d, "one")
	if leave(s, 0, qcow2.ErrCorrupt); leave(s, 0, nil) {
		t.Error("a section is had at once after one that could not be read")
	}
	for _, shared := range []int64{0, 4096} {
		s = openShared(t, d, "one")
		leave(s, shared, nil)
		for range refusedMost {
			leave(s, 0, elsewhere)
		}
		if leave(s, 0, nil) != (shared > 0) {
			t.Errorf("after %d bytes were shared, and all others refused: never %v", shared, s.never)
		}
	}
}
