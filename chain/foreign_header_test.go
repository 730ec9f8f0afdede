package chain

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/integration/imagetest"
	"varve/overlay/hostfs"
)

// TestForeignHeaderNamesAnother: a foreign image whose header was changed, while
// the disk was closed, to name another backing file is refused, also where no
// sampled block shows it and the modification time was put back. The other file
// is not opened.
func TestForeignHeaderNamesAnother(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	at := func(name string) string { return filepath.Join(root, name) }
	rawImage(t, at("base.raw"), 4<<20)
	rawImage(t, at("evil.raw"), 4<<20)
	// A name within the first cluster, but not in the file's first block. 96
	// blocks, of which 64 are sampled.
	const sampleBytes = 4096 // of a block that a fingerprint samples
	const nameAt = 5 * sampleBytes
	make := func(t *testing.T) (dir, top string) {
		t.Helper()
		top = at("top.qcow2")
		qcow2On(t, top, "base.raw", "raw", 7)
		must(t, os.Truncate(top, 96*sampleBytes))
		imagetest.PatchUnseen(t, top, nameAt, []byte("base.raw"))
		imagetest.PatchUnseen(t, top, 8, binary.BigEndian.AppendUint64(nil, nameAt))
		dir = filepath.Join(t.TempDir(), "vm.varve")
		_, err := Create(dir, CreateOptions{Base: top})
		must(t, err)
		return dir, top
	}
	for _, c := range []struct {
		what   string
		hidden bool // from the fingerprint
		change func(t *testing.T, top string)
		want   string
	}{
		{"qemu-img rebase", false, func(t *testing.T, top string) {
			qemuTool(t, "qemu-img", "rebase", "-u", "-b", "evil.raw", "-F", "raw", top)
		}, "was changed by another program"},
		{"in an unsampled block", true, func(t *testing.T, top string) { imagetest.PatchUnseen(t, top, nameAt, []byte("evil")) }, "now stands on"},
		{"../ in an unsampled block", true, func(t *testing.T, top string) { imagetest.PatchUnseen(t, top, nameAt, []byte("../e.raw")) }, "now stands on"},
		{"a protocol in an unsampled block", true, func(t *testing.T, top string) { imagetest.PatchUnseen(t, top, nameAt, []byte("nbd:host")) }, "nbd:host"},
		{"no format in an unsampled block", false, func(t *testing.T, top string) { imagetest.PatchUnseen(t, top, 112, []byte{1, 2, 3, 4}) }, "was changed by another program"},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir, top := make(t)
			before := fingerprintAt(t, top, formatQcow2)
			c.change(t, top)
			if changes, _ := before.Compare(fingerprintAt(t, top, formatQcow2)); (len(changes) == 0) != c.hidden {
				t.Fatalf("the fingerprint shows %q: this is another test than it should be", changes)
			}
			for _, readOnly := range []bool{false, true} {
				fs := &recordingFS{FS: hostfs.OS()}
				d, err := Open(dir, OpenOptions{ReadOnly: readOnly, FS: fs})
				if err == nil {
					d.Close()
				}
				if !errors.Is(err, ErrChanged) && !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), top) {
					t.Errorf("read-only %v: %v", readOnly, err)
				}
				for _, path := range fs.opened {
					if strings.Contains(path, "evil") || strings.Contains(path, "e.raw") && !strings.Contains(path, "base.raw") {
						t.Errorf("%s was opened", path)
					}
				}
			}
			if err := Accept(dir, "adopted", OpenOptions{}); !errors.Is(err, ErrInvalid) {
				t.Errorf("accept: %v", err)
			}
		})
	}
}

// recordingFS notes what is opened.
type recordingFS struct {
	hostfs.FS
	opened []string
}

func (r *recordingFS) Open(path string, flag int, perm os.FileMode) (hostfs.File, error) {
	r.opened = append(r.opened, path)
	return r.FS.Open(path, flag, perm)
}

// TestForeignHeaderStays: nothing that varve does to the disk makes it look as if
// a foreign header had changed.
func TestForeignHeaderStays(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	at := func(name string) string { return filepath.Join(root, name) }
	must(t, os.MkdirAll(at("a/b"), 0o700))
	rawImage(t, at("base.raw"), 4<<20)
	qcow2On(t, at("a/middle.qcow2"), "../base.raw", "raw", 1)
	qcow2On(t, at("a/b/top.qcow2"), "../../a/./middle.qcow2", "qcow2", 2)
	qcow2On(t, at("absolute.qcow2"), at("a/middle.qcow2"), "qcow2", 3)
	must(t, os.Symlink("absolute.qcow2", at("absolute-link.qcow2")))
	for i, base := range []string{"a/b/top.qcow2", "absolute.qcow2", "absolute-link.qcow2", "a/b/../../absolute.qcow2"} {
		dir := at(strings.Repeat("d", i+1) + ".varve")
		if _, err := Create(dir, CreateOptions{Base: root + "/" + base}); err != nil {
			t.Fatalf("%s: %v", base, err)
		}
		again := func(what string, f func(d *Disk) error) {
			t.Helper()
			d, err := Open(dir, OpenOptions{})
			if err != nil {
				t.Fatalf("%s, after %s: %v", base, what, err)
			}
			if f != nil {
				must(t, f(d))
				status, err := d.Status()
				must(t, err)
				if status.Job != nil {
					_, err = d.WaitJob(context.Background(), status.Job.ID)
					must(t, err)
				}
			}
			must(t, d.Close())
		}
		job := func(_ string, err error) error { return err }
		again("create", func(d *Disk) error { return d.Snapshot("one") })
		again("a snapshot", func(d *Disk) error { return job(d.Delete("adopted")) })
		again("deleting an adopted layer", func(d *Disk) error { return d.Revert("base") })
		again("a revert below it", func(d *Disk) error { return job(d.Delete("one")) })
		again("a delete", func(d *Disk) error { return job(d.Flatten("leaf")) })
		again("a flatten", nil)
	}
}
