package where

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/cmd/varve/internal/aside"
	"varve/cmd/varve/internal/doctor"
	"varve/cmd/varve/internal/mountfile"
	"varve/cmd/varve/internal/waiting"
)

// Place is where the files of the mount are opened.
func (t Target) Place() mountfile.Place {
	return mountfile.Place{Root: t.path(), Device: t.Device, Name: t.Mountpoint}
}

// Document reads status.json of a mounted disk, as it stands and decoded.
func (t Target) Document() ([]byte, chain.Status, error) {
	defer waiting.For(t.ReadWait())()
	text, err := t.Place().Read(mountfile.MostStatus, "status.json")
	return t.decoded(text, err)
}

// decoded decodes a status.json that was read.
func (t Target) decoded(text []byte, err error) ([]byte, chain.Status, error) {
	if err != nil {
		return nil, chain.Status{}, t.Explain(err)
	}
	st, err := mountfile.Status(text)
	if err != nil {
		return nil, chain.Status{}, fmt.Errorf("read %s: %w", t.path("status.json"), err)
	}
	return text, st, nil
}

// AnswerTime is how long a daemon that may hang is waited for.
const AnswerTime = 5 * time.Second

// DocumentSoon is Document for a mount that may hang.
func (t Target) DocumentSoon() (chain.Status, error) {
	defer waiting.For(t.ReadWait())()
	_, st, err := t.decoded(aside.Ask(context.Background(), doctor.ReadErrand, t.Place().Errand("status.json"), AnswerTime))
	return st, err
}

// ReadSoon reads a file of a mount that may hang.
func (t Target) ReadSoon(name string) ([]byte, error) {
	defer waiting.For(t.ReadWait())()
	text, err := aside.Ask(context.Background(), doctor.ReadErrand, t.Place().Errand(name), AnswerTime)
	if err != nil {
		return nil, t.Explain(err)
	}
	return text, nil
}

// DaemonGone says whether a mount is one whose daemon has ended. It asks for the
// space on the file system, which the kernel always passes on to the daemon;
// what stat tells may come from its cache. A daemon that does not answer in a
// moment is there.
func DaemonGone(mountpoint string) bool {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		err := unix.Statfs(mountpoint, &st)
		for errors.Is(err, unix.EINTR) {
			err = unix.Statfs(mountpoint, &st)
		}
		answer <- err
	}()
	select {
	case err := <-answer:
		return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
	case <-time.After(time.Second):
		return false
	}
}
