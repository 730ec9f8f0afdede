package main

import (
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Programs that copy an image over disk.raw empty it first. Each is refused in words
// that do not blame its arguments, none of them changes a byte or the size, and the
// daemon's log says what to do instead.
func TestDiskIsNotEmptied(t *testing.T) {
	dir, mnt := mounted(t, 8<<20, 2<<20)
	put(t, mnt, "the only copy", 5<<20)
	image(t, filepath.Join(dir, "img"), 8<<20, 1<<20)
	sum := func() [sha256.Size]byte {
		b, err := os.ReadFile(mnt + "/disk.raw")
		if err != nil {
			t.Fatal(err)
		}
		return sha256.Sum256(b)
	}
	before := sum()
	for _, line := range []string{
		"cp img mnt/disk.raw",
		"cp --force img mnt/disk.raw",
		"cp --sparse=always img mnt/disk.raw",
		"cat img > mnt/disk.raw",
		": > mnt/disk.raw",
		"tee mnt/disk.raw < img > /dev/null",
		"dd if=img of=mnt/disk.raw bs=1M status=none",
		"dd if=img of=mnt/disk.raw bs=1M status=none oflag=direct",
		"qemu-img convert -O raw img mnt/disk.raw",
		"qemu-img create -q -f raw mnt/disk.raw 8M",
		"qemu-img resize -q --shrink -f raw mnt/disk.raw 4M",
		"truncate -s 0 mnt/disk.raw",
		"truncate -s 8388096 mnt/disk.raw",
		"mv img mnt/disk.raw",
	} {
		cmd := exec.Command("sh", "-c", "export LC_ALL=C; "+line)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "Operation not permitted") {
			t.Errorf("%s: %v, and says %q", line, err, out)
		}
		if sum() != before {
			t.Fatalf("%s changed the disk", line)
		}
	}
	log, err := os.ReadFile(dir + "/vm.raw.varve/varve.log")
	if n := strings.Count(string(log), "was not truncated"); err != nil || n < 1 || !strings.Contains(string(log), "qemu-img convert -n") {
		t.Errorf("%d lines in the log (%v):\n%s", n, err, log)
	}
	// The ways out that the log names, other than our own; truncation to the same
	// size, and to a larger one, which grows the disk.
	tool(t, dir, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "img", "mnt/disk.raw")
	tool(t, dir, "cmp", "img", "mnt/disk.raw")
	put(t, mnt, "other", 6<<20)
	tool(t, dir, "dd", "if=img", "of=mnt/disk.raw", "bs=1M", "conv=notrunc,fsync", "status=none")
	tool(t, dir, "cmp", "img", "mnt/disk.raw")
	tool(t, dir, "truncate", "-s", "8M", "mnt/disk.raw", "img")
	tool(t, dir, "cmp", "img", "mnt/disk.raw")
	tool(t, dir, "truncate", "-s", "9M", "mnt/disk.raw", "img")
	tool(t, dir, "cmp", "img", "mnt/disk.raw")
}
