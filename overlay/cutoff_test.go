package overlay

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// A file that was cut off is told from one that is whole, for every kind of image
// and wherever something stood behind the cut.
func TestCutOff(t *testing.T) {
	kinds := []string{"compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=2M", "refcount_bits=1", "refcount_bits=64", "extended_l2=on", "preallocation=metadata"}
	for _, kind := range kinds {
		path := newQcow2(t, kind, "64M")
		whole := func(when string) {
			t.Helper()
			if at, what, err := CutOff(HostFS(), path); what != "" || err != nil {
				t.Errorf("%s, %s: %s at 0x%x, %v", kind, when, what, at, err)
			}
		}
		whole("empty")
		qemuIO(t, path, "write 1M 64k", "write 40M 3M")
		whole("written")
		qemuIO(t, path, "discard 0 2M", "write -z 40M 1M")
		whole("discarded")
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, info.Size()-(2<<20)); err != nil {
			t.Fatal(err)
		}
		if at, what, err := CutOff(HostFS(), path); err == nil && (what == "" || at < info.Size()-(2<<20)) {
			t.Errorf("%s, cut off: %q at 0x%x", kind, what, at)
		}
	}
}

// So is one of varve's own, at any length: it is whole only where nothing is missing.
func TestCutOffOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "layer.qcow2")
	if err := Create(HostFS(), path, CreateOptions{Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	qemuIO(t, path, "write 8M 1M")
	if at, what, err := CutOff(HostFS(), path); what != "" || err != nil {
		t.Fatalf("whole: %s at 0x%x, %v", what, at, err)
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
		at, what, err := CutOff(HostFS(), path)
		if err == nil && (what == "" || at < size) {
			t.Fatalf("cut to %d: %q at 0x%x", size, what, at)
		}
		said[fmt.Sprint(what, err != nil)]++
	}
	if len(said) < 2 {
		t.Errorf("the cuts met only %v", said)
	}
}
