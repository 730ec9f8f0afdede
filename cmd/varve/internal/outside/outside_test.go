package outside

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"varve/integration/patience"
)

var errKind = errors.New("of a kind")

func kinds() []error { return []error{fs.ErrNotExist, errKind} }

func TestMain(m *testing.M) {
	handlers := map[string]Handler{
		"double": func(request []byte) (any, error) {
			var text string
			if err := json.Unmarshal(request, &text); err != nil {
				return nil, err
			}
			return text + text, nil
		},
		"pid":  func([]byte) (any, error) { return os.Getpid(), nil },
		"kind": func([]byte) (any, error) { return nil, fmt.Errorf("one %w", errKind) },
		"host": func([]byte) (any, error) {
			return nil, &os.PathError{Op: "open", Path: "/x", Err: syscall.EBUSY}
		},
		"hang": func([]byte) (any, error) { select {} },
		"end":  func([]byte) (any, error) { os.Exit(3); return nil, nil },
	}
	if code, ok := Serve(os.Args, kinds(), handlers); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// What is asked is answered, errors are what they were, no signal that a shutdown sends ends
// the process, and its end does not leave who asks waiting.
func TestAsk(t *testing.T) {
	p, err := Start(kinds())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var pid int
	if err := p.Ask("pid", 0, nil, &pid); err != nil || pid <= 0 || pid == os.Getpid() {
		t.Fatalf("pid %d, %v", pid, err)
	}
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1} {
		if err := syscall.Kill(pid, s); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			text := strings.Repeat(fmt.Sprint(i), 1<<18)
			var got string
			if err := p.Ask("double", 0, text, &got); err != nil || got != text+text {
				t.Errorf("%d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	all.Wait()
	if err := p.Ask("kind", 0, nil, nil); !errors.Is(err, errKind) || errors.Is(err, fs.ErrNotExist) || err.Error() != "one of a kind" {
		t.Error(err)
	}
	if err := p.Ask("host", 0, nil, nil); !errors.Is(err, syscall.EBUSY) || err.Error() != "open /x: device or resource busy" {
		t.Error(err)
	}
	if err := p.Ask("nothing", 0, nil, nil); err == nil || !strings.Contains(err.Error(), `"nothing" is nothing that is done outside`) {
		t.Error(err)
	}
	for range 2 {
		if err := p.Ask("end", 0, nil, nil); !errors.Is(err, ErrGone) {
			t.Error(err)
		}
	}
}

// The process ends with the one that has started it.
func TestEnd(t *testing.T) {
	p, err := Start(nil)
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	go func() { defer close(closed); p.Close() }()
	select {
	case <-closed:
	case <-time.After(patience.Hang):
		t.Fatal("it goes on")
	}
	select {
	case <-p.gone: // with the race detector a program takes a second to end
	case <-time.After(patience.Hang):
		t.Fatal("the process goes on")
	}
	if state := p.cmd.ProcessState; state == nil || state.ExitCode() != 0 {
		t.Errorf("it ended with %v", state)
	}
	if err := p.Ask("pid", 0, nil, nil); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
}

// A request that hangs keeps no other one, and neither it nor a process that is stopped keeps
// Close: the daemon closes its disk after that.
func TestHangs(t *testing.T) {
	p, err := Start(kinds())
	if err != nil {
		t.Fatal(err)
	}
	hanging := make(chan error, 1)
	go func() { hanging <- p.Ask("hang", 0, nil, nil) }()
	within := func(what string, do func()) {
		t.Helper()
		done := make(chan struct{})
		go func() { defer close(done); do() }()
		select {
		case <-done:
		case <-time.After(patience.Hang):
			t.Fatal(what + " hangs")
		}
	}
	var pid int
	within("the second request", func() { err = p.Ask("pid", 0, nil, &pid) })
	if err != nil || pid <= 0 {
		t.Fatal(pid, err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGKILL) // it has ended
	within("a request with a limit", func() { err = p.Ask("pid", time.Millisecond, nil, &pid) })
	if !errors.Is(err, ErrLate) {
		t.Error(err)
	}
	within("Close", p.Close)
	within("what was asked before", func() { err = <-hanging })
	if !errors.Is(err, ErrGone) {
		t.Error(err)
	}
}
