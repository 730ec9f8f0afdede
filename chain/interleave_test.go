package chain

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"varve/chain/manifest"
	"varve/chain/view"
	"varve/integration/interleave"
)

// What operations on one disk do to each other: one is stopped at an exact call
// to the host when the other comes.

// readyMerge records the delete of a snapshot without running it and prepares
// its merge, so that a test can make its steps one by one.
func readyMerge(t *testing.T, d *Disk, name string, wantDirection manifest.Direction) (j *job, x, c *view.Node) {
	t.Helper()
	d.holdJob = true
	_, err := d.Delete(name)
	must(t, err)
	j = d.lastJob()
	x, c, direction, err := d.prepareMerge(j)
	must(t, err)
	if direction != wantDirection {
		t.Fatalf("the merge goes %s, want %s", direction, wantDirection)
	}
	return j, x, c
}

// mergeSteps are the copying and the end of a merge in either direction.
func (d *Disk) mergeSteps(direction manifest.Direction) (copyAll, finish func(*job, *view.Node, *view.Node) error) {
	if direction == manifest.Up {
		return d.copyUp, d.finishUp
	}
	return d.copyDown, d.finishDown
}

// reading starts a read of the leaf's view and expects one value.
func reading(t *testing.T, d *Disk, want byte, off, n int64) *interleave.Op {
	return interleave.Start(t, func() error {
		p := make([]byte, n)
		if err := d.ReadAt(p, off); err != nil {
			return err
		}
		if !bytes.Equal(p, bytes.Repeat([]byte{want}, int(n))) {
			return errors.New("the read gave another content")
		}
		return nil
	})
}

// mergeCase is a stack of layers of which "one" is merged with what is on it.
type mergeCase struct {
	name      string
	direction manifest.Direction
	lower     int64 // bytes of "one"
	upper     int64 // bytes of the layer on it
	above     int   // frozen layers and the leaf above that one
}

var mergeCases = []mergeCase{
	{"up into a frozen layer", manifest.Up, 64 << 10, 1 << 20, 2},
	{"up into the leaf", manifest.Up, 64 << 10, 1 << 20, 0},
	{"down from a frozen layer", manifest.Down, 1 << 20, 64 << 10, 2},
	{"down from the leaf", manifest.Down, 1 << 20, 64 << 10, 0},
}

// build makes the stack. The lower layer holds 1 from 0 on, the upper one 2 from
// 4 MiB on.
func (m mergeCase) build(t *testing.T) (*Disk, *watchedFS) {
	t.Helper()
	d, fs := watchedDisk(t, 8<<20)
	put(t, d, 1, 0, m.lower)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 4<<20, m.upper)
	for i := range m.above {
		must(t, d.Snapshot([]string{"two", "three"}[i]))
		put(t, d, 3, 6<<20+int64(i)*4096, 4096)
	}
	must(t, d.Flush())
	return d, fs
}

// source is the node that gives up its blocks, and where it holds what.
func (m mergeCase) source(x, c *view.Node) (n *view.Node, value byte, off int64) {
	if m.direction == manifest.Up {
		return x, 1, 0
	}
	return c, 2, 4 << 20
}

// A reader that has looked up where a block is, and has not read it yet: the
// merge goes no further than to where it would give that block back, and then
// waits (M1). Readers that come later find the block in its new place, also
// through the regions of views above that were resolved before (M14).
func TestReaderAcrossAMerge(t *testing.T) {
	for _, m := range mergeCases {
		t.Run(m.name, func(t *testing.T) {
			d, fs := m.build(t)
			const length = 20000
			must(t, reading(t, d, 2, 4<<20, length).Wait()) // the regions are resolved
			must(t, reading(t, d, 1, 0, length).Wait())
			j, x, c := readyMerge(t, d, "one", m.direction)
			must(t, reading(t, d, 1, 0, length).Wait()) // what is below a leaf that moves changes
			source, value, off := m.source(x, c)
			path := source.Layer().Path
			early := false
			stop := fs.StopAt(t, func(call interleave.Call) bool {
				return call.Op == "read" && call.Path == path && !call.Done && call.Length == length
			})
			reader := reading(t, d, value, off, length)
			stop.Reached()
			punched := fs.StopAt(t, func(call interleave.Call) bool { return call.Op == "punch" && call.Path == path && call.Done })
			punched.Go()
			copyAll, finish := d.mergeSteps(m.direction)
			merge := interleave.Start(t, func() error { return copyAll(j, x, c) })
			merge.Waits()
			must(t, d.Flush())
			d.punchLeaf() // as the background does
			early = punched.Passed()
			must(t, reading(t, d, value, off, length).Wait()) // does not wait
			stop.Go()
			reader.Must()
			if early {
				t.Error("a block was given back under a reader")
			}
			merge.Must()
			if !punched.Passed() {
				t.Error("nothing was given back")
			}
			must(t, reading(t, d, value, off, length).Wait())
			must(t, finish(j, x, c))
			for _, r := range []struct {
				value byte
				off   int64
			}{{1, 0}, {2, 4 << 20}} {
				must(t, reading(t, d, r.value, r.off, length).Wait())
			}
		})
	}
}

// A reader that is finding out where a region's blocks are while a merge drops
// what was resolved: what it found is not kept for later readers (M1).
func TestResolvingAcrossAMerge(t *testing.T) {
	m := mergeCases[0]
	d, fs := m.build(t)
	j, x, c := readyMerge(t, d, "one", m.direction)
	path := x.Layer().Path
	// It has asked c and is asking x, whose tables it reads.
	stop := fs.StopAt(t, on("read", path))
	reader := reading(t, d, 1, 0, 4096)
	stop.Reached()
	merge := interleave.Start(t, func() error { return d.copyUp(j, x, c) })
	// The job reads x's tables as well, which nobody stops.
	merge.Waits()
	stop.Go()
	reader.Must()
	merge.Must()
	must(t, reading(t, d, 1, 0, 4096).Wait())
	must(t, d.finishUp(j, x, c))
	must(t, reading(t, d, 1, 0, 4096).Wait())
}

// A file is closed and unlinked only when nobody reads it (M1): here somebody
// who counts a layer that a revert takes out.
func TestUnlinkWaitsForReaders(t *testing.T) {
	d, fs := watchedDisk(t, 4<<20)
	put(t, d, 1, 0, 1<<20)
	must(t, d.Revert(manifest.BaseName)) // sets the first leaf aside
	put(t, d, 2, 0, 4096)
	m, _ := d.tree()
	path := m.Layer(m.SetAside).Path(d.Dir())
	stop := fs.StopAt(t, on("read", path))
	status := interleave.Start(t, func() error { _, err := d.Status(); return err })
	stop.Reached()
	revert := interleave.Start(t, func() error { return d.Revert(manifest.BaseName) })
	revert.Waits()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the file is gone under its reader: %v", err)
	}
	stop.Go()
	status.Must()
	revert.Must()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}

// A reader of what a flatten copies finds it where it was, also when the flatten
// is over before the reader is (M1).
func TestReaderAcrossAFlatten(t *testing.T) {
	d, fs := watchedDisk(t, 4<<20)
	put(t, d, 1, 0, 1<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 2<<20, 4096)
	must(t, d.Snapshot("two"))
	m, _ := d.tree()
	path := m.ByName("one").Path(d.Dir())
	must(t, reading(t, d, 1, 0, 4096).Wait())
	stop := fs.StopAt(t, func(c interleave.Call) bool {
		return c.Op == "read" && c.Path == path && !c.Done && c.Length == 20000
	})
	reader := reading(t, d, 1, 0, 20000)
	stop.Reached()
	id, err := d.Flatten("two")
	must(t, err)
	ended := interleave.Start(t, func() error { _, err := d.WaitJob(t.Context(), id); return err })
	ended.Settles() // it waits for the reader, or not: nothing of its is given back
	stop.Go()
	ended.Must()
	reader.Must()
	must(t, reading(t, d, 1, 0, 4096).Wait())
	if s := d.lastJob().status(); s.State != JobDone {
		t.Errorf("job: %+v", s)
	}
}

// A leaf on its way down: a guest's write to the piece that is just moving waits,
// and is not lost between copying the piece and clearing it (M13).
func TestWriteMeetsAMove(t *testing.T) {
	m := mergeCases[3]
	d, fs := m.build(t)
	j, x, c := readyMerge(t, d, "one", m.direction)
	into := x.Layer().Path
	stop := fs.StopAt(t, func(call interleave.Call) bool { return call.Op == "write" && call.Path == into && call.Done })
	move := interleave.Start(t, func() error { return d.copyDown(j, x, c) })
	t.Cleanup(func() { // also when the test fails: before the disk is closed
		stop.Go()
		move.Wait()
	})
	stop.Reached() // copied, and not taken out of c yet
	w := interleave.Start(t, func() error { return d.WriteAt(bytes.Repeat([]byte{9}, 4096), 4<<20+4096) })
	w.Waits()
	must(t, reading(t, d, 2, 4<<20, 4096).Wait()) // readers do not
	stop.Go()
	move.Must()
	w.Must()
	must(t, reading(t, d, 9, 4<<20+4096, 4096).Wait())
	must(t, reading(t, d, 2, 4<<20+8192, 4096).Wait())
	must(t, d.finishDown(j, x, c))
	must(t, reading(t, d, 9, 4<<20+4096, 4096).Wait())
}

// What moves down is durable there before the table that it leaves says so on
// disk (M1).
func TestMoveIsDurableBelowFirst(t *testing.T) {
	for _, m := range mergeCases[2:] {
		t.Run(m.name, func(t *testing.T) {
			d, fs := m.build(t)
			j, x, c := readyMerge(t, d, "one", m.direction)
			into, from := x.Layer().Path, c.Layer().Path
			early, writes := false, 0
			fs.Watch(func(call interleave.Call) {
				if call.Op == "write" && call.Path == from && !call.Done {
					writes++
					early = early || !fs.clean(into)
				}
			})
			must(t, d.copyDown(j, x, c))
			fs.Watch(nil)
			if early || writes == 0 {
				t.Errorf("%d writes of tables, before the lower layer was durable: %v", writes, early)
			}
			must(t, d.finishDown(j, x, c))
		})
	}
}

// Growth during a merge: the job sees the new part, and nothing of what is below
// shows through there (M2).
func TestGrowthMeetsAMerge(t *testing.T) {
	for _, m := range mergeCases {
		if m.above > 0 {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			d, fs := m.build(t)
			j, x, c := readyMerge(t, d, "one", m.direction)
			copyAll, finish := d.mergeSteps(m.direction)
			target := c
			if m.direction == manifest.Down {
				target = x
			}
			path := target.Layer().Path
			stop := fs.StopAt(t, on("write", path))
			merge := interleave.Start(t, func() error { return copyAll(j, x, c) })
			stop.Reached()
			grow := interleave.Start(t, func() error { return d.Resize(40 << 20) })
			grow.Settles()
			stop.Go()
			grow.Must()
			put(t, d, 7, 39<<20, 4096)
			merge.Must()
			put(t, d, 8, 30<<20, 4096)
			must(t, finish(j, x, c))
			for off, want := range map[int64]byte{0: 1, 4 << 20: 2, 9 << 20: 0, 39 << 20: 7, 30 << 20: 8} {
				must(t, reading(t, d, want, off, 4096).Wait())
			}
		})
	}
}

// The job copies the zeros of a discarded place as well: what is below does not
// show through afterwards (M2, M12).
func TestMergeKeepsZeros(t *testing.T) {
	for _, m := range mergeCases {
		t.Run(m.name, func(t *testing.T) {
			d, _ := watchedDisk(t, 24<<20)
			put(t, d, 1, 0, m.lower)
			must(t, d.Discard(1<<20, 64<<10))
			must(t, d.Discard(2<<20+100, 300))
			must(t, d.Discard(20<<20, 64<<10)) // in a region that has nothing else
			must(t, d.Snapshot("one"))
			put(t, d, 2, 4<<20, m.upper)
			must(t, d.Discard(3<<20, 64<<10))
			must(t, d.Discard(1<<19, 4096)) // over data of the lower one, or of the base
			for i := range m.above {
				must(t, d.Snapshot([]string{"two", "three"}[i]))
			}
			want := make([]byte, 24<<20)
			must(t, d.ReadAt(want, 0))
			j, x, c := readyMerge(t, d, "one", m.direction)
			copyAll, finish := d.mergeSteps(m.direction)
			same := func(when string) {
				t.Helper()
				got := make([]byte, len(want))
				must(t, d.ReadAt(got, 0))
				if !bytes.Equal(got, want) {
					t.Errorf("another content %s", when)
				}
			}
			must(t, copyAll(j, x, c))
			same("when all is copied")
			must(t, finish(j, x, c))
			same("after the merge")
			must(t, d.Close())
			again := openDisk(t, d.Dir())
			d = again
			same("after it was opened again")
		})
	}
}

// A cancelled move: what has moved stays in its old place too until the last
// reader that looked there has gone (M1).
func TestCancelMeetsAReader(t *testing.T) {
	m := mergeCases[3]
	d, fs := m.build(t)
	j, x, c := readyMerge(t, d, "one", m.direction)
	into, from := x.Layer().Over(), c.Layer().Over()
	path := c.Layer().Path
	stop := fs.StopAt(t, func(call interleave.Call) bool {
		return call.Op == "read" && call.Path == path && !call.Done && call.Length == 20000
	})
	punched := fs.StopAt(t, func(call interleave.Call) bool { return call.Op == "punch" && call.Path == path })
	punched.Go()
	reader := reading(t, d, 2, 4<<20, 20000)
	stop.Reached()
	must(t, d.moveStep(4<<20+moveStep, func() error {
		if _, err := into.Overwrite(c.AloneLive(), 4<<20, moveStep, x.Backing()); err != nil {
			return err
		}
		return from.Unmap(4<<20, moveStep)
	}))
	end := interleave.Start(t, func() error { d.endJob(j, jobOutcome{state: JobCancelled}); return nil })
	end.Waits()
	d.punchLeaf()
	if punched.Passed() {
		t.Error("a block was given back under a reader")
	}
	stop.Go()
	reader.Must()
	end.Must()
	must(t, d.Flush())
	d.punchLeaf()
	must(t, reading(t, d, 2, 4<<20, 20000).Wait())
}

// stoppedMove starts moving the leaf down and stops when the piece at a guest offset
// has been copied, and not been taken out of the leaf yet.
func stoppedMove(t *testing.T, d *Disk, fs *watchedFS, j *job, x, c *view.Node, pieces int) (move *interleave.Op, stop *interleave.Stop) {
	t.Helper()
	path := x.Layer().Path
	stop = fs.StopAt(t, func(call interleave.Call) bool {
		if call.Op != "write" || call.Path != path || !call.Done || call.Length < 64<<10 {
			return false
		}
		pieces--
		return pieces < 0
	})
	move = interleave.Start(t, func() error { return d.copyDown(j, x, c) })
	stop.Reached()
	return move, stop
}

// While a leaf moves down, a write to what has moved goes to where it is now, and
// is not lost with the leaf's file (M13).
func TestWriteBehindTheFrontier(t *testing.T) {
	m := mergeCases[3]
	d, fs := watchedDisk(t, 8<<20)
	put(t, d, 1, 0, 2<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 4<<20, 64<<10)
	put(t, d, 2, 6<<20, 64<<10)
	j, x, c := readyMerge(t, d, "one", m.direction)
	move, stop := stoppedMove(t, d, fs, j, x, c, 1)
	first, second := int64(4<<20+4096), int64(7<<20)
	w := interleave.Start(t, func() error { return d.WriteAt(bytes.Repeat([]byte{9}, 4096), first) })
	w.Waits() // the step at 6 MiB owns the routing
	stop.Go()
	w.Must()
	put(t, d, 9, second, 4096)
	move.Must()
	must(t, d.finishDown(j, x, c))
	for _, off := range []int64{first, second} {
		must(t, reading(t, d, 9, off, 4096).Wait())
	}
	must(t, reading(t, d, 2, 6<<20, 4096).Wait())
}

// A snapshot in the middle of a move freezes both layers: what is written after
// it goes to the new leaf, and the snapshot's view stays (M14).
func TestSnapshotMeetsAMove(t *testing.T) {
	m := mergeCases[3]
	d, fs := m.build(t)
	j, x, c := readyMerge(t, d, "one", m.direction)
	move, stop := stoppedMove(t, d, fs, j, x, c, 0)
	snapshot := interleave.Start(t, func() error { return d.Snapshot("mid") })
	snapshot.Waits()
	stop.Go()
	snapshot.Must()
	put(t, d, 9, 0, 4096)
	put(t, d, 9, 4<<20, 4096)
	put(t, d, 9, 7<<20, 4096)
	must(t, d.Flush())
	move.Must()
	must(t, d.finishDown(j, x, c))
	view := viewOf(t, d, "mid")
	if view[0] != 1 || view[4<<20] != 2 || view[7<<20] == 9 {
		t.Errorf("the snapshot has %d, %d, %d", view[0], view[4<<20], view[7<<20])
	}
	for _, off := range []int64{0, 4 << 20, 7 << 20} {
		must(t, reading(t, d, 9, off, 4096).Wait())
	}
}

// The upper layer is larger than the one that it is merged into (M2).
func TestMergeIntoAShorterLayer(t *testing.T) {
	for _, above := range []bool{false, true} {
		d, _ := watchedDisk(t, 8<<20)
		put(t, d, 1, 0, 2<<20)
		must(t, d.Snapshot("one"))
		must(t, d.Resize(20<<20))
		put(t, d, 2, 15<<20, 64<<10)
		if above {
			must(t, d.Snapshot("two"))
		}
		j, x, c := readyMerge(t, d, "one", manifest.Down)
		must(t, d.copyDown(j, x, c))
		must(t, d.finishDown(j, x, c))
		for off, want := range map[int64]byte{0: 1, 15 << 20: 2, 9 << 20: 0, 19 << 20: 0} {
			must(t, reading(t, d, want, off, 4096).Wait())
		}
		must(t, d.Close())
		d = openDisk(t, d.Dir())
		must(t, reading(t, d, 2, 15<<20, 4096).Wait())
	}
}

// A foreign layer has clusters that are smaller than our subclusters: one that
// holds zeros beside one that says nothing is copied with what is below (M14).
func TestMergeOfPartsOfSubclusters(t *testing.T) {
	dir := t.TempDir()
	base, mid, disk := filepath.Join(dir, "base.raw"), filepath.Join(dir, "mid.qcow2"), filepath.Join(dir, "vm.varve")
	must(t, os.WriteFile(base, bytes.Repeat([]byte{7}, 1<<20), 0o600))
	qemuTool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=1k,backing_file="+base+",backing_fmt=raw", mid)
	qemuTool(t, "qemu-io", "-f", "qcow2", "-c", "write -z 4k 1k", "-c", "write -P 5 9k 1k", "-c", "write -z 16k 4k", mid)
	raw := filepath.Join(dir, "want.raw")
	qemuTool(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", mid, raw)
	want, err := os.ReadFile(raw)
	must(t, err)
	_, err = Create(disk, CreateOptions{Base: mid})
	must(t, err)
	d := openDisk(t, disk)
	id, err := d.Delete("adopted")
	finish(t, d, id, err)
	got := make([]byte, 1<<20)
	must(t, d.ReadAt(got, 0))
	if !bytes.Equal(got, want) {
		t.Error("another content")
	}
}

// While a job writes a layer nobody else may open it, and before and after
// everybody may read it (M18).
func TestLockOfAWrittenLayer(t *testing.T) {
	m := mergeCases[0]
	d, _ := m.build(t)
	path := layerPath(d, "two")
	info := func() error { return exec.Command("qemu-img", "info", path).Run() }
	if err := info(); err != nil {
		t.Errorf("a frozen layer: %v", err)
	}
	j, x, c := readyMerge(t, d, "one", m.direction)
	if err := info(); err == nil {
		t.Error("a layer that a job writes can be opened")
	}
	must(t, d.copyUp(j, x, c))
	must(t, d.finishUp(j, x, c))
	if err := info(); err != nil {
		t.Errorf("after the job: %v", err)
	}
}
