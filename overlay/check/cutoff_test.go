package check

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"varve/integration/imagetest"
	"varve/overlay"
	"varve/overlay/hostfs"
)

// A file that was cut off is told from one that is whole, for every kind of image
// and wherever something stood behind the cut.
func TestCutOff(t *testing.T) {
	kinds := []string{"compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=2M", "refcount_bits=1", "refcount_bits=64", "extended_l2=on", "preallocation=metadata"}
	for _, kind := range kinds {
		path := imagetest.New(t, kind, "64M")
		whole := func(when string) {
			t.Helper()
			if m, err := CutOff(hostfs.OS(), path); m.What != "" || err != nil {
				t.Errorf("%s, %s: %+v, %v", kind, when, m, err)
			}
		}
		whole("empty")
		imagetest.QemuIO(t, path, "write 1M 64k", "write 40M 3M")
		whole("written")
		imagetest.QemuIO(t, path, "discard 0 2M", "write -z 40M 1M")
		whole("discarded")
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, info.Size()-(2<<20)); err != nil {
			t.Fatal(err)
		}
		if m, err := CutOff(hostfs.OS(), path); err == nil && (m.What == "" || m.Counted || m.At < info.Size()-(2<<20)) {
			t.Errorf("%s, cut off: %+v", kind, m)
		}
	}
}

// So is one of varve's own, at any length: it is whole only where nothing is missing.
func TestCutOffOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "layer.qcow2")
	if err := overlay.Create(hostfs.OS(), path, overlay.CreateOptions{Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	imagetest.QemuIO(t, path, "write 8M 1M")
	if m, err := CutOff(hostfs.OS(), path); m.What != "" || err != nil {
		t.Fatalf("whole: %+v, %v", m, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]int{}
	for size := info.Size() - (128 << 10); size > 0; size -= 96 << 10 {
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		m, err := CutOff(hostfs.OS(), path)
		if err == nil && (m.What == "" || m.Counted || m.At < size) {
			t.Fatalf("cut to %d: %+v", size, m)
		}
		said[fmt.Sprint(m.What, err != nil)]++
	}
	if len(said) < 2 {
		t.Errorf("the cuts met only %v", said)
	}
}

// QEMU counts a cluster before its data stands there: killed in between it leaves a
// refcount behind the end of the file, of which qemu-img check says nothing. So does
// one that was cut off where only a cluster stood that nothing names any more.
func TestCountedBehindTheEnd(t *testing.T) {
	path := imagetest.New(t, "compat=1.1", "64M")
	imagetest.QemuIO(t, path, "write 1M 256k")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var at [8]byte
	read := func(off int64) int64 {
		if _, err := f.ReadAt(at[:], off); err != nil {
			t.Fatal(err)
		}
		return int64(binary.BigEndian.Uint64(at[:]))
	}
	behind := (info.Size() + 0xffff) >> 16
	block := read(read(48)) // the first entry of the refcount table
	if _, err := f.WriteAt([]byte{0, 1}, block+2*behind); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "check", path).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img check: %v\n%s", err, out)
	}
	if m, err := CutOff(hostfs.OS(), path); err != nil || !m.Counted || m.At != behind<<16 {
		t.Errorf("%+v, %v", m, err)
	}
}
