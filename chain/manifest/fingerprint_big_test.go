package manifest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"varve/integration/imagetest"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// TestFingerprintOfALargeL1 bounds the reads of a qcow2 of 1 TiB whose L1 table
// has 4 MiB: it is sampled as the file is.
func TestFingerprintOfALargeL1(t *testing.T) {
	path := filepath.Join(t.TempDir(), "big.qcow2")
	imagetest.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "1T")
	f, err := hostfs.OS().Open(path, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, length, err := l1Place(f, info.Size); err != nil || length != 4<<20 {
		t.Fatalf("the L1 table has %d bytes, %v", length, err)
	}
	counting := &countingFile{File: f}
	start := time.Now()
	_, err = TakeFingerprint(counting, qcow2.FormatQcow2)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("a qcow2 of 1 TiB: %d reads, %v", counting.reads, time.Since(start))
	if most := 2*sampleCount + 2; counting.reads > most {
		t.Errorf("%d reads, at most %d are needed", counting.reads, most)
	}
}
