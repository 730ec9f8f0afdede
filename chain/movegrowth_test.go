package chain

import (
	"errors"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"varve/chain/manifest"
	"varve/chain/view"
	"varve/integration/interleave"
)

// A disk whose size is no multiple of a subcluster grows when its leaf has moved down:
// the growth writes its last subcluster into the layer that was emptied already.
func TestUnevenDiskGrowsBehindAMove(t *testing.T) {
	const size = 8<<20 + 1536
	build := func(t *testing.T) (*Disk, *job, *view.Node, *view.Node) {
		d, _ := watchedDisk(t, size)
		put(t, d, 1, 0, 4<<20)
		must(t, d.Snapshot("one"))
		put(t, d, 2, 5<<20, 1<<20)
		put(t, d, 2, 8<<20, 1536)
		must(t, d.Flush())
		j, x, c := readyMerge(t, d, "one", manifest.Down)
		return d, j, x, c
	}
	t.Run("when it is sealed", func(t *testing.T) {
		d, j, x, c := build(t)
		must(t, d.copyDown(j, x, c))
		must(t, d.Resize(24<<20))
		put(t, d, 9, 8<<20, 512)
		if got := at(t, d, 8<<20); got != 9 {
			t.Errorf("the guest reads %d, and has written 9", got)
		}
		must(t, d.finishDown(j, x, c))
		if got := at(t, d, 8<<20); got != 9 {
			t.Errorf("for good: the guest reads %d, and has written 9", got)
		}
	})
	t.Run("before the move is sealed", func(t *testing.T) {
		d, j, x, c := build(t)
		into, from := x.Layer().Over(), c.Layer().Over()
		must(t, d.moveStep(view.RegionSize, func() error {
			if _, err := into.Overwrite(c.AloneLive(), 0, size, x.Backing()); err != nil {
				return err
			}
			return from.Unmap(0, size)
		}))
		must(t, d.Resize(24<<20))
		put(t, d, 9, 8<<20, 512)
		if got := at(t, d, 8<<20); got != 9 {
			t.Errorf("the guest reads %d, and has written 9", got)
		}
		must(t, d.copyDown(j, x, c))
		must(t, d.finishDown(j, x, c))
		if got := at(t, d, 8<<20); got != 9 {
			t.Errorf("for good: the guest reads %d, and has written 9", got)
		}
	})
}

// A growth that the host refuses for the leaf alone, after the layer into which it moves
// has grown, does not come true when the move is over.
func TestRefusedGrowthStaysRefused(t *testing.T) {
	for _, snapshot := range []bool{false, true} {
		const size, more = 8 << 20, 3 << 30
		d, fs := watchedDisk(t, size)
		put(t, d, 1, 0, 4<<20)
		must(t, d.Snapshot("one"))
		put(t, d, 2, 5<<20, 1<<20)
		must(t, d.Flush())
		j, x, c := readyMerge(t, d, "one", manifest.Down)
		path := c.Layer().Path
		fs.failing(func(call interleave.Call) error {
			if call.Path == path && (call.Op == "allocate" || call.Op == "write" || call.Op == "truncate") {
				return unix.ENOSPC
			}
			return nil
		})
		if err := d.Resize(more); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("Resize gives %v", err)
		}
		fs.failing(nil)
		if x.Layer().Size() != more {
			t.Fatalf("the layer below has %d bytes: this tests nothing", x.Layer().Size())
		}
		if snapshot {
			must(t, d.Snapshot("two"))
		}
		must(t, d.copyDown(j, x, c))
		must(t, d.finishDown(j, x, c))
		if d.Size() != size {
			t.Errorf("the disk has %d bytes, and the growth to %d was refused", d.Size(), more)
		}
		if got := at(t, d, 5<<20); got != 2 {
			t.Errorf("it reads %d", got)
		}
		must(t, d.Close())
		report, err := Check(t.Context(), d.Dir(), CheckOptions{FS: fs})
		if err != nil || report.Errors != 0 {
			t.Errorf("%v %+v", err, report)
		}
	}
}

// shrunkDisk has a leaf that qemu-img has made smaller, to size, than what it stands on.
func shrunkDisk(t *testing.T, d *Disk, size int64) *Disk {
	t.Helper()
	leaf := layerPath(d, "")
	must(t, d.Close())
	qemuTool(t, "qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", leaf, strconv.FormatInt(size, 10))
	return openDisk(t, d.Dir())
}

// What a layer held behind the end of a leaf that was made smaller is not seen when the
// disk grows while the leaf moves down; nor is what QEMU leaves in the last cluster.
func TestGrowthOfAShrunkLeafThatMoves(t *testing.T) {
	d, _ := testDisk(t, 64<<20)
	put(t, d, 1, 0, 40<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 3, 0, 1<<20)
	put(t, d, 3, 8<<20, 1<<20)
	must(t, d.Snapshot("two"))
	put(t, d, 2, 4<<20, 128<<10)
	put(t, d, 2, 0, 4096)
	d = shrunkDisk(t, d, 4<<20+8<<10)
	const grown = 32 << 20 // beyond the region in which everything has moved
	j, x, c := readyMerge(t, d, "two", manifest.Down)
	must(t, d.copyDown(j, x, c))
	must(t, d.Resize(grown))
	for off := int64(4<<20 + 8<<10); off < grown; off += 4096 {
		if got := at(t, d, off); got != 0 {
			t.Fatalf("the new part reads %d at %d", got, off)
		}
	}
	places := []int64{4<<20 + 64<<10, 8 << 20, 30 << 20, grown - 4096}
	for _, off := range places {
		put(t, d, 9, off, 4096)
		if got := at(t, d, off); got != 9 {
			t.Errorf("wrote 9 at %d, reads %d", off, got)
		}
	}
	must(t, d.finishDown(j, x, c))
	for _, off := range places {
		if got := at(t, d, off); got != 9 {
			t.Errorf("for good: wrote 9 at %d, reads %d", off, got)
		}
	}
	id, err := d.DeleteUnnamed()
	finish(t, d, id, err)
	must(t, d.Close())
}

// What QEMU leaves behind the end of a blank disk that it makes smaller reads as zeros
// when the disk grows.
func TestShrunkBlankDiskGrows(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vm.varve")
	_, err := Create(dir, CreateOptions{Size: 16 << 20})
	must(t, err)
	d := openDisk(t, dir)
	put(t, d, 2, 4<<20, 128<<10)
	d = shrunkDisk(t, d, 4<<20+512)
	must(t, d.Resize(12<<20))
	for off := int64(4<<20 + 512); off < 12<<20; off += 512 {
		if got := at(t, d, off); got != 0 {
			t.Fatalf("the new part reads %d at %d", got, off)
		}
	}
	if got := at(t, d, 4<<20); got != 2 {
		t.Errorf("the rest reads %d", got)
	}
}

// Writes do not wait for the flush of a growth while the mover waits for it.
func TestWritesDuringGrowthBehindAMove(t *testing.T) {
	d, fs := watchedDisk(t, 8<<20)
	put(t, d, 1, 0, 4<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 5<<20, 1<<20)
	must(t, d.Flush())
	j, x, c := readyMerge(t, d, "one", manifest.Down)
	stop := fs.StopAt(t, on("sync", c.Layer().Path))
	grow := interleave.Start(t, func() error { return d.Resize(24 << 20) })
	stop.Reached()
	merge := interleave.Start(t, func() error { return d.copyDown(j, x, c) })
	merge.Settles()
	must(t, d.WriteAt([]byte{7}, 1<<20)) // or it hangs here
	stop.Go()
	grow.Must()
	merge.Must()
	must(t, d.finishDown(j, x, c))
	if got := at(t, d, 1<<20); got != 7 {
		t.Errorf("it reads %d", got)
	}
}
