package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"varve/cmd/varve/internal/client"
	"varve/cmd/varve/internal/keep"
)

func newSnapshotCommand() *cobra.Command {
	var auto bool
	c := &cobra.Command{
		Use:   "snapshot DISK (NAME | --auto)",
		Short: "Freeze the disk as it is now under a name",
		Long: `Freezes the disk's content under a name and goes on in a new, empty layer.

On a mounted disk the VM goes on running: its writes wait until those in flight
have finished, whatever the disk's size. The snapshot holds every write that was
completed before; what the guest still had in its own memory is not in it, as
after a power cut. For a snapshot that needs no recovery, let the guest sync or
freeze its file systems first (fsfreeze, or the QEMU guest agent).

A name has 1 to 128 of A-Z a-z 0-9 . _ - and does not begin with . or -.

With --auto the name is the time, such as auto-20261122T183000Z, and is printed.
"varve prune" deletes such snapshots by their age.`,
		Example: `  varve snapshot /mnt/vm1 before-upgrade
  varve snapshot vm1.varve monday          # a disk that is not mounted
  varve snapshot /mnt/vm1 --auto`,
		Args: func(cmd *cobra.Command, args []string) error {
			if auto {
				return takes("DISK")(cmd, args)
			}
			return takes("DISK", "NAME")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if auto {
				return snapshotByTime(cmd, args[0])
			}
			return snapshot(cmd, args[0], args[1])
		},
	}
	c.Flags().BoolVar(&auto, "auto", false, "name it by the time")
	return c
}

func snapshot(cmd *cobra.Command, arg, name string) error {
	err := perform(cmd, arg, func(d client.Disk) error { return d.Snapshot(name) })
	if err == nil {
		warnOfOverlays(cmd, arg) // now: the snapshot need not wait for that
	}
	return err
}

func snapshotByTime(cmd *cobra.Command, arg string) error {
	name, err := keep.ByTime(func(name string) error { return snapshot(cmd, arg, name) })
	if err == nil {
		_, err = fmt.Fprintln(cmd.OutOrStdout(), name)
	}
	return err
}
