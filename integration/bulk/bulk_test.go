package bulk

import (
	"bytes"
	"errors"
	"testing"
)

func TestFirst(t *testing.T) {
	for _, c := range []struct {
		a, b      string
		first     int
		differing int64
	}{{"", "", -1, 0}, {"abc", "abc", -1, 0}, {"abc", "abd", 2, 1}, {"xbx", "abc", 0, 2}, {"ab", "abc", 2, -1}, {"abc", "", 0, -1}} {
		a, b := []byte(c.a), []byte(c.b)
		if got := First(a, b); got != c.first || Equal(a, b) != (c.first < 0) {
			t.Errorf("%q and %q: first %d, want %d", c.a, c.b, got, c.first)
		}
		if c.differing >= 0 && Differing(a, b) != c.differing {
			t.Errorf("%q and %q: %d differ, want %d", c.a, c.b, Differing(a, b), c.differing)
		}
	}
	if !IsZero(nil) || !IsZero(make([]byte, 100)) || IsZero([]byte{0, 0, 1}) {
		t.Error("IsZero")
	}
}

func TestDiffer(t *testing.T) {
	want := bytes.Repeat([]byte("some content "), 3*chunk/13)
	have := bytes.Clone(want)
	read := func(p []byte, off int64) error { copy(p, have[off:]); return nil }
	for _, at := range []int64{-1, 0, chunk - 1, chunk, int64(len(want)) - 1} {
		if at >= 0 {
			have[at]++
		}
		if got, err := Differ(read, want); got != at || err != nil {
			t.Errorf("%d, %v, want %d", got, err, at)
		}
		if at >= 0 {
			have[at]--
		}
	}
	bad := errors.New("bad")
	if _, err := Differ(func([]byte, int64) error { return bad }, want); !errors.Is(err, bad) {
		t.Error(err)
	}
}
