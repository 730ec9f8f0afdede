package integration

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"varve/integration/stamps"
)

// writerProcess is a process that writes stamps.
type writerProcess struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	words bytes.Buffer
}

// startWriters starts the writers of an area in a process of their own.
func startWriters(t *testing.T, area stamps.Area, seed uint64) *writerProcess {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := &writerProcess{cmd: exec.Command(exe)}
	w.cmd.Env = append(os.Environ(), area.Environment(seed))
	w.cmd.Stderr = &w.words
	if w.stdin, err = w.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.cmd.Process.Kill() })
	return w
}

// gone waits for the end of writers whose disk has gone away.
func (w *writerProcess) gone(t *testing.T) {
	t.Helper()
	w.ended(t, stamps.CodeGone)
	_ = w.stdin.Close()
}

// stop asks the writers to end, and waits.
func (w *writerProcess) stop(t *testing.T) {
	t.Helper()
	_ = w.stdin.Close()
	w.ended(t, 0)
}

func (w *writerProcess) ended(t *testing.T, code int) {
	t.Helper()
	timer := time.AfterFunc(time.Minute, func() { _ = w.cmd.Process.Kill() })
	defer timer.Stop()
	_ = w.cmd.Wait() // the exit code tells
	if got := w.cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("the writers ended with exit code %d, want %d: %s", got, code, w.words.String())
	}
}
