package powercut

import "testing"

// A failed write stays open until a later one is durable, not until one is made: a
// flush that does not cover the later one says nothing of the sector.
func TestFailedWriteStaysOpen(t *testing.T) {
	v := NewView(1<<20, [][2]int64{{0, 1 << 20}}, func(int64) uint64 { return 7 })
	may := func(when string, want ...uint64) {
		t.Helper()
		for _, value := range []uint64{7, 1, 2} {
			wanted := false
			for _, w := range want {
				wanted = wanted || w == value
			}
			if got := v.May(3, value); got != wanted {
				t.Errorf("%s: may have %d: %t, want %t", when, value, got, wanted)
			}
		}
	}
	v.Write(3, 1, Stamp{Write: 1, Value: 1})
	clone := v.Clone()
	v.Failed(3, 1, Stamp{Write: 1, Value: 1})
	v.Durable(1)
	may("after a flush", 7, 1)
	v.Write(3, 1, Stamp{Write: 2, Value: 2})
	v.Durable(1) // it began before the second write
	may("written again", 7, 1, 2)
	v.Durable(2)
	may("durable", 2)

	clone.Durable(1)
	v = clone
	may("of a view in which it did not fail", 1)
}
