package bigchain

import (
	"path/filepath"
	"runtime"
	"testing"

	"varve/chain"
)

// A disk keeps in memory what docs/reference.md says, after every place of it was
// looked up: --cache, a quarter on top for the leaf's tables, and for each layer
// 16 KiB and 32 bytes for each GiB of the disk (its L1 table).
func TestMemoryIsBounded(t *testing.T) {
	const cache = 4 << 20
	o := Options{Layers: 16, Size: 16 << 30, Mapped: 128 << 20, Run: 4 << 10, Placement: Random, Base: true}
	dir := filepath.Join(t.TempDir(), "disk.varve")
	if err := Disk(dir, o); err != nil {
		t.Fatal(err)
	}
	before := live()
	d, err := chain.Open(dir, chain.OpenOptions{CacheBytes: cache})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	touch := func() {
		p := make([]byte, 4<<10)
		for at := int64(0); at < o.Size; at += 16 << 20 {
			if err := d.ReadAt(p, at+4<<10); err != nil {
				t.Fatal(err)
			}
			if err := d.WriteAt(p, at); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	touch()
	touch() // what was dirty has become evictable
	layers := int64(o.Layers + 2)
	// A half more for what the allocator rounds up, and a MiB for the rest.
	bound := (cache+cache/4)*3/2 + layers*(16<<10+o.Size>>30*32) + 1<<20
	got := live() - before
	runtime.KeepAlive(d)
	t.Logf("%d KiB are live, at most %d", got>>10, bound>>10)
	if got > bound {
		t.Errorf("%d bytes are live, more than %d", got, bound)
	}
	if got < cache/2 {
		t.Errorf("%d bytes are live: the load does not fill the cache of %d", got, cache)
	}
}

// live is what the heap holds after a collection. The second one empties pools.
func live() int64 {
	runtime.GC()
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
