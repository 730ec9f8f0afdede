package main

import (
	"os"
	"strings"
	"testing"
)

// TestLongNames: what a file is called until it is whole must not be longer than a name
// can be where its own name is not.
func TestLongNames(t *testing.T) {
	dir := hostDir(t)
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("é", 122) + ".raw" // 248 bytes; with .varve 254
	image(t, dir+"/"+long, 2<<20, 1<<20)
	must(t, dir, "mount", long, "mnt")
	must(t, dir, "snapshot", "mnt", "one")
	for ending, args := range map[string][]string{
		".raw":   {"export", "mnt", "one"},
		".qcow2": {"export", "mnt", "one", "--format", "qcow2"},
		".svg":   {"map", "mnt", "-o"},
		".prom":  {"metrics", "mnt", "-o"},
	} {
		out := strings.Repeat("o", 255-len(ending)) + ending
		must(t, dir, append(args, out)...)
		if info, err := os.Stat(dir + "/" + out); err != nil || info.Size() == 0 {
			t.Errorf("%v made nothing: %v", args, err)
		}
	}
	tool(t, dir, "qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", long, strings.Repeat("o", 249)+".qcow2")
	must(t, dir, "umount", "mnt")

	longer := strings.Repeat("a", 251) + ".raw"
	image(t, dir+"/"+longer, 1<<20, 0)
	fails(t, dir, exitFailed, []string{"file name too long", "say where it shall be: --disk DIR"}, "mount", longer, "mnt")
	must(t, dir, "mount", longer, "mnt", "--disk", "other.varve")
	must(t, dir, "umount", "mnt")
}

// TestNoPlaceBesideTheImage: the way out is in the line.
func TestNoPlaceBesideTheImage(t *testing.T) {
	dir := hostDir(t)
	for _, d := range []string{"mnt", "medium", "source"} {
		if err := os.Mkdir(dir+"/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	image(t, dir+"/source/vm.raw", 1<<20, 0)
	tool(t, dir, "mount", "--bind", "source", "medium")
	tool(t, dir, "mount", "-o", "remount,bind,ro", "medium")
	fails(t, dir, exitFailed, []string{"read-only file system", "say where it shall be: --disk DIR"}, "mount", "medium/vm.raw", "mnt")
	must(t, dir, "mount", "medium/vm.raw", "mnt", "--disk", "vm.varve")
	must(t, dir, "umount", "mnt")
	tool(t, dir, "umount", "medium")
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if r := asUser(t, nobody, dir, dir, "mount", "source/vm.raw", "mnt"); r.code != exitFailed || !strings.HasSuffix(r.stderr, "say where it shall be: --disk DIR\n") {
		t.Errorf("another user's directory: exit %d, %s", r.code, r.stderr)
	}
}

// TestMountpointThatIsNoText: what is written down of a mount is text, and commands find
// it by that.
func TestMountpointThatIsNoText(t *testing.T) {
	dir := hostDir(t)
	must(t, dir, "create", "vm.varve", "--size", "1M")
	for _, name := range []string{"m\xe9", "m\nn"} {
		if err := os.Mkdir(dir+"/"+name, 0o700); err != nil {
			t.Fatal(err)
		}
		fails(t, dir, exitFailed, []string{"the mountpoint ", "mount elsewhere"}, "mount", "vm.varve", name)
	}
}
