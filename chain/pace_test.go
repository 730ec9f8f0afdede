package chain

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestPace(t *testing.T) {
	const mib = 1 << 20
	for what, c := range map[string]struct {
		limit  int64
		work   time.Duration // that copying a piece takes by itself
		pieces int
		want   time.Duration
	}{
		"no limit":                    {0, 0, 1000, 0},
		"a limit":                     {4 * mib, 0, 40, 10 * time.Second},
		"hours for a piece":           {64, 0, 2, 2 * mib / 64 * time.Second},
		"work counts":                 {4 * mib, 100 * time.Millisecond, 40, 10 * time.Second},
		"a job that is slower anyway": {4 * mib, time.Second, 10, 10 * time.Second},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, start := newJobPace(newPacer(c.limit)), time.Now()
				for range c.pieces {
					time.Sleep(c.work)
					must(t, s.wait(t.Context(), mib))
				}
				took := time.Since(start)
				if took < c.want-time.Second/2 || took > c.want+time.Second/2 {
					t.Errorf("took %v, want %v", took, c.want)
				}
				if s.end(); took > 0 && s.rate() != int64(float64(c.pieces*mib)/took.Seconds()) {
					t.Errorf("rate %d in %v", s.rate(), took)
				}
			})
		})
	}
}

// A new limit holds at once: for a job that waits by the old one, what is left
// of the wait becomes longer or shorter, or ends; cancelling ends it too.
func TestPaceFollowsTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(1000)
		s, start := newJobPace(p), time.Now()
		done := make(chan error, 1)
		go func() { done <- s.wait(t.Context(), 10000) }() // 10 s
		time.Sleep(5 * time.Second)
		p.set(100) // 5,000 bytes are owed: 50 s
		time.Sleep(10 * time.Second)
		p.set(2000) // 4,000: 2 s
		must(t, <-done)
		if took := time.Since(start); took != 17*time.Second {
			t.Errorf("took %v", took)
		}
		go func() { done <- s.wait(t.Context(), 1<<40) }()
		time.Sleep(time.Second)
		p.set(0)
		must(t, <-done)
		if took := time.Since(start); took != 18*time.Second {
			t.Errorf("took %v", took)
		}
		p.set(1)
		stop := errors.New("stop")
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() { done <- s.wait(ctx, 1<<40) }()
		time.Sleep(100 * time.Hour)
		cancel(stop)
		if err := <-done; err != stop {
			t.Error(err)
		}
		if took := time.Since(start); took != 100*time.Hour+18*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// What is shown of a running job is the speed of its last seconds.
func TestRateOfTheLastSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newJobPace(newPacer(0))
		if s.rate() != 0 {
			t.Error(s.rate())
		}
		for i := range 200 { // 100 s at 20,000 bytes per second, then 2,000
			n := int64(10000)
			if i >= 100 {
				n = 1000
			}
			time.Sleep(time.Second / 2)
			must(t, s.wait(t.Context(), n))
		}
		if r := s.rate(); r < 1900 || r > 2100 {
			t.Errorf("%d", r)
		}
		s.end()
		if r := s.rate(); r != 11000 {
			t.Errorf("%d over all of it", r)
		}
	})
}
