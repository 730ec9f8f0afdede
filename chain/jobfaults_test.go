package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/manifest"
	"varve/chain/view"
	"varve/integration/interleave"
	"varve/integration/powercut"
	"varve/integration/turn"
	"varve/overlay"
	"varve/overlay/hostfs"
)

// TestFailedMergeKeepsHeaders fails each commit of chain.json during a merge
// downwards in turn: when the job has ended, the headers name what chain.json
// names, also of the layer on top, whose name the job changes before the last.
func TestFailedMergeKeepsHeaders(t *testing.T) {
	for fail := 1; ; fail++ {
		g := newSimGuest(t, onRaw, 1)
		g.open()
		put(t, g.d, 1, 0, 1<<20)
		must(t, g.d.Snapshot("one"))
		put(t, g.d, 2, 0, 4096)
		must(t, g.d.Snapshot("two"))
		put(t, g.d, 3, 8192, 4096)
		must(t, g.d.Snapshot("three"))
		calls := 0
		g.host.SetHook(false, func(op powercut.Op) error {
			if op.Kind == powercut.Rename {
				if calls++; calls == fail {
					return syscall.EIO
				}
			}
			return nil
		})
		if id, err := g.d.Delete("one"); err == nil {
			_, err = g.d.WaitJob(context.Background(), id)
			must(t, err)
		}
		if err := headersFollow(g.host, g.dir); err != nil {
			t.Errorf("commit %d failed: %v", fail, err)
		}
		if a, b := at(t, g.d, 0), at(t, g.d, 8192); a != 2 || b != 3 {
			t.Errorf("commit %d failed: the leaf has %d and %d", fail, a, b)
		}
		g.host.SetHook(false, nil)
		must(t, g.d.Close())
		if calls < fail {
			return
		}
	}
}

// TestCloseDuringDelete closes the disk while a delete is being recorded: its
// job must not begin after that, or it would write a directory that is somebody
// else's by then. It goes on at the next open.
func TestCloseDuringDelete(t *testing.T) {
	g := newSimGuest(t, onRaw, 1)
	g.open()
	put(t, g.d, 1, 0, 1<<20)
	must(t, g.d.Snapshot("one"))
	put(t, g.d, 2, 0, 4096)
	closed := make(chan error, 1)
	begun := false
	g.host.SetHook(false, func(op powercut.Op) error {
		if op.Kind == powercut.Rename && !begun {
			begun = true
			go func() { closed <- g.d.Close() }()
			time.Sleep(50 * time.Millisecond) // it waits for the delete
		}
		return nil
	})
	_, err := g.d.Delete("one")
	must(t, err)
	must(t, <-closed)
	g.host.Record()
	time.Sleep(50 * time.Millisecond)
	if late := g.host.Recorded(); len(late) > 0 {
		t.Errorf("%d calls changed the disk after it was closed: %v", len(late), late)
	}
	g.open()
	j := g.d.lastJob()
	if j == nil {
		t.Fatal("the job was lost")
	}
	<-j.done
	if s := j.status(); s.State != JobDone {
		t.Errorf("the job: %+v", s)
	}
	must(t, g.d.Close())
}

// heldMerge records the delete of a snapshot without running it, and prepares
// its merge.
func heldMerge(t *testing.T, d *Disk, name string) (j *job, x, c *view.Node, direction manifest.Direction) {
	t.Helper()
	d.holdJob = true
	_, err := d.Delete(name)
	must(t, err)
	j = d.lastJob()
	x, c, direction, err = d.prepareMerge(j)
	must(t, err)
	return j, x, c, direction
}

// TestCancelledMoveKeepsBlocks cancels a merge that moves the leaf down while
// somebody reads what has moved: its blocks in the leaf stay until they are
// done (M1), whatever flushes.
func TestCancelledMoveKeepsBlocks(t *testing.T) {
	g := newSimGuest(t, onRaw, 1)
	g.open()
	d := g.d
	put(t, d, 1, 0, 1<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 0, 64<<10)
	j, x, c, direction := heldMerge(t, d, "one")
	if direction != manifest.Down {
		t.Fatalf("the merge goes %s", direction)
	}
	path := c.Layer().Path
	punched := false
	var mu sync.Mutex
	g.host.SetHook(false, func(op powercut.Op) error {
		mu.Lock()
		defer mu.Unlock()
		punched = punched || op.Kind == powercut.Punch && op.Path == path
		return nil
	})
	section := d.readers.Enter() // a reader that has looked, and not read yet
	into, from := x.Layer().Over(), c.Layer().Over()
	must(t, d.moveStep(moveStep, func() error {
		if _, err := into.Overwrite(c.AloneLive(), 0, moveStep, x.Backing()); err != nil {
			return err
		}
		return from.Unmap(0, moveStep)
	}))
	ended := make(chan bool)
	go func() {
		d.endJob(j, jobOutcome{state: JobCancelled})
		close(ended)
	}()
	for range 20 {
		time.Sleep(2 * time.Millisecond)
		must(t, d.Flush())
		d.punchLeaf()
	}
	mu.Lock()
	early := punched
	mu.Unlock()
	d.readers.Exit(section)
	<-ended
	if early {
		t.Error("blocks were given back under a reader")
	}
	if got := at(t, d, 0); got != 2 {
		t.Errorf("the leaf has %d", got)
	}
	must(t, d.Flush())
	d.punchLeaf()
	must(t, d.Close())
}

// TestGrowthAtTheEndOfAMerge grows the disk when a merge has just looked at its
// last region. The merged layer is shorter than the one below it, whose bytes
// must not show through (M2).
func TestGrowthAtTheEndOfAMerge(t *testing.T) {
	dir := t.TempDir()
	base, mid, disk := filepath.Join(dir, "base.raw"), filepath.Join(dir, "mid.qcow2"), filepath.Join(dir, "vm.varve")
	must(t, os.WriteFile(base, bytes.Repeat([]byte{7}, 8<<20), 0o600))
	must(t, overlay.Create(hostfs.OS(), mid, overlay.CreateOptions{Size: 4 << 20, Backing: base, BackingFormat: formatRaw}))
	_, err := Create(disk, CreateOptions{Base: mid})
	must(t, err)
	d := openDisk(t, disk)
	j, x, c, direction := heldMerge(t, d, "adopted")
	if direction != manifest.Up {
		t.Fatalf("the merge goes %s", direction)
	}
	must(t, d.copyUp(j, x, c))
	must(t, d.Resize(6<<20))
	must(t, d.finishUp(j, x, c))
	if got := at(t, d, 1<<20); got != 7 {
		t.Errorf("what was there before has %d", got)
	}
	if got := at(t, d, 5<<20); got != 0 {
		t.Errorf("the new part has %d, want zeros", got)
	}
}

// TestFailedRevertStaysUndone fails the directory's fsync of a revert's commit:
// nobody knows whether the new chain.json is there. What the guest goes on to
// write must not be set aside, or unlinked, by the next open after a power cut.
func TestFailedRevertStaysUndone(t *testing.T) {
	g := newSimGuest(t, onRaw, 1)
	g.open()
	put(t, g.d, 1, 0, 4096)
	must(t, g.d.Snapshot("one"))
	done := false
	g.host.SetHook(false, func(op powercut.Op) error {
		if op.Kind == powercut.SyncDir && op.Path == g.dir && !done {
			done = true
			return syscall.EIO
		}
		return nil
	})
	err := g.d.Revert("one")
	wantError(t, err, syscall.EIO)
	put(t, g.d, 2, 0, 4096)
	must(t, g.d.Flush())
	g.host.SetHook(false, nil)
	for range 200 {
		d, err := openSim(g.host.Cut(g.rnd), g.dir, slog.DiscardHandler)
		must(t, err)
		if got := at(t, d, 0); got != 2 {
			t.Errorf("the leaf has %d", got)
		}
		must(t, d.Close())
	}
	must(t, g.d.Close())
}

// TestMergeOfAChangedLeaf deletes the layer that a leaf became when qemu-img
// had made a snapshot inside it: it is never written, so it is merged upwards
// although that copies more (M17).
func TestMergeOfAChangedLeaf(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	put(t, d, 1, 0, 1<<20)
	m, nodes := d.tree()
	leaf := nodes[m.Leaf].Layer().Path
	must(t, d.Close())
	if out, err := exec.Command("qemu-img", "snapshot", "-c", "inside", leaf).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d = openDisk(t, d.Dir())
	put(t, d, 2, 0, 4096)
	id, err := d.DeleteUnnamed()
	finish(t, d, id, err)
	if a, b := at(t, d, 0), at(t, d, 8192); a != 2 || b != 1 {
		t.Errorf("the leaf has %d and %d", a, b)
	}
	if n := len(d.Layers()); n != 2 {
		t.Errorf("%d layers are left, want the base and the leaf", n)
	}
}

// Jobs on a host that refuses some writes in a row: what is read in memory stays, as do
// the views after another open (M14).
func TestFaultsInARow(t *testing.T) {
	stride, rows := 92, []int{2, 4}
	if os.Getenv("VARVE_LONG") != "" {
		stride, rows = 1, []int{2, 3, 4, 5, 6}
	}
	base := filepath.Join(t.TempDir(), "base.raw")
	must(t, sparseBase(base))
	seed := 0
	for _, leafOnly := range []bool{false, true} {
		for _, work := range []string{manifest.Up.String(), manifest.Down.String(), FlattenJob.String()} {
			for _, errno := range []unix.Errno{unix.ENOSPC, unix.EIO} {
				for _, row := range rows {
					seed++
					name := fmt.Sprintf("%s, leaf only %v, %v %d times", work, leafOnly, errno, row)
					t.Run(name, func(t *testing.T) {
						f := rowOfFaults{base: base, work: work, leafOnly: leafOnly, errno: errno, row: row}
						for n := 4 + turn.Of(5*seed, stride); !t.Failed(); n += stride {
							if !f.run(t, n) {
								return
							}
						}
					})
				}
			}
		}
	}
}

// sparseBase makes a raw image of 40 MiB and three sectors that holds data only around
// the places where TestFaultsInARow writes: holes are read fast.
func sparseBase(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	const mib = 1 << 20
	err = f.Truncate(40*mib + 1536)
	for _, data := range [][2]int64{{0, mib}, {16 * mib, 18 * mib}, {23 * mib, 30 * mib}, {34 * mib, 37 * mib}, {40 * mib, 40*mib + 1536}} {
		if err == nil {
			_, err = f.WriteAt(bytes.Repeat([]byte("some base data. "), int(data[1]-data[0])/16), data[0])
		}
	}
	return errors.Join(err, f.Close())
}

// rowOfFaults is a job of which some calls in a row fail.
type rowOfFaults struct {
	base     string // of the disk
	work     string
	leafOnly bool
	errno    unix.Errno
	row      int
	views    everyView // before the job; the same in each run
}

// run has some calls of the job fail, from the nth on; false when it has no such call.
func (f *rowOfFaults) run(t *testing.T, n int) bool {
	work, leafOnly, errno, row := f.work, f.leafOnly, f.errno, f.row
	dir := filepath.Join(t.TempDir(), "vm.varve")
	_, err := Create(dir, CreateOptions{Base: f.base})
	must(t, err)
	fs := newWatchedFS()
	d := openWatched(t, fs, dir)
	d.window = 1
	small := func(value byte) {
		put(t, d, value, 0, 64<<10)
		put(t, d, value, view.RegionSize+256<<10, 64<<10)
		put(t, d, value, view.RegionSize+1<<20+100, 300)
		must(t, d.Discard(2*view.RegionSize+3<<20, 1<<20))
		put(t, d, value, 40<<20+100, 1000)
	}
	large := func(value byte) {
		put(t, d, value, 24<<20, 5<<20)
		must(t, d.Discard(view.RegionSize+256<<10, 16<<10))
		put(t, d, value, 0, 8192)
	}
	lower, upper := large, small
	if work == manifest.Up.String() {
		lower, upper = small, large
	}
	lower(1)
	must(t, d.Snapshot("one"))
	upper(2)
	flattened := manifest.LeafName
	if !leafOnly {
		flattened = "two"
		must(t, d.Snapshot("two"))
		put(t, d, 3, 100, 5000)
		must(t, d.Snapshot("three"))
		put(t, d, 4, view.RegionSize+300<<10, 5000)
	}
	must(t, d.Flush())
	if f.views == nil {
		f.views = everyView{"": make([]byte, d.Size())}
		must(t, d.ReadAt(f.views[""], 0))
		if !leafOnly {
			for _, name := range []string{"two", "three"} {
				f.views[name] = viewOf(t, d, name)
			}
		}
	}
	views := f.views
	check := func(when string) {
		t.Helper()
		if err := views.check(d); err != nil {
			t.Fatalf("call %d: %s: %v", n, when, err)
		}
	}
	over := func() {
		if j := d.lastJob(); j != nil {
			<-j.done
		}
	}

	var calls, hit atomic.Int64
	fs.failing(func(call interleave.Call) error {
		switch call.Op {
		case "write", "truncate", "allocate":
			if c := int(calls.Add(1)); c >= n && c < n+row {
				hit.Add(1)
				return errno
			}
		}
		return nil
	})
	if work == FlattenJob.String() {
		_, err = d.Flatten(flattened)
	} else {
		_, err = d.Delete("one")
	}
	if err == nil {
		over()
	}
	fs.failing(nil)
	check("after the job")
	if err := d.WriteAt(bytes.Repeat([]byte{9}, 100), 50); err == nil {
		before := bytes.Clone(views[""][50:150])
		defer copy(views[""][50:150], before)
		copy(views[""][50:], bytes.Repeat([]byte{9}, 100))
		check("after a write")
		_ = d.Flush() // a layer whose fdatasync failed stays failed
		d.punchLeaf()
		check("after a flush")
	}
	if errno != unix.ENOSPC {
		_ = d.Close()
		return hit.Load() > 0
	}
	must(t, d.Flush())
	if _, err := d.DeleteUnnamed(); err == nil {
		over()
		check("after it went on")
	}
	_ = d.Close() // what could not be settled, the next Open settles
	d, err = Open(d.Dir(), OpenOptions{})
	must(t, err)
	over()
	check("after another open")
	must(t, d.Close())
	return hit.Load() > 0
}
