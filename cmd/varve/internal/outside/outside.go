// Package outside is a small process that stays outside when its parent, the daemon of a
// mount, confines itself, and does for it the few things that it may not do any more.
//
// It is this program again. Its parent talks to it over an inherited socket, in requests and
// answers, each a number of bytes and so much JSON. One request does not wait for another,
// which may hang with a file system of the host. It takes no signal that ends a
// program, and ends when the socket does: with its parent, however that ends. What it does
// for a request its handler decides; a daemon that somebody has taken over can ask for that
// and for no more.
package outside

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"varve/cmd/varve/internal/inherit"
)

// called is what the process is called as, the first word of its command line.
const called = "varve-outside"

// most is how long a request or an answer may be, in bytes.
const most = 64 << 20

// mostAtOnce is how many requests are done at once; more wait.
const mostAtOnce = 16

// Handler does what a request asks for, and gives what is sent as the answer.
type Handler func(request []byte) (answer any, err error)

// message is what goes over the socket.
type message struct {
	ID      uint64          // of the request, and of its answer
	What    string          `json:",omitempty"` // of a request: which handler
	Content json.RawMessage `json:",omitempty"`
	Failure *failure        `json:",omitempty"` // of an answer: why there is none
}

// failure is an error that goes over the socket.
type failure struct {
	Words string
	Errno syscall.Errno // 0 for none
	Kinds []int         // which of the errors that both ends know it is
}

// Process is the process outside. Its methods are safe for concurrent use.
type Process struct {
	kinds  []error
	cmd    *exec.Cmd
	socket *os.File
	ended  chan struct{} // closed with the socket
	gone   chan struct{} // closed when the process has ended, after Close

	sending sync.Mutex // held while a request is sent

	mu      sync.Mutex // guards what follows
	last    uint64     // ID
	waiting map[uint64]chan message
}

// Start starts the process, which is to be done before this one confines itself. kinds are
// errors that errors.Is knows again in those of Ask; Serve must have the same.
func Start(kinds []error) (*Process, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	// Go's poller has ours, so that its Close ends what reads and writes it.
	if err := unix.SetNonblock(pair[0], true); err != nil {
		return nil, errors.Join(fmt.Errorf("make a socket: %w", err), unix.Close(pair[0]), unix.Close(pair[1]))
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "outside"), os.NewFile(uintptr(pair[1]), "outside")
	// It keeps no directory busy, and has no terminal of ours. Little memory is worth more
	// to it than time.
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{called}, Dir: "/", ExtraFiles: []*os.File{theirs},
		Env:         append(os.Environ(), "GOMAXPROCS=1", "GOGC=20"),
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	inherit.Nothing()
	err = cmd.Start()
	theirs.Close() // nothing was written
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("start the process that stays outside: %w", err)
	}
	p := &Process{kinds: kinds, cmd: cmd, socket: ours, ended: make(chan struct{}), gone: make(chan struct{}), waiting: map[uint64]chan message{}}
	go p.hear()
	return p, nil
}

// hear hands the answers out until there are no more.
func (p *Process) hear() {
	defer close(p.ended)
	defer p.socket.Close() // how the socket ended says no more
	for {
		reply, err := receive(p.socket)
		if err != nil {
			return
		}
		p.mu.Lock()
		answer := p.waiting[reply.ID]
		delete(p.waiting, reply.ID)
		p.mu.Unlock()
		if answer != nil { // else nobody waits for it any more
			answer <- reply
		}
	}
}

// Ended is closed when the process cannot be asked any more: it has ended, or Close was called.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// ErrGone is that the process is not there any more.
var ErrGone = errors.New("the process that does this for the daemon (varve-outside) is gone; all else goes on, \"varve umount\" too: unmount and mount the disk to have it again")

// ErrUnanswered is the ErrGone of a request that was under way: what was asked for may have
// been done, or may still be.
var ErrUnanswered = fmt.Errorf("%w; it ended while it did this", ErrGone)

// ErrLate is that the process has given no answer in time.
var ErrLate = errors.New("the process that does this for the daemon (varve-outside) gives no answer; it may be stopped, or wait for a file system of this host")

// Ask has the process do what, and decodes the answer. ErrGone when it has ended. With a
// limit it waits no longer than that, for ErrLate; without one, 0, until the process ends.
func (p *Process) Ask(what string, limit time.Duration, request, answer any) error {
	content, err := json.Marshal(request)
	if err != nil {
		return err
	}
	select {
	case <-p.ended:
		return ErrGone
	default:
	}
	var late <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		late = timer.C
	}
	replied := make(chan message, 1)
	p.mu.Lock()
	p.last++
	id := p.last
	p.waiting[id] = replied
	p.mu.Unlock()
	forget := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.waiting, id)
	}
	sent := make(chan error, 1)
	go func() { // who is stopped may not take it
		p.sending.Lock()
		defer p.sending.Unlock()
		sent <- send(p.socket, message{ID: id, What: what, Content: content})
	}()
	for {
		select {
		case err := <-sent:
			if errors.Is(err, errTooLong) {
				forget()
				return err
			}
			sent = nil // hear knows of the end of the socket
		case reply := <-replied:
			if reply.Failure != nil {
				return Failure(reply.Failure.Words, reply.Failure.Errno, reply.Failure.Kinds, p.kinds)
			}
			if answer == nil {
				return nil
			}
			return json.Unmarshal(reply.Content, answer)
		case <-late:
			forget()
			return ErrLate
		case <-p.ended:
			forget()
			return ErrUnanswered
		}
	}
}

// Describe takes an error apart, so that Failure makes one of it that is the same to
// errors.Is: words, an errno or 0, and which of kinds it is.
func Describe(err error, kinds []error) (words string, errno syscall.Errno, is []int) {
	errors.As(err, &errno)
	for n, kind := range kinds {
		if errors.Is(err, kind) {
			is = append(is, n)
		}
	}
	return err.Error(), errno, is
}

// Failure is the error that Describe took apart, with the same kinds.
func Failure(words string, errno syscall.Errno, is []int, kinds []error) error {
	e := reportedError{words: words}
	if errno != 0 {
		e.is = append(e.is, errno)
	}
	for _, n := range is {
		if n >= 0 && n < len(kinds) {
			e.is = append(e.is, kinds[n])
		}
	}
	return e
}

// reportedError is an error of the process's, in its words.
type reportedError struct {
	words string
	is    []error
}

func (e reportedError) Error() string   { return e.words }
func (e reportedError) Unwrap() []error { return e.is }

// endTime is how long Close waits for the process to end by itself.
const endTime = time.Second

// Close ends the process, and what waits for it gets ErrGone. One that does not end soon, as
// it is stopped or waits for a file system of the host, is not waited for: the disk is to be
// closed whatever becomes of it, and a process that is confined may not kill it. It ends
// when it goes on. Close may be called on nil, and once.
func (p *Process) Close() {
	if p == nil {
		return
	}
	p.socket.Close()
	<-p.ended
	go func() {
		defer close(p.gone)
		_ = p.cmd.Wait() // how it ended says nothing
	}()
	select {
	case <-p.gone:
	case <-time.After(endTime):
	}
}

// Serve is the process, where the program was called as that; ok is false where it was not.
func Serve(args []string, kinds []error, handlers map[string]Handler) (code int, ok bool) {
	if len(args) != 1 || args[0] != called {
		return 0, false
	}
	// A unit that is stopped, a scope and a terminal signal all processes in them: this one
	// is needed then.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE, syscall.SIGUSR1)
	_ = os.WriteFile("/proc/self/comm", []byte(called), 0) // for ps; it says "exe" otherwise
	const inherited = 3
	unix.CloseOnExec(inherited)
	socket := os.NewFile(inherited, "outside")
	var sending sync.Mutex
	atOnce := make(chan struct{}, mostAtOnce)
	for {
		request, err := receive(socket)
		if errors.Is(err, io.EOF) {
			return 0, true
		}
		if err != nil {
			return 1, true
		}
		atOnce <- struct{}{}
		go func() {
			defer func() { <-atOnce }()
			answer := handle(request, kinds, handlers)
			answer.ID = request.ID
			sending.Lock()
			defer sending.Unlock()
			err := send(socket, answer)
			if errors.Is(err, errTooLong) {
				err = send(socket, message{ID: request.ID, Failure: &failure{Words: err.Error()}})
			}
			if err != nil {
				os.Exit(1) // who asks is gone
			}
		}()
	}
}

func handle(request message, kinds []error, handlers map[string]Handler) message {
	handler, ok := handlers[request.What]
	if !ok {
		return message{Failure: &failure{Words: fmt.Sprintf("%q is nothing that is done outside", request.What)}}
	}
	answer, err := handler(request.Content)
	var content []byte
	if err == nil {
		content, err = json.Marshal(answer)
	}
	if err != nil {
		var f failure
		f.Words, f.Errno, f.Kinds = Describe(err, kinds)
		return message{Failure: &f}
	}
	return message{Content: content}
}

// errTooLong is of a message that is not sent.
var errTooLong = errors.New("the question to varve-outside, or its answer, is too long")

func send(w io.Writer, m message) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(text) > most {
		return fmt.Errorf("%w: %d bytes, at most %d are sent", errTooLong, len(text), most)
	}
	_, err = w.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(text))), text...))
	return err
}

func receive(r io.Reader) (m message, err error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return m, err
	}
	n := binary.LittleEndian.Uint32(length[:])
	if n > most {
		return m, fmt.Errorf("a message of %d bytes, at most %d are taken", n, most)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return m, err
	}
	return m, json.Unmarshal(text, &m)
}
