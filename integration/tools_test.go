package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"varve/integration/harness"
)

// toolsDisk is the size of the disk in these tests, in bytes.
const toolsDisk = 64 << 20

// equalFiles is a mounted disk and, for each of its views, a plain raw file
// to which the same tools did the same things.
type equalFiles struct {
	m     *harness.Mount
	plain map[string]string // path in the mount: equal raw file
}

// makeEqualFiles makes a disk with a file system in its base, data and holes in
// a snapshot, and more of both in the leaf.
func makeEqualFiles(t *testing.T) equalFiles {
	t.Helper()
	dir := t.TempDir()
	made, base := filepath.Join(dir, "made.raw"), filepath.Join(dir, "vm.raw")
	harness.PartitionedImage(t, made, toolsDisk, sampleTree(t))
	// Without the zeros that mke2fs writes: cp makes holes of some of them, and
	// the copy would not be equal.
	harness.Run(t, "cp", "--sparse=always", made, base)
	// Data where the file system has free space.
	overwrite(t, base, 40<<20, 256<<10, 'b')
	harness.Guard(t, base)
	copyOf := func(from, name string) string {
		to := filepath.Join(dir, name)
		harness.Run(t, "cp", "--sparse=auto", from, to)
		return to
	}
	leaf := copyOf(base, "leaf.plain")
	m := harness.MountDisk(t, base)

	both := func(f func(file string)) {
		t.Helper()
		f(leaf)
		f(m.Raw())
	}
	both(func(file string) {
		overwrite(t, file, 42<<20, 64<<10, '1')  // new
		overwrite(t, file, 40<<20, 4<<10, '1')   // over the base's data
		overwrite(t, file, 44<<20, 128<<10, '1') // new, discarded in part below
	})
	m.Do("snapshot", "one")
	one := copyOf(leaf, "one.plain")
	both(func(file string) {
		overwrite(t, file, 46<<20+100, 1000, '2') // within a block
		overwrite(t, file, 42<<20+4<<10, 8<<10, '2')
		harness.Run(t, "fallocate", "--punch-hole", "--offset", strconv.Itoa(44<<20), "--length", "64KiB", file)
		harness.Run(t, "fallocate", "--punch-hole", "--offset", strconv.Itoa(40<<20+128<<10), "--length", "64KiB", file)
	})
	harness.Run(t, "sync", leaf, m.Raw())
	return equalFiles{m, map[string]string{
		m.Layer("base"): base,
		m.Layer("one"):  one,
		m.Raw():         leaf,
	}}
}

// sampleTree is a directory with some files.
func sampleTree(t *testing.T) string {
	t.Helper()
	tree := t.TempDir()
	for i := range 30 {
		data := bytes.Repeat([]byte(fmt.Sprintf("file %d\n", i)), 500*(i+1))
		if err := os.WriteFile(filepath.Join(tree, fmt.Sprintf("file%d", i)), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

// overwrite writes length bytes of one letter at an offset, and nothing else.
func overwrite(t *testing.T, file string, off, length int64, letter byte) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{letter}, int(length)), off); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestTools shows that the tools that read a disk image give on each view what
// they give on the equal raw file.
func TestTools(t *testing.T) {
	files := makeEqualFiles(t)
	// Each gives what it found out about a file, for comparison.
	tools := []struct {
		name string
		look func(t *testing.T, file string) string
	}{
		{"cp --sparse=always", func(t *testing.T, file string) string {
			return copied(t, "cp", "--sparse=always", file)
		}},
		{"cp --sparse=auto", func(t *testing.T, file string) string {
			return copied(t, "cp", "--sparse=auto", file)
		}},
		{"qemu-img map", func(t *testing.T, file string) string {
			return harness.Run(t, "qemu-img", "map", "--output=json", "-f", "raw", file)
		}},
		{"qemu-img convert", func(t *testing.T, file string) string {
			out := filepath.Join(t.TempDir(), "converted.qcow2")
			harness.Convert(t, file, "raw", out, "qcow2")
			harness.SameContent(t, file, "raw", out, "qcow2")
			return harness.Run(t, "qemu-img", "map", "--output=json", "-f", "qcow2", out)
		}},
		{"dd", func(t *testing.T, file string) string {
			return harness.Shell(t, "dd if='"+file+"' bs=1M status=none | sha256sum")
		}},
		{"dd in small pieces from the middle", func(t *testing.T, file string) string {
			return harness.Shell(t, "dd if='"+file+"' bs=1000 skip=41900 count=8000 status=none | sha256sum")
		}},
		{"dd iflag=direct", func(t *testing.T, file string) string {
			return harness.Shell(t, "dd if='"+file+"' iflag=direct bs=64k status=none | sha256sum")
		}},
		{"fdisk -l", func(t *testing.T, file string) string {
			// The width of a column depends on the file's name.
			return strings.Join(strings.Fields(strings.ReplaceAll(harness.Run(t, "fdisk", "-l", file), file, "FILE")), " ")
		}},
		{"sfdisk -d", func(t *testing.T, file string) string {
			return strings.ReplaceAll(harness.Run(t, "sfdisk", "-d", file), file, "FILE")
		}},
		{"losetup -o", func(t *testing.T, file string) string { return throughLoop(t, file, "-r") }},
		{"losetup -o --direct-io=on", func(t *testing.T, file string) string {
			return throughLoop(t, file, "-r", "--direct-io=on")
		}},
		{"tar -S", func(t *testing.T, file string) string {
			return harness.Shell(t, "tar -S --format=gnu --sort=name --mtime=@0 --owner=0 --group=0 --mode=600 --transform='s/.*/disk/' -cf - '"+file+"' 2>/dev/null | sha256sum")
		}},
		{"stat", func(t *testing.T, file string) string { return harness.Run(t, "stat", "-c", "%s %F", file) }},
	}
	for view, plain := range files.plain {
		t.Run(filepath.Base(view), func(t *testing.T) {
			t.Run("cmp", func(t *testing.T) { harness.Run(t, "cmp", plain, view) })
			t.Run("du", func(t *testing.T) { sameBlocks(t, plain, view) })
			for _, tool := range tools {
				t.Run(tool.name, func(t *testing.T) {
					want, got := tool.look(t, plain), tool.look(t, view)
					if want != got {
						t.Errorf("on the plain file:\n%s\non the view:\n%s", want, got)
					}
				})
			}
		})
	}
	views := files.m.SaveViews()
	files.m.Unmount()
	harness.Judge(t, files.m.Disk, views)
}

// copied copies a file and gives the copy's digest and where it has data.
func copied(t *testing.T, command string, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "copy")
	harness.Run(t, command, append(args, out)...)
	if err := os.Chmod(out, 0o600); err != nil { // a copy of a layer is read-only
		t.Fatal(err)
	}
	return harness.Digest(t, out) + "\n" + harness.Run(t, "qemu-img", "map", "--output=json", "-f", "raw", out)
}

// throughLoop reads the partition's file system through a loop device.
func throughLoop(t *testing.T, file string, flags ...string) string {
	t.Helper()
	loop := harness.AttachPartition(t, file, harness.PartitionStart, toolsDisk-harness.PartitionStart, flags...)
	defer loop.Detach()
	harness.Run(t, "e2fsck", "-fn", loop.Device)
	return harness.Digest(t, loop.Device) + harness.Run(t, "blockdev", "--getsize64", loop.Device)
}

// sameBlocks compares what du says. The host's ext4 counts its own extent
// blocks too, up to a few of 4 KiB.
func sameBlocks(t *testing.T, plain, view string) {
	t.Helper()
	const slack = 16 << 10
	usage := func(file string) int64 {
		first, _, _ := strings.Cut(harness.Run(t, "du", "-B1", file), "\t")
		n, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if a, b := usage(plain), usage(view); a-b > slack || b-a > slack {
		t.Errorf("du: %d bytes of the plain file, %d of the view", a, b)
	}
}

// TestLoopWrites writes to disk.raw through loop devices, as an administrator
// does who changes a file in an image.
func TestLoopWrites(t *testing.T) {
	for _, flags := range [][]string{nil, {"--direct-io=on"}} {
		t.Run("losetup "+strings.Join(flags, " "), func(t *testing.T) {
			files := makeEqualFiles(t)
			m := files.m
			loop := harness.AttachPartition(t, m.Raw(), harness.PartitionStart, toolsDisk-harness.PartitionStart, flags...)
			point := filepath.Join(t.TempDir(), "fs")
			mountLoop(t, loop, point)
			harness.Shell(t, fmt.Sprintf(`cd '%s'
				dd if=/dev/urandom of=big bs=1M count=12 conv=fsync status=none
				sed -i s/file/FILE/ file7
				rm file3
				sync -f .`, point))
			before := allocated(t, m.Raw())

			// Removed files give their space back through fstrim.
			harness.Shell(t, fmt.Sprintf("cd '%s'; rm big; sync -f .; fstrim .", point))
			unmount(t, point)
			loop.Detach()
			if after := allocated(t, m.Raw()); before-after < 12<<20 {
				t.Errorf("fstrim of 12 MiB took disk.raw from %d to %d bytes", before, after)
			}

			// The change is in the leaf, and only there.
			check := harness.AttachPartition(t, m.Raw(), harness.PartitionStart, toolsDisk-harness.PartitionStart, "-r")
			harness.Run(t, "e2fsck", "-fn", check.Device)
			if out := harness.Run(t, "debugfs", "-R", "cat /file7", check.Device); !strings.HasPrefix(out, "FILE 7\n") {
				t.Errorf("/file7 in disk.raw begins with %.20q", out)
			}
			if out := harness.Run(t, "debugfs", "-R", "ls -p /", check.Device); strings.Contains(out, "/file3/") {
				t.Errorf("/file3 was removed and is there:\n%s", out)
			}
			check.Detach()
			harness.Run(t, "cmp", files.plain[m.Layer("one")], m.Layer("one"))
			harness.Run(t, "cmp", files.plain[m.Layer("base")], m.Layer("base"))

			views := m.SaveViews()
			m.Unmount()
			harness.Judge(t, m.Disk, views)
		})
	}
}

// TestLoopDiscard discards a range of a loop device: it reads as zeros and is
// a hole, in the leaf only.
func TestLoopDiscard(t *testing.T) {
	files := makeEqualFiles(t)
	m := files.m
	loop := harness.AttachLoop(t, m.Raw())
	harness.Run(t, "blkdiscard", "--offset", strconv.Itoa(40<<20), "--length", strconv.Itoa(8<<20), loop.Device)
	loop.Detach()

	f, err := os.Open(m.Raw())
	if err != nil {
		t.Fatal(err)
	}
	piece := make([]byte, 8<<20)
	if _, err := f.ReadAt(piece, 40<<20); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if sha256.Sum256(piece) != sha256.Sum256(make([]byte, 8<<20)) {
		t.Error("the discarded range does not read as zeros")
	}
	for _, run := range mapOf(t, m.Raw()) {
		if run.Data && run.Start < 48<<20 && run.Start+run.Length > 40<<20 {
			t.Errorf("qemu-img map shows data at %d, %d bytes, in the discarded range", run.Start, run.Length)
		}
	}
	harness.Run(t, "cmp", files.plain[m.Layer("one")], m.Layer("one"))
	views := m.SaveViews()
	m.Unmount()
	harness.Judge(t, m.Disk, views)
}

// TestLayersAreReadOnly: no tool writes a layer.
func TestLayersAreReadOnly(t *testing.T) {
	files := makeEqualFiles(t)
	layer := files.m.Layer("one")
	for _, command := range []string{
		"dd if=/dev/zero of='" + layer + "' bs=4k count=1 conv=notrunc",
		"truncate -s 1G '" + layer + "'",
		"fallocate --punch-hole --offset 0 --length 4096 '" + layer + "'",
		"qemu-io -f raw -c 'write 0 4k' '" + layer + "'",
		"rm -f '" + layer + "'",
		"rm -rf '" + files.m.Path("layers") + "'",
	} {
		if r := harness.Try(t, "sh", "-c", command); r.Code == 0 {
			t.Errorf("%s: succeeded", command)
		}
	}
	loop := harness.AttachLoop(t, layer)
	if out := harness.Run(t, "blockdev", "--getro", loop.Device); strings.TrimSpace(out) != "1" {
		t.Errorf("a loop device on a layer is writable: getro says %s", out)
	}
	loop.Detach()
	harness.Run(t, "cmp", files.plain[layer], layer)
}

// mapRun is a line of qemu-img map.
type mapRun struct {
	Start, Length int64
	Data          bool
}

func mapOf(t *testing.T, file string) []mapRun {
	t.Helper()
	var runs []mapRun
	out := harness.Run(t, "qemu-img", "map", "--output=json", "-f", "raw", file)
	if err := json.Unmarshal([]byte(out), &runs); err != nil {
		t.Fatalf("parse qemu-img map: %v\n%s", err, out)
	}
	return runs
}

// allocated is st_blocks in bytes.
func allocated(t *testing.T, file string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(strings.TrimSpace(harness.Run(t, "stat", "-c", "%b", file)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n * 512
}

// mountLoop mounts a loop device's file system, for the time of the test.
func mountLoop(t *testing.T, loop *harness.Loop, point string) {
	t.Helper()
	if err := os.MkdirAll(point, 0o755); err != nil {
		t.Fatal(err)
	}
	harness.Run(t, "mount", "-t", "ext4", loop.Device, point)
	t.Cleanup(func() {
		if harness.Try(t, "mountpoint", "-q", point).Code == 0 {
			unmount(t, point)
		}
	})
}

func unmount(t *testing.T, point string) {
	t.Helper()
	harness.Run(t, "umount", point)
}
