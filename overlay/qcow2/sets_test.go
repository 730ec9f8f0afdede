package qcow2_test

import (
	"math/rand/v2"
	"testing"

	"varve/overlay/qcow2"
)

// The index gives what one finds by looking at each entry, before and after it grows.
func TestTableIndex(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		entries := rnd.IntN(20_000)
		x, set := qcow2.NewTableIndex(entries), make(map[int]bool)
		check := func() {
			t.Helper()
			for range 40 {
				from := rnd.IntN(entries + 100)
				want := from
				for want < entries && !set[want] {
					want++
				}
				got, ok := x.Next(int64(from))
				if ok != (want < entries) || ok && got != int64(want) {
					t.Fatalf("from %d of %d on: %d, %v; want %d", from, entries, got, ok, want)
				}
			}
		}
		add := func() {
			for range rnd.IntN(10) {
				if entries > 0 {
					i := rnd.IntN(entries)
					x.Set(i)
					set[i] = true
				}
			}
		}
		check()
		add()
		check()
		entries += rnd.IntN(100_000)
		x = x.Grown(entries)
		check()
		add()
		check()
	}
}

func TestClusterSet(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var s qcow2.ClusterSet
	want := map[int64]bool{}
	high := int64(0)
	for range 3000 {
		c := rnd.Int64N(1 << []int{4, 12, 17, 40}[rnd.IntN(4)])
		if s.Add(c) == want[c] {
			t.Fatalf("add(%d)", c)
		}
		want[c], high = true, max(high, c+1)
	}
	if s.High != high {
		t.Errorf("high %d, want %d", s.High, high)
	}
	members := int64(0)
	for c := s.Next(0); c < s.High; c = s.Next(c + 1) {
		if !want[c] || !s.Has(c) {
			t.Fatalf("%d is no member", c)
		}
		members++
	}
	if members != int64(len(want)) {
		t.Errorf("next gives %d members of %d", members, len(want))
	}
	for range 10000 {
		if c := rnd.Int64N(1 << 18); s.Has(c) != want[c] {
			t.Fatalf("has(%d)", c)
		}
	}
}
