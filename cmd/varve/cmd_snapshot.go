package main

import (
	"github.com/spf13/cobra"

	"varve/chain"
)

func newSnapshotCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "snapshot DISK NAME",
		Short: "Freeze the disk as it is now under a name",
		Long: `Freezes the disk's content under a name and goes on in a new, empty layer.

On a mounted disk the VM goes on running: its writes wait until those in flight
have finished, whatever the disk's size. The snapshot holds every write that was
completed before; what the guest still had in its own memory is not in it, as
after a power cut. For a snapshot that needs no recovery, let the guest sync or
freeze its file systems first (fsfreeze, or the QEMU guest agent).

A name has 1 to 128 of A-Z a-z 0-9 . _ - and does not begin with . or -.`,
		Example: `  varve snapshot /mnt/vm1 before-upgrade
  varve snapshot vm1.varve monday          # a disk that is not mounted`,
		Args: takes("DISK", "NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[1]
			return perform(cmd, args[0], operation{"snapshot", name, func(d *chain.Disk) error {
				return d.Snapshot(name)
			}})
		},
	}
}
