package chain

import "testing"

// TestNothingIsLookedAtPastTheEnd: whether a view is zeros past its end is known
// without resolving regions there, however many.
func TestNothingIsLookedAtPastTheEnd(t *testing.T) {
	d, err := Open(hostileDir, OpenOptions{FS: hostileDisks(t)[0], CacheBytes: 4096})
	must(t, err)
	defer func() { must(t, d.Close()) }()
	below := d.leaf.Load().Parent()
	if n := testing.AllocsPerRun(1, func() {
		zero, err := below.IsZero(below.Size(), 1<<40)
		if err != nil || !zero {
			t.Errorf("zero %v, %v", zero, err)
		}
	}); n > 10 {
		t.Errorf("%v allocations", n)
	}
	if zero, err := below.IsZero(0, 1<<40); err != nil || zero {
		t.Errorf("the content: zero %v, %v", zero, err)
	}
}
