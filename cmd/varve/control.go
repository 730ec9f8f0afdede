package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"varve/chain"
	"varve/cmd/varve/internal/aside"
	"varve/cmd/varve/internal/doctor"
	"varve/cmd/varve/internal/mountfile"
	"varve/cmd/varve/internal/waiting"
	"varve/fs"
)

// control writes a line to a control file of a mounted disk. It gives the id of
// the job that goes on in the background, or "". What went wrong comes in the
// daemon's words, with the errno for errors.Is.
func (t target) control(command, line string) (job string, err error) {
	// What is read from the same open file is the outcome of this write, and
	// not of somebody else's.
	defer waiting.For(t.changeWait())()
	f, err := t.openToWrite("control", command)
	if err != nil {
		return "", err
	}
	defer f.Close() // nothing is held back until then
	_, job, err = t.exchange(f, line)
	return job, err
}

// place is where the files of the mount are opened.
func (t target) place() mountfile.Place {
	return mountfile.Place{Root: t.path(), Device: t.device, Name: t.mountpoint}
}

// openToWrite opens a file of the mount to write. What answers there need be no varve, where
// another user has mounted it: a link out of the mount, to a file that is not that user's,
// is refused before anything is written.
func (t target) openToWrite(elements ...string) (*os.File, error) {
	f, err := t.place().Open(os.O_RDWR, elements...)
	if err != nil {
		return nil, t.explain(err)
	}
	return f, nil
}

// exchange writes a line to an open control file and reads what it says then.
func (t target) exchange(f *os.File, line string) (text, job string, err error) {
	_, writeErr := f.WriteString(line + "\n")
	content, readErr := t.place().ReadOpen(f, mountfile.MostAnswer)
	outcome, ok := fs.ParseOutcome(string(content))
	switch {
	case writeErr == nil && readErr == nil && ok:
		return string(content), outcome.Job, nil
	case writeErr == nil && readErr != nil:
		return "", "", fmt.Errorf("it was done, but the daemon's answer cannot be read: %w", t.explain(readErr))
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
	defer waiting.For(t.readWait())()
	text, err := t.place().Read(mountfile.MostStatus, "status.json")
	return t.decoded(text, err)
}

// decoded decodes a status.json that was read.
func (t target) decoded(text []byte, err error) ([]byte, chain.Status, error) {
	if err != nil {
		return nil, chain.Status{}, t.explain(err)
	}
	st, err := mountfile.Status(text)
	if err != nil {
		return nil, chain.Status{}, fmt.Errorf("read %s: %w", t.path("status.json"), err)
	}
	return text, st, nil
}

// answerTime is how long list and metrics wait for a daemon.
const answerTime = 5 * time.Second

// documentSoon is document for a mount that may hang.
func (t target) documentSoon() (chain.Status, error) {
	defer waiting.For(t.readWait())()
	_, st, err := t.decoded(aside.Ask(context.Background(), doctor.ReadErrand, t.place().Errand("status.json"), answerTime))
	return st, err
}

// readSoon reads a file of a mount that may hang.
func (t target) readSoon(name string) ([]byte, error) {
	defer waiting.For(t.readWait())()
	text, err := aside.Ask(context.Background(), doctor.ReadErrand, t.place().Errand(name), answerTime)
	if err != nil {
		return nil, t.explain(err)
	}
	return text, nil
}
