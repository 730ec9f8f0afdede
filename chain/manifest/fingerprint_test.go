package manifest

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/chain/refusal"
	"varve/integration/imagetest"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

func printAt(t testing.TB, path, format string) *Fingerprint {
	t.Helper()
	taken, err := FingerprintFile(hostfs.OS(), path, format)
	if err != nil {
		t.Fatal(err)
	}
	return taken
}

func TestFingerprintSeesContent(t *testing.T) {
	const size = 100<<20 + 700 // the last block is a short one
	blocks := int64(size+sampleBytes-1) / sampleBytes
	tests := []struct {
		what string
		off  int64
	}{
		{"first byte", 0},
		{"last byte", size - 1},
		{"superblock of the first partition", firstPartition + 1024},
		{"second sample", 1 * (blocks - 1) / (sampleCount - 1) * sampleBytes},
		{"middle sample", 31 * (blocks - 1) / (sampleCount - 1) * sampleBytes},
	}
	for _, test := range tests {
		path := filepath.Join(t.TempDir(), "base.raw")
		imagetest.Sparse(t, path, size)
		before := printAt(t, path, qcow2.FormatRaw)
		if changes, noted := before.Compare(printAt(t, path, qcow2.FormatRaw)); len(changes)+len(noted) > 0 {
			t.Errorf("an unchanged file: %q %q", changes, noted)
		}
		imagetest.PatchUnseen(t, path, test.off, []byte{1})
		changes, _ := before.Compare(printAt(t, path, qcow2.FormatRaw))
		if len(changes) != 1 || !strings.Contains(changes[0], "content") {
			t.Errorf("%s: %q", test.what, changes)
		}
	}
}

func TestFingerprintOfSmallFiles(t *testing.T) {
	for _, size := range []int64{0, 1, 512, 4096, 4097, 64 * 4096, 65 * 4096, firstPartition + 1} {
		path := filepath.Join(t.TempDir(), "base.raw")
		imagetest.Sparse(t, path, size)
		before := printAt(t, path, qcow2.FormatRaw)
		if err := before.fault(); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		if size == 0 {
			continue
		}
		imagetest.PatchUnseen(t, path, size-1, []byte{1})
		if after := printAt(t, path, qcow2.FormatRaw); after.Digest == before.Digest {
			t.Errorf("%d bytes: the last one changed unseen", size)
		}
	}
}

// TestFingerprintIgnoresHoles: a file that was copied elsewhere and back has
// other holes and another inode, and is the same.
func TestFingerprintIgnoresHoles(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.raw"), filepath.Join(dir, "b.raw")
	imagetest.Sparse(t, a, 8<<20)
	imagetest.PatchUnseen(t, a, 3<<20, bytes.Repeat([]byte("x"), 1<<20))
	data, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b, data, 0o600); err != nil { // no holes
		t.Fatal(err)
	}
	info, err := os.Stat(a)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(b, time.Time{}, info.ModTime()); err != nil {
		t.Fatal(err)
	}
	changes, noted := printAt(t, a, qcow2.FormatRaw).Compare(printAt(t, b, qcow2.FormatRaw))
	if len(changes) != 0 || len(noted) != 1 || !strings.Contains(noted[0], "inode") {
		t.Errorf("changes %q, noted %q", changes, noted)
	}
}

func TestFingerprintSeesSizeAndTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "base.raw")
	imagetest.Sparse(t, path, 1<<20)
	before := printAt(t, path, qcow2.FormatRaw)
	if err := os.Chtimes(path, time.Time{}, time.Unix(0, before.ModTime+1)); err != nil {
		t.Fatal(err)
	}
	changes, _ := before.Compare(printAt(t, path, qcow2.FormatRaw))
	if len(changes) != 1 || !strings.Contains(changes[0], "modification time") {
		t.Errorf("a nanosecond: %q", changes)
	}
	if err := os.Truncate(path, 1<<20+1); err != nil {
		t.Fatal(err)
	}
	changes, _ = before.Compare(printAt(t, path, qcow2.FormatRaw))
	if len(changes) != 3 || changes[0] != "size 1048576 → 1048577 bytes" {
		t.Errorf("a byte: %q", changes)
	}
}

// TestFingerprintOfQcow2 changes an L1 entry that lies in no sampled block.
func TestFingerprintOfQcow2(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.qcow2")
	imagetest.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "20G")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := hostfs.OS().Open(path, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	off, length, err := l1Place(f, info.Size())
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if off == 0 || length != 40*8 { // 20 GiB in tables of 512 MiB
		t.Fatalf("the L1 table is %d bytes at %d", length, off)
	}
	before, beforeRaw := printAt(t, path, qcow2.FormatQcow2), printAt(t, path, qcow2.FormatRaw)
	imagetest.PatchUnseen(t, path, off+length-1, []byte{0xff})
	if printAt(t, path, qcow2.FormatRaw).Digest != beforeRaw.Digest {
		t.Fatal("the place is a sampled one: this test shows nothing")
	}
	if changes, _ := before.Compare(printAt(t, path, qcow2.FormatQcow2)); len(changes) != 1 {
		t.Errorf("a changed L1 entry: %q", changes)
	}
}

func TestFingerprintOfLyingHeaders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.qcow2")
	for _, header := range []string{"", "QFI\xfb", strings.Repeat("\xff", 48), strings.Repeat("\x00", 36) + "\xff\xff\xff\xff" + strings.Repeat("\x00", 8)} {
		if err := os.WriteFile(path, []byte(header), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := printAt(t, path, qcow2.FormatQcow2).fault(); err != nil {
			t.Errorf("%q: %v", header, err)
		}
	}
}

// countingFile counts what a fingerprint reads.
type countingFile struct {
	hostfs.File
	reads int
}

func (c *countingFile) ReadAt(p []byte, off int64) (int, error) {
	c.reads++
	return c.File.ReadAt(p, off)
}

// TestFingerprintIsCheap bounds the reads, not the time: 1 TiB costs what 1 MiB
// does.
func TestFingerprintIsCheap(t *testing.T) {
	path := filepath.Join(t.TempDir(), "base.raw")
	imagetest.Sparse(t, path, 1<<40)
	f, err := hostfs.OS().Open(path, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	counting := &countingFile{File: f}
	start := time.Now()
	if _, err := TakeFingerprint(counting, qcow2.FormatRaw); err != nil {
		t.Fatal(err)
	}
	t.Logf("1 TiB: %d reads, %v", counting.reads, time.Since(start))
	if counting.reads != sampleCount+1 {
		t.Errorf("%d reads", counting.reads)
	}
}

func TestCheckFingerprints(t *testing.T) {
	dir := t.TempDir()
	fs := hostfs.OS()
	base := filepath.Join(dir, "ubuntu.raw")
	imagetest.Sparse(t, base, 1<<20)
	if err := os.Mkdir(filepath.Join(dir, LayersDir), 0o700); err != nil {
		t.Fatal(err)
	}
	m := testManifest()
	m.Layers[0].File = base
	files := map[string]hostfs.File{}
	for _, l := range m.Layers {
		path := l.Path(dir)
		if !l.Foreign {
			imagetest.Sparse(t, path, 1<<20)
		}
		f, err := fs.Open(path, os.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[l.ID] = f
		if l.ID != m.Leaf {
			l.Fingerprint = printAt(t, path, l.Format)
		}
	}
	check := func() (string, error) {
		var log bytes.Buffer
		err := m.CheckFingerprints(slog.New(slog.NewTextHandler(&log, nil)), dir, files, 2)
		return log.String(), err
	}
	if log, err := check(); err != nil || log != "" {
		t.Fatalf("unchanged: %v, %s", err, log)
	}
	imagetest.PatchUnseen(t, m.Layers[2].Path(dir), 0, []byte("being written"))
	imagetest.PatchUnseen(t, m.Layers[3].Path(dir), 0, []byte("the leaf"))
	if _, err := check(); err != nil {
		t.Errorf("a layer that is being written, and the leaf, were judged: %v", err)
	}
	m.Layers[0].Fingerprint.Inode++
	m.Layers[0].Fingerprint.Device++
	if log, err := check(); err != nil || !strings.Contains(log, "inode") || !strings.Contains(log, "device") || !strings.Contains(log, base) {
		t.Errorf("a restored base: %v, %q", err, log)
	}
	imagetest.PatchUnseen(t, base, 0, []byte("changed"))
	_, err := check()
	want := "base (" + base + ") was changed by another program: content at sampled places; affected: base, one, the leaf; " +
		"put the file back as it was, or, if the change is wanted: varve accept " + dir + " base"
	if !errors.Is(err, refusal.ErrChanged) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	m.Layers[1].Name = ""
	imagetest.PatchUnseen(t, m.Layers[1].Path(dir), 0, []byte("changed"))
	if _, err := check(); !errors.Is(err, refusal.ErrChanged) || !strings.HasSuffix(err.Error(), "(changed too: layer 000002)") {
		t.Errorf("two changed: %v", err)
	}
	delete(files, "000001")
	if _, err := check(); err == nil || errors.Is(err, refusal.ErrChanged) {
		t.Errorf("a layer that nobody opened passes: %v", err)
	}
}
