package chain

import (
	"bytes"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"varve/chain/manifest"
	"varve/integration/interleave"
)

// used is how many bytes the files of a directory occupy on the host.
func used(t *testing.T, dir string) (total int64) {
	t.Helper()
	fs := newWatchedFS().FS
	names, err := fs.ReadDir(dir)
	must(t, err)
	for _, name := range names {
		if info, err := fs.Stat(filepath.Join(dir, name)); err == nil {
			total += info.Blocks
		}
	}
	return total
}

// A merge takes at most 64 MiB of further space at any moment, whatever it
// copies, and in the end none but what the tables of one layer take (M13).
func TestMergeNeedsLittleSpace(t *testing.T) {
	if testing.Short() {
		t.Skip("it writes some hundred MiB")
	}
	const copied, rest = 160 << 20, 224 << 20
	for _, direction := range []manifest.Direction{manifest.Up, manifest.Down} {
		t.Run(direction.String(), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "vm.varve")
			_, err := Create(dir, CreateOptions{Size: copied + rest})
			must(t, err)
			fs := newWatchedFS()
			d := openWatched(t, fs, dir)
			fill := func(value byte, from, to int64) {
				// In each MiB in another order, as a guest with several writes in flight.
				p := bytes.Repeat([]byte{value}, 128<<10)
				for off := from; off < to; off += 1 << 20 {
					for i := range int64(8) {
						must(t, d.WriteAt(p, off+i*3%8<<17))
					}
				}
			}
			lower, upper := int64(copied), int64(rest)
			if direction == manifest.Down {
				lower, upper = rest, copied
			}
			fill(1, 0, lower)
			must(t, d.Snapshot("one"))
			fill(2, lower, lower+upper)
			must(t, d.Snapshot("two"))
			must(t, d.Flush())
			d.holdJob = true
			layers := filepath.Join(dir, manifest.LayersDir)
			before := used(t, layers)
			j, x, c := readyMerge(t, d, "one", direction)
			var most, holes atomic.Int64
			fs.Watch(func(call interleave.Call) {
				if call.Op == "punch" && !call.Done {
					holes.Add(1)
				}
				switch call.Op {
				case "sync", "punch", "truncate", "rename", "remove":
					most.Store(max(most.Load(), used(t, layers)))
				}
			})
			copyAll, finish := d.mergeSteps(direction)
			must(t, copyAll(j, x, c))
			must(t, finish(j, x, c))
			fs.Watch(nil)
			extra := most.Load() - before
			t.Logf("%d MiB copied, at most %.1f MiB more than before, %.1f MiB in the end",
				int64(copied)>>20, float64(extra)/(1<<20), float64(used(t, layers)-before)/(1<<20))
			if n := holes.Load(); n > copied>>20 {
				t.Errorf("%d holes were punched: neighbours in the file are not joined", n)
			}
			const tables = 2 << 20
			if extra > 64<<20+tables {
				t.Errorf("the merge took %d MiB of further space", extra>>20)
			}
			if extra < copyWindow/2 {
				t.Errorf("only %d bytes of further space were seen: the test looks at the wrong moments", extra)
			}
			if now := used(t, layers) - before; now > tables {
				t.Errorf("%d bytes more are in use after the merge", now)
			}
			for off, want := range map[int64]byte{0: 1, lower - 1: 1, lower: 2, lower + upper - 1: 2} {
				if got := at(t, d, off); got != want {
					t.Errorf("got %d at %d, want %d", got, off, want)
				}
			}
		})
	}
}

// A merge goes in the direction that moves less, and moving a leaf must be worth
// what it costs its writers; nothing is ever merged into a foreign layer (M12).
func TestDirectionOfAMerge(t *testing.T) {
	for _, m := range []struct {
		lower, upper int64
		frozen       bool // the upper layer
		foreign      bool // the lower layer
		want         manifest.Direction
	}{
		{1 << 20, 64 << 10, true, false, manifest.Down},
		{64 << 10, 1 << 20, true, false, manifest.Up},
		{1 << 20, 768 << 10, true, false, manifest.Down},
		{1 << 20, 768 << 10, false, false, manifest.Up},
		{1 << 20, 64 << 10, false, false, manifest.Down},
		{1 << 20, 64 << 10, true, true, manifest.Up},
	} {
		d, _ := watchedDisk(t, 8<<20)
		put(t, d, 1, 0, m.lower)
		name := "one"
		if m.foreign {
			leaf := layerPath(d, "")
			must(t, d.Close())
			foreign := filepath.Join(t.TempDir(), "one.qcow2")
			must(t, os.Rename(leaf, foreign))
			dir := filepath.Join(t.TempDir(), "vm.varve")
			_, err := Create(dir, CreateOptions{Base: foreign})
			must(t, err)
			d, name = openWatched(t, newWatchedFS(), dir), "adopted"
			before, err := os.ReadFile(foreign)
			must(t, err)
			t.Cleanup(func() {
				if after, err := os.ReadFile(foreign); err != nil || !bytes.Equal(before, after) {
					t.Errorf("the foreign layer was written: %v", err)
				}
			})
		} else {
			must(t, d.Snapshot(name))
		}
		put(t, d, 2, 4<<20, m.upper)
		if m.frozen {
			must(t, d.Snapshot("two"))
		}
		j, x, c := readyMerge(t, d, name, m.want)
		copyAll, finish := d.mergeSteps(m.want)
		must(t, copyAll(j, x, c))
		must(t, finish(j, x, c))
		if a, b := at(t, d, 0), at(t, d, 4<<20); a != 1 || b != 2 {
			t.Errorf("got %d and %d", a, b)
		}
	}
}
