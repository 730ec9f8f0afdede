package main

import (
	"github.com/spf13/cobra"

	"varve/cmd/varve/internal/client"
)

func newHoldCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "hold DISK NAME",
		Short: "Keep a snapshot from being deleted",
		Long: `Keeps a snapshot from being deleted or pruned until "varve release" lets it go.
Everything else goes on: its view can be read, reverted to, cloned, flattened.`,
		Example: `  varve hold /mnt/vm1 golden`,
		Args:    takes("DISK", "NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[1]
			return perform(cmd, args[0], func(d client.Disk) error { return d.Hold(name) })
		},
	}
}

func newReleaseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "release DISK NAME",
		Short: "Let a held snapshot be deleted again",
		Long: `Takes back a hold. It also forgets disks that were cloned from the snapshot and
are not there any more; one that is there keeps the snapshot, for it reads its
files.`,
		Example: `  varve release /mnt/vm1 golden`,
		Args:    takes("DISK", "NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[1]
			return perform(cmd, args[0], func(d client.Disk) error { return d.Release(name) })
		},
	}
}
