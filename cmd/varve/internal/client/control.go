package client

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"varve/cmd/varve/internal/mountfile"
	"varve/cmd/varve/internal/waiting"
	"varve/cmd/varve/internal/where"
	"varve/fs/control"
)

// write writes a line to a control file of a mounted disk. It gives the id of
// the job that goes on in the background, or "". What went wrong comes in the
// daemon's words, with the errno for errors.Is.
func write(t where.Target, command, line string) (job string, err error) {
	// What is read from the same open file is the outcome of this write, and
	// not of somebody else's.
	defer waiting.For(t.ChangeWait())()
	f, err := openToWrite(t, control.Dir, command)
	if err != nil {
		return "", err
	}
	defer f.Close() // nothing is held back until then
	_, job, err = exchange(t, f, line)
	return job, err
}

// ask writes a line to a control file and gives the answer.
func ask(t where.Target, command, line string) (string, error) {
	defer waiting.For(t.ReadWait())()
	f, err := openToWrite(t, control.Dir, command)
	if err != nil {
		return "", err
	}
	defer f.Close() // nothing is held back until then
	text, _, err := exchange(t, f, line)
	if err != nil {
		return "", err
	}
	answer, ok := control.ParseAnswer(text)
	if !ok {
		return "", fmt.Errorf("%s gave no answer", f.Name())
	}
	return answer, nil
}

// openToWrite opens a file of the mount to write. What answers there need be no varve, where
// another user has mounted it: a link out of the mount, to a file that is not that user's,
// is refused before anything is written.
func openToWrite(t where.Target, elements ...string) (*os.File, error) {
	f, err := t.Place().Open(os.O_RDWR, elements...)
	if err != nil {
		return nil, t.Explain(err)
	}
	return f, nil
}

// exchange writes a line to an open control file and reads what it says then.
func exchange(t where.Target, f *os.File, line string) (text, job string, err error) {
	_, writeErr := f.WriteString(line + "\n")
	content, readErr := t.Place().ReadOpen(f, mountfile.MostAnswer)
	outcome, ok := control.ParseOutcome(string(content))
	switch {
	case writeErr == nil && readErr == nil && ok:
		return string(content), outcome.Job, nil
	case writeErr == nil && readErr != nil:
		return "", "", fmt.Errorf("it was done, but the daemon's answer cannot be read: %w", t.Explain(readErr))
	case writeErr == nil:
		return "", "", fmt.Errorf("it was done, but what %s says is not understood: %.200q", f.Name(), content)
	case readErr == nil && ok && outcome.Errno != 0 && errors.Is(writeErr, outcome.Errno):
		return "", "", refusedError{outcome.Reason, outcome.Errno}
	}
	return "", "", t.Explain(writeErr)
}

// refusedError is what the daemon said to a control write.
type refusedError struct {
	reason string
	errno  syscall.Errno
}

func (e refusedError) Error() string { return e.reason }

func (e refusedError) Unwrap() error { return e.errno }

// Is knows what the errno means in package chain.
func (e refusedError) Is(target error) bool { return control.IsKind(e.errno, target) }
