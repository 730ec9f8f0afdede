package client

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/cmd/varve/internal/where"
	"varve/fs"
)

// disk makes a disk directory of size bytes with "base" in its first bytes.
func disk(t *testing.T, size int64) (dir string) {
	t.Helper()
	top, err := os.MkdirTemp("/var/tmp", "varve-client-") // tmpfs is no home for disks
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(top); err != nil {
			t.Error(err)
		}
	})
	base := filepath.Join(top, "vm.raw")
	if err := os.WriteFile(base, append([]byte("base"), make([]byte, size-4)...), 0o600); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(top, "vm.varve")
	if _, err := chain.Create(dir, chain.CreateOptions{Base: base, Format: "raw"}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// mount mounts a disk directory, from this process, beside it. The end of the test unmounts
// it, or the call of ended.
func mount(t *testing.T, dir string) (mnt string, ended func()) {
	t.Helper()
	mnt = filepath.Join(filepath.Dir(dir), "mnt")
	if err := os.MkdirAll(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := chain.Open(dir, chain.OpenOptions{Mountpoint: mnt})
	if err != nil {
		t.Fatal(err)
	}
	s, err := fs.Mount(d, mnt, fs.Options{Umask: 0o077, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), FsName: dir})
	if err != nil {
		t.Fatal(err)
	}
	over := false
	ended = func() {
		t.Helper()
		if over {
			return
		}
		over = true
		if err := s.Unmount(); err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(mnt, unix.MNT_DETACH)
		}
		s.Wait()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(ended)
	return mnt, ended
}

// found is what an argument means.
func found(t *testing.T, arg string) where.Target {
	t.Helper()
	at, err := where.Find(arg)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// opened opens a disk to change it.
func opened(t *testing.T, arg string) Disk {
	t.Helper()
	d, err := Open(found(t, arg), Options{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// done fails the test for an error.
func done(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// put writes text into disk.raw and makes it durable.
func put(t *testing.T, mnt, text string, off int64) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(mnt, "disk.raw"), os.O_WRONLY, 0)
	done(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte(text), off)
	done(t, err)
	done(t, f.Sync())
}

// shell runs words of a shell in a directory.
func shell(t *testing.T, dir, words string) {
	t.Helper()
	c := exec.Command("sh", "-ec", words)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", words, err, out)
	}
}
