package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestUmaskOfTheOwner: a umask that takes rights from the owner himself, and what varve
// made could not be opened again.
func TestUmaskOfTheOwner(t *testing.T) {
	dir := hostDir(t)
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"create", "vm.varve", "--size", "4M"},
		{"snapshot", "vm.varve", "zero"},
		{"mount", "vm.varve", "mnt"},
		{"snapshot", "mnt", "one"},
		{"export", "mnt", "one", "out.raw"},
		{"map", "mnt", "-o", "out.svg"},
		{"umount", "mnt"},
	} {
		cmd := command(dir, args...)
		masked := exec.Command("sh", append([]string{"-c", `umask 0777; exec "$@"`, "sh", cmd.Path}, cmd.Args[1:]...)...)
		masked.Dir, masked.Env = cmd.Dir, cmd.Env
		if r := finish(t, masked); r.code != exitDone {
			t.Fatalf("%v: exit %d, %s", args, r.code, r.stderr)
		}
	}
	files := 0
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		want := os.FileMode(0o600)
		if e.IsDir() {
			want = 0o700
		}
		if files++; info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode().Perm(), want)
		}
		return nil
	})
	if err != nil || files < 10 {
		t.Fatalf("%d files: %v", files, err)
	}
}
