package main

import (
	"github.com/spf13/cobra"

	"varve/chain"
	"varve/cmd/varve/internal/client"
)

func newFlattenCommand() *cobra.Command {
	var background bool
	var rate rateFlag
	var dry dryRun
	c := &cobra.Command{
		Use:   "flatten DISK (NAME | leaf)",
		Short: "Make a layer independent of those below it",
		Long: `Copies into a snapshot, or into the leaf, all that it needs of the layers below
it. Afterwards it has no backing file: its own file is the whole disk as of that
layer, and it stays whole when the base is gone.

The VM goes on meanwhile. Layers below stay, for the other snapshots. The job
survives an unmount or a crash and goes on at the next mount.`,
		Example: `  varve flatten /mnt/vm1 leaf              # the running disk, off its base
  varve flatten /mnt/vm1 golden --background`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := takes("DISK", "NAME")(cmd, args); err != nil {
				return err
			}
			return dry.check(cmd)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[1]
			if dry.on {
				return dry.show(cmd, args[0], chain.OpFlatten, name)
			}
			return runJob(cmd, args[0], func(d client.Disk) (client.Job, error) {
				return d.Flatten(name)
			}, background, rate)
		},
	}
	c.Flags().BoolVar(&background, "background", false, "return when the job is recorded")
	dry.register(c.Flags())
	rate.register(c.Flags())
	return c
}
