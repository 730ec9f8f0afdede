package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"varve/chain/manifest"
	"varve/integration/bulk"
	"varve/integration/turn"
	"varve/overlay/hostfs"
)

// diffOf compares two views to the end.
func diffOf(t testing.TB, d *Disk, a, b string) []Difference {
	t.Helper()
	x, err := d.Diff(context.Background(), a, b, Opener{})
	must(t, err)
	defer x.Close()
	var list []Difference
	for more := true; more; {
		list, more, err = x.Next(list, time.Now()) // one region at a time
		must(t, err)
	}
	if x.Done() != x.Size() {
		t.Errorf("done with %d of %d bytes", x.Done(), x.Size())
	}
	return list
}

// wholeView is a view's content.
func wholeView(t testing.TB, d *Disk, name string) []byte {
	t.Helper()
	if name == manifest.LeafName {
		p := make([]byte, d.Size())
		must(t, d.ReadAt(p, 0))
		return p
	}
	m, _ := d.tree()
	v, err := d.OpenView(context.Background(), m.ByName(name).ID, Opener{})
	must(t, err)
	defer v.Close()
	p := make([]byte, v.Size())
	must(t, v.ReadAt(p, 0))
	return p
}

// judgeDiff compares a list with the views' bytes: none that differs lies outside of
// it, and it is in order. It gives how many bytes really differ.
func judgeDiff(t testing.TB, d *Disk, a, b string, list []Difference) (differing int64) {
	t.Helper()
	return judgeDiffOf(t, d, a, b, wholeView(t, d, a), wholeView(t, d, b), list)
}

// judgeDiffOf is judgeDiff of two views that have been read.
func judgeDiffOf(t testing.TB, d *Disk, a, b string, ofA, ofB []byte, list []Difference) (differing int64) {
	t.Helper()
	size := int64(max(len(ofA), len(ofB)))
	common := int64(min(len(ofA), len(ofB)))
	known := map[string]bool{InZeros: true, InEnd: true}
	for _, l := range d.Layers() {
		known[l.ID] = true
	}
	at := int64(0)
	for i, x := range list {
		if x.Start < at || x.Length <= 0 || x.End() > size || !known[x.A] || !known[x.B] || x.A == x.B {
			t.Fatalf("%s and %s: %+v after %d of %d bytes", a, b, x, at, size)
		}
		if i > 0 && x.Start == at && list[i-1].A == x.A && list[i-1].B == x.B {
			t.Errorf("%s and %s: %+v should be one with %+v", a, b, x, list[i-1])
		}
		if !bulk.Equal(ofA[min(at, common):min(x.Start, common)], ofB[min(at, common):min(x.Start, common)]) {
			t.Errorf("%s and %s differ between %d and %d, which is not listed", a, b, at, x.Start)
		}
		for _, side := range []struct {
			place string
			view  []byte
		}{{x.A, ofA}, {x.B, ofB}} {
			if side.place == InEnd {
				if x.Start != common || x.End() != size {
					t.Errorf("%+v where the shorter view ends at %d of %d", x, common, size)
				}
				continue
			}
			if part := side.view[x.Start:x.End()]; side.place == InZeros && !bulk.IsZero(part) {
				t.Errorf("%+v is not zeros", x)
			}
		}
		if x.A == InEnd || x.B == InEnd {
			differing += x.Length
		} else {
			differing += bulk.Differing(ofA[x.Start:x.End()], ofB[x.Start:x.End()])
		}
		at = x.End()
	}
	if !bulk.Equal(ofA[min(at, common):common], ofB[min(at, common):common]) || at < size && size > common {
		t.Errorf("%s and %s differ behind %d, which is not listed", a, b, at)
	}
	return differing
}

// What differs by the tables, place by place.
func TestDiffPlaces(t *testing.T) {
	const size = 40 << 20
	dir := t.TempDir()
	base := filepath.Join(dir, "base.raw")
	must(t, os.WriteFile(base, bytes.Repeat([]byte("data"), 2<<20), 0o600)) // 8 MiB, then a hole
	must(t, os.Truncate(base, size))
	disk := filepath.Join(dir, "vm.varve")
	_, err := Create(disk, CreateOptions{Base: base})
	must(t, err)
	d := openDisk(t, disk)
	put(t, d, 1, 1<<20, 64<<10)          // over the base
	put(t, d, 2, 20<<20, 128<<10)        // over its hole
	must(t, d.Snapshot("one"))           // 2
	must(t, d.Discard(2<<20, 1<<20))     // the base's data
	must(t, d.Discard(20<<20, 64<<10))   // one's
	must(t, d.Discard(30<<20, 1<<20))    // nothing's: no difference
	put(t, d, 3, 31<<20, 64<<10)         // across the end of a region
	put(t, d, 3, 32<<20-64<<10, 128<<10) //
	must(t, d.Snapshot("two"))           // 3
	must(t, d.Snapshot("same"))          // 4
	must(t, d.Resize(size+1<<20))
	must(t, d.Revert("one"))
	put(t, d, 4, 1<<20+4096, 4096)
	must(t, d.Snapshot("branch"))

	id := func(name string) string {
		m, _ := d.tree()
		return m.ByName(name).ID
	}
	one, two, branch, bottom := id("one"), id("two"), id("branch"), id("base")
	for _, c := range []struct {
		a, b string
		want []Difference
	}{
		{"base", "one", []Difference{{1 << 20, 64 << 10, bottom, one}, {20 << 20, 128 << 10, InZeros, one}}},
		{"one", "two", []Difference{
			{2 << 20, 1 << 20, bottom, InZeros}, {20 << 20, 64 << 10, one, InZeros},
			{31 << 20, 64 << 10, InZeros, two}, {32<<20 - 64<<10, 128 << 10, InZeros, two},
		}},
		{"two", "same", nil},
		{"one", "branch", []Difference{{1<<20 + 4096, 4096, one, branch}}},
		{"branch", "leaf", nil},
		{"two", "branch", []Difference{
			{1<<20 + 4096, 4096, one, branch}, {2 << 20, 1 << 20, InZeros, bottom}, {20 << 20, 64 << 10, InZeros, one},
			{31 << 20, 64 << 10, two, InZeros}, {32<<20 - 64<<10, 128 << 10, two, InZeros},
		}},
	} {
		got := diffOf(t, d, c.a, c.b)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s and %s: %v\nwant %v", c.a, c.b, got, c.want)
		}
		judgeDiff(t, d, c.a, c.b, got)
		mirrored := diffOf(t, d, c.b, c.a)
		for i := range mirrored {
			mirrored[i].A, mirrored[i].B = mirrored[i].B, mirrored[i].A
		}
		if !slices.Equal(mirrored, c.want) {
			t.Errorf("%s and %s the other way: %v", c.a, c.b, mirrored)
		}
	}
	// Growing: the part behind the shorter one's end.
	must(t, d.Revert("same"))
	must(t, d.Resize(size+1<<20+512))
	want := []Difference{{size, 1<<20 + 512, InEnd, d.leaf.Load().ID}}
	if got := diffOf(t, d, "same", "leaf"); !slices.Equal(got, want) {
		t.Errorf("grown: %v, want %v", got, want)
	}
	if got := diffOf(t, d, "leaf", "same"); len(got) != 1 || got[0].B != InEnd {
		t.Errorf("grown, the other way: %v", got)
	}
}

func TestDiffRefused(t *testing.T) {
	d, _ := testDisk(t, 1<<20)
	must(t, d.Snapshot("one"))
	for _, c := range []struct {
		a, b string
		want error
	}{
		{"one", "none", ErrNotExist}, {"none", "leaf", ErrNotExist}, {"one", "", ErrInvalid}, {"../x", "one", ErrInvalid},
	} {
		if x, err := d.Diff(context.Background(), c.a, c.b, Opener{}); !errors.Is(err, c.want) || x != nil {
			t.Errorf("%q and %q: %v, want %v", c.a, c.b, err, c.want)
		}
	}
	x, err := d.Diff(context.Background(), "one", "leaf", Opener{PID: 7, Command: "varve"})
	must(t, err)
	_, err = d.Delete("one")
	wantError(t, err, ErrBusy, "pid 7 varve")
	wantError(t, d.Revert("base"), ErrBusy, "pid 7 varve")
	x.Close()
	x.Close()
	must(t, d.Revert("base"))
	if open := d.handles.list(); len(open) != 0 {
		t.Errorf("%d handles are left", len(open))
	}
}

// Random chains with branches: each pair of views is compared with their bytes, also
// read-only and after the next open.
func TestDiffOfRandomChains(t *testing.T) {
	// Two of eight seeds have their turn.
	seeds, first := 2, turn.Window(2, 8)
	switch {
	case os.Getenv("VARVE_LONG") != "":
		seeds, first = 8, 0
	case testing.Short():
		seeds = 1
	}
	for i := range seeds {
		seed := uint64(first + i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			size := int64(33<<20 + 512*random.IntN(5000))
			dir := t.TempDir()
			base := filepath.Join(dir, "base.raw")
			content := make([]byte, size)
			noise := rand.NewChaCha8([32]byte{byte(seed)})
			for at := 0; at < len(content); at += 1 << 20 {
				if random.IntN(3) > 0 {
					_, _ = noise.Read(content[at:min(len(content), at+1<<20)]) // never fails
				}
			}
			must(t, os.WriteFile(base, content, 0o600))
			must(t, punchZeros(base))
			disk := filepath.Join(dir, "vm.varve")
			_, err := Create(disk, CreateOptions{Base: base})
			must(t, err)
			d := openDisk(t, disk)
			var names []string
			for i := range 8 {
				for range 12 {
					length := int64(1 + random.IntN(200_000))
					off := random.Int64N(d.Size() - length)
					switch random.IntN(4) {
					case 0:
						must(t, d.Discard(off, length))
					default:
						put(t, d, byte(random.IntN(256)), off, length)
					}
				}
				if random.IntN(4) == 0 {
					must(t, d.Resize(d.Size()+512*int64(1+random.IntN(3000))))
				}
				name := fmt.Sprintf("s%d", i)
				must(t, d.Snapshot(name))
				names = append(names, name)
				if random.IntN(3) == 0 {
					must(t, d.Revert(names[random.IntN(len(names))]))
				}
			}
			put(t, d, 77, 5000, 9000)
			lists := map[[2]string][]Difference{}
			all := append([]string{"base", "leaf"}, names...)
			views := map[string][]byte{}
			for _, name := range all {
				views[name] = wholeView(t, d, name)
			}
			for i, a := range all {
				for _, b := range all[i:] {
					list := diffOf(t, d, a, b)
					if a == b && len(list) > 0 {
						t.Errorf("%s differs from itself: %v", a, list)
					}
					judgeDiffOf(t, d, a, b, views[a], views[b], list)
					lists[[2]string{a, b}] = list
				}
			}
			must(t, d.Close())
			d, err = Open(disk, OpenOptions{ReadOnly: true})
			must(t, err)
			for pair, want := range lists {
				if got := diffOf(t, d, pair[0], pair[1]); !slices.Equal(got, want) {
					t.Errorf("%v after the next open: %v, want %v", pair, got, want)
				}
			}
			must(t, d.Close())
		})
	}
}

// punchZeros makes holes of a file's zeros.
func punchZeros(path string) error {
	p, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	f, err := hostfs.OS().Open(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for at := 0; at+4096 <= len(p); at += 4096 {
		if bulk.IsZero(p[at : at+4096]) {
			if err := f.PunchHole(int64(at), 4096); err != nil {
				return err
			}
		}
	}
	return f.Close()
}

// While a merge moves content from layer to layer, in either direction and also out
// of the leaf, what differs stays the same.
func TestDiffDuringMerges(t *testing.T) {
	for _, c := range []struct {
		name         string
		lower, upper int64 // MiB written into the layer that goes, and into that above
		top          string
		alsoNamed    bool // the layer above is a snapshot, not the leaf
	}{
		{"up into a snapshot", 2, 12, "three", true},
		{"down out of a snapshot", 12, 2, "three", true},
		{"up into the leaf", 2, 12, "leaf", false},
		{"down out of the leaf", 24, 4, "leaf", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, _ := testDisk(t, 64<<20)
			put(t, d, 1, 0, 4<<20)
			must(t, d.Snapshot("one"))
			for i := range c.lower {
				put(t, d, 2, (2*i+1)<<20, 1<<20)
			}
			must(t, d.Snapshot("two"))
			for i := range c.upper {
				put(t, d, 3, (3*i+1)<<20+5000, 1<<19)
			}
			if c.alsoNamed {
				must(t, d.Snapshot("three"))
				put(t, d, 4, 50<<20, 1<<20)
			}
			plain := func(list []Difference) []Difference {
				var out []Difference
				for _, x := range list {
					x.A, x.B = "", ""
					if n := len(out); n > 0 && out[n-1].End() == x.Start {
						out[n-1].Length += x.Length
						continue
					}
					out = append(out, x)
				}
				return out
			}
			pairs := [][2]string{{"one", c.top}, {"base", c.top}, {c.top, "leaf"}}
			var want [][]Difference
			for _, p := range pairs {
				want = append(want, plain(diffOf(t, d, p[0], p[1])))
			}
			must(t, d.SetJobRate(1)) // a byte a second: it goes on when it was looked at often enough
			id, err := d.Delete("two")
			must(t, err)
			looks := 0
			for running := true; running; looks++ {
				if looks == 4 {
					must(t, d.SetJobRate(64<<20))
				}
				running = d.lastJob().running()
				for i, p := range pairs {
					if got := plain(diffOf(t, d, p[0], p[1])); !slices.Equal(got, want[i]) {
						t.Fatalf("%v, look %d: %v\nwant %v", p, looks, got, want[i])
					}
				}
			}
			finish(t, d, id, nil)
			if looks < 3 {
				t.Errorf("looked %d times only", looks)
			}
			for i, p := range pairs {
				list := diffOf(t, d, p[0], p[1])
				judgeDiff(t, d, p[0], p[1], list)
				if got := plain(list); !slices.Equal(got, want[i]) {
					t.Errorf("%v after the merge: %v\nwant %v", p, got, want[i])
				}
			}
		})
	}
}

// After a flatten the tables know no more what is the same; what differs is in the
// list all the same, also while it runs and while the guest writes.
func TestDiffDuringAFlatten(t *testing.T) {
	d, _ := testDisk(t, 48<<20)
	put(t, d, 1, 0, 4<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 10<<20, 1<<20)
	must(t, d.Snapshot("two"))
	put(t, d, 3, 20<<20, 1<<20)
	must(t, d.SetJobRate(1)) // a byte a second, for the first look
	id, err := d.Flatten("two")
	must(t, err)
	for running := true; running; {
		running = d.lastJob().running()
		judgeDiff(t, d, "one", "two", diffOf(t, d, "one", "two"))
		judgeDiff(t, d, "base", "leaf", diffOf(t, d, "base", "leaf"))
		if list := diffOf(t, d, "two", "leaf"); len(list) != 1 || list[0].Start != 20<<20 || list[0].Length != 1<<20 {
			t.Errorf("two and leaf: %v", list)
		}
		must(t, d.SetJobRate(64<<20))
	}
	finish(t, d, id, nil)
	if list := diffOf(t, d, "one", "two"); len(list) == 0 || list[0].Start != 0 || list[len(list)-1].End() != 48<<20 {
		t.Errorf("after the flatten: %v", list)
	}
}

// PeekView and DataBytes agree with an open view.
func TestPeekAndCount(t *testing.T) {
	d, base := testDisk(t, 40<<20)
	must(t, d.Discard(3<<20, 20<<20))
	put(t, d, 9, 21<<20, 1<<20)
	must(t, d.Snapshot("one"))
	m, _ := d.tree()
	one := m.ByName("one").ID
	p := make([]byte, 100)
	must(t, d.PeekView(one, p, 21<<20-50))
	if !bytes.Equal(p, append(make([]byte, 50), bytes.Repeat([]byte{9}, 50)...)) {
		t.Errorf("%v", p)
	}
	must(t, d.PeekView(m.ByName("base").ID, p, 40<<20-50))
	if !bytes.Equal(p, append(bytes.Clone(base[len(base)-50:]), make([]byte, 50)...)) {
		t.Errorf("%v", p)
	}
	wantError(t, d.PeekView(d.leaf.Load().ID, p, 0), ErrNotExist)
	wantError(t, d.PeekView("000099", p, 0), ErrNotExist)
	for _, c := range []struct{ off, end, want int64 }{
		{0, 40 << 20, 3<<20 + 1<<20 + 17<<20}, {0, 3 << 20, 3 << 20}, {3 << 20, 21 << 20, 0}, {2<<20 + 7, 21<<20 + 8, 1<<20 - 7 + 8},
		{21<<20 + 100, 21<<20 + 101, 1}, {5, 5, 0}, {15 << 20, 33 << 20, 1<<20 + 10<<20},
	} {
		for _, id := range []string{one, ""} {
			bytes, at, err := d.DataBytes(id, c.off, c.end, time.Time{})
			if err != nil || bytes != c.want || at != c.end {
				t.Errorf("%q from %d to %d: %d up to %d, %v; want %d", id, c.off, c.end, bytes, at, err, c.want)
			}
		}
	}
	// A time that has passed: one region.
	if bytes, at, err := d.DataBytes(one, 1<<20, 40<<20, time.Now().Add(-time.Second)); bytes != 2<<20 || at != 16<<20 || err != nil {
		t.Errorf("%d up to %d, %v", bytes, at, err)
	}
}
