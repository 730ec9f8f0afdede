package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"varve/chain"
	"varve/cmd/varve/internal/client"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/where"
)

// perform does something on the disk that arg names.
func perform(cmd *cobra.Command, arg string, do func(client.Disk) error) error {
	t, err := where.Find(arg)
	if err == nil {
		// A job that was left to go on later is not this command's business.
		err = on(t, client.Options{Log: tell.Warnings(cmd.ErrOrStderr()), HoldJob: true}, do)
	}
	return wrapped(cmd, arg, err)
}

// readDisk looks at the disk that arg names, and changes nothing.
func readDisk(cmd *cobra.Command, arg string, at func(client.Disk) error) error {
	t, err := where.Find(arg)
	if err == nil {
		err = readTarget(cmd, t, at)
	}
	return wrapped(cmd, arg, err)
}

func readTarget(cmd *cobra.Command, t where.Target, at func(client.Disk) error) error {
	return on(t, client.Options{Log: tell.Warnings(cmd.ErrOrStderr()), ReadOnly: true}, at)
}

// on opens a disk for do. An operation is durable when its call returns; closing tells whether
// the disk was left in order.
func on(t where.Target, o client.Options, do func(client.Disk) error) error {
	d, err := client.Open(t, o)
	if err != nil {
		return err
	}
	return errors.Join(do(d), d.Close())
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
