package main

import (
	"github.com/spf13/cobra"

	"varve/chain"
)

func newDeleteCommand() *cobra.Command {
	var unnamed, background bool
	var rate rateFlag
	c := &cobra.Command{
		Use:   "delete DISK (NAME | --unnamed)",
		Short: "Remove a snapshot",
		Long: `Removes a snapshot. The name is gone at once; then what newer layers need of it
is merged into them, while the VM goes on. Every other snapshot stays as it is.

The merge waits for a layer with several children until all but one are gone.
It survives an unmount or a crash and goes on at the next mount.

With --unnamed it goes on with layers that have no name any more, those of a
delete that was cancelled.`,
		Example: `  varve delete /mnt/vm1 before-upgrade
  varve delete /mnt/vm1 monday --background
  varve delete /mnt/vm1 --unnamed`,
		Args: func(cmd *cobra.Command, args []string) error {
			if unnamed {
				return takes("DISK")(cmd, args)
			}
			return takes("DISK", "NAME")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if unnamed {
				return runJob(cmd, args[0], job{"delete", "--unnamed", (*chain.Disk).DeleteUnnamed}, background, rate)
			}
			name := args[1]
			return runJob(cmd, args[0], job{"delete", name, func(d *chain.Disk) (string, error) {
				return d.Delete(name)
			}}, background, rate)
		},
	}
	c.Flags().BoolVar(&unnamed, "unnamed", false, "merge the layers that have no name any more")
	c.Flags().BoolVar(&background, "background", false, "return when the delete is recorded")
	rate.register(c.Flags())
	return c
}
