package chain

import (
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A disk that is larger than its base, and a layer on a shorter one, hold what lies
// behind the end of what is below them: walks find it, a discard clears it, and a
// flatten and a merge take it along.
func TestHolesBehindAShorterBase(t *testing.T) {
	const small, middle, size = int64(1) << 30, int64(8) << 30, int64(40) << 30
	dir := t.TempDir()
	base := filepath.Join(dir, "base.raw")
	f, err := os.Create(base)
	must(t, err)
	must(t, f.Truncate(small))
	_, err = f.WriteAt([]byte("base"), 0)
	must(t, err)
	must(t, f.Close())
	path := filepath.Join(dir, "vm.varve")
	_, err = Create(path, CreateOptions{Base: base, Size: middle})
	must(t, err)
	d := openDisk(t, path)
	put(t, d, 1, 5<<30, 1<<16)
	must(t, d.Snapshot("s0"))
	must(t, d.Resize(size))
	put(t, d, 2, 20<<30, 1<<16)
	must(t, d.Snapshot("s1"))
	put(t, d, 3, 30<<30, 1<<16)
	must(t, d.Flush())

	rnd := rand.New(rand.NewPCG(1, 2))
	compare := func() {
		t.Helper()
		m, nodes := d.tree()
		for _, l := range m.Layers {
			if l.Format == formatQcow2 {
				places := []int64{0, 2 << 30, 5 << 30, 6 << 30, 20 << 30, 21 << 30, 30 << 30}
				for i := range places {
					places[i] = min(places[i], nodes[l.ID].Size()-1<<20)
				}
				compareHoles(t, d, nodes[l.ID], qemuRuns(t, d.path(l)), rnd, places)
			}
		}
	}
	compare()
	for _, c := range []struct{ from, want int64 }{{2 << 30, 5 << 30}, {6 << 30, 20 << 30}, {21 << 30, 30 << 30}} {
		if at, err := d.SeekData(c.from); err != nil || at != c.want {
			t.Errorf("data at or behind %d: %d, %v, want %d", c.from, at, err, c.want)
		}
	}
	if bytes, _, err := d.DataBytes("", 2<<30, size, time.Time{}); err != nil || bytes != 3<<16 {
		t.Errorf("%d bytes of data behind the base, %v, want %d", bytes, err, 3<<16)
	}

	want := readAll(t, d, 5<<30, 20<<30, 30<<30)
	_, err = d.Flatten("leaf")
	must(t, err)
	waitJobs(t, d)
	sameBytes(t, "after a flatten", readAll(t, d, 5<<30, 20<<30, 30<<30), want)
	_, err = d.Delete("s0")
	must(t, err)
	waitJobs(t, d)
	compare()

	must(t, d.CountAll(context.Background()))
	must(t, d.Discard(2<<30, size-2<<30))
	for _, b := range readAll(t, d, 5<<30, 20<<30, 30<<30) {
		if b != 0 {
			t.Fatal("a discard left data behind the end of the base")
		}
	}
	if at, err := d.SeekData(2 << 30); err != io.EOF {
		t.Errorf("data at %d, %v", at, err)
	}
}

// readAll reads 64 KiB at each of some places of the leaf.
func readAll(t *testing.T, d *Disk, places ...int64) []byte {
	t.Helper()
	p := make([]byte, len(places)<<16)
	for i, off := range places {
		must(t, d.ReadAt(p[i<<16:(i+1)<<16], off))
	}
	return p
}
