package aside

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"varve/integration/patience"
)

// startsLate makes a child of the tests wait before it is one.
const startsLate = "VARVE_TEST_STARTS_LATE"

func TestMain(m *testing.M) {
	if os.Getenv(startsLate) != "" && len(os.Args) > 0 && os.Args[0] == called {
		time.Sleep(400 * time.Millisecond)
	}
	if code, ok := Serve(os.Args, map[string]Errand{"read": os.ReadFile, "absent": func(string) ([]byte, error) { return nil, fs.ErrNotExist }}); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
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
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := Ask(context.Background(), "read", path, 200*time.Millisecond); err != nil || string(text) != "text" {
		t.Errorf("%q, %v", text, err)
	}
}
