package chain

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/chain/manifest"
	"varve/integration/powercut"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

var stressTime = flag.Duration("stress.time", 3*time.Second, "how long the test of everything at once runs")

// TestEverythingAtOnce has guests that write, discard and read, readers of all
// views, flushes, snapshots, deletes, flattens, cancels and growth at work at the
// same time. Each guest owns every eighth sector, and knows what it wrote there.
func TestEverythingAtOnce(t *testing.T) {
	t.Parallel()
	const guests, sectors = 4, 3000
	dir := t.TempDir()
	base := make([]byte, 20<<20)
	for s := range len(base) / 512 {
		if s>>6%3 != 0 {
			powercut.FillSectors(base[s*512:s*512+512], uint64(s)|1<<40)
		}
	}
	path := filepath.Join(dir, "base.raw")
	must(t, os.WriteFile(path, base, 0o600))
	disk := filepath.Join(dir, "vm.varve")
	_, err := Create(disk, CreateOptions{Base: path})
	must(t, err)
	d := openDisk(t, disk)
	d.window = 1

	place := func(i int64) int64 { // in bytes: around the edge of a region, and at the start
		if i < sectors/2 {
			return i * 512
		}
		return 16<<20 + (i-sectors*3/4)*512
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	fail := func(format string, args ...any) {
		t.Errorf(format, args...)
		stop.Store(true)
	}
	for g := range int64(guests) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 5))
			want := map[int64]uint64{}
			p := make([]byte, 512)
			for n := uint64(1); !stop.Load(); n++ {
				i := rnd.Int64N(sectors/guests)*guests + g
				at := place(i)
				switch rnd.IntN(8) {
				case 0:
					if err := d.Discard(at, 512); err != nil {
						fail("discard: %v", err)
					}
					want[i] = 0
				case 1:
					if err := d.Flush(); err != nil {
						fail("flush: %v", err)
					}
				case 2, 3, 4:
					powercut.FillSectors(p, n<<8|uint64(g))
					if err := d.WriteAt(p, at); err != nil {
						fail("write: %v", err)
					}
					want[i] = n<<8 | uint64(g)
				default:
					if err := d.ReadAt(p, at); err != nil {
						fail("read: %v", err)
					}
					w, ok := want[i]
					if !ok {
						w = binary.BigEndian.Uint64(base[at:])
					}
					for k := 0; k < 512; k += 8 {
						if got := binary.BigEndian.Uint64(p[k:]); got != w {
							fail("guest %d, write %d: sector %d has %x at %d, want %x", g, n, at/512, got, k, w)
							break
						}
					}
				}
			}
		})
	}
	// A view never changes: two reads of it are equal.
	for r := range 2 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(r), 6))
			seen := map[string][]byte{}
			for !stop.Load() {
				layers := d.Layers()
				l := layers[rnd.IntN(len(layers))]
				if l.Name == "" {
					continue
				}
				v, err := d.OpenView(context.Background(), l.ID, Opener{})
				if errors.Is(err, ErrNotExist) {
					continue
				}
				if err != nil {
					fail("open a view: %v", err)
					continue
				}
				p := make([]byte, 2<<20)
				if err := v.ReadAt(p[:1<<20], 0); err != nil {
					fail("read %s: %v", l.ID, err)
				}
				if err := v.ReadAt(p[1<<20:], 16<<20-512<<10); err != nil {
					fail("read %s: %v", l.ID, err)
				}
				if old := seen[l.ID]; old != nil && !bytes.Equal(old, p) {
					i := 0
					for old[i] == p[i] {
						i++
					}
					fail("the view of %s changed at %d: %x, was %x", l.ID, i, p[i:i+8], old[i:i+8])
				}
				seen[l.ID] = p
				v.Close()
			}
		})
	}
	wg.Go(func() {
		rnd := rand.New(rand.NewPCG(1, 7))
		for n := 0; !stop.Load(); n++ {
			var names []string
			for _, l := range d.Layers() {
				if l.Name != "" && l.Name != manifest.BaseName {
					names = append(names, l.Name)
				}
			}
			var err error
			switch k := rnd.IntN(10); {
			case len(names) < 3 || k < 2:
				err = d.Snapshot(fmt.Sprint("s", n))
			case k < 7:
				_, err = d.Delete(names[rnd.IntN(len(names))])
			case k < 8:
				_, err = d.Flatten([]string{manifest.LeafName, names[0]}[rnd.IntN(2)])
			case k < 9:
				_, err = d.DeleteUnnamed()
			default:
				err = d.Resize(d.Size() + 512)
			}
			if err != nil && !errors.Is(err, ErrBusy) {
				fail("%v", err)
			}
			if j := d.lastJob(); j.running() {
				if rnd.IntN(3) == 0 {
					if err := d.Cancel(j.id); err != nil && !errors.Is(err, ErrNotExist) {
						fail("cancel: %v", err)
					}
				} else if rnd.IntN(2) == 0 {
					<-j.done
				}
			}
			if j := d.lastJob(); j != nil && j.status().State == JobFailed {
				fail("job: %+v", j.status())
			}
			if _, _, err := d.AllocatedBytes(); err != nil {
				fail("count: %v", err)
			}
			if len(names) > 6 {
				time.Sleep(time.Millisecond)
			}
		}
	})
	time.AfterFunc(*stressTime, func() { stop.Store(true) })
	wg.Wait()
	before := make([]byte, d.Size())
	must(t, d.ReadAt(before, 0))
	must(t, d.Close())
	again, err := Open(disk, OpenOptions{})
	must(t, err)
	after := make([]byte, again.Size())
	must(t, again.ReadAt(after, 0))
	if !bytes.Equal(before, after) {
		t.Error("the disk is another one after it was closed and opened again")
	}
	must(t, again.Close())
	for _, l := range again.manifest.Layers {
		if !l.Foreign {
			o, err := qcow2.OpenImage(hostfs.OS(), l.Path(disk), l.Format, hostfs.LockFrozen)
			must(t, err)
			must(t, o.Close())
		}
	}
}
