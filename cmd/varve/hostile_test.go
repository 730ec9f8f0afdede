package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// hostilesDisk is a disk of nobody's that is not mounted, in a directory that everybody may
// pass through, and a file beside it that only root may read.
func hostilesDisk(t *testing.T) (dir, secret string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root; make test runs it so")
	}
	dir = hostDir(t)
	secret = filepath.Join(dir, "secret.raw")
	image(t, secret, 4<<20, 1<<20)
	image(t, filepath.Join(dir, "vm.raw"), 4<<20, 1<<20)
	for _, mode := range []struct {
		name string
		mode os.FileMode
	}{{"", 0o755}, {"vm.raw", 0o644}, {"secret.raw", 0o600}} {
		if err := os.Chmod(filepath.Join(dir, mode.name), mode.mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "mnt"), 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "create", "vm.varve", "--base", "vm.raw")
	tool(t, dir, "chown", "-R", "65534:65534", "vm.varve")
	return dir, secret
}

// Root mounts what a user owns: neither a link nor a name in the user's directory has root
// read, write or extend what the user could not.
func TestRootMountsAHostileDirectory(t *testing.T) {
	for _, c := range []struct {
		name, plant, words string
	}{
		{"a layer", "rm vm.varve/layers/000002.qcow2; ln -s $PWD/secret.raw vm.varve/layers/000002.qcow2", "symbolic link"},
		{"the layers", "mkdir other; mv vm.varve/layers/* other; rmdir vm.varve/layers; ln -s $PWD/other vm.varve/layers", "symbolic link"},
		{"chain.json", "mv vm.varve/chain.json .; ln -s $PWD/chain.json vm.varve/chain.json", "symbolic link"},
		{"the lock", "ln -sf $PWD/secret.raw vm.varve/lock", "lock"},
		{"a FIFO for a layer", "rm vm.varve/layers/000002.qcow2; mkfifo vm.varve/layers/000002.qcow2", "neither a file nor a block device"},
		{"a stranger's layer", "chown 61002 vm.varve/layers/000002.qcow2", "belongs to uid 61002, and the directory to uid 65534"},
		{"another's base", "sed -i s/vm.raw/secret.raw/ vm.varve/chain.json", "may not read it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, secret := hostilesDisk(t)
			before, err := os.ReadFile(secret)
			if err != nil {
				t.Fatal(err)
			}
			tool(t, dir, "sh", "-ec", c.plant)
			fails(t, dir, exitFailed, []string{c.words}, "mount", "vm.varve", "mnt")
			after, err := os.ReadFile(secret)
			if err != nil || !bytes.Equal(after, before) {
				t.Errorf("the secret was written (%v)", err)
			}
		})
	}
}

// Files that are extended, appended to or made are none of others either, and what root
// makes is the user's.
func TestRootLeavesAUserTheDisk(t *testing.T) {
	dir, secret := hostilesDisk(t)
	for _, name := range []string{"reserve", "varve.log"} {
		os.Remove(filepath.Join(dir, "vm.varve", name)) // it may not be there
		if err := os.Symlink(secret, filepath.Join(dir, "vm.varve", name)); err != nil {
			t.Fatal(err)
		}
	}
	r := vv(t, dir, "mount", "vm.varve", "mnt")
	if r.code == exitDone {
		must(t, dir, "umount", "mnt")
	}
	if info, err := os.Stat(secret); err != nil || info.Size() != 4<<20 {
		t.Errorf("the secret has %d bytes (%v)", info.Size(), err)
	}
	for _, name := range []string{"reserve", "varve.log"} {
		os.Remove(filepath.Join(dir, "vm.varve", name))
	}
	must(t, dir, "mount", "vm.varve", "mnt")
	put(t, filepath.Join(dir, "mnt"), "data", 0)
	must(t, dir, "snapshot", "mnt", "one")
	must(t, dir, "umount", "mnt")
	if others := tool(t, dir, "find", "vm.varve", "!", "-user", "65534"); others != "" {
		t.Errorf("not the user's any more:\n%s", others)
	}
	cmd := command(dir, "status", "vm.varve")
	exe := filepath.Join(dir, "varve")
	tool(t, dir, "cp", cmd.Path, exe)
	cmd.Path, cmd.SysProcAttr = exe, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if r := finish(t, cmd); r.code != exitDone || !strings.Contains(r.stdout, "one") {
		t.Errorf("the user's status: %+v", r)
	}
}

// A directory that was moved while it was mounted, with another in its place, gets no
// snapshot of the other's, and the guest's writes go where they went.
func TestMovedWhileMounted(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	put(t, mnt, "before", 0)
	tool(t, dir, "mv", "vm.raw.varve", "moved")
	tool(t, dir, "cp", "-a", "moved", "vm.raw.varve")
	fails(t, dir, exitFailed, []string{"another directory is in its place"}, "snapshot", "mnt", "one")
	put(t, mnt, "after", 8)
	must(t, dir, "umount", "mnt")
	tool(t, dir, "rm", "-r", "vm.raw.varve")
	tool(t, dir, "mv", "moved", "vm.raw.varve")
	must(t, dir, "check", "vm.raw.varve")
	must(t, dir, "mount", "vm.raw", "mnt")
	if got := get(t, filepath.Join(mnt, "disk.raw"), 0, 13); got[:6] != "before" || got[8:] != "after" {
		t.Errorf("%q", got)
	}
	must(t, dir, "snapshot", "mnt", "one")
}
