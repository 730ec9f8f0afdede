package chain

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"varve/chain/manifest"
	"varve/overlay/hostfs"
)

// readerOf opens a layer's file as a QEMU does that reads it or stands on it.
func readerOf(t *testing.T, path string) (hostfs.File, error) {
	t.Helper()
	f, err := hostfs.OS().Open(path, os.O_RDONLY, 0)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() }) // read only, and closed by some tests
	return f, f.Lock(hostfs.LockFrozen)
}

// smallUnderLarge makes a disk whose snapshot "one" merges upwards into "two".
// It gives the paths of both files.
func smallUnderLarge(t *testing.T) (d *Disk, one, two string) {
	t.Helper()
	d, _ = testDisk(t, 8<<20)
	put(t, d, 1, 0, 256<<10)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 4<<20, 1<<20)
	must(t, d.Snapshot("two"))
	m, _ := d.tree()
	return d, d.path(m.ByName("one")), d.path(m.ByName("two"))
}

// TestMergeUpUnderAReader: a merge upwards punches the file of the layer that
// goes, so nobody may be reading it (M18).
func TestMergeUpUnderAReader(t *testing.T) {
	d, one, two := smallUnderLarge(t)
	reader, err := readerOf(t, one)
	must(t, err)
	before, err := os.ReadFile(one)
	must(t, err)
	id, err := d.Delete("one")
	must(t, err)
	s, err := d.WaitJob(context.Background(), id)
	must(t, err)
	if s.State != JobFailed || !strings.Contains(s.Error, one) || !strings.Contains(s.Error, "which lets nobody write it") {
		t.Errorf("the job: %s: %q", s.State, s.Error)
	}
	after, err := os.ReadFile(one)
	must(t, err)
	if !bytes.Equal(before, after) {
		t.Error("the file was changed under its reader")
	}
	other, err := readerOf(t, two)
	if err != nil {
		t.Errorf("the layer that was to take it in: %v", err)
	}
	must(t, errors.Join(reader.Close(), other.Close()))
	id, err = d.DeleteUnnamed()
	finish(t, d, id, err)
	if got := states(d); got != "base base, frozen two, leaf" {
		t.Error(got)
	}
	if at(t, d, 0) != 1 || at(t, d, 4<<20) != 2 {
		t.Error("the leaf shows something else")
	}
}

// TestMergeUpGivesTheSourceBack: the file of a layer whose merge was cancelled
// may be read again.
func TestMergeUpGivesTheSourceBack(t *testing.T) {
	d, one, two := smallUnderLarge(t)
	j, _, _, direction := heldMerge(t, d, "one")
	if direction != manifest.Up {
		t.Fatalf("the merge goes %s", direction)
	}
	for _, path := range []string{one, two} {
		_, err := readerOf(t, path)
		wantError(t, err, hostfs.ErrLocked, path, "for writing")
	}
	d.endJob(j, jobOutcome{state: JobCancelled})
	for _, path := range []string{one, two} {
		if _, err := readerOf(t, path); err != nil {
			t.Error(err)
		}
	}
}
