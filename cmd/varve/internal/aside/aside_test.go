package aside

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/integration/patience"
)

// startsLate makes a child of the tests wait before it is one.
const startsLate = "VARVE_TEST_STARTS_LATE"

func TestMain(m *testing.M) {
	if os.Getenv(startsLate) != "" && len(os.Args) > 0 && os.Args[0] == called {
		time.Sleep(1200 * time.Millisecond)
	}
	errands := map[string]Errand{"read": os.ReadFile, "absent": func(string) ([]byte, error) { return nil, fs.ErrNotExist }, "session": ownSession}
	if code, ok := Serve(os.Args, errands); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// ownSession says whether a child is in a session of its own, without a terminal.
func ownSession(string) ([]byte, error) {
	session, err := unix.Getsid(0)
	return fmt.Append(nil, session == os.Getpid()), err
}

// What a child reads comes as it is, and so does what went wrong.
func TestAsk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b\n")
	if err := os.WriteFile(path, []byte("text\x00\xff\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var asked sync.WaitGroup
	for range 4 {
		asked.Go(func() {
			if text, err := Ask(context.Background(), "read", path, patience.Hang); err != nil || string(text) != "text\x00\xff\n" {
				t.Errorf("%q, %v", text, err)
			}
		})
	}
	asked.Wait()
	_, err := Ask(context.Background(), "read", path+"/below", patience.Hang)
	if !errors.Is(err, syscall.ENOTDIR) || err.Error() != "open "+path+"/below: not a directory" {
		t.Errorf("%v", err)
	}
	if _, err := Ask(context.Background(), "absent", path, patience.Hang); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := Ask(context.Background(), "unknown", path, patience.Hang); err == nil {
		t.Error("it did what it does not know")
	}
}

// A child that waits is given up, at the limit or before, and ended.
func TestAskGivesUp(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Ask(context.Background(), "read", fifo, 100*time.Millisecond); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(100*time.Millisecond, cancel)
	if _, err := Ask(ctx, "read", fifo, patience.Hang); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	for end := time.Now().Add(patience.Hang); leftBehind("read", fifo); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the child goes on")
		}
	}
}

// A busy host, on which a child starts late, is not taken for a file system that hangs.
func TestAskOnABusyHost(t *testing.T) {
	t.Setenv(startsLate, "1")
	t.Setenv("GORACE", "atexit_sleep_ms=0") // the child ends with its answer
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := Ask(context.Background(), "read", path, time.Second); err != nil || string(text) != "text" {
		t.Errorf("%q, %v", text, err)
	}
}

// A child of another user, who can trace it, has neither root's environment nor root's
// terminal.
func TestAskAs(t *testing.T) {
	t.Setenv("PASSWORD", "secret")
	as := &syscall.Credential{Uid: 65534, Gid: 65534}
	if text, err := AskAs(context.Background(), as, "read", "/proc/self/environ", patience.Hang); err != nil || len(text) > 0 {
		t.Errorf("its environment has %d bytes, %v", len(text), err)
	}
	if text, err := AskAs(context.Background(), as, "session", "", patience.Hang); err != nil || string(text) != "true" {
		t.Errorf("in a session of its own: %s, %v", text, err)
	}
}

// doctor does not tell of its own children, which may hang in a mount for a moment.
func TestIsChild(t *testing.T) {
	if IsChild(os.Getpid()) {
		t.Error("the test itself")
	}
	child := exec.Cmd{Path: "/bin/sleep", Args: []string{called, "60"}}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		child.Process.Kill()
		child.Wait()
	})
	if !IsChild(child.Process.Pid) {
		t.Error("a process of that name")
	}
}
