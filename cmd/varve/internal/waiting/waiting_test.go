package waiting

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/integration/patience"
)

// spoken is what a command said.
type spoken struct {
	mu    sync.Mutex
	lines []string
	one   chan struct{} // gets one for each line
}

func (s *spoken) say(text string) {
	s.mu.Lock()
	s.lines = append(s.lines, text)
	s.mu.Unlock()
	s.one <- struct{}{}
}

func (s *spoken) next(t *testing.T) string {
	t.Helper()
	select {
	case <-s.one:
	case <-time.After(patience.Hang):
		t.Fatal("nothing is said")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lines[len(s.lines)-1]
}

func quickWaits() (*Waits, *spoken) {
	s := &spoken{one: make(chan struct{}, 10)}
	w := New(s.say)
	w.noticeAfter = time.Millisecond
	return w, s
}

// A wait that goes on is named, with its details if these come soon; one that has ended is
// not.
func TestNotice(t *testing.T) {
	w, s := quickWaits()
	w.noticeAfter = time.Hour
	w.For(Subject{Name: "one that ends"})()
	w.noticeAfter = time.Millisecond
	done := w.For(Subject{Name: "the daemon", Details: func() string { return "pid 7" }})
	if got := s.next(t); got != "waiting for the daemon (pid 7)" {
		t.Errorf("says %q", got)
	}
	done()
	hangs := make(chan struct{})
	defer close(hangs)
	defer w.For(Subject{Name: "the disk", Details: func() string { <-hangs; return "" }})()
	if got := s.next(t); got != "waiting for the disk" {
		t.Errorf("says %q", got)
	}
}

// An interrupt ends a command that waits, after what is to be done finally, in reverse order;
// whether the wait began before or afterwards.
func TestInterruptedWait(t *testing.T) {
	for _, before := range []bool{true, false} {
		w, s := quickWaits()
		w.noticeAfter = time.Hour
		var order []string
		defer w.Finally(func() { order = append(order, "first") })()
		w.Finally(func() { order = append(order, "forgotten") })()
		if before {
			defer w.Leaves("half of it is there")()
			w.Leaves("forgotten")()
		}
		defer w.Finally(func() { order = append(order, "last") })()
		hangs, started := make(chan struct{}), make(chan struct{})
		defer close(hangs)
		go func() {
			<-started
			w.Interrupt()
			if !before {
				started <- struct{}{}
			}
		}()
		code := w.run(func() int {
			if !before {
				started <- struct{}{}
				<-started
			}
			defer w.For(Subject{Name: "it", Left: "it may go on"})()
			if before {
				started <- struct{}{}
			}
			<-hangs
			return 0
		}, 9)
		want := "interrupted while waiting for it; it may go on"
		if before {
			want = "interrupted while waiting for it; half of it is there"
		}
		if got := s.next(t); code != 9 || got != want {
			t.Errorf("code %d, says %q", code, got)
		}
		if !slices.Equal(order, []string{"last", "first"}) {
			t.Errorf("done finally: %v", order)
		}
	}
}

// A command that is not waiting goes on to its own end, which it is told to be long in.
func TestInterruptedWork(t *testing.T) {
	w, s := quickWaits()
	code := w.run(func() int {
		w.Interrupt()
		if got := s.next(t); !strings.Contains(got, "interrupt again") {
			t.Errorf("says %q", got)
		}
		w.Resume()
		w.noticeAfter = time.Hour
		defer w.For(Subject{Name: "what comes later"})()
		time.Sleep(grace + 50*time.Millisecond)
		return 3
	}, 9)
	if code != 3 {
		t.Errorf("code %d", code)
	}
}
