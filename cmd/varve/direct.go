package main

import (
	"github.com/spf13/cobra"

	"varve/chain"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/waiting"
	"varve/cmd/varve/internal/where"
	"varve/fs"
)

// diskStatus is a disk's status; of a disk that is not mounted all of it is counted.
func diskStatus(t where.Target, cmd *cobra.Command) (chain.Status, error) {
	if t.Mountpoint != "" {
		_, st, err := t.Document()
		return st, err
	}
	d, err := openDirectly(t, chain.OpenOptions{ReadOnly: true, Log: tell.Warnings(cmd.ErrOrStderr())})
	if err != nil {
		return chain.Status{}, err
	}
	defer d.Close() // read only: there is nothing to lose
	// Nobody's VM waits for this one, and what is asked once should be right.
	if err := d.CountAll(cmd.Context()); err != nil {
		return chain.Status{}, err
	}
	st, err := d.Status()
	if err == nil {
		fs.NameDamage(&st, func(id string, p []byte, off int64) error {
			if id == "" {
				return d.ReadAt(p, off)
			}
			return d.PeekView(id, p, off)
		})
	}
	return st, err
}

// openDirectly opens a disk that is not mounted.
func openDirectly(t where.Target, o chain.OpenOptions) (*chain.Disk, error) {
	o.LockWait = where.LockWait
	defer waiting.For(where.PathWait(t.Dir))()
	return chain.Open(t.Dir, o)
}
