package progress

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestPlainLines(t *testing.T) {
	var out bytes.Buffer
	r := New(&out, "flatten vm1")
	clock := r.started
	r.now = func() time.Time { return clock }
	step := func(d time.Duration, done, total int64) {
		clock = clock.Add(d)
		r.Update(done, total)
	}
	step(time.Second, 0, 0)           // total not known
	step(time.Second, 1<<20, 4<<20)   // too early for a line
	step(4*time.Second, 2<<20, 4<<20) // one line
	step(time.Second, 3<<20, 4<<20)   // too early again
	step(9*time.Second, 5<<20, 4<<20) // never more than all
	step(9*time.Second, -1, 1<<40)    // a corrected total
	clock = clock.Add(time.Second)
	r.Finish(4 << 20)
	want := `flatten vm1: 2 MiB of 4 MiB (50 %)
flatten vm1: 4 MiB of 4 MiB (100 %)
flatten vm1: 0 B of 1 TiB (0 %)
flatten vm1: done, 4 MiB in 26s
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestShortJobSaysOnlyThatItIsDone(t *testing.T) {
	var out bytes.Buffer
	r := New(&out, "delete vm1")
	r.Update(0, 0)
	r.Finish(0)
	if got := out.String(); got != "delete vm1: done\n" {
		t.Errorf("got %q", got)
	}
}

func TestBar(t *testing.T) {
	var out bytes.Buffer
	r := New(&out, "flatten vm1")
	r.terminal = true
	r.Update(1<<29, 1<<30)
	if got := out.String(); !strings.Contains(got, "flatten vm1") || !strings.Contains(got, "50%") || !strings.Contains(got, "GiB") {
		t.Errorf("the bar shows %q", got)
	}
	time.Sleep(150 * time.Millisecond) // beyond the bar's throttle
	r.Update(1<<30, 1<<30)
	if got := out.String(); strings.Contains(got, "100%") {
		t.Errorf("all of it before the job has ended: %q", got)
	}
	r.Finish(1 << 30)
	if got := out.String(); !strings.Contains(got, "\rflatten vm1: done, 1 GiB in ") {
		t.Errorf("the end is %q", got)
	}
	for _, line := range strings.FieldsFunc(out.String(), func(r rune) bool { return r == '\r' || r == '\n' }) {
		if len([]rune(line)) > 79 {
			t.Errorf("wider than a terminal: %q", line)
		}
	}
}

func TestPercent(t *testing.T) {
	for _, c := range []struct{ done, total, want int64 }{
		{0, 1, 0}, {1, 1, 100}, {1 << 62, 1<<62 + 1, 99}, {999, 1000, 99}, {1 << 61, 1 << 62, 50},
	} {
		if got := Percent(c.done, c.total); got != c.want {
			t.Errorf("Percent(%d, %d) = %d, want %d", c.done, c.total, got, c.want)
		}
	}
}
