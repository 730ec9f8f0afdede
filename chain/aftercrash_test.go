package chain

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/chain/dirlock"
	"varve/chain/manifest"
	"varve/integration/interleave"
	"varve/overlay/hostfs"
)

// A number is used once, also when what it was for has failed (M15).
func TestNumbersAreUsedOnce(t *testing.T) {
	d, fs := watchedDisk(t, 4<<20)
	fs.audit(d.Dir())
	for _, op := range []string{"rename", "syncdir", "sync"} {
		armed := true
		fs.failing(func(c interleave.Call) error {
			if armed && c.Op == op && strings.HasPrefix(c.Path, d.Dir()) {
				armed = false
				return unix.EIO
			}
			return nil
		})
		if err := d.Snapshot("one-" + op); err == nil || armed {
			t.Errorf("a snapshot whose %s fails: %v", op, err)
		}
		fs.failing(nil)
	}
	before := d.manifest.Next
	must(t, d.Snapshot("one"))
	fs.verdict(t, "snapshot")
	must(t, d.Close())
	d = openWatched(t, fs, d.Dir())
	must(t, d.Snapshot("two"))
	fs.verdict(t, "snapshot after another open")
	if m, _ := d.tree(); m.Next <= before {
		t.Errorf("the next number is %d, was %d", m.Next, before)
	}
	must(t, os.WriteFile(filepath.Join(d.Dir(), manifest.LayersDir, "000099.qcow2"), nil, 0o600)) // of no layer
	kept := filepath.Join(d.Dir(), manifest.LayersDir, "000002.qcow2.bak")
	must(t, os.WriteFile(kept, nil, 0o600))
	must(t, d.Close())
	d = openWatched(t, fs, d.Dir())
	if _, err := os.Stat(filepath.Join(d.Dir(), manifest.LayersDir, "000099.qcow2")); err == nil {
		t.Error("a file that no layer owns was left")
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("a file that is none of ours: %v", err)
	}
}

// A file with a number that chain.json counts as used is never taken for a
// stray: its layer may be named by a header, or be somebody's copy (M15).
func TestUsedNumbersAreNoStrays(t *testing.T) {
	d, _ := watchedDisk(t, 4<<20)
	must(t, d.Snapshot("one"))
	id, err := d.Delete("one")
	finish(t, d, id, err)
	must(t, d.Close())
	path := filepath.Join(d.Dir(), manifest.LayersDir, "000001.qcow2")
	must(t, os.WriteFile(path, []byte("put here by somebody"), 0o600))
	openDisk(t, d.Dir())
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

// A crash at any commit of a job or a revert: the next open makes every header
// name what chain.json says, marks a layer before it writes it, and shows the
// same views (M15, M16).
func TestHeadersFollowAfterACrash(t *testing.T) {
	for _, m := range append(mergeCases, mergeCase{name: "flatten", direction: "flatten", lower: 1 << 20, upper: 64 << 10, above: 2}) {
		t.Run(m.name, func(t *testing.T) {
			d, fs := m.build(t)
			var copies []string
			fs.Watch(func(c interleave.Call) {
				if c.Op == "rename" && !c.Done {
					to := filepath.Join(filepath.Dir(d.Dir()), fmt.Sprintf("copy%d.varve", len(copies)))
					if err := copyWithTimes(to, d.Dir()); err != nil {
						t.Error(err)
					}
					copies = append(copies, to)
				}
			})
			if m.direction == "flatten" {
				id, err := d.Flatten("two")
				finish(t, d, id, err)
			} else {
				id, err := d.Delete("one")
				finish(t, d, id, err)
			}
			fs.Watch(nil)
			if len(copies) < 3 {
				t.Fatalf("only %d commits", len(copies))
			}
			want := make([]byte, d.Size())
			must(t, d.ReadAt(want, 0))
			for _, dir := range copies {
				fs := newWatchedFS()
				fs.audit(dir)
				died, err := Open(dir, OpenOptions{FS: fs, HoldJob: true})
				must(t, err)
				tree, _ := died.tree()
				for _, l := range tree.Layers {
					parent := ""
					if p := tree.Layer(l.Parent); p != nil {
						parent = p.Path(dir)
					}
					if l.Foreign {
						continue
					}
					if got := fs.backingOf(l.Path(dir)); got != parent {
						t.Errorf("%s: %s names %q, chain.json %q", filepath.Base(dir), l.File, got, parent)
					}
				}
				got := make([]byte, died.Size())
				must(t, died.ReadAt(got, 0))
				if !bytes.Equal(got, want) {
					t.Errorf("%s: another content", filepath.Base(dir))
				}
				fs.verdict(t, filepath.Base(dir))
				must(t, died.Close())
			}
		})
	}
}

// copyWithTimes copies a directory with the times of its files, which
// fingerprints look at.
func copyWithTimes(to, from string) error {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	return filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		return os.Chtimes(to+path[len(from):], info.ModTime(), info.ModTime())
	})
}

// A new disk gets its name when all that is in it is durable (M15).
func TestCreateIsDurable(t *testing.T) {
	fs := newWatchedFS()
	dir := filepath.Join(t.TempDir(), "vm.varve")
	named := false
	fs.Watch(func(c interleave.Call) {
		if c.Op != "rename" || c.Path != dir || c.Done {
			return
		}
		named = true
		fs.mu.Lock()
		defer fs.mu.Unlock()
		for path, a := range fs.files {
			if filepath.Base(path) != dirlock.Name && a.changes > 0 {
				t.Errorf("the content of %s is not durable", path)
			}
		}
		for path := range fs.names {
			if filepath.Base(path) != dirlock.Name {
				t.Errorf("the name of %s is not durable", path)
			}
		}
	})
	_, err := Create(dir, CreateOptions{FS: fs, Size: 1 << 20})
	must(t, err)
	if !named {
		t.Error("the directory was not built under another name")
	}
	if fs.names[dir] {
		t.Error("the directory's own name is not durable")
	}
}

// What another tool may rightly have put into the leaf of an unmounted disk and
// varve does not write makes it a frozen layer, with a line in the log (M17).
func TestLeafThatIsNotPlain(t *testing.T) {
	number := func(p []byte, off int64) uint64 { return binary.BigEndian.Uint64(p[off:]) }
	flip := func(p []byte, off int64, bit uint64) { binary.BigEndian.PutUint64(p[off:], number(p, off)^bit) }
	const copied, offset = uint64(1) << 63, uint64(0x00fffffffffffe00)
	for _, c := range []struct {
		what string
		do   func(p []byte)
	}{
		{"the dirty bit", func(p []byte) { p[79] |= 1 }},
		{"lazy refcounts", func(p []byte) { p[87] |= 1 }},
		{"an L1 entry without the COPIED flag", func(p []byte) { flip(p, int64(number(p, 40)), copied) }},
		{"an L2 entry without the COPIED flag", func(p []byte) {
			flip(p, int64(number(p, int64(number(p, 40)))&offset), copied)
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			d, _ := testDisk(t, 4<<20)
			put(t, d, 1, 0, 4096)
			must(t, d.Close())
			leaf := layerPath(d, "")
			p, err := os.ReadFile(leaf)
			must(t, err)
			c.do(p)
			must(t, os.WriteFile(leaf, p, 0o600))
			var log bytes.Buffer
			again, err := Open(d.Dir(), OpenOptions{Log: slog.New(slog.NewTextHandler(&log, nil))})
			must(t, err)
			if !strings.Contains(log.String(), "kept as a frozen layer") {
				t.Errorf("the log says %q", log.String())
			}
			if s := states(again); s != "base base, unnamed, leaf" {
				t.Errorf("the layers are %s", s)
			}
			if got := at(t, again, 0); got != 1 {
				t.Errorf("got %d", got)
			}
			put(t, again, 2, 8192, 4096)
			must(t, again.Close())
			if q, err := os.ReadFile(leaf); err != nil || !bytes.Equal(p, q) {
				t.Errorf("the layer was written: %v", err)
			}
		})
	}
}

// A layer that is being written when varve is killed is not judged by its
// fingerprint at the next open, and is judged from then on (M16).
func TestMarkedLayersAreNotJudged(t *testing.T) {
	m := mergeCases[2]
	d, fs := m.build(t)
	readyMerge(t, d, "one", m.direction)
	rec := d.manifest.ByName("two")
	if !rec.Writing || rec.Fingerprint != nil {
		t.Errorf("the layer that is being written has the mark %v and the fingerprint %v", rec.Writing, rec.Fingerprint)
	}
	(&diskTarget{t: t, d: d}).kill()
	path := rec.Path(d.Dir())
	must(t, os.Chtimes(path, d.ModTime().Add(1e9), d.ModTime().Add(1e9)))
	d, err := Open(d.Dir(), OpenOptions{FS: fs, HoldJob: true})
	must(t, err)
	rec = d.manifest.ByName("two")
	if rec.Writing || rec.Fingerprint == nil {
		t.Errorf("after it was settled it has the mark %v and the fingerprint %v", rec.Writing, rec.Fingerprint)
	}
	must(t, d.Close())
	must(t, os.Chtimes(path, d.ModTime().Add(2e9), d.ModTime().Add(2e9)))
	_, err = Open(d.Dir(), OpenOptions{HoldJob: true})
	wantError(t, err, ErrChanged, "two")
}

// An internal snapshot of a leaf in which nothing was written shows in the header
// only (M17).
func TestEmptyLeafWithASnapshotInside(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	must(t, d.Close())
	qemuTool(t, "qemu-img", "snapshot", "-c", "inside", layerPath(d, ""))
	d = openDisk(t, d.Dir())
	if s := states(d); s != "base base, unnamed, leaf" {
		t.Errorf("the layers are %s", s)
	}
}

// A layer whose header another tool has changed, to the same view, and whose
// change was accepted: its header follows chain.json again, and it is marked
// before that is written (M16).
func TestAcceptedLayerFollowsToo(t *testing.T) {
	d, fs := mergeCases[0].build(t)
	must(t, d.Close())
	path, parent := layerPath(d, "two"), layerPath(d, "one")
	qemuTool(t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-b", parent, "-F", "qcow2", path)
	must(t, Accept(d.Dir(), "two", OpenOptions{}))
	fs.audit(d.Dir())
	d = openWatched(t, fs, d.Dir())
	fs.verdict(t, "open")
	p, err := os.ReadFile(path)
	must(t, err)
	off, n := binary.BigEndian.Uint64(p[8:]), binary.BigEndian.Uint32(p[16:])
	if name := string(p[off : off+uint64(n)]); name != filepath.Base(parent) {
		t.Errorf("the header names %q", name)
	}
	must(t, reading(t, d, 1, 0, 4096).Wait())
}

// chain.json forgets a file that was removed only when its removal is durable: a power
// cut would bring it back otherwise, as nobody's (M15).
func TestRemovalIsDurable(t *testing.T) {
	d, fs := watchedDisk(t, 4<<20)
	put(t, d, 1, 0, 1<<20)
	must(t, d.Snapshot("one"))
	must(t, d.Snapshot("two"))
	layers := filepath.Join(d.Dir(), manifest.LayersDir)
	var removed []string // not durably
	forgotten := 0
	fs.Watch(func(c interleave.Call) {
		switch {
		case !c.Done:
		case c.Op == "remove" && filepath.Dir(c.Path) == layers:
			removed = append(removed, manifest.LayersDir+"/"+filepath.Base(c.Path))
		case c.Op == "syncdir" && c.Path == layers:
			forgotten += len(removed)
			removed = nil
		case c.Op == "rename" && filepath.Base(c.Path) == manifest.FileName:
			m, err := manifest.Load(hostfs.OS(), d.Dir())
			if err != nil {
				t.Error(err)
				return
			}
			for _, file := range removed {
				if !slices.Contains(m.Removing, file) {
					t.Errorf("%s is forgotten, and its removal is not durable", file)
				}
			}
		}
	})
	id, err := d.Delete("one")
	finish(t, d, id, err)
	must(t, d.Rename("two", "three")) // syncs layers/ for nothing else
	fs.Watch(nil)
	if forgotten == 0 {
		t.Error("no file was removed")
	}
}

// A chain.json that was put back from a backup does not know the files of what came
// after it. They are no leftovers of a crash: the disk is not opened, none of them is
// removed, and everybody who looks says so (M15, D19).
func TestOlderManifestRemovesNothing(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	put(t, d, 1, 0, 4096)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 0, 4096)
	must(t, d.Close())
	dir := d.Dir()
	name := filepath.Join(dir, manifest.FileName)
	older, err := os.ReadFile(name)
	must(t, err)
	d = openDisk(t, dir)
	must(t, d.Snapshot("two"))
	put(t, d, 3, 0, 4096) // in the new leaf alone
	leaf := layerPath(d, "")
	must(t, d.Close())
	newer, err := os.ReadFile(name)
	must(t, err)
	content, err := os.ReadFile(leaf)
	must(t, err)

	must(t, os.WriteFile(name, older, 0o600))
	_, err = Open(dir, OpenOptions{})
	wantError(t, err, ErrChanged)
	if err == nil || !strings.Contains(err.Error(), filepath.Base(leaf)+" holds data") || strings.Contains(err.Error(), "\n") {
		t.Errorf("open: %v", err)
	}
	for _, repair := range []bool{false, true} {
		r, err := Check(context.Background(), dir, CheckOptions{Repair: repair})
		if err != nil || r.Errors == 0 || !strings.Contains(findingLines(r), filepath.Base(leaf)) {
			t.Errorf("check: %v\n%s", err, findingLines(r))
		}
	}
	e, err := Examine(context.Background(), dir, nil)
	if err != nil || !strings.Contains(troubleLines(e), "problem unowned-file "+filepath.Base(leaf)+": it holds data") {
		t.Errorf("examine: %v\n%s", err, troubleLines(e))
	}
	if now, err := os.ReadFile(leaf); err != nil || !bytes.Equal(now, content) {
		t.Fatalf("the leaf's file is not what it was: %v", err)
	}
	must(t, os.WriteFile(name, newer, 0o600))
	if got := at(t, openDisk(t, dir), 0); got != 3 {
		t.Errorf("with the newest chain.json: %d, want 3", got)
	}
}

// What has a layer's name beyond the next number and cannot be read is left alone, and
// said to be that.
func TestUnreadableStray(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	must(t, d.Close())
	stray := filepath.Join(d.Dir(), manifest.LayersDir, "000099.qcow2")
	must(t, os.Mkdir(stray, 0o700))
	const name = "000099.qcow2"
	if _, err := Open(d.Dir(), OpenOptions{}); err == nil || !strings.Contains(err.Error(), name) || errors.Is(err, ErrChanged) {
		t.Errorf("open: %v", err)
	}
	r, err := Check(context.Background(), d.Dir(), CheckOptions{})
	if says := findingLines(r); err != nil || r.Errors == 0 || !strings.Contains(says, name) || !strings.Contains(says, "it cannot be read") {
		t.Errorf("check: %v\n%s", err, says)
	}
	e, err := Examine(context.Background(), d.Dir(), nil)
	if says := troubleLines(e); err != nil || !strings.Contains(says, "problem unowned-file "+name) || !strings.Contains(says, "it cannot be read") {
		t.Errorf("examine: %v\n%s", err, says)
	}
	if _, err := os.Stat(stray); err != nil {
		t.Error(err)
	}
}
