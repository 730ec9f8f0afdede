// Package interleave forces orders between goroutines in tests: one operation
// is stopped at an exact call to the host while another one runs up to its own
// point, or is seen to wait for the first. Nothing here depends on how fast the
// machine is; the time-outs only end a test that would hang.
package interleave

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/integration/patience"
)

// Call is a call to the host. Length is in bytes; Done says that it was made
// already, and returns next.
type Call struct {
	Op          string // read, write, sync, punch, truncate, allocate; of a directory rename, remove, syncdir
	Path        string
	Off, Length int64
	Done        bool
}

func (c Call) String() string {
	return fmt.Sprintf("%s %s %d+%d", c.Op, c.Path[strings.LastIndex(c.Path, "/")+1:], c.Off, c.Length)
}

// Touches says whether the call reaches into a range of its file.
func (c Call) Touches(off, length int64) bool {
	return c.Off < off+length && off < c.Off+c.Length
}

// Host is told of every call by whoever stands between the code and the host,
// before it and after it, with no lock held.
type Host struct {
	mu    sync.Mutex
	stops []*Stop
	watch func(Call)
}

// Do stops the caller where a test has said so.
func (h *Host) Do(c Call) {
	h.mu.Lock()
	watch := h.watch
	var hit *Stop
	for i, s := range h.stops {
		if s.match(c) {
			hit = s
			h.stops = append(h.stops[:i:i], h.stops[i+1:]...)
			break
		}
	}
	h.mu.Unlock()
	if watch != nil {
		watch(c)
	}
	if hit != nil {
		close(hit.reached)
		<-hit.release
	}
}

// Watch has a function called for every call, nil for none.
func (h *Host) Watch(f func(Call)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watch = f
}

// Stop is a place at which one caller stops, once.
type Stop struct {
	tb      testing.TB
	match   func(Call) bool
	reached chan struct{}
	release chan struct{}
	once    sync.Once
}

// StopAt stops the next call that matches, until Go. A test's end lets it go.
func (h *Host) StopAt(tb testing.TB, match func(Call) bool) *Stop {
	s := &Stop{tb: tb, match: match, reached: make(chan struct{}), release: make(chan struct{})}
	h.mu.Lock()
	h.stops = append(h.stops, s)
	h.mu.Unlock()
	tb.Cleanup(s.Go)
	return s
}

// Reached returns when a caller stands at the place.
func (s *Stop) Reached() {
	s.tb.Helper()
	select {
	case <-s.reached:
	case <-time.After(patience.Hang):
		s.tb.Fatalf("nobody came to the place in %v\n%s", patience.Hang, stacks())
	}
}

// Passed says whether a caller has come to the place.
func (s *Stop) Passed() bool {
	select {
	case <-s.reached:
		return true
	default:
		return false
	}
}

// Go lets the caller go on. It may be called again.
func (s *Stop) Go() { s.once.Do(func() { close(s.release) }) }

// Op is an operation in a goroutine of its own.
type Op struct {
	tb   testing.TB
	id   string // of the goroutine
	done chan struct{}
	err  error
}

// Start runs f in a goroutine.
func Start(tb testing.TB, f func() error) *Op {
	o := &Op{tb: tb, done: make(chan struct{})}
	id := make(chan string)
	go func() {
		defer close(o.done)
		var p [64]byte
		head := p[:runtime.Stack(p[:], false)] // goroutine 12 [running]:
		id <- string(head[:bytes.IndexByte(head, '[')])
		o.err = f()
	}()
	o.id = <-id
	return o
}

// Returned says whether the operation is over.
func (o *Op) Returned() bool {
	select {
	case <-o.done:
		return true
	default:
		return false
	}
}

// Wait returns when the operation is over, with its error.
func (o *Op) Wait() error {
	o.tb.Helper()
	select {
	case <-o.done:
		return o.err
	case <-time.After(patience.Hang):
		o.tb.Fatalf("the operation is not over after %v\n%s", patience.Hang, stacks())
		return nil
	}
}

// Must is Wait for an operation that must succeed.
func (o *Op) Must() {
	o.tb.Helper()
	if err := o.Wait(); err != nil {
		o.tb.Fatal(err)
	}
}

// Waits returns when the operation waits for a lock, or for readers to go, and
// fails the test when it ends instead.
func (o *Op) Waits() {
	o.tb.Helper()
	for end := time.Now().Add(patience.Hang); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if o.Returned() {
			o.tb.Fatalf("the operation did not wait; it returned %v", o.err)
		}
		if o.blocked() {
			return
		}
	}
	o.tb.Fatalf("the operation neither waits nor ends in %v\n%s", patience.Hang, stacks())
}

// Settles returns when the operation is over or waits for anything.
func (o *Op) Settles() {
	o.tb.Helper()
	for end := time.Now().Add(patience.Hang); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if o.Returned() || o.blocked("chan receive", "select") {
			return
		}
	}
	o.tb.Fatalf("the operation neither waits nor ends in %v\n%s", patience.Hang, stacks())
}

// blocked looks at the goroutine as the runtime shows it: it waits for a lock,
// in one of some further states, or for readers to go.
func (o *Op) blocked(states ...string) bool {
	stack, ok := o.stack(stacks())
	return ok && (hasPrefix(stack, append(states, "sync.", "semacquire")) || strings.Contains(stack, ".Synchronize("))
}

// stack finds the goroutine's among all; it begins with its state.
func (o *Op) stack(all string) (string, bool) {
	for g := range strings.SplitSeq(all, "\n\n") {
		if rest, ok := strings.CutPrefix(g, o.id+"["); ok {
			return rest, true
		}
	}
	return "", false
}

func hasPrefix(s string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(s, p) })
}

// WaitsWith returns when the operation waits for word of another goroutine (for a
// lock it may wait on its way there), which is in a function, such as ".Synchronize(".
func (o *Op) WaitsWith(function string) {
	o.tb.Helper()
	for end := time.Now().Add(patience.Hang); time.Now().Before(end); time.Sleep(time.Millisecond) {
		all := stacks()
		stack, ok := o.stack(all)
		if ok && hasPrefix(stack, []string{"chan receive", "select"}) && strings.Contains(all, function) {
			return
		}
	}
	o.tb.Fatalf("the operation does not wait for one in %s after %v\n%s", function, patience.Hang, stacks())
}

func stacks() string {
	for n := 1 << 20; ; n *= 2 {
		p := make([]byte, n)
		if used := runtime.Stack(p, true); used < n {
			return string(p[:used])
		}
	}
}
