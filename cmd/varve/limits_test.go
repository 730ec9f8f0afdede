package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestLimitOfFileSize: a file that may not grow further (ulimit -f, 16 TiB on ext4) is a
// full disk to QEMU, which stops the VM then and does not hand the guest an error.
func TestLimitOfFileSize(t *testing.T) {
	dir := hostDir(t)
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "create", "vm.varve", "--size", "64M")
	cmd := command(dir, "mount", "vm.varve", "mnt")
	limited := exec.Command("prlimit", append([]string{"--fsize=4194304:4194304", cmd.Path}, cmd.Args[1:]...)...)
	limited.Dir, limited.Env = cmd.Dir, cmd.Env
	if r := finish(t, limited); r.code != exitDone {
		t.Fatalf("mount: exit %d, %s", r.code, r.stderr)
	}
	qemu := exec.Command("qemu-io", "-f", "raw", "-c", "write -P 1 0 1M", "-c", "flush", "-c", "write -P 2 1M 16M", "-c", "flush", "-c", "read -P 1 0 1M", "mnt/disk.raw")
	qemu.Dir = dir
	words, _ := qemu.CombinedOutput() // it fails, as it should
	out := string(words)
	if !strings.Contains(out, "wrote 1048576/1048576") || !strings.Contains(out, "write failed: No space left on device") || strings.Contains(out, "verification failed") {
		t.Errorf("qemu-io says\n%s", out)
	}
	must(t, dir, "umount", "mnt")
	must(t, dir, "check", "vm.varve")

	// A soft limit is a shell's, and the hard one counts.
	limited = exec.Command("prlimit", append([]string{"--fsize=4194304:", cmd.Path}, cmd.Args[1:]...)...)
	limited.Dir, limited.Env = cmd.Dir, cmd.Env
	if r := finish(t, limited); r.code != exitDone {
		t.Fatalf("mount: exit %d, %s", r.code, r.stderr)
	}
	if out := tool(t, dir, "qemu-io", "-f", "raw", "-c", "write -P 2 1M 16M", "mnt/disk.raw"); strings.Contains(out, "failed") {
		t.Errorf("qemu-io says\n%s", out)
	}
	must(t, dir, "umount", "mnt")
}
