package main

import (
	"github.com/spf13/cobra"

	"varve/chain"
	"varve/cmd/varve/internal/client"
	"varve/cmd/varve/internal/tell"
	"varve/overlay/extent"
)

func newResizeCommand() *cobra.Command {
	var saved savedStateFlag
	c := &cobra.Command{
		Use:   "resize DISK SIZE",
		Short: "Grow the disk",
		Long: `Grows the disk to SIZE bytes; K, M, G, T stand for KiB, MiB, GiB, TiB, and so
do KB, MB, GB, TB. What is new reads as zeros. Snapshots keep the size that they
had. A disk never shrinks.

A running VM sees the new size once it is told, with QEMU's block_resize or
"virsh blockresize"; partitions and file systems in it are grown in the guest.`,
		Example: `  varve resize /mnt/vm1 40G`,
		Args:    takes("DISK", "SIZE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			size, err := chain.ParseSize(args[1])
			if err != nil {
				return wrongUse(cmd, "%w", err)
			}
			if err := saved.clear(cmd, args[0], false); err != nil {
				return err
			}
			whole := extent.WholeSectors(size)
			err = perform(cmd, args[0], func(d client.Disk) error { return d.Resize(whole) })
			if err == nil {
				tell.Rounded(cmd.ErrOrStderr(), size, whole)
			}
			return err
		},
	}
	saved.register(c.Flags())
	return c
}
