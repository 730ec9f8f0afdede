package chain

import "testing"

// A read of what was looked up before allocates nothing, wherever it comes from.
func TestWarmReadsAllocateNothing(t *testing.T) {
	d, _ := testDisk(t, 64<<20)
	put(t, d, 1, 0, 64<<10)
	must(t, d.Discard(20<<20, 64<<10))
	must(t, d.Snapshot("one"))
	put(t, d, 2, 4<<10, 4<<10)
	p := make([]byte, 4<<10)
	for what, off := range map[string]int64{
		"the leaf's data": 4 << 10, "data of a snapshot": 16 << 10, "zeros": 20 << 20, "the base": 40 << 20,
	} {
		must(t, d.ReadAt(p, off))
		if n := testing.AllocsPerRun(200, func() {
			if err := d.ReadAt(p, off); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("a read of %s allocates %v times", what, n)
		}
	}
}

// Nor does a write in place.
func TestWritesInPlaceAllocateNothing(t *testing.T) {
	d, _ := testDisk(t, 64<<20)
	put(t, d, 1, 0, 64<<10)
	p := make([]byte, 4<<10)
	must(t, d.WriteAt(p, 8<<10))
	if n := testing.AllocsPerRun(200, func() {
		if err := d.WriteAt(p, 8<<10); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("a write in place allocates %v times", n)
	}
}
