package background

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Go's runtime ends a program that gets no thread or no memory from the kernel, with words for
// those who know Go: a reason, a "fatal error" and the traces of all goroutines. It does so
// before the program itself could say anything. So whoever has started the daemon listens.

// Errors of a daemon that a limit of the host has ended.
var (
	errNoThread = errors.New("the daemon got no thread from the kernel; raise the limit of processes and threads (ulimit -u, TasksMax= of a systemd unit, pids.max of a container)")
	errNoMemory = errors.New("the daemon got no memory from the kernel; raise the limit of its address space (ulimit -v, LimitAS= of a systemd unit), or free memory on the host")
)

// runtimeWords are what Go's runtime says in such a case (runtime: os_linux.go, proc.go,
// mem_linux.go, malloc.go, mpagealloc_64bit.go), and what that means.
var runtimeWords = []struct {
	words string
	means error
}{
	{"failed to create new OS thread", errNoThread},
	{"fatal error: newosproc", errNoThread},
	{"out of memory", errNoMemory},
	{"cannot allocate memory", errNoMemory},
	{"cannot allocate heap metadata", errNoMemory},
	{"failed to reserve page summary memory", errNoMemory},
	{"cannot reserve arena virtual address space", errNoMemory},
}

// screen hands on what a daemon says, line by line. From a line of Go's runtime on it holds
// everything back, to be dropped when it means that a limit of the host was met.
type screen struct {
	to    *os.File // closed by end
	r, w  *os.File
	ended chan struct{}

	line, held []byte
	means      error // of runtimeWords, once one was met
}

// listen makes a screen. Its w is to be the daemon's stderr, and to be closed here then.
func listen(stderr *os.File) (*screen, error) {
	// Go ends a program whose descriptor 2 nobody reads any more; another one gives an error.
	fd, err := unix.FcntlInt(stderr.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	to := os.NewFile(uintptr(fd), stderr.Name())
	r, w, err := os.Pipe()
	if err != nil {
		to.Close()
		return nil, err
	}
	s := &screen{to: to, r: r, w: w, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		_, _ = io.Copy(s, r) // how it ended says nothing
	}()
	return s, nil
}

// Write takes what the daemon says.
func (s *screen) Write(p []byte) (int, error) {
	s.line = append(s.line, p...)
	for {
		n := bytes.IndexByte(s.line, '\n') + 1
		if n == 0 {
			return len(p), nil
		}
		s.take(s.line[:n])
		s.line = s.line[n:]
	}
}

func (s *screen) take(line []byte) {
	text := string(line)
	if s.held == nil && !strings.HasPrefix(text, "runtime: ") && !strings.HasPrefix(text, "fatal error: ") {
		_, _ = s.to.Write(line) // nobody else could be told
		return
	}
	for _, w := range runtimeWords {
		if s.means == nil && strings.Contains(text, w.words) {
			s.means = w.means
		}
	}
	s.held = append(s.held, line...)
}

// letGo is how long the end of what a daemon says is waited for: it may have left its stderr
// to another program.
const letGo = time.Second

// end returns when everything was handed on, and gives what Go's runtime meant, nil for nothing.
// It may be called on nil, for the same.
func (s *screen) end() (means error) {
	if s == nil {
		return nil
	}
	select {
	case <-s.ended:
	case <-time.After(letGo):
		_ = s.r.SetReadDeadline(time.Now())
		<-s.ended
	}
	s.r.Close() // read only
	s.take(s.line)
	if s.means == nil {
		_, _ = s.to.Write(s.held)
	}
	s.to.Close() // written without a buffer
	return s.means
}
