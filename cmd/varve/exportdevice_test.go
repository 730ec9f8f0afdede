package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// loopDevice is a device of size bytes, all of them 0xee.
func loopDevice(t *testing.T, dir string, size int, flags ...string) (device, file string) {
	t.Helper()
	file = filepath.Join(dir, fmt.Sprintf("device%d", size))
	if err := os.WriteFile(file, bytes.Repeat([]byte{0xee}, size), 0o600); err != nil {
		t.Fatal(err)
	}
	device = strings.TrimSpace(tool(t, dir, "losetup", append(flags, "--find", "--show", file)...))
	t.Cleanup(func() { exec.Command("losetup", "--detach", device).Run() })
	return device, file
}

// A device gets the view, byte for byte, from its beginning on; zeros take no room
// below it, and what is behind stays.
func TestExportToADevice(t *testing.T) {
	dir, want := exportDisk(t)
	const size, tail = 21<<20 + 512, 1<<20 + 512
	for i, c := range []struct{ disk, name, sector string }{
		{"mnt", "one", "512"}, {"mnt", "base", "4096"},
		{"vm.raw.varve", "leaf", "512"}, {"vm.raw.varve", "one", "4096"},
	} {
		if i == 2 {
			must(t, dir, "umount", "mnt")
		}
		device, file := loopDevice(t, dir, size+tail, "--sector-size", c.sector)
		r := must(t, dir, "export", c.disk, c.name, device, "--force")
		if !strings.Contains(r.stderr, device+" is larger; its last 1 MiB are as they were") {
			t.Errorf("says %q", r.stderr)
		}
		tool(t, dir, "blockdev", "--flushbufs", device)
		tool(t, dir, "cmp", "-n", fmt.Sprint(size), want[c.name], device)
		tool(t, dir, "cmp", "-n", fmt.Sprint(size), want[c.name], file) // it is below the device, too
		if got := get(t, file, size, tail); got != strings.Repeat("\xee", tail) {
			t.Errorf("what is behind the end was changed")
		}
		var st unix.Stat_t
		if err := unix.Stat(file, &st); err != nil || st.Blocks*512 > 9<<20 {
			t.Errorf("%d bytes stand below the device (%v)", st.Blocks*512, err)
		}
		tool(t, dir, "losetup", "--detach", device)
	}
	noPartials(t, dir)
}

// A device that is in use, too small or not to be written is refused by its name, and
// so is any without --force; nothing is written to it.
func TestExportToADeviceRefused(t *testing.T) {
	dir, _ := exportDisk(t)
	refused := func(words []string, device, file string, flags ...string) {
		t.Helper()
		before, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		fails(t, dir, exitFailed, append(words, device), append([]string{"export", "mnt", "one", device}, flags...)...)
		if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s was changed (%v)", device, err)
		}
	}
	for _, flags := range [][]string{nil, {"--force"}} {
		fails(t, dir, exitFailed, []string{"there is no device /dev/varve-no-device, and a file in /dev would be in memory"},
			append([]string{"export", "mnt", "one", "/dev/varve-no-device"}, flags...)...)
	}
	must(t, dir, "export", "mnt", "one", "/dev/shm/varve-test", "--force")
	if err := os.Remove("/dev/shm/varve-test"); err != nil {
		t.Error(err)
	}
	device, file := loopDevice(t, dir, 40<<20)
	refused([]string{"is a block device (" + filepath.Base(device), file, "40 MiB", "--force overwrites what is on it"}, device, file)
	refused([]string{"takes a raw image"}, device, file, "--force", "--format", "qcow2")
	tool(t, dir, "mkfs.ext4", "-q", "-F", device)
	if err := os.Mkdir(dir+"/used", 0o700); err != nil {
		t.Fatal(err)
	}
	tool(t, dir, "mount", "-o", "ro", device, "used") // or the kernel writes in its own time
	refused([]string{"is in use: " + filepath.Base(device) + " is mounted at " + dir + "/used"}, device, file, "--force")
	tool(t, dir, "umount", "used")
	qemu := exec.Command("qemu-io", "-f", "raw", device)
	in, err := qemu.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := qemu.StdoutPipe()
	if err == nil {
		err = qemu.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "read 0 512")
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it is open
		t.Fatal(err)
	}
	refused([]string{fmt.Sprintf("pid %d qemu-io", qemu.Process.Pid)}, device, file, "--force")
	in.Close()
	qemu.Wait()
	tool(t, dir, "losetup", "--detach", device)

	device, file = loopDevice(t, dir, 41<<20, "--partscan")
	sfdisk := exec.Command("sfdisk", "-q", "--no-reread", device)
	sfdisk.Stdin = strings.NewReader("2048,+,L\n")
	if out, err := sfdisk.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	tool(t, dir, "partx", "-u", device)
	part := device + "p1"
	eventually(t, "the partition is there", func() bool { _, err := os.Stat(part); return err == nil })
	tool(t, dir, "mkfs.ext4", "-q", "-F", part)
	tool(t, dir, "mount", "-o", "ro", part, "used")
	use := filepath.Base(part) + " is mounted at " + dir + "/used"
	refused([]string{"is in use: " + use}, device, file, "--force")
	refused([]string{"is in use: " + use}, part, file, "--force")
	tool(t, dir, "umount", "used")
	tool(t, dir, "losetup", "--detach", device)

	device, file = loopDevice(t, dir, 20<<20)
	refused([]string{"has 20971520 bytes, and the image 22020608"}, device, file, "--force")
	device, file = loopDevice(t, dir, 42<<20, "--read-only")
	refused([]string{"cannot be written"}, device, file, "--force")

	device = strings.TrimSpace(tool(t, dir, "losetup", "--find", "--show", "--read-only", "vm.raw"))
	refused([]string{"vm.raw is a file of this disk (base)"}, device, dir+"/vm.raw", "--force") // the base by way of a device
	tool(t, dir, "losetup", "--detach", device)
	if err := os.Link(dir+"/vm.raw", dir+"/a  name\n.raw"); err != nil {
		t.Fatal(err)
	}
	device = strings.TrimSpace(tool(t, dir, "losetup", "--find", "--show", "--read-only", "a  name\n.raw"))
	refused([]string{".raw is a file of this disk (base)"}, device, dir+"/vm.raw", "--force")
	tool(t, dir, "losetup", "--detach", device)
	device = strings.TrimSpace(tool(t, dir, "losetup", "--find", "--show", "--read-only", "mnt/disk.raw"))
	refused([]string{"which holds only the disk's own files; name another place"}, device, dir+"/mnt/disk.raw", "--force")
	tool(t, dir, "losetup", "--detach", device)
}

// A base may be a partition of the device, or the disk on which the partition is.
func TestExportOverAPartOfTheBase(t *testing.T) {
	dir := hostDir(t)
	device, file := loopDevice(t, dir, 41<<20, "--partscan")
	sfdisk := exec.Command("sfdisk", "-q", "--no-reread", device)
	sfdisk.Stdin = strings.NewReader("2048,20480,L\n30720,+,L\n")
	if out, err := sfdisk.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	tool(t, dir, "partx", "-u", device)
	part, other := device+"p1", device+"p2"
	eventually(t, "the partitions are there", func() bool { _, err := os.Stat(other); return err == nil })
	must(t, dir, "create", "small.varve", "--base", part, "--format", "raw")
	must(t, dir, "create", "large.varve", "--base", device, "--format", "raw")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	fails(t, dir, exitFailed, []string{device, "is a file of this disk (base)"}, "export", "small.varve", "base", device, "--force")
	fails(t, dir, exitFailed, []string{part, "is a file of this disk (base)"}, "export", "large.varve", "base", part, "--force")
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
		t.Errorf("%s was changed (%v)", device, err)
	}
	must(t, dir, "export", "small.varve", "base", other, "--force") // beside it
}
