package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// PartitionStart is where the one partition of a PartitionedImage begins, in bytes.
const PartitionStart int64 = 1 << 20

// PartitionedImage makes a raw image of size bytes with an MBR partition table
// and one partition, to its end, with an ext4 file system that holds the files
// of a directory. It needs no mount.
func PartitionedImage(t testing.TB, file string, size int64, tree string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	sfdisk := exec.Command("sfdisk", "--quiet", file)
	sfdisk.Stdin = strings.NewReader(fmt.Sprintf("label: dos\nlabel-id: 0x76617276\nstart=%d, type=83\n", PartitionStart/512))
	if out, err := sfdisk.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	// No lazy initialisation: a guest's kernel would write for minutes after
	// its first mount, which has nothing to do with the test.
	Run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", tree,
		"-E", fmt.Sprintf("offset=%d,lazy_itable_init=0,lazy_journal_init=0", PartitionStart),
		file, strconv.FormatInt((size-PartitionStart)/1024, 10)+"k")
}

// Convert makes an image of another format with qemu-img and its arguments.
func Convert(t testing.TB, from, fromFormat, to, toFormat string, args ...string) {
	t.Helper()
	Run(t, "qemu-img", append(append([]string{"convert", "-f", fromFormat, "-O", toFormat}, args...), from, to)...)
}

// ChainOfThree turns a raw image into a chain that qemu-img made, as virsh
// leaves one: base.qcow2, middle.qcow2 and top.qcow2 beside it, each with data
// of its own (a pattern at 1, 2 and 3 MiB before the end of the disk, where the
// file system of a PartitionedImage has free space), backing names relative
// with their formats. It gives the files, top first.
func ChainOfThree(t testing.TB, raw string, size int64) []string {
	t.Helper()
	dir := filepath.Dir(raw)
	base, middle, top := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "middle.qcow2"), filepath.Join(dir, "top.qcow2")
	Convert(t, raw, "raw", base, "qcow2", "-c")
	Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", middle)
	Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", "-o", "cluster_size=4k", top)
	for i, file := range []string{base, middle, top} {
		Run(t, "qemu-io", "-f", "qcow2", "-c",
			fmt.Sprintf("write -P %d %d 96k", 0xa0+i, size-int64(i+1)<<20), file)
	}
	return []string{top, middle, base}
}
