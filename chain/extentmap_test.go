package chain

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// checkMap compares a map that was made of what was kept with one that was made anew,
// and its sums with what is counted otherwise.
func checkMap(t *testing.T, d *Disk, when string) *ExtentMap {
	t.Helper()
	m, err := d.ExtentMap(t.Context(), 0)
	must(t, err)
	kept := d.figures
	d.figures = d.newFigures()
	anew, err := d.ExtentMap(t.Context(), 0)
	d.figures.Close()
	d.figures = kept
	must(t, err)
	if !m.Complete() || !reflect.DeepEqual(m, anew) {
		t.Fatalf("%s: the map that was kept is another one than a new one", when)
	}
	must(t, d.CountAll(t.Context()))
	st, err := d.Status()
	must(t, err)
	own := map[string]int64{}
	for _, l := range st.Layers {
		own[l.ID] = l.OwnBytes
	}
	seen := 0.0
	for _, l := range m.Layers {
		mapped := 0.0
		for i := range l.Data {
			mapped += float64(l.Data[i]) + float64(l.Zero[i])
			seen += float64(l.Seen[i])
			if room := min(m.BinBytes, m.Size-int64(i)*m.BinBytes); l.Data[i]+l.Zero[i] > float32(room) || l.Seen[i] > l.Data[i] {
				t.Fatalf("%s: bin %d of %s: %v data, %v zeros, %v seen of %d bytes", when, i, l.ID, l.Data[i], l.Zero[i], l.Seen[i], room)
			}
		}
		if int64(mapped) != own[l.ID] {
			t.Errorf("%s: layer %s maps %d bytes in the map, %d in status", when, l.ID, int64(mapped), own[l.ID])
		}
	}
	all, counted, err := d.AllocatedBytes()
	if err != nil || !counted || int64(seen) != all {
		t.Errorf("%s: the map shows %d bytes of data, of the view %d are (%v, %v)", when, int64(seen), all, counted, err)
	}
	if len(m.Layers)+m.Beside != len(st.Layers) || m.Layers[0].State != "leaf" {
		t.Errorf("%s: %d layers and %d beside of %d", when, len(m.Layers), m.Beside, len(st.Layers))
	}
	return m
}

// Bins smaller and larger than a region, after every kind of operation.
func TestExtentMap(t *testing.T) {
	for name, size := range map[string]int64{"small": 40<<20 + 12288, "large": 40<<30 + 4096} {
		t.Run(name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(3, 4))
			dir := filepath.Join(t.TempDir(), "vm.varve")
			_, err := Create(dir, CreateOptions{Size: size})
			must(t, err)
			d := openDisk(t, dir)
			write := func() {
				for i := range 20 {
					off := random.Int64N(d.Size()/4096-64) * 4096
					if i%4 == 3 {
						must(t, d.Discard(off, 64<<10))
					} else {
						put(t, d, byte(i+1), off, 4096*(1+random.Int64N(60)))
					}
				}
			}
			for i := range 4 {
				write()
				checkMap(t, d, fmt.Sprint("written ", i))
				must(t, d.Snapshot(fmt.Sprint("s", i)))
				checkMap(t, d, fmt.Sprint("snapshot ", i))
			}
			write()
			id, err := d.Delete("s1")
			finish(t, d, id, err)
			checkMap(t, d, "delete")
			must(t, d.Revert("s2"))
			write()
			m := checkMap(t, d, "revert")
			if m.Beside != 2 { // s3, and the leaf that was set aside
				t.Errorf("%d layers beside the chain", m.Beside)
			}
			id, err = d.Flatten("leaf")
			finish(t, d, id, err)
			checkMap(t, d, "flatten")
			must(t, d.Resize(2*size))
			write()
			checkMap(t, d, "growth")
			must(t, d.Close())
		})
	}
}

// What each layer holds and what is seen of it stands where it was written.
func TestExtentMapShowsWhatIsThere(t *testing.T) {
	d, _ := testDisk(t, 8<<20) // bins of 8 KiB
	put(t, d, 1, 1<<20, 64<<10)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 1<<20+32<<10, 64<<10)
	must(t, d.Discard(4<<20, 128<<10))
	m := checkMap(t, d, "written")
	if m.BinBytes != 8<<10 || len(m.Known) != 1024 || len(m.Layers) != 3 {
		t.Fatalf("bins of %d, %d of them, %d layers", m.BinBytes, len(m.Known), len(m.Layers))
	}
	leaf, one, base := m.Layers[0], m.Layers[1], m.Layers[2]
	for i := range m.Known {
		at, full := int64(i)*m.BinBytes, float32(m.BinBytes)
		in := func(from, length int64) float32 {
			if at >= from && at < from+length {
				return full
			}
			return 0
		}
		discarded := in(4<<20, 128<<10)
		inLeaf, inOne := in(1<<20+32<<10, 64<<10), in(1<<20, 64<<10)
		seenOne := in(1<<20, 32<<10)
		got := [...]float32{leaf.Data[i], leaf.Zero[i], leaf.Seen[i], one.Data[i], one.Zero[i], one.Seen[i], base.Data[i], base.Zero[i], base.Seen[i]}
		want := [...]float32{inLeaf, discarded, inLeaf, inOne, 0, seenOne, full, 0, full - max(inLeaf, seenOne, discarded)}
		if got != want {
			t.Errorf("bin %d: %v, want %v", i, got, want)
		}
	}
}

// Who has little time gets a part of the map, and the rest by asking again.
func TestExtentMapInPieces(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vm.varve")
	_, err := Create(dir, CreateOptions{Size: 8 << 30})
	must(t, err)
	d := openDisk(t, dir)
	for at := int64(0); at < 8<<30; at += 1 << 30 {
		put(t, d, 1, at, 4096)
	}
	must(t, d.Snapshot("one"))
	put(t, d, 1, 0, 4096)
	looks := 0
	for {
		m, err := d.ExtentMap(t.Context(), time.Nanosecond)
		must(t, err)
		if looks++; m.Complete() {
			break
		}
	}
	if looks < 2 || looks > 8 {
		t.Errorf("complete after %d looks", looks)
	}
	checkMap(t, d, "in pieces")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.ExtentMap(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}
