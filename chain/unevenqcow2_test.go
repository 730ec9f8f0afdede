package chain

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/manifest"
	"varve/integration/interleave"
	"varve/overlay"
	"varve/overlay/hostfs"
)

// A qcow2 of others' whose size is no whole number of sectors, as exports of earlier
// versions have: the disk has each byte of it, and QEMU, which does not show the last
// ones, reads them in the leaf.
func TestUnevenQcow2IsAdopted(t *testing.T) {
	dir := t.TempDir()
	raw, image := filepath.Join(dir, "a.raw"), filepath.Join(dir, "a.qcow2")
	content := randomBytes(unevenSize)
	must(t, os.WriteFile(raw, content, 0o600))
	qemuTool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
	setHeaderSize(t, hostfs.OS(), image, unevenSize)
	state := fileState(t, image)
	disk := filepath.Join(dir, "vm.varve")
	made, err := Create(disk, CreateOptions{Base: image})
	must(t, err)
	if made.Size != evenSize || made.Given != unevenSize {
		t.Errorf("made with %d bytes, from %d", made.Size, made.Given)
	}
	sameBytes(t, "qemu-img's leaf, never mounted", qemuReads(t, layerOf(t, disk, "")), whole(content))
	d := openDisk(t, disk)
	sameBytes(t, "disk.raw", leafOf(t, d), whole(content))
	sameBytes(t, "the base", viewOf(t, d, manifest.BaseName), whole(content))
	must(t, d.Discard(evenSize-1024, 1024))
	must(t, d.Revert(manifest.BaseName))
	must(t, d.Close())
	sameBytes(t, "qemu-img's leaf after a revert", qemuReads(t, layerOf(t, disk, "")), whole(content))
	d = openDisk(t, disk)
	must(t, d.Discard(evenSize-1024, 1024))
	must(t, d.Close())
	clear(content[evenSize-1024:])
	d = openDisk(t, disk)
	sameBytes(t, "after a discard", leafOf(t, d), whole(content))
	must(t, d.Close())
	sameBytes(t, "qemu-img's leaf after a discard", qemuReads(t, layerOf(t, disk, "")), whole(content))
	if got := fileState(t, image); got != state {
		t.Errorf("the image was %s, is %s", state, got)
	}
	if r := checked(t, disk); r.Errors > 0 {
		t.Errorf("check:\n%s", findingLines(r))
	}
}

// A chain of qemu-img's on such an image, larger than it: QEMU has always shown zeros where
// the image's last bytes are, and so does varve.
func TestChainOnAnUnevenQcow2(t *testing.T) {
	dir := t.TempDir()
	raw, image, top, disk := filepath.Join(dir, "a.raw"), filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "top.qcow2"), filepath.Join(dir, "vm.varve")
	must(t, os.WriteFile(raw, randomBytes(unevenSize), 0o600))
	qemuTool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
	setHeaderSize(t, hostfs.OS(), image, unevenSize)
	qemuTool(t, "qemu-img", "create", "-f", "qcow2", "-b", image, "-F", "qcow2", top, "2M")
	qemuTool(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P 5 %d 1k", evenSize), top)
	want := qemuReads(t, top)
	_, err := Create(disk, CreateOptions{Base: top})
	must(t, err)
	d := openDisk(t, disk)
	sameBytes(t, "disk.raw", leafOf(t, d), want)
	m, _ := d.tree()
	files, err := d.ViewFiles(m.ByName("adopted").ID)
	must(t, err)
	rest, err := OpenAtRest(hostfs.OS(), files.File, files.Format, time.Now().Add(time.Minute))
	must(t, err)
	got := make([]byte, rest.Size())
	must(t, rest.Source().ReadAt(got, 0))
	sameBytes(t, "the view at rest", got, want)
	must(t, rest.Close())
	must(t, d.Close())
	sameBytes(t, "qemu-img's leaf", qemuReads(t, layerOf(t, disk, "")), want)
	d, err = OpenForeign(top, "", OpenOptions{})
	must(t, err)
	sameBytes(t, "shown read-only", leafOf(t, d), want)
	must(t, d.Close())
}

// A crash may come after a new leaf was committed and before it has its copy of the last
// sector: the next mount makes it.
func TestTailAfterACrash(t *testing.T) {
	dir := t.TempDir()
	raw, image, disk := filepath.Join(dir, "a.raw"), filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "vm.varve")
	content := randomBytes(unevenSize)
	must(t, os.WriteFile(raw, content, 0o600))
	qemuTool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
	setHeaderSize(t, hostfs.OS(), image, unevenSize)
	_, err := Create(disk, CreateOptions{Base: image})
	must(t, err)
	leaf := layerOf(t, disk, "")
	must(t, os.Remove(leaf))
	must(t, overlay.Create(hostfs.OS(), leaf, overlay.CreateOptions{Size: evenSize, Backing: image, BackingFormat: formatQcow2}))
	if got := qemuReads(t, leaf); bytes.Equal(got, whole(content)) {
		t.Fatal("QEMU reads the last sector from below")
	}
	d := openDisk(t, disk)
	sameBytes(t, "disk.raw", leafOf(t, d), whole(content))
	must(t, d.Close())
	sameBytes(t, "qemu-img's leaf", qemuReads(t, leaf), whole(content))
}

// What such a chain hides stays hidden when the image that hides it is deleted, also where
// that holds nothing far and wide.
func TestChainOnAnUnevenQcow2IsMerged(t *testing.T) {
	dir := t.TempDir()
	raw, image, top, disk := filepath.Join(dir, "a.raw"), filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "top.qcow2"), filepath.Join(dir, "vm.varve")
	must(t, os.WriteFile(raw, randomBytes(unevenSize), 0o600))
	qemuTool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
	setHeaderSize(t, hostfs.OS(), image, unevenSize)
	qemuTool(t, "qemu-img", "create", "-f", "qcow2", "-b", image, "-F", "qcow2", top, "8G")
	qemuTool(t, "qemu-io", "-f", "qcow2", "-c", "write -P 5 6G 1k", top)
	_, err := Create(disk, CreateOptions{Base: top})
	must(t, err)
	d := openDisk(t, disk)
	places := []int64{0, evenSize - 65536, 6 << 30}
	want := readAll(t, d, places...)
	_, err = d.Delete("adopted")
	must(t, err)
	waitJobs(t, d)
	sameBytes(t, "disk.raw after the merge", readAll(t, d, places...), want)
	must(t, d.Close())
}

// A revert and an undo that cannot copy the last sector have happened all the same: the new
// leaf stays, shows what it should and takes writes, and the next mount makes the copy.
func TestRevertWithoutRoomForTheTail(t *testing.T) {
	dir := t.TempDir()
	raw, image, disk := filepath.Join(dir, "a.raw"), filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "vm.varve")
	content := randomBytes(unevenSize)
	must(t, os.WriteFile(raw, content, 0o600))
	qemuTool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
	setHeaderSize(t, hostfs.OS(), image, unevenSize)
	_, err := Create(disk, CreateOptions{Base: image})
	must(t, err)
	fs := newWatchedFS()
	d := openWatched(t, fs, disk)
	must(t, d.Discard(0, 4096))
	must(t, d.Snapshot("one"))
	committed := false
	fs.failing(func(c interleave.Call) error {
		if c.Op == "rename" {
			committed = true
		}
		if committed && filepath.Dir(c.Path) == filepath.Join(disk, manifest.LayersDir) && (c.Op == "allocate" || c.Op == "write") {
			return unix.ENOSPC
		}
		return nil
	})
	must(t, d.Revert(manifest.BaseName))
	if !committed {
		t.Fatal("nothing was committed")
	}
	fs.failing(nil)
	sameBytes(t, "disk.raw after the revert", leafOf(t, d), whole(content))
	put(t, d, 7, 0, 4096)
	copy(content, bytes.Repeat([]byte{7}, 4096))
	must(t, d.Flush())
	must(t, d.Close())
	d = openWatched(t, fs, disk)
	sameBytes(t, "disk.raw of the next mount", leafOf(t, d), whole(content))
	must(t, d.Close())
	sameBytes(t, "qemu-img's leaf", qemuReads(t, layerOf(t, disk, "")), whole(content))
}

// A layer of another disk of varve's, which a clone reads, shows what that disk shows, also
// where an earlier version made it on such an image without a copy of the last sector.
func TestOldLayerOnAnUnevenQcow2IsCloned(t *testing.T) {
	dir := t.TempDir()
	raw, image, disk := filepath.Join(dir, "a.raw"), filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "vm.varve")
	content := randomBytes(unevenSize)
	must(t, os.WriteFile(raw, content, 0o600))
	qemuTool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
	setHeaderSize(t, hostfs.OS(), image, unevenSize)
	layers := filepath.Join(dir, "old.varve", manifest.LayersDir)
	must(t, os.MkdirAll(layers, 0o700))
	old := filepath.Join(layers, "000002.qcow2")
	must(t, overlay.Create(hostfs.OS(), old, overlay.CreateOptions{Size: 4 << 20, Backing: image, BackingFormat: formatQcow2}))
	_, err := Create(disk, CreateOptions{Base: old})
	must(t, err)
	want := append(content, make([]byte, 4<<20-unevenSize)...)
	for range 2 {
		d := openDisk(t, disk)
		sameBytes(t, "disk.raw", leafOf(t, d), want)
		job, err := d.Flatten("leaf")
		finish(t, d, job, err)
		sameBytes(t, "disk.raw after a flatten", leafOf(t, d), want)
		must(t, d.Close())
	}
}
