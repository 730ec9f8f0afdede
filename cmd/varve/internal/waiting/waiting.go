// Package waiting has a command say what it waits for, and lets Ctrl-C end the command
// while it waits.
//
// A thread that has sent a request to a FUSE daemon is woken by SIGKILL alone (fuse_dev in
// the kernel, request_wait_answer). The kernel hands a signal for a process to the
// process's first thread if that one does not block the signal, and to no other while that
// one sleeps in such a request: the process would not notice Ctrl-C. Main therefore keeps
// the first thread for itself, and the command runs on the others.
//
// The package knows nothing of disks, mounts or commands.
package waiting

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// noticeAfter is how long a wait goes on before the command says what it waits for.
	noticeAfter = time.Second
	// grace is how long a wait may go on after an interrupt: one that is about to end
	// should end by itself.
	grace = 500 * time.Millisecond
	// describeTime is how long it may take to find out about what is waited for, which
	// may hang as well.
	describeTime = 500 * time.Millisecond
)

// signalTwice is within what time a second signal means no more than the first: timeout(1)
// sends one to its child and one to the group that the child is in.
const signalTwice = 200 * time.Millisecond

func init() { runtime.LockOSThread() } // main.main then has the first thread

// Subject is what a command waits for.
type Subject struct {
	// Name follows "waiting for".
	Name string
	// Details finds out more, such as which process it is; nil for nothing more. It may
	// take its time and may be called beside the wait.
	Details func() string
	// Left says what may become of the request after an interrupt; the message of the
	// interrupt ends with it. "" for nothing to say.
	Left string
}

// Waits are the waits of one command. Safe for concurrent use.
type Waits struct {
	say         func(text string)
	ended       chan string // has what an interrupted command says
	noticeAfter time.Duration

	mu          sync.Mutex // guards what follows
	open        []*wait    // oldest first
	said        string     // of a wait, last
	interrupted bool
	last        []*func() // what is done at the end of an interrupted command
	leaves      []*string // what such a command leaves, in words
}

type wait struct {
	Subject
	notice, end *time.Timer // end is nil before an interrupt
}

// New makes the waits of a command that says lines with say.
func New(say func(text string)) *Waits {
	return &Waits{say: say, ended: make(chan string, 1), noticeAfter: noticeAfter}
}

// process are the waits of this process.
var process = New(func(string) {})

// Main runs the command of this process and gives its exit code: ifInterrupted for a command
// that was interrupted while it waited. Only main.main may call Main, and once.
func Main(command func() int, say func(text string), ifInterrupted int) (code int) {
	process.say = say
	return process.run(command, ifInterrupted)
}

func (w *Waits) run(command func() int, ifInterrupted int) (code int) {
	done := make(chan int, 1)
	go func() { done <- command() }()
	select {
	case code = <-done:
		return code
	case words := <-w.ended:
		w.mu.Lock()
		last := slices.Clone(w.last)
		w.mu.Unlock()
		for _, f := range slices.Backward(last) {
			(*f)()
		}
		w.say(words)
		return ifInterrupted
	}
}

// For begins a wait of this process; done ends it. After a second the process says what
// it waits for. A process that is interrupted meanwhile, by what Interruptible hears, ends.
func For(what Subject) (done func()) { return process.For(what) }

// For begins a wait, see the function For.
func (w *Waits) For(what Subject) (done func()) {
	one := &wait{Subject: what}
	one.notice = time.AfterFunc(w.noticeAfter, func() {
		words := what.words()
		if w.isNews(one, words) {
			w.say("waiting for " + words)
		}
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open = append(w.open, one)
	if w.interrupted {
		w.endSoon(one)
	}
	return func() {
		one.notice.Stop()
		w.mu.Lock()
		defer w.mu.Unlock()
		if one.end != nil {
			one.end.Stop()
		}
		w.open = slices.DeleteFunc(w.open, func(o *wait) bool { return o == one })
	}
}

// isNews says whether a wait goes on and other words were said last: waits stand in each
// other.
func (w *Waits) isNews(one *wait, words string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Contains(w.open, one) || w.said == words {
		return false
	}
	w.said = words
	return true
}

func (w *Waits) isOpen(one *wait) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.open, one)
}

// endSoon ends the command when the wait goes on. w.mu is held.
func (w *Waits) endSoon(one *wait) {
	one.end = time.AfterFunc(grace, func() {
		words := "interrupted while waiting for " + one.words()
		if left := w.leavesAt(one); left != "" {
			words += "; " + left
		}
		if !w.isOpen(one) {
			return
		}
		select {
		case w.ended <- words:
		default: // another wait has ended it
		}
	})
}

// leavesAt is what the command leaves that is interrupted in a wait.
func (w *Waits) leavesAt(one *wait) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.leaves); n > 0 {
		return *w.leaves[n-1]
	}
	return one.Left
}

// Leaves tells what the command has done so far and leaves when it is interrupted while it
// waits, until forget is called: a job that goes on, a disk that is half written. What was
// told last counts, before Subject.Left.
func Leaves(words string) (forget func()) { return process.Leaves(words) }

// Leaves is the function Leaves for these waits.
func (w *Waits) Leaves(words string) (forget func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	one := &words
	w.leaves = append(w.leaves, one)
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.leaves = slices.DeleteFunc(w.leaves, func(o *string) bool { return o == one })
	}
}

// words is the name with the details, if these come soon.
func (s Subject) words() string {
	if s.Details == nil {
		return s.Name
	}
	found := make(chan string, 1)
	go func() { found <- s.Details() }()
	select {
	case details := <-found:
		if details != "" {
			return s.Name + " (" + details + ")"
		}
	case <-time.After(describeTime):
	}
	return s.Name
}

// Finally has f called when the process ends because it was interrupted while it waited,
// unless forget was called before. f may run beside what the command does.
func Finally(f func()) (forget func()) { return process.Finally(f) }

// Finally is the function Finally for these waits.
func (w *Waits) Finally(f func()) (forget func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	one := &f
	w.last = append(w.last, one)
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.last = slices.DeleteFunc(w.last, func(o *func()) bool { return o == one })
	}
}

// Interruptible is for a command that ends in good order when it is interrupted: the
// context ends at the first SIGINT or SIGTERM, a wait under way or begun later ends the
// process, and so does a second signal. A command without it ends at the first signal.
func Interruptible(parent context.Context) (ctx context.Context, stop context.CancelFunc) {
	ctx, stopSignals := signal.NotifyContext(parent, os.Interrupt, syscall.SIGTERM)
	late := context.AfterFunc(ctx, func() {
		process.Interrupt()
		time.AfterFunc(signalTwice, stopSignals)
	})
	return ctx, func() {
		late()
		process.Resume()
		stopSignals()
	}
}

// Interrupt ends the waits under way and those begun later, see For.
func Interrupt() { process.Interrupt() }

// Interrupt is the function Interrupt for these waits.
func (w *Waits) Interrupt() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.interrupted {
		return
	}
	w.interrupted = true
	for _, one := range w.open {
		w.endSoon(one)
	}
	time.AfterFunc(w.noticeAfter, func() {
		w.mu.Lock()
		idle := w.interrupted && len(w.open) == 0
		w.mu.Unlock()
		if idle {
			w.say("interrupted, ending in good order; interrupt again to end at once")
		}
	})
}

// Resume forgets an interrupt: waits begun later go on.
func Resume() { process.Resume() }

// Resume is the function Resume for these waits.
func (w *Waits) Resume() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.interrupted = false
}
