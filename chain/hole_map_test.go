package chain

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"varve/chain/manifest"
	"varve/chain/view"
	"varve/integration/interleave"
	"varve/overlay/extent"
)

// run is a run of guest bytes.
type run struct{ start, end int64 }

// qemuRuns is what qemu-img map calls data in an image and all below it.
func qemuRuns(t *testing.T, path string) (runs []run) {
	t.Helper()
	var list []struct {
		Start, Length int64
		Data          bool
	}
	text := qemuTool(t, "qemu-img", "map", "-U", "--output=json", "-f", "qcow2", path)
	must(t, json.Unmarshal([]byte(text), &list))
	for _, e := range list {
		if e.Data {
			runs = appendRun(runs, e.Start, e.Start+e.Length)
		}
	}
	return runs
}

func appendRun(runs []run, start, end int64) []run {
	if n := len(runs); n > 0 && runs[n-1].end == start {
		runs[n-1].end = end
		return runs
	}
	return append(runs, run{start, end})
}

// seekRuns is what seeking finds in a view.
func seekRuns(t *testing.T, d *Disk, n *view.Node) (runs []run) {
	t.Helper()
	for off := int64(0); ; {
		start, err := n.Seek(&d.readers, off, true)
		if err == io.EOF {
			return runs
		}
		must(t, err)
		off, err = n.Seek(&d.readers, start, false)
		must(t, err)
		runs = appendRun(runs, start, off)
	}
}

// What seeking, Map, IsZero and DataBytes say of views with long holes is what qemu-img
// finds in the files: places near and far from each other, data, zeros over data, zeros
// over nothing, over a raw base and over none.
func TestHolesAgainstQEMU(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 14))
			// Over a raw base qemu-img takes its time for each GiB.
			raw := seed%2 == 1
			size := int64(1)<<30 + rnd.Int64N(4<<40)&^0xfffff
			if raw {
				size = int64(1)<<30 + rnd.Int64N(64<<30)&^0xfffff
			}
			dir := t.TempDir()
			o := CreateOptions{Size: size}
			places := []int64{0, size - 1<<20}
			for range 12 {
				at := rnd.Int64N(size-1<<20) &^ 0xffff
				places = append(places, at, min(at+rnd.Int64N(64<<20), size-1<<20))
			}
			somewhere := func() int64 { return places[rnd.IntN(len(places))] + rnd.Int64N(1<<18)&^0xfff }
			if raw {
				base := filepath.Join(dir, "base.raw")
				f, err := os.Create(base)
				must(t, err)
				must(t, f.Truncate(size))
				for range 10 {
					_, err := f.WriteAt(make([]byte, 1+rnd.IntN(1<<17)), somewhere())
					must(t, err)
				}
				must(t, f.Close())
				o = CreateOptions{Base: base}
			}
			_, err := Create(filepath.Join(dir, "vm.varve"), o)
			must(t, err)
			d := openDisk(t, filepath.Join(dir, "vm.varve"))
			layers := 1 + rnd.IntN(5)
			for n := range layers {
				for range rnd.IntN(20) {
					off, length := somewhere(), 1+rnd.Int64N(300_000)
					switch rnd.IntN(6) {
					case 0:
						must(t, d.Discard(off, min(length*rnd.Int64N(1000), size-off)))
					case 1:
						must(t, d.Discard(off&^0xffff, length&^0xfff))
					default:
						put(t, d, byte(1+n), off, length)
					}
				}
				if n < layers-1 {
					must(t, d.Snapshot(fmt.Sprint("s", n)))
				}
			}
			must(t, d.Flush())
			compare := func() {
				m, nodes := d.tree()
				for _, l := range m.Layers {
					if l.Format == formatQcow2 {
						compareHoles(t, d, nodes[l.ID], qemuRuns(t, d.path(l)), rnd, places)
					}
				}
			}
			compare()
			if layers > 2 {
				_, err := d.Delete("s0")
				must(t, err)
				waitJobs(t, d)
				must(t, d.Flush())
				compare()
			}
			checkDisk(t, d)
		})
	}
}

// compareHoles holds what there is to ask about a view's holes against its runs of data.
func compareHoles(t *testing.T, d *Disk, n *view.Node, want []run, rnd *rand.Rand, places []int64) {
	t.Helper()
	size := n.Size()
	if got := seekRuns(t, d, n); !slices.Equal(got, want) {
		t.Errorf("layer %s: seeking finds %v, qemu-img %v", n.ID, got, want)
	}
	if n.Frozen() {
		var got []run
		extents, err := n.Map(nil, 0, size)
		must(t, err)
		at := int64(0)
		for _, e := range extents {
			if e.Start != at {
				t.Errorf("layer %s: an extent begins at %d, not at %d", n.ID, e.Start, at)
			}
			if at = e.End(); e.Kind == extent.Data {
				got = appendRun(got, e.Start, e.End())
			}
		}
		if at != size || !slices.Equal(got, want) {
			t.Errorf("layer %s: Map gives %v to %d, want %v to %d", n.ID, got, at, want, size)
		}
	}
	for range 20 {
		from := min(size-1, places[rnd.IntN(len(places))]+rnd.Int64N(1<<20))
		to := from + 1 + rnd.Int64N(min(size-from, 1<<uint(12+rnd.IntN(30))))
		data, first := int64(0), int64(-1)
		for _, r := range want {
			if start, end := max(from, r.start), min(to, r.end); start < end {
				data += end - start
				if first < 0 {
					first = start
				}
			}
		}
		zero, err := n.IsZero(from, to-from)
		must(t, err)
		if n.Frozen() && zero != (data == 0) {
			t.Errorf("layer %s: [%d, %d) is zero: %v, want %v", n.ID, from, to, zero, data == 0)
		}
		if m, _ := d.tree(); n == d.leaf.Load() || m.Layer(n.ID).Name != "" {
			id := n.ID
			if n == d.leaf.Load() {
				id = ""
			}
			bytes, _, err := d.DataBytes(id, from, to, time.Time{})
			must(t, err)
			if bytes != data {
				t.Errorf("layer %s: [%d, %d) has %d bytes of data, want %d", n.ID, from, to, bytes, data)
			}
		}
		next, err := n.NextHeld(from)
		must(t, err)
		if first >= 0 && next > first {
			t.Errorf("layer %s: from %d on %d is next, and %d is data", n.ID, from, next, first)
		}
	}
}

// While jobs move what lies between long holes, a walk misses nothing of it.
func TestWalksDuringJobs(t *testing.T) {
	const size, extents = int64(1) << 40, 40
	dir := filepath.Join(t.TempDir(), "vm.varve")
	_, err := Create(dir, CreateOptions{Size: size})
	must(t, err)
	d := openDisk(t, dir)
	d.window = 1 << 20 // many windows
	place := func(i int) int64 { return size / extents * int64(i) &^ 0xfffff }
	write := func(layer, step int) {
		for i := layer; i < extents; i += step {
			put(t, d, byte(1+layer), place(i), 100<<10)
		}
	}
	for layer, step := range []int{1, 2, 5, 3} {
		write(layer, step)
		must(t, d.Snapshot(fmt.Sprint("s", layer)))
	}
	write(4, 4)
	must(t, d.Flush())

	var stop atomic.Bool
	done := make(chan error, 2)
	for range 2 {
		go func() {
			done <- func() error {
				for !stop.Load() {
					found := 0
					for off := int64(0); ; found++ {
						at, err := d.SeekData(off)
						if err == io.EOF {
							break
						}
						if err != nil || at != place(found) {
							return fmt.Errorf("data %d was found at %d, not %d: %v", found, at, place(found), err)
						}
						if off, err = d.SeekHole(at); err != nil || off-at < 100<<10 {
							return fmt.Errorf("data %d at %d goes to %d: %v", found, at, off, err)
						}
					}
					if found != extents {
						return fmt.Errorf("%d runs of data were found, want %d", found, extents)
					}
				}
				return nil
			}()
		}()
	}
	for _, name := range []string{"s1", "s0", "s3"} { // up, up, and the leaf down
		_, err := d.Delete(name)
		must(t, err)
		put(t, d, 9, place(7), 50<<10) // while it runs
		waitJobs(t, d)
	}
	_, err = d.Flatten(manifest.LeafName)
	must(t, err)
	waitJobs(t, d)
	must(t, d.Discard(place(3)+1<<20, size/extents-2<<20)) // a hole already
	stop.Store(true)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	checkDisk(t, d)
}

// A guest writes into a hole of the leaf that is about to move down in one piece: what
// it wrote moves with it (M13).
func TestWriteIntoAHoleThatMoves(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vm.varve")
	_, err := Create(dir, CreateOptions{Size: 64 << 30})
	must(t, err)
	d := openDisk(t, dir)
	put(t, d, 1, 0, 4<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 40<<30, 64<<10)
	j, x, c := readyMerge(t, d, "one", manifest.Down)
	d.move.growing.Lock() // where the first step, over 40 GiB, waits
	move := interleave.Start(t, func() error { return d.copyDown(j, x, c) })
	move.Waits()
	put(t, d, 9, 10<<30, 4096)
	d.move.growing.Unlock()
	move.Must()
	must(t, d.finishDown(j, x, c))
	must(t, reading(t, d, 9, 10<<30, 4096).Wait())
	must(t, reading(t, d, 2, 40<<30, 64<<10).Wait())
	must(t, reading(t, d, 1, 0, 4<<20).Wait())
	checkDisk(t, d)
}
