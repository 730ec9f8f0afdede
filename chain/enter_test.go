package chain

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"varve/chain/manifest"
	"varve/integration/interleave"
	"varve/overlay/hostfs"
)

// TestReserveOfAMovedDirectory: what a lock removes on a full host it removes where the disk
// is, and not from what is in its place by then.
func TestReserveOfAMovedDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "disk")
	put := func(dir string) {
		t.Helper()
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, reserveName), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	put(dir)
	fs, leave, err := enter(hostfs.OS(), dir)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := lockDir(fs, dir, true, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	lock.Leave = leave
	if err := os.Rename(dir, dir+".moved"); err != nil {
		t.Fatal(err)
	}
	put(dir)
	if !giveReserve(fs, dir) {
		t.Error("there is no reserve")
	}
	if _, err := os.Stat(filepath.Join(dir, reserveName)); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := lock.Unlock(); err != nil {
			t.Error(err)
		}
	}
}

// TestOwnersOfAMovedDirectory: the options of a user's disk are not taken for root's since
// a directory of root's stands at its path meanwhile.
func TestOwnersOfAMovedDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root; make test runs it so")
	}
	const member = 61001
	dir := filepath.Join(t.TempDir(), "disk")
	put := func(dir string, owner int) {
		t.Helper()
		file := filepath.Join(dir, manifest.FileName)
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(file, nil, 0o600), os.Chown(file, owner, owner), os.Chown(dir, owner, owner)); err != nil {
			t.Fatal(err)
		}
	}
	put(dir, member)
	fs, leave, err := enter(hostfs.OS(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	if err := os.Rename(dir, dir+".moved"); err != nil {
		t.Fatal(err)
	}
	put(dir, 0)
	if owners, err := ownersOf(fs, dir); err != nil || !slices.Equal(owners, []int{member}) {
		t.Errorf("%v, %v", owners, err)
	}
}

// The lock file of a mounted disk was removed, and somebody opens the disk while a
// snapshot has made the file of its new leaf and not committed it: the open is refused,
// since the layers are locked, but it has removed that file as a stray.
func TestRemovedLockAndASnapshot(t *testing.T) {
	d, fs := watchedDisk(t, 4<<20) // such a file system is not locked
	put(t, d, 1, 0, 4096)
	stop := fs.StopAt(t, func(c interleave.Call) bool {
		return c.Op == "rename" && filepath.Base(c.Path) == manifest.FileName && !c.Done
	})
	snapshot := interleave.Start(t, func() error { return d.Snapshot("one") })
	stop.Reached()
	if other, err := Open(d.Dir(), OpenOptions{}); err == nil {
		other.Close()
		t.Fatal("the disk is open twice")
	} else {
		t.Log(err)
	}
	stop.Go()
	snapshot.Must()
	put(t, d, 2, 0, 4096)
	must(t, d.Flush())
	if _, err := os.Stat(layerPath(d, "")); err != nil {
		t.Errorf("the guest writes to a file that is gone: %v", err)
	}
}

// An older chain.json, put back from a backup, is refused before anything is written:
// then the newest one can be put back.
func TestOlderManifestTouchesNothing(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	put(t, d, 1, 0, 4096)
	must(t, d.Resize(40<<40)) // the L1 table moves, and a cluster in the file is free
	name := filepath.Join(d.Dir(), manifest.FileName)
	older, err := os.ReadFile(name)
	must(t, err)
	must(t, d.Snapshot("two"))
	put(t, d, 3, 0, 4096)
	must(t, d.Close())
	newest, err := os.ReadFile(name)
	must(t, err)
	must(t, os.WriteFile(name, older, 0o600))
	if _, err := Open(d.Dir(), OpenOptions{}); !errors.Is(err, ErrChanged) {
		t.Fatalf("the older one: %v", err)
	}
	must(t, os.WriteFile(name, newest, 0o600))
	must(t, openDisk(t, d.Dir()).Close())
}
