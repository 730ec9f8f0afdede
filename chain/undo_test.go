package chain

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/chain/manifest"
	"varve/overlay/hostfs"
)

// asideOf is the layer that a revert set aside, or "".
func asideOf(d *Disk) string {
	for _, l := range d.Layers() {
		if l.SetAside {
			return l.ID
		}
	}
	return ""
}

// A revert is taken back, and the undo too, as often as one likes; also by another
// mount, and with writes between.
func TestUndo(t *testing.T) {
	d, _ := testDisk(t, 8<<20)
	wantError(t, d.Undo(), ErrNotExist, "no leaf is set aside")
	_, err := d.Forget()
	wantError(t, err, ErrNotExist, "no leaf is set aside")
	put(t, d, 1, 0, 70_000)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 0, 70_000)
	must(t, d.Resize(9<<20))
	put(t, d, 3, 8<<20+5, 100)
	must(t, d.Revert("one"))
	if at(t, d, 0) != 1 || d.Size() != 8<<20 {
		t.Fatalf("after the revert: %d, size %d", at(t, d, 0), d.Size())
	}
	put(t, d, 4, 1<<20, 10)
	for range 2 {
		must(t, d.Undo())
		if at(t, d, 0) != 2 || at(t, d, 8<<20+5) != 3 || at(t, d, 1<<20) == 4 || d.Size() != 9<<20 {
			t.Fatalf("after the undo: %d %d, size %d", at(t, d, 0), at(t, d, 1<<20), d.Size())
		}
		put(t, d, 5, 2<<20, 10) // a leaf that was frozen takes writes
		must(t, d.Flush())
		must(t, d.Undo())
		if at(t, d, 0) != 1 || at(t, d, 1<<20) != 4 || at(t, d, 2<<20) == 5 {
			t.Fatalf("after the undo of the undo: %d %d", at(t, d, 0), at(t, d, 1<<20))
		}
		must(t, d.Close())
		d = openDisk(t, d.Dir())
	}
	must(t, d.Undo())
	if at(t, d, 2<<20) != 5 {
		t.Fatal("what was written between two undos is lost")
	}
	put(t, d, 6, 2<<20, 10)
	must(t, d.Snapshot("two"))
	put(t, d, 7, 2<<20, 10)
	checkDisk(t, d)
}

// checkDisk closes the disk, which must be in order then by all judges.
func checkDisk(t *testing.T, d *Disk) {
	t.Helper()
	must(t, d.Close())
	r, err := Check(context.Background(), d.Dir(), CheckOptions{})
	if err != nil || r.Errors+r.Leaks > 0 {
		t.Errorf("check: %v\n%s", err, findingLines(r))
	}
	m, err := manifest.Load(hostfs.OS(), d.Dir())
	must(t, err)
	for _, l := range m.Layers {
		if l.Format == formatQcow2 {
			qemuTool(t, "qemu-img", "check", "-q", "-f", "qcow2", l.Path(d.Dir()))
		}
	}
}

// An undo drops a leaf in which nothing was written since the revert.
func TestUndoOfAnEmptyLeaf(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	put(t, d, 1, 0, 10)
	must(t, d.Revert(manifest.BaseName))
	aside := asideOf(d)
	must(t, d.Undo())
	if at(t, d, 0) != 1 || asideOf(d) != "" || states(d) != "base base, leaf" {
		t.Errorf("%d, set aside %q, %s", at(t, d, 0), asideOf(d), states(d))
	}
	if leaf := d.leaf.Load().ID; leaf != aside {
		t.Errorf("the leaf is %s, not %s", leaf, aside)
	}
	checkDisk(t, d)
}

func TestUndoWhileOpen(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	put(t, d, 1, 0, 10)
	must(t, d.Revert(manifest.BaseName))
	h, err := d.OpenDisk(context.Background(), Opener{PID: 4242, Command: "qemu"}, true)
	must(t, err)
	wantError(t, d.Undo(), ErrBusy, "disk.raw is open (pid 4242 qemu); stop the VM first")
	h.Close()
	must(t, d.Undo())
}

// What an undo makes the leaf again is read as it is, and not from what was looked up
// while it was frozen.
func TestUndoForgetsWhatWasResolved(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	put(t, d, 1, 0, 10)
	must(t, d.Revert(manifest.BaseName))
	aside := d.nodes[asideOf(d)]
	if err := aside.ReadAt(make([]byte, 1), 0); err != nil { // which resolves it
		t.Fatal(err)
	}
	put(t, d, 9, 0, 10)
	must(t, d.Undo())
	put(t, d, 2, 1<<20, 10)
	must(t, d.Snapshot("one")) // read through resolved regions from here on
	if got := at(t, d, 1<<20); got != 2 {
		t.Errorf("reads %d, not what was written after the undo", got)
	}
}

// The merge that waited for a leaf that was set aside is made when that is forgotten.
func TestForget(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	put(t, d, 1, 0, 10)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 0, 10)
	must(t, d.Revert("one"))
	put(t, d, 3, 100, 10)
	id, err := d.Delete("one")
	must(t, err)
	if id != "" {
		t.Fatal("merged under two layers")
	}
	aside := d.path(d.manifest.Layer(asideOf(d)))
	id, err = d.Forget()
	finish(t, d, id, err)
	if id == "" || states(d) != "base base, leaf" {
		t.Errorf("job %q, %s", id, states(d))
	}
	if _, err := os.Stat(aside); !os.IsNotExist(err) {
		t.Errorf("the file of the leaf that was set aside is there: %v", err)
	}
	if at(t, d, 0) != 1 || at(t, d, 100) != 3 {
		t.Error("the leaf's content changed")
	}
	wantError(t, d.Undo(), ErrNotExist)
	checkDisk(t, d)
}

func TestUndoOfALeafChangedByOthers(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	put(t, d, 1, 0, 10)
	must(t, d.Revert(manifest.BaseName))
	path := d.path(d.manifest.Layer(asideOf(d)))
	must(t, d.Close())
	qemuTool(t, "qemu-img", "snapshot", "-c", "inside", path)
	must(t, Accept(d.Dir(), strings.TrimSuffix(path[len(path)-12:], ".qcow2"), OpenOptions{}))
	d = openDisk(t, d.Dir())
	wantError(t, d.Undo(), ErrInvalid, "cannot be written any more", path)
	if at(t, d, 0) == 1 {
		t.Error("it was made the leaf")
	}
}

// What was counted of a layer before it was made the leaf again is not believed when
// it is frozen the next time.
func TestUndoForgetsWhatWasCounted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vm.varve")
	if _, err := Create(dir, CreateOptions{Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	d := openDisk(t, dir)
	put(t, d, 1, 0, 1<<20)
	must(t, d.Revert(manifest.BaseName))
	must(t, d.CountAll(t.Context()))
	must(t, d.Undo())
	put(t, d, 2, 32<<20, 3<<20)
	must(t, d.Snapshot("one"))
	must(t, d.CountAll(t.Context()))
	if bytes, counted, err := d.LayerAllocatedBytes(d.manifest.ByName("one").ID); bytes != 4<<20 || !counted || err != nil {
		t.Errorf("%d bytes, %v, %v", bytes, counted, err)
	}
	st, err := d.Status()
	must(t, err)
	if own := st.Layers[0].OwnBytes; own != 4<<20 {
		t.Errorf("%d bytes of its own", own)
	}
}

// A merge downwards was cancelled when all of the leaf had moved: a revert keeps it for
// undo, although the leaf's own file is empty.
func TestUndoAfterACancelledMove(t *testing.T) {
	d, _ := testDisk(t, 8<<20)
	put(t, d, 1, 0, 4<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 5<<20, 1<<20)
	j, x, c := readyMerge(t, d, "one", manifest.Down)
	must(t, d.copyDown(j, x, c))
	d.endJob(j, jobOutcome{state: JobCancelled})
	must(t, d.Revert("base"))
	must(t, d.Undo())
	if got := at(t, d, 5<<20); got != 2 {
		t.Errorf("after revert and undo the disk reads %d, want 2", got)
	}
}
