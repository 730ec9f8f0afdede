package chain

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"varve/chain/manifest"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// checkedDisk is a disk that is closed: a raw base, the snapshots one and two,
// an unnamed branch, the leaf. views are what its layers' files show.
type checkedDisk struct {
	t     *testing.T
	dir   string
	views map[string]string // raw file by layer id
	// known are the SHA-256 digests of files, by layer id, of which qemu-img has found that
	// they are in order and, with what is below, show the views.
	known map[string][32]byte
}

// Ids in a checkedDisk.
const (
	idBase, idOne, idTwo, idAside, idLeaf = "000001", "000002", "000003", "000004", "000005"
)

func newCheckedDisk(t *testing.T) *checkedDisk {
	t.Helper()
	c := newPlainDisk(t)
	for _, l := range mustLoad(t, c.dir).Layers {
		raw := filepath.Join(t.TempDir(), l.ID+".raw")
		qemuTool(t, "qemu-img", "convert", "-f", l.Format, "-O", "raw", l.Path(c.dir), raw)
		c.views[l.ID] = raw
	}
	return c
}

// newPlainDisk is newCheckedDisk without the views.
func newPlainDisk(t *testing.T) *checkedDisk {
	t.Helper()
	d, _ := testDisk(t, 4<<20)
	put(t, d, 1, 0, 300<<10)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 200<<10, 300<<10)
	must(t, d.Snapshot("two"))
	put(t, d, 3, 1<<20, 4096)
	must(t, d.Revert("one"))
	put(t, d, 4, 2<<20, 100<<10)
	must(t, d.Discard(0, 128<<10))
	must(t, d.Close())
	c := &checkedDisk{t: t, dir: d.Dir(), views: map[string]string{}}
	if len(mustLoad(t, c.dir).Layers) != 5 || mustLoad(t, c.dir).Leaf != idLeaf {
		t.Fatalf("not the disk that the test wants: %v", names(t, filepath.Join(c.dir, manifest.LayersDir)))
	}
	return c
}

func (c *checkedDisk) path(id string) string { return mustLoad(c.t, c.dir).Layer(id).Path(c.dir) }

// edit changes chain.json.
func (c *checkedDisk) edit(change func(m *manifest.Manifest)) {
	c.t.Helper()
	m := mustLoad(c.t, c.dir)
	change(m)
	must(c.t, m.Commit(hostfs.OS(), c.dir))
}

// accept takes a layer's file as right in chain.json, so that only what the
// file itself has wrong is left.
func (c *checkedDisk) accept(id string) {
	c.t.Helper()
	print, err := manifest.FingerprintFile(hostfs.OS(), c.path(id), mustLoad(c.t, c.dir).Layer(id).Format)
	must(c.t, err)
	c.edit(func(m *manifest.Manifest) { m.Layer(id).Fingerprint = print })
}

// kill leaves the disk as a kill does: open, written, not closed.
func (c *checkedDisk) kill() {
	c.t.Helper()
	d, err := Open(c.dir, OpenOptions{})
	must(c.t, err)
	put(c.t, d, 5, 3<<20, 4096)
	must(c.t, d.Flush())
	copied := c.dir + ".copy"
	qemuTool(c.t, "cp", "-a", c.dir, copied)
	must(c.t, d.Close())
	must(c.t, os.RemoveAll(c.dir))
	must(c.t, os.Rename(copied, c.dir))
	raw := filepath.Join(c.t.TempDir(), "killed.raw")
	qemuTool(c.t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", c.path(idLeaf), raw)
	c.views[idLeaf] = raw
}

// imageWords changes the tables of an image.
type imageWords struct {
	t testing.TB
	f hostfs.File
	h *qcow2.Header
}

func openWords(t testing.TB, fs hostfs.FS, path string) *imageWords {
	t.Helper()
	h, err := qcow2.ReadHeader(fs, path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := fs.Open(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return &imageWords{t, f, h}
}

func (w *imageWords) word(at int64) int64 {
	var p [8]byte
	if _, err := w.f.ReadAt(p[:], at); err != nil {
		w.t.Fatal(err)
	}
	return int64(binary.BigEndian.Uint64(p[:]) &^ (1 << 63))
}

func (w *imageWords) write(at int64, p ...byte) {
	if _, err := w.f.WriteAt(p, at); err != nil {
		w.t.Fatal(err)
	}
}

func (w *imageWords) close() {
	if err := w.f.Close(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *imageWords) refcount(cluster int64, n byte) {
	w.write(w.word(w.h.RefcountTableOffset)+2*cluster, 0, n)
}

// leak adds a cluster that nothing uses.
func (w *imageWords) leak() {
	info, err := w.f.Stat()
	if err != nil {
		w.t.Fatal(err)
	}
	cluster := (info.Size + w.h.ClusterSize() - 1) / w.h.ClusterSize()
	if err := w.f.Truncate((cluster + 1) * w.h.ClusterSize()); err != nil {
		w.t.Fatal(err)
	}
	w.refcount(cluster, 1)
}

// lower makes the refcount of the first L2 table 0.
func (w *imageWords) lower() { w.refcount(w.word(w.h.L1Offset)/w.h.ClusterSize(), 0) }

// check checks and gives the findings as lines.
func (c *checkedDisk) check(repair bool) (CheckReport, string) {
	c.t.Helper()
	r, err := Check(context.Background(), c.dir, CheckOptions{Repair: repair})
	if err != nil {
		c.t.Fatalf("check (repair %v): %v", repair, err)
	}
	return r, findingLines(r)
}

func findingLines(r CheckReport) string {
	lines := ""
	for _, f := range r.Findings {
		lines += fmt.Sprintf("%s %s %s: %s; %s\n", f.Severity, f.Layer, filepath.Base(f.File), f.Text, f.WayOut)
	}
	return lines
}

// digests are the SHA-256 digests of the layers' files, by layer id.
func (c *checkedDisk) digests() map[string][32]byte {
	c.t.Helper()
	sums := map[string][32]byte{}
	for _, l := range mustLoad(c.t, c.dir).Layers {
		data, err := os.ReadFile(l.Path(c.dir))
		must(c.t, err)
		sums[l.ID] = sha256.Sum256(data)
	}
	return sums
}

// judge has qemu-img check every layer of ours and compare every view, but for those of
// which it has had the same bytes.
func (c *checkedDisk) judge() {
	c.t.Helper()
	m := mustLoad(c.t, c.dir)
	now := c.digests()
	same := func(id string) bool {
		digest, ok := c.known[id]
		return ok && digest == now[id]
	}
	for _, l := range m.Layers {
		if !l.Foreign && !same(l.ID) {
			qemuTool(c.t, "qemu-img", "check", "-f", "qcow2", l.Path(c.dir))
		}
		allSame := true
		for below := l; below != nil; below = m.Layer(below.Parent) {
			allSame = allSame && same(below.ID)
		}
		if raw := c.views[l.ID]; raw != "" && !allSame {
			qemuTool(c.t, "qemu-img", "compare", "-f", l.Format, "-F", "raw", l.Path(c.dir), raw)
		}
	}
}

// state is everything in the disk directory, its base too, as a check must leave
// it.
func (c *checkedDisk) state() string {
	c.t.Helper()
	text := ""
	for _, root := range []string{c.dir, filepath.Dir(c.dir)} {
		for _, sub := range []string{"", manifest.LayersDir} {
			entries, err := os.ReadDir(filepath.Join(root, sub))
			if err != nil {
				continue
			}
			for _, e := range entries {
				if !e.IsDir() {
					text += e.Name() + " " + fileState(c.t, filepath.Join(root, sub, e.Name())) + "\n"
				}
			}
		}
	}
	return text
}
