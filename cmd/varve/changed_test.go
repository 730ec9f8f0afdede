package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"varve/cmd/varve/internal/logfile"
)

// putBack gives a file the modification time that it had.
func putBack(t *testing.T, path string, change func()) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	change()
	if err := os.Chtimes(path, time.Time{}, info.ModTime()); err != nil {
		t.Fatal(err)
	}
}

// TestChangedLayers changes the files below the leaf while the disk is not
// mounted: the base, an adopted layer, a frozen one of varve's own. The mount is
// refused with the snapshots that the change falsifies and the way out; accept
// is the way out, and the mount then shows what is there now.
func TestChangedLayers(t *testing.T) {
	const size, unsampled = 64 << 20, 4096 + 5
	for _, c := range []struct {
		what, layer string
		change      func(t *testing.T, dir string)
		says        string // "" when it is not noticed
		at          int64  // where the new content is, in the layer's view
		now         string
	}{
		{"the base's size", "base", func(t *testing.T, dir string) {
			putBack(t, dir+"/vm.raw", func() {
				if err := os.Truncate(dir+"/vm.raw", size+4096); err != nil {
					t.Fatal(err)
				}
			})
		}, "size 67108864 → 67112960 bytes", 0, ""},
		{"the base's time", "base", func(t *testing.T, dir string) {
			if err := os.Chtimes(dir+"/vm.raw", time.Time{}, time.Unix(1e9, 7)); err != nil {
				t.Fatal(err)
			}
		}, "modification time", 0, ""},
		{"the base's first block", "base", func(t *testing.T, dir string) {
			putBack(t, dir+"/vm.raw", func() { patch(t, dir+"/vm.raw", 100, []byte("changed")) })
		}, "content at sampled places", 100, "changed"},
		{"the superblock of the first partition", "base", func(t *testing.T, dir string) {
			putBack(t, dir+"/vm.raw", func() { patch(t, dir+"/vm.raw", 1<<20+1024, []byte("changed")) })
		}, "content at sampled places", 1<<20 + 1024, "changed"},
		// What docs/reference.md says is not noticed.
		{"an unsampled block of the base, its time put back", "base", func(t *testing.T, dir string) {
			putBack(t, dir+"/vm.raw", func() { patch(t, dir+"/vm.raw", unsampled, []byte("changed")) })
		}, "", unsampled, "changed"},
		{"an unsampled block of the base", "base", func(t *testing.T, dir string) {
			patch(t, dir+"/vm.raw", unsampled, []byte("changed"))
		}, "modification time", unsampled, "changed"},
		{"the adopted layer", "adopted", func(t *testing.T, dir string) {
			tool(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 0x63 8M 4k", dir+"/snap.qcow2")
		}, "modification time", 8 << 20, "ccccccc"},
		{"a frozen layer", "one", func(t *testing.T, dir string) {
			tool(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 0x63 8M 4k", dir+"/vm.varve/layers/000003.qcow2")
		}, "modification time", 8 << 20, "ccccccc"},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir := hostDir(t)
			if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
				t.Fatal(err)
			}
			image(t, dir+"/vm.raw", size, 2<<20)
			tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "vm.raw", "-F", "raw", "snap.qcow2")
			must(t, dir, "create", "vm.varve", "--base", "snap.qcow2")
			must(t, dir, "snapshot", "vm.varve", "one")
			must(t, dir, "snapshot", "vm.varve", "two")
			c.change(t, dir)
			if c.says != "" {
				order := []string{"base", "adopted", "one", "two", "the leaf"}
				for order[0] != c.layer {
					order = order[1:]
				}
				words := []string{c.layer, "was changed by another program", c.says, "affected: " + strings.Join(order, ", "), "varve accept " + dir + "/vm.varve " + c.layer}
				fails(t, dir, exitFailed, words, "mount", "vm.varve", "mnt")
				fails(t, dir, exitFailed, words, "mount", "--read-only", "vm.varve", "mnt")
				must(t, dir, "accept", "vm.varve", c.layer)
			}
			must(t, dir, "mount", "vm.varve", "mnt")
			if got := get(t, dir+"/mnt/layers/"+c.layer+".raw", c.at, len(c.now)); got != c.now {
				t.Errorf("%s shows %q", c.layer, got)
			}
			if got := get(t, dir+"/mnt/disk.raw", c.at, len(c.now)); got != c.now {
				t.Errorf("disk.raw shows %q", got)
			}
		})
	}
}

// TestMovedBase: a base that was copied and put back, times and all, or restored
// onto another file system, is the same one; the log notes it.
func TestMovedBase(t *testing.T) {
	dir, _ := mounted(t, 8<<20, 1<<20)
	must(t, dir, "umount", "mnt")
	noted := func(word string) {
		t.Helper()
		must(t, dir, "mount", "vm.raw", "mnt")
		must(t, dir, "umount", "mnt")
		log, err := os.ReadFile(dir + "/vm.raw.varve/" + logfile.Name)
		if err != nil || !strings.Contains(string(log), "moved or restored") || !strings.Contains(string(log), word) {
			t.Errorf("the log has no %q: %v\n%s", word, err, log)
		}
	}
	tool(t, dir, "cp", "-a", "vm.raw", "copy.raw")
	tool(t, dir, "mv", "copy.raw", "vm.raw")
	noted("inode")
	host := smallHost(t, dir, 32<<20)
	tool(t, dir, "cp", "-a", "vm.raw", host+"/vm.raw")
	tool(t, dir, "rm", "vm.raw")
	tool(t, dir, "touch", "vm.raw")
	tool(t, dir, "mount", "--bind", host+"/vm.raw", "vm.raw")
	noted("device")
}
