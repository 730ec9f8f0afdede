package main

import (
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"varve/chain"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/waiting"
	"varve/cmd/varve/internal/where"
)

// operation is a command that changes a disk at once: what it is written as in
// a control file, and the same on a disk that is not mounted.
type operation struct {
	command string // the control file
	line    string
	direct  func(*chain.Disk) error
}

// perform runs an operation on the disk that arg names.
func perform(cmd *cobra.Command, arg string, op operation) error {
	t, err := where.Find(arg)
	if err == nil {
		err = performOn(t, cmd.ErrOrStderr(), op)
	}
	return wrapped(cmd, arg, err)
}

// wrapped says which command failed on which disk.
func wrapped(cmd *cobra.Command, arg string, err error) error {
	if err == nil {
		return nil
	}
	return commandError{cmd.Name() + " " + arg, err}
}

// commandError is what went wrong with a command on a disk.
type commandError struct {
	what string
	err  error
}

func (e commandError) Error() string {
	// That something is invalid or busy the reason says better than the word.
	words := ": " + e.err.Error()
	for _, kind := range []error{chain.ErrInvalid, chain.ErrBusy} {
		words = strings.ReplaceAll(words, ": "+kind.Error()+": ", ": ")
	}
	return e.what + words
}

func (e commandError) Unwrap() error { return e.err }

func performOn(t where.Target, stderr io.Writer, op operation) error {
	if t.Mountpoint != "" {
		_, err := controlOf(t, op.command, op.line)
		return err
	}
	// A job that was left to go on later is not this command's business.
	d, err := openDirectly(t, chain.OpenOptions{Log: tell.Warnings(stderr), HoldJob: true})
	if err != nil {
		return err
	}
	defer waiting.For(where.PathWait(t.Dir))()
	err = op.direct(d)
	// An operation is durable when its call returns; Close tells whether the
	// disk was left in order.
	return errors.Join(err, d.Close())
}
