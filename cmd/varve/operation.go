package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"varve/chain"
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
	t, err := findTarget(arg)
	if err == nil {
		err = t.perform(cmd.ErrOrStderr(), op)
	}
	return wrapped(cmd, arg, err)
}

// wrapped says which command failed on which disk.
func wrapped(cmd *cobra.Command, arg string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", cmd.Name(), arg, err)
}

func (t target) perform(stderr io.Writer, op operation) error {
	if t.mountpoint != "" {
		_, err := t.control(op.command, op.line)
		return err
	}
	d, err := t.open(stderr, false)
	if err != nil {
		return err
	}
	err = op.direct(d)
	// An operation is durable when its call returns; Close tells whether the
	// disk was left in order.
	return errors.Join(err, d.Close())
}
