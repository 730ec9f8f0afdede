package chain

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"varve/chain/manifest"
	"varve/overlay/hostfs"
)

// atRest opens a view as an export of a mounted disk does: by what the daemon told of
// it before.
func atRest(v ViewFiles) (*AtRest, error) {
	return OpenAtRest(hostfs.OS(), v.File, v.Format, time.Now().Add(time.Minute))
}

// viewFiles is Disk.ViewFiles by a snapshot's name.
func viewFiles(t *testing.T, d *Disk, name string) ViewFiles {
	t.Helper()
	m, _ := d.tree()
	v, err := d.ViewFiles(m.ByName(name).ID)
	must(t, err)
	again, err := ParseViewFiles(v.String())
	must(t, err)
	if again != v {
		t.Errorf("%q is read as %+v", v, again)
	}
	return v
}

// A view at rest is what the daemon shows, and as long as it is open no job writes a
// file of it: one that begins waits, and goes on afterwards.
func TestAtRest(t *testing.T) {
	for _, direction := range []manifest.Direction{manifest.Up, manifest.Down} {
		d, _ := testDisk(t, 8<<20)
		sizes := map[manifest.Direction]int64{manifest.Up: 256 << 10, manifest.Down: 2 << 20}
		put(t, d, 1, 0, sizes[direction])
		must(t, d.Snapshot("one"))
		put(t, d, 2, 4<<20, 1<<20)
		must(t, d.Snapshot("two"))
		put(t, d, 3, 6<<20, 64<<10)
		must(t, d.Snapshot("three"))
		a, err := atRest(viewFiles(t, d, "three"))
		must(t, err)
		if a.Digest() != viewFiles(t, d, "three").Digest || a.Digest() == viewFiles(t, d, "two").Digest || a.Size() != 8<<20 {
			t.Errorf("at rest it has the digest %s and %d bytes", a.Digest(), a.Size())
		}
		want := make([]byte, 8<<20)
		must(t, a.Source().ReadAt(want, 0))
		if want[0] != 1 || want[4<<20] != 2 || want[6<<20] != 3 {
			t.Error("at rest it shows something else")
		}
		file, host, _, err := a.Source().Place(4<<20, 4096)
		must(t, err)
		id, err := d.Delete("one")
		must(t, err)
		time.Sleep(200 * time.Millisecond)
		p := make([]byte, 4096)
		if _, err := file.ReadAt(p, host); err != nil || !bytes.Equal(p, want[4<<20:][:4096]) {
			t.Errorf("what was placed has changed (%v)", err)
		}
		if s := d.lastJob().status(); s.State != JobRunning || s.DoneBytes > 0 {
			t.Errorf("beside an export the job is %s, with %d bytes done", s.State, s.DoneBytes)
		}
		must(t, a.Close())
		if s, err := d.WaitJob(context.Background(), id); err != nil || s.State != JobDone {
			t.Errorf("afterwards the job: %s %s (%v)", s.State, s.Error, err)
		}
		a, err = atRest(viewFiles(t, d, "three"))
		must(t, err)
		got := make([]byte, 8<<20)
		must(t, a.Source().ReadAt(got, 0))
		if a.Digest() != viewFiles(t, d, "three").Digest || !bytes.Equal(got, want) {
			t.Error("after the job it shows something else, or its digest differs")
		}
		must(t, a.Close())
	}
}

// What a job writes or gives back, and what has not settled, is not at rest.
func TestNotAtRest(t *testing.T) {
	for _, direction := range []manifest.Direction{manifest.Up, manifest.Down} {
		d, _ := testDisk(t, 8<<20)
		lower, upper := int64(256<<10), int64(1<<20)
		if direction == manifest.Down {
			lower, upper = upper, lower
		}
		put(t, d, 1, 0, lower)
		must(t, d.Snapshot("one"))
		put(t, d, 2, 4<<20, upper)
		must(t, d.Snapshot("two"))
		put(t, d, 3, 6<<20, 64<<10)
		must(t, d.Snapshot("three"))
		under := viewFiles(t, d, "base")
		views := []ViewFiles{viewFiles(t, d, "two"), viewFiles(t, d, "three")}
		j, _, _, way := heldMerge(t, d, "one")
		if way != direction {
			t.Fatalf("the merge goes %s", way)
		}
		for _, v := range views {
			if _, err := atRest(v); !errors.Is(err, hostfs.ErrLocked) {
				t.Errorf("%s, during a merge %s: %v", v.File, way, err)
			}
		}
		a, err := atRest(under) // which the job has nothing to do with
		must(t, err)
		must(t, a.Close())
		d.endJob(j, jobOutcome{state: JobCancelled})
		for _, v := range views {
			a, err := atRest(v)
			must(t, err)
			must(t, a.Close())
		}
		leaf, err := d.ViewFiles(d.leaf.Load().ID)
		must(t, err)
		if _, err := atRest(leaf); !errors.Is(err, hostfs.ErrLocked) {
			t.Errorf("the leaf: %v", err)
		}
		if _, err := OpenAtRest(hostfs.OS(), under.File, under.Format, time.Now().Add(-1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("too late: %v", err)
		}
	}
	if _, err := ParseViewFiles("digest qcow2 "); !errors.Is(err, ErrInvalid) {
		t.Errorf("without a file: %v", err)
	}
}
