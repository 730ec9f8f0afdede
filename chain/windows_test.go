package chain

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"varve/chain/manifest"
	"varve/chain/view"
	"varve/integration/interleave"
)

// windowedMerge is a merge of a disk with something to move in the first region and
// in the second one, each a window of its own; "two" and the leaf are above. value is
// what the source holds.
func windowedMerge(t *testing.T, direction manifest.Direction) (d *Disk, fs *watchedFS, value byte, second int64) {
	t.Helper()
	d, fs = watchedDisk(t, 40<<20)
	d.window = 1
	second = view.RegionSize + 256<<10
	small, large := func(value byte) {
		put(t, d, value, 0, 64<<10)
		put(t, d, value, second, 64<<10)
	}, func(value byte) { put(t, d, value, 32<<20, 1<<20) }
	if direction == manifest.Up {
		value = 1
		small(1)
	} else {
		large(1)
	}
	must(t, d.Snapshot("one"))
	if direction == manifest.Up {
		large(2)
	} else {
		value = 2
		small(2)
	}
	must(t, d.Snapshot("two"))
	must(t, d.Flush())
	return d, fs, value, second
}

// A window is settled while the next one is copied. What has left the source in the
// next one keeps its blocks, also when it is durable in its new place already: its
// readers have not been waited for (M1).
func TestNextWindowKeepsItsBlocks(t *testing.T) {
	for _, direction := range []manifest.Direction{manifest.Up, manifest.Down} {
		t.Run(direction.String(), func(t *testing.T) {
			d, fs, value, second := windowedMerge(t, direction)
			const length = 20000
			for _, off := range []int64{0, second} { // the regions are resolved
				must(t, reading(t, d, value, off, length).Wait())
			}
			j, x, c := readyMerge(t, d, "one", direction)
			source := x
			if direction == manifest.Down {
				source = c
			}
			path := source.Layer().Path
			place := func(off int64) int64 {
				_, host, _, err := source.Place(off, length)
				must(t, err)
				return host
			}
			if direction == manifest.Down {
				place = func(off int64) int64 {
					_, host, _, err := source.AloneLive().Place(off, length)
					must(t, err)
					return host
				}
			}
			hosts := map[int64]int64{0: place(0), second: place(second)}
			lookedUp := func(off int64) (*interleave.Stop, *interleave.Op) {
				stop := fs.StopAt(t, func(call interleave.Call) bool {
					return call.Op == "read" && call.Path == path && !call.Done && call.Touches(hosts[off], length)
				})
				reader := reading(t, d, value, off, length)
				stop.Reached()
				return stop, reader
			}
			punch := func(off int64) *interleave.Stop {
				stop := fs.StopAt(t, func(call interleave.Call) bool {
					return call.Op == "punch" && call.Path == path && call.Done && call.Touches(hosts[off], length)
				})
				stop.Go()
				return stop
			}
			firstGone, secondGone := punch(0), punch(second)
			firstStop, first := lookedUp(0)
			copyAll, finish := d.mergeSteps(direction)
			merge := interleave.Start(t, func() error { return copyAll(j, x, c) })
			merge.WaitsWith(").Synchronize(") // the first window for its reader, and the copying for that
			secondStop, late := lookedUp(second)
			must(t, d.Flush())
			if firstGone.Passed() || secondGone.Passed() {
				t.Error("a block was given back under a reader")
			}
			firstStop.Go()
			first.Must()
			firstGone.Reached()
			merge.WaitsWith(").Synchronize(") // the second one for its own
			if secondGone.Passed() {
				t.Error("a block of the next window was given back with the first")
			}
			secondStop.Go()
			late.Must()
			merge.Must()
			if !secondGone.Passed() {
				t.Error("the second window was not given back")
			}
			must(t, finish(j, x, c))
			for _, off := range []int64{0, second} {
				must(t, reading(t, d, value, off, length).Wait())
			}
		})
	}
}

// What a guest discards behind the frontier of a leaf that moves is given back with one
// of the next windows.
func TestDiscardBehindTheFrontier(t *testing.T) {
	d, fs := watchedDisk(t, 40<<20)
	d.window = 1
	put(t, d, 1, 0, 8<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 0, 128<<10)
	put(t, d, 2, view.RegionSize, 64<<10)
	put(t, d, 2, 2*view.RegionSize, 64<<10)
	must(t, d.Flush())
	j, x, c := readyMerge(t, d, "one", manifest.Down)
	into := x.Layer().Over()
	stop := fs.StopAt(t, on("sync", x.Layer().Path))
	copyAll, finish := d.mergeSteps(manifest.Down)
	merge := interleave.Start(t, func() error { return copyAll(j, x, c) })
	stop.Reached()  // the first window is settled
	merge.Settles() // the second one is copied
	must(t, d.Discard(0, 128<<10))
	stop.Go()
	merge.Must()
	if into.PunchesWait() {
		t.Error("the discarded blocks were not given back")
	}
	must(t, finish(j, x, c))
	if a, b := at(t, d, 0), at(t, d, view.RegionSize); a != 0 || b != 2 {
		t.Errorf("got %d and %d, want 0 and 2", a, b)
	}
}

// A bug that shows while a window is copied and the one before is settled fails the
// job, and nothing else.
func TestPanicBesideASettle(t *testing.T) {
	for _, direction := range []manifest.Direction{manifest.Up, manifest.Down} {
		t.Run(direction.String(), func(t *testing.T) {
			d, fs, value, second := windowedMerge(t, direction)
			must(t, d.Flush())
			var settling atomic.Bool
			fs.Watch(func(call interleave.Call) {
				// The source's blocks are not given back before its readers are gone.
				switch {
				case call.Op == "sync":
					settling.Store(true)
				case call.Op == "write" && call.Length == 64<<10 && settling.Load():
					panic("a bug")
				}
			})
			id, err := d.Delete("one")
			must(t, err)
			s, err := d.WaitJob(t.Context(), id)
			must(t, err)
			fs.Watch(nil)
			if s.State != JobFailed || !strings.Contains(s.Error, "a bug") {
				t.Errorf("the job: %+v", s)
			}
			for _, off := range []int64{0, second} {
				must(t, reading(t, d, value, off, 20000).Wait())
			}
		})
	}
}

// A window that cannot be settled ends the job, with nothing given back, although
// the next one is being copied already.
func TestWindowThatCannotSettle(t *testing.T) {
	for _, direction := range []manifest.Direction{manifest.Up, manifest.Down} {
		for _, c := range []struct {
			name string
			op   string // what fails, on the target or the source
			err  error
			once bool
		}{
			{"the target's tables find no room", "write", unix.ENOSPC, false},
			{"a hole fails", "punch", unix.EIO, true},
		} {
			t.Run(direction.String()+", "+c.name, func(t *testing.T) { windowCannotSettle(t, direction, c.op, c.err, c.once) })
		}
	}
}

func windowCannotSettle(t *testing.T, direction manifest.Direction, op string, failure error, once bool) {
	d, fs, value, second := windowedMerge(t, direction)
	j, x, c := readyMerge(t, d, "one", direction)
	target, source := c, x
	if direction == manifest.Down {
		target, source = x, c
	}
	written, given := target.Layer().Path, source.Layer().Path
	stop := fs.StopAt(t, on("sync", written))
	var punched atomic.Bool
	copyAll, _ := d.mergeSteps(direction)
	merge := interleave.Start(t, func() error { return copyAll(j, x, c) })
	stop.Reached()
	merge.Settles() // the next window is copied
	var failed atomic.Bool
	fs.failing(func(call interleave.Call) error {
		switch {
		case call.Op == op && (call.Path == written && op == "write" || call.Path == given && op == "punch") && !(once && failed.Load()):
			failed.Store(true)
			return failure
		case call.Op == "punch" && call.Path == given:
			punched.Store(true)
		}
		return nil
	})
	stop.Go()
	if err := merge.Wait(); !errors.Is(err, failure) {
		t.Errorf("got %v, want %v", err, failure)
	}
	fs.failing(nil)
	if punched.Load() {
		t.Error("blocks were given back after a window that was not settled")
	}
	for _, off := range []int64{0, second} {
		must(t, reading(t, d, value, off, 20000).Wait())
	}
}

// A merge down of a frozen layer is cancelled, and the flush that takes it back meets a
// full host for a moment: what has moved must not be punched while regions show it.
func TestCancelledMoveOnAFullHost(t *testing.T) {
	d, fs, value, second := windowedMerge(t, manifest.Down)
	const length = 20000
	for _, off := range []int64{0, second} { // the regions are resolved
		must(t, reading(t, d, value, off, length).Wait())
	}
	j, x, c := readyMerge(t, d, "one", manifest.Down)
	into, from := x.Layer().Over(), c.Layer().Over()
	must(t, d.moveStep(moveStep, func() error {
		if _, err := into.Overwrite(c.AloneLive(), 0, moveStep, x.Backing()); err != nil {
			return err
		}
		return from.Unmap(0, moveStep)
	}))
	path := c.Layer().Path
	var once atomic.Bool
	fs.failing(func(call interleave.Call) error {
		if call.Op == "write" && call.Path == path && once.CompareAndSwap(false, true) { // of its tables
			return unix.ENOSPC
		}
		return nil
	})
	d.endJob(j, jobOutcome{state: JobCancelled})
	fs.failing(nil)
	if !once.Load() {
		t.Fatal("no write failed")
	}
	for _, off := range []int64{0, second} {
		if err := reading(t, d, value, off, length).Wait(); err != nil {
			t.Errorf("at %d: %v", off, err)
		}
	}
}
