package chain

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"varve/chain/manifest"
)

// removeFile takes the file of a layer away behind a disk's back, and puts another one in its
// place if so asked.
func removeFile(t *testing.T, d *Disk, name string, replace bool) {
	t.Helper()
	path := layerPath(d, name)
	if !replace {
		must(t, os.Remove(path))
		return
	}
	other := filepath.Join(t.TempDir(), "other")
	must(t, os.WriteFile(other, []byte("something else"), 0o600))
	must(t, os.Rename(other, path))
}

// A disk whose layer's file was removed or replaced while it is open is not built upon, and
// what gets everything into files that are there is done: after that nothing is lost.
func TestLostFiles(t *testing.T) {
	const piece = 256 << 10
	for _, c := range []struct {
		name    string
		lost    string   // the layer: "" for the leaf
		pieces  [3]int64 // in one, in two, and in the leaf, so that a merge would go the other way
		refused func(d *Disk) error
		words   string
		rescue  func(d *Disk) (job string, err error)
	}{
		{"the leaf, flattened", "", [3]int64{1, 1, 1}, func(d *Disk) error { return d.Snapshot("three") }, "the file of the leaf, ",
			func(d *Disk) (string, error) { return d.Flatten("leaf") }},
		{"the leaf, into the layer below it", "", [3]int64{1, 4, 2}, func(d *Disk) error { return d.Snapshot("three") }, "varve flatten ",
			func(d *Disk) (string, error) { return d.Delete("two") }},
		{"the layer below the leaf, into the leaf", "two", [3]int64{1, 8, 1}, func(d *Disk) error { return d.Snapshot("three") }, "the file of two, ",
			func(d *Disk) (string, error) { return d.Delete("two") }},
		{"a layer into the one above it", "one", [3]int64{4, 2, 1}, func(d *Disk) error { _, err := d.Flatten("one"); return err }, "varve export ",
			func(d *Disk) (string, error) { return d.Delete("one") }},
		{"a layer into the one below it", "two", [3]int64{1, 4, 1}, func(d *Disk) error { return d.Revert("two") }, "varve export ",
			func(d *Disk) (string, error) { return d.Delete("one") }},
	} {
		for _, replace := range []bool{false, true} {
			how := map[bool]string{false: "removed", true: "replaced"}[replace]
			t.Run(c.name+", "+how, func(t *testing.T) {
				d, _ := testDisk(t, 8<<20)
				put(t, d, 1, 0, c.pieces[0]*piece)
				must(t, d.Snapshot("one"))
				put(t, d, 2, 4<<20, c.pieces[1]*piece)
				must(t, d.Snapshot("two"))
				put(t, d, 3, 6<<20, c.pieces[2]*piece)
				removeFile(t, d, c.lost, replace)
				if lost := d.LostFiles(); len(lost) != 1 || lost[0] != layerPath(d, c.lost) {
					t.Errorf("lost: %q", lost)
				}
				err := c.refused(d)
				if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), c.words) || !strings.Contains(err.Error(), "was "+how) {
					t.Errorf("refused: %v", err)
				}
				put(t, d, 4, 7<<20, piece) // the guest goes on
				id, err := c.rescue(d)
				if s := finish(t, d, id, err); id == "" || s.State != JobDone {
					t.Fatalf("job %q: %+v", id, s)
				}
				for s := d.lastJob(); s.running(); s = d.lastJob() {
					<-s.done
				}
				if lost := d.LostFiles(); len(lost) > 0 {
					t.Errorf("still lost: %q", lost)
				}
				must(t, d.Snapshot("four"))
				must(t, d.Close())
				d = openDisk(t, d.Dir())
				for n, off := range []int64{0, 4 << 20, 6 << 20, 7 << 20} {
					if got := at(t, d, off); got != byte(n+1) {
						t.Errorf("at %d there is %d", off, got)
					}
				}
			})
		}
	}
}

// The close of a disk says what goes with it.
func TestLostAtClose(t *testing.T) {
	d, _ := testDisk(t, 8<<20)
	put(t, d, 1, 0, 1<<20)
	path := layerPath(d, "")
	must(t, os.Remove(path))
	if err := d.Close(); err == nil || !strings.Contains(err.Error(), path+", was removed while the disk was mounted, and what was in it is lost") {
		t.Error(err)
	}
}

// A file that is lost while a merge goes into it swallows nothing: the merge stops, and the
// next one goes the other way.
func TestLostDuringAMerge(t *testing.T) {
	for _, direction := range []manifest.Direction{manifest.Up, manifest.Down} {
		t.Run(direction.String(), func(t *testing.T) {
			d, _ := testDisk(t, 8<<20)
			put(t, d, 1, 0, 1<<20)
			must(t, d.Snapshot("one"))
			two, leaf := int64(256<<10), int64(1<<20) // the smaller one moves
			if direction == manifest.Down {
				two, leaf = leaf, two
			}
			put(t, d, 2, 4<<20, two)
			must(t, d.Snapshot("two"))
			put(t, d, 3, 6<<20, leaf)
			j, x, c := readyMerge(t, d, "two", direction)
			into, from := c, x
			if direction == manifest.Down {
				into, from = x, c
			}
			must(t, os.Remove(into.Layer().Path))
			source := from.Layer().Path
			before, err := os.Stat(source)
			must(t, err)
			work := d.copyUp
			if direction == manifest.Down {
				work = d.copyDown
			}
			if err := work(j, x, c); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), "--unnamed") {
				t.Errorf("the merge: %v", err)
			}
			after, err := os.Stat(source)
			must(t, err)
			if b, a := before.Sys().(*syscall.Stat_t).Blocks, after.Sys().(*syscall.Stat_t).Blocks; a < b {
				t.Errorf("of %d blocks %d are left", b, a)
			}
			for i, off := range []int64{0, 4 << 20, 6 << 20} {
				if got := at(t, d, off); got != byte(i+1) {
					t.Errorf("at %d there is %d", off, got)
				}
			}
			if err := d.Close(); err == nil {
				t.Error("the close says nothing of the file")
			}
		})
	}
}

// A link, or another file, in the place of a layer's file hides nothing, and is not removed.
func TestWhatStandsInThePlaceOfALostFile(t *testing.T) {
	d, _ := testDisk(t, 8<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 4<<20, 1<<20)
	must(t, d.Snapshot("two"))
	put(t, d, 3, 6<<20, 4096)
	path := layerPath(d, "two")
	must(t, os.Remove(path))
	must(t, os.Symlink("/nowhere", path))
	if lost := d.LostFiles(); len(lost) != 1 || lost[0] != path {
		t.Errorf("lost: %q", lost)
	}
	if err := d.Snapshot("three"); !errors.Is(err, ErrChanged) {
		t.Error(err)
	}
	must(t, os.Remove(path))
	must(t, os.WriteFile(path, []byte("a backup"), 0o600))
	id, err := d.Delete("two")
	if s := finish(t, d, id, err); s.State != JobDone {
		t.Fatalf("%+v", s)
	}
	// A daemon that is killed now leaves this chain.json, by which the next Open removes files.
	if m := readManifest(t, d.Dir()); slices.ContainsFunc(m.Removing, func(file string) bool { return filepath.Base(file) == filepath.Base(path) }) {
		t.Errorf("chain.json has it among the files to be removed: %q", m.Removing)
	}
	must(t, d.Close())
	for range 2 { // and not by the next Open either
		if text, err := os.ReadFile(path); err != nil || string(text) != "a backup" {
			t.Errorf("the other file: %q, %v", text, err)
		}
		d = openDisk(t, d.Dir())
		if got := at(t, d, 4<<20); got != 2 {
			t.Errorf("read %d", got)
		}
		must(t, d.Close())
	}
}

// What is known of the leaf is known of the layer that it becomes, while a job goes on too.
func TestSnapshotKeepsCountsBesideAJob(t *testing.T) {
	d, _ := testDisk(t, 8<<20)
	put(t, d, 1, 0, 1<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 4<<20, 1<<20)
	must(t, d.CountAll(t.Context()))
	m := d.edit()
	m.MarkWriting(m.ByName("one")) // as a job does that begins
	must(t, d.commit(m))
	d.install(m, nil)
	leaf := d.leaf.Load()
	must(t, d.Snapshot("two"))
	if own, known, err := d.figures.Own(leaf, time.Time{}); err != nil || !known || own != 1<<20 {
		t.Errorf("%d, %v, %v", own, known, err)
	}
}
