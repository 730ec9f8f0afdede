package chain

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"varve/integration/interleave"
)

// What a snapshot, or the flush after one, and what comes beside it do to each
// other, forced as in interleave_test.go.

// A write that is in flight when the leaf is swapped is finished before, and is
// in the snapshot; nothing changes the snapshot's view after it (M11).
func TestSnapshotMeetsAWrite(t *testing.T) {
	d, fs := watchedDisk(t, 4<<20)
	put(t, d, 1, 0, 64<<10)
	must(t, d.Flush())
	stop := fs.StopAt(t, func(c interleave.Call) bool { return c.Op == "write" && !c.Done && c.Length == 5000 })
	w := interleave.Start(t, func() error { return d.WriteAt(bytes.Repeat([]byte{2}, 5000), 100) })
	stop.Reached()
	snapshot := interleave.Start(t, func() error { return d.Snapshot("one") })
	snapshot.Waits()
	stop.Go()
	w.Must()
	snapshot.Must()
	put(t, d, 3, 0, 64<<10)
	must(t, d.Flush())
	view := viewOf(t, d, "one")
	if view[99] != 1 || view[100] != 2 || view[5099] != 2 || view[5100] != 1 {
		t.Errorf("the snapshot has %d, %d, %d, %d", view[99], view[100], view[5099], view[5100])
	}
}

// viewOf reads the whole view of a snapshot.
func viewOf(t *testing.T, d *Disk, name string) []byte {
	t.Helper()
	m, _ := d.tree()
	v, err := d.OpenView(t.Context(), m.ByName(name).ID, Opener{})
	must(t, err)
	defer v.Close()
	p := make([]byte, v.Size())
	must(t, v.ReadAt(p, 0))
	return p
}

// A long discard passes the gate in pieces: a snapshot that comes during the
// first does not wait for the last (M11).
func TestSnapshotMeetsALongDiscard(t *testing.T) {
	d, fs := watchedDisk(t, 48<<20)
	for off := int64(0); off < 48<<20; off += 16 << 20 {
		put(t, d, 1, off+100, 4096) // parts of subclusters: a discard writes
	}
	must(t, d.Flush())
	stop := fs.StopAt(t, func(c interleave.Call) bool { return c.Op == "write" && !c.Done })
	discard := interleave.Start(t, func() error { return d.Discard(200, 48<<20-300) })
	stop.Reached()
	snapshot := interleave.Start(t, func() error { return d.Snapshot("one") })
	snapshot.Waits()
	stop.Go()
	snapshot.Must()
	discard.Must()
	view := viewOf(t, d, "one")
	if view[500] != 0 || view[32<<20+500] != 1 {
		t.Errorf("the snapshot has %d in the first piece and %d in the last, want 0 and 1", view[500], view[32<<20+500])
	}
	for _, off := range []int64{500, 16<<20 + 500, 32<<20 + 500} {
		if got := at(t, d, off); got != 0 {
			t.Errorf("the leaf has %d at %d", got, off)
		}
	}
}

// A snapshot comes while a flush is under way: neither takes anything from the
// other, and both are durable when they return (M5, M11).
func TestSnapshotMeetsAFlush(t *testing.T) {
	d, fs := watchedDisk(t, 4<<20)
	put(t, d, 1, 0, 4096)
	leaf := layerPath(d, "")
	stop := fs.StopAt(t, on("sync", leaf))
	flush := interleave.Start(t, d.Flush)
	stop.Reached()
	put(t, d, 2, 8192, 4096)
	snapshot := interleave.Start(t, func() error { return d.Snapshot("one") })
	snapshot.Waits()
	put(t, d, 3, 16384, 4096) // into the new leaf: the gate is open again
	if got := layerPath(d, ""); got == leaf {
		t.Error("the leaf has not been swapped")
	}
	stop.Go()
	flush.Must()
	snapshot.Must()
	if !fs.clean(leaf) {
		t.Error("the frozen layer is not durable")
	}
	must(t, d.Flush())
	if !fs.clean(layerPath(d, "")) {
		t.Error("the leaf is not durable")
	}
	view := viewOf(t, d, "one")
	if view[0] != 1 || view[8192] != 2 || view[16384] == 3 || at(t, d, 16384) != 3 {
		t.Errorf("the snapshot has %d, %d, %d", view[0], view[8192], view[16384])
	}
}

// A flush, as a synchronous write asks for, that comes right after the swap
// covers the layer that was frozen (M5, M11); and when that cannot be written
// back, it says so, and says it again.
func TestFlushAfterTheSwap(t *testing.T) {
	for _, broken := range []bool{false, true} {
		d, fs := watchedDisk(t, 4<<20)
		put(t, d, 1, 0, 4096)
		frozen := layerPath(d, "")
		asked := false
		d.OnChange(func(c Change) {
			if !c.Layers || asked {
				return
			}
			asked = true
			if broken {
				fs.failing(func(c interleave.Call) error {
					if c.Op == "sync" && c.Path == frozen {
						return errors.New("the disk is gone")
					}
					return nil
				})
			}
			for i := range 2 {
				// A write that no flush could make durable is refused (D3).
				if err := d.WriteAt([]byte{2}, 8192); (err != nil) != (broken && i > 0) {
					t.Errorf("write %d: %v", i, err)
				}
				if err := d.Flush(); (err != nil) != broken {
					t.Errorf("flush: %v", err)
				}
			}
			if !broken && !fs.clean(frozen) {
				t.Error("the frozen layer is not durable")
			}
		})
		err := d.Snapshot("one")
		if !asked {
			t.Fatal("the swap was not told")
		}
		if (err != nil) != broken {
			t.Errorf("snapshot: %v", err)
		}
		if broken { // nothing can be saved: give it up as a kill does
			fs.failing(nil)
			(&diskTarget{t: t, d: d}).kill()
			d.closed = true
		}
	}
}

// A flush of the frozen layer that finds no room is tried again by the next one.
func TestFlushAfterTheSwapWithoutRoom(t *testing.T) {
	d, fs := watchedDisk(t, 4<<20)
	put(t, d, 1, 0, 4096)
	frozen := layerPath(d, "")
	full := true
	fs.failing(func(c interleave.Call) error {
		if full && c.Op == "write" && c.Path == frozen {
			return unix.ENOSPC
		}
		return nil
	})
	wantError(t, d.Snapshot("one"), unix.ENOSPC)
	wantError(t, d.Flush(), unix.ENOSPC)
	fs.failing(nil)
	must(t, d.Flush())
	if !fs.clean(frozen) {
		t.Error("the frozen layer is not durable")
	}
	(&diskTarget{t: t, d: d}).kill()
	d = openWatched(t, fs, d.Dir())
	if got := at(t, d, 0); got != 1 {
		t.Errorf("got %d after a kill", got)
	}
}
