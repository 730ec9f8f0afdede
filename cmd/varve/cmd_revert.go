package main

import (
	"github.com/spf13/cobra"

	"varve/chain"
	"varve/cmd/varve/internal/client"
)

func newRevertCommand() *cobra.Command {
	var dry dryRun
	var saved savedStateFlag
	c := &cobra.Command{
		Use:   "revert DISK NAME",
		Short: "Go back to a snapshot",
		Long: `Makes disk.raw what it was at a snapshot, or with "base" what it was before
anything was written.

The VM must be off: while disk.raw is open a revert is refused. So it is while
libvirt keeps the VM's memory (virsh managedsave), which --discard-saved-state
gives up, or an image of QEMU's stands on disk.raw.

What was written since the last snapshot is set aside as a layer without a name,
not deleted: "varve undo" takes the revert back. Snapshots that are newer than
NAME stay, as a branch.`,
		Example: `  varve revert /mnt/vm1 before-upgrade
  varve revert /mnt/vm1 base               # as the disk was at first`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := takes("DISK", "NAME")(cmd, args); err != nil {
				return err
			}
			return dry.check(cmd)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[1]
			if dry.on {
				return dry.show(cmd, args[0], chain.OpRevert, name)
			}
			if err := saved.clear(cmd, args[0], true); err != nil {
				return err
			}
			return perform(cmd, args[0], func(d client.Disk) error { return d.Revert(name) })
		},
	}
	dry.register(c.Flags())
	saved.register(c.Flags())
	return c
}
