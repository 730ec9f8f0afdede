package chain

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
