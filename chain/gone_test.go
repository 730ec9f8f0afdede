package chain

import (
	"fmt"
	"runtime"
	"testing"
	"time"
	"weak"

	"varve/chain/view"
	"varve/integration/patience"
)

// A layer that is gone is held by nothing in memory, however it went: its tables
// are many times what the cache counts for a region that names it.
func TestGoneLayersAreForgotten(t *testing.T) {
	for _, c := range []struct {
		name string
		// round makes layers and has them go; each is looked at on the way.
		round func(t *testing.T, d *Disk, n int, look func())
	}{
		{"merged up", func(t *testing.T, d *Disk, n int, look func()) {
			put(t, d, byte(n), 0, 1<<20)
			must(t, d.Snapshot("one"))
			put(t, d, byte(n), 4<<20, 4<<20)
			must(t, d.Snapshot("two"))
			look()
			for _, name := range []string{"one", "two"} {
				id, err := d.Delete(name)
				finish(t, d, id, err)
				look()
			}
		}},
		{"merged down", func(t *testing.T, d *Disk, n int, look func()) {
			put(t, d, byte(n), 0, 8<<20)
			must(t, d.Snapshot("one"))
			put(t, d, byte(n), 4<<20, 1<<20)
			must(t, d.Snapshot("two"))
			look()
			for _, name := range []string{"one", "two"} {
				id, err := d.Delete(name)
				finish(t, d, id, err)
				look()
			}
		}},
		{"reverted", func(t *testing.T, d *Disk, n int, look func()) {
			put(t, d, byte(n), 0, 1<<20)
			must(t, d.Snapshot(fmt.Sprint("s", n)))
			put(t, d, byte(n), 4<<20, 1<<20)
			must(t, d.Snapshot(fmt.Sprint("t", n)))
			look()
			must(t, d.Revert("base"))
			for _, name := range []string{"t", "s"} {
				id, err := d.Delete(fmt.Sprint(name, n))
				finish(t, d, id, err)
			}
			look()
		}},
		{"flattened", func(t *testing.T, d *Disk, n int, look func()) {
			put(t, d, byte(n), 0, 1<<20)
			must(t, d.Snapshot("one"))
			look()
			id, err := d.Flatten("leaf")
			finish(t, d, id, err)
			look()
			id, err = d.Delete("one")
			finish(t, d, id, err)
			look()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, _ := testDisk(t, 20<<20)
			seen := map[weak.Pointer[view.Layer]]string{}
			look := func() {
				p := make([]byte, d.Size())
				must(t, d.ReadAt(p, 0))
				_, nodes := d.tree()
				for id, n := range nodes {
					if n != d.leaf.Load() { // that one is never resolved
						must(t, n.ReadAt(p, 0))
					}
					seen[weak.Make(n.Layer())] = id
				}
			}
			for n := range 5 {
				c.round(t, d, n, look)
			}
			left := func() (left []string) {
				runtime.GC()
				_, nodes := d.tree()
				for p, id := range seen {
					l := p.Value()
					if l == nil {
						continue
					}
					there := false
					for _, n := range nodes {
						there = there || n.Layer() == l
					}
					if !there {
						left = append(left, id)
					}
				}
				return left
			}
			for deadline := time.Now().Add(patience.Hang); ; time.Sleep(10 * time.Millisecond) {
				held := left()
				if len(held) == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("of %d layers that were there, %d that are gone are still held: %v", len(seen), len(held), held)
				}
			}
			if len(seen) < 7 {
				t.Fatalf("only %d layers were seen", len(seen))
			}
		})
	}
}
