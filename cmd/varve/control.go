package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/cmd/varve/internal/aside"
	"varve/cmd/varve/internal/doctor"
	"varve/cmd/varve/internal/waiting"
	"varve/fs"
)

// control writes a line to a control file of a mounted disk. It gives the id of
// the job that goes on in the background, or "". What went wrong comes in the
// daemon's words, with the errno for errors.Is.
func (t target) control(command, line string) (job string, err error) {
	// What is read from the same open file is the outcome of this write, and
	// not of somebody else's.
	defer waiting.For(t.changing())()
	f, err := t.openToWrite("control", command)
	if err != nil {
		return "", err
	}
	defer f.Close() // nothing is held back until then
	_, job, err = t.exchange(f, line)
	return job, err
}

// openToWrite opens a file of the mount to write. What answers there need be no varve, where
// another user has mounted it: a link out of the mount, to a file that is not that user's,
// is refused before anything is written.
func (t target) openToWrite(elements ...string) (*os.File, error) {
	f, err := os.OpenFile(t.path(elements...), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, t.explain(err)
	}
	var st unix.Statx_t
	err = unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st)
	if err == nil && unix.Mkdev(st.Dev_major, st.Dev_minor) != t.device {
		err = fmt.Errorf("%s leads out of the mount, so what is mounted at %s is no varve's", f.Name(), t.mountpoint)
	}
	if err != nil {
		f.Close() // nothing was written
		return nil, err
	}
	return f, nil
}

// exchange writes a line to an open control file and reads what it says then.
func (t target) exchange(f *os.File, line string) (text, job string, err error) {
	_, writeErr := f.WriteString(line + "\n")
	content, readErr := io.ReadAll(io.NewSectionReader(f, 0, 16<<20))
	outcome, ok := fs.ParseOutcome(string(content))
	switch {
	case writeErr == nil && readErr == nil && ok:
		return string(content), outcome.Job, nil
	case writeErr == nil && readErr != nil:
		return "", "", fmt.Errorf("it was done, but how cannot be read: %w", t.explain(readErr))
	case writeErr == nil:
		return "", "", fmt.Errorf("it was done, but what %s says is not understood: %.200q", f.Name(), content)
	case readErr == nil && ok && outcome.Errno != 0 && errors.Is(writeErr, outcome.Errno):
		return "", "", refusedError{outcome.Reason, outcome.Errno}
	}
	return "", "", t.explain(writeErr)
}

// refusedError is what the daemon said to a control write.
type refusedError struct {
	reason string
	errno  syscall.Errno
}

func (e refusedError) Error() string { return e.reason }

func (e refusedError) Unwrap() error { return e.errno }

// document reads status.json of a mounted disk, as it stands and decoded.
func (t target) document() ([]byte, chain.Status, error) {
	defer waiting.For(t.reading())()
	text, err := os.ReadFile(t.path("status.json"))
	return t.decoded(text, err)
}

// decoded decodes a status.json that was read.
func (t target) decoded(text []byte, err error) ([]byte, chain.Status, error) {
	if err != nil {
		return nil, chain.Status{}, t.explain(err)
	}
	var st chain.Status
	if err := json.Unmarshal(text, &st); err != nil {
		return nil, chain.Status{}, fmt.Errorf("read %s: %w", t.path("status.json"), err)
	}
	return text, st, nil
}

// answerTime is how long list and metrics wait for a daemon.
const answerTime = 5 * time.Second

// documentSoon is document for a mount that may hang.
func (t target) documentSoon() (chain.Status, error) {
	defer waiting.For(t.reading())()
	_, st, err := t.decoded(aside.Ask(context.Background(), doctor.ReadErrand, t.path("status.json"), answerTime))
	return st, err
}

// readSoon reads a file of a mount that may hang.
func (t target) readSoon(name string) ([]byte, error) {
	defer waiting.For(t.reading())()
	text, err := aside.Ask(context.Background(), doctor.ReadErrand, t.path(name), answerTime)
	if err != nil {
		return nil, t.explain(err)
	}
	return text, nil
}
