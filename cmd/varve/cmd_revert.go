package main

import (
	"github.com/spf13/cobra"

	"varve/chain"
)

func newRevertCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "revert DISK NAME",
		Short: "Go back to a snapshot",
		Long: `Makes disk.raw what it was at a snapshot, or with "base" what it was before
anything was written.

The VM must be off: while disk.raw is open a revert is refused. What was written
since the last snapshot is set aside as a layer without a name, not deleted;
snapshots that are newer than NAME stay, as a branch.`,
		Example: `  varve revert /mnt/vm1 before-upgrade
  varve revert /mnt/vm1 base               # as the disk was at first`,
		Args: takes("DISK", "NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[1]
			return perform(cmd, args[0], operation{"revert", name, func(d *chain.Disk) error {
				return d.Revert(name)
			}})
		},
	}
}
