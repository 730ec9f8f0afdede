package main

import (
	"github.com/spf13/cobra"

	"varve/cmd/varve/internal/client"
)

func newCancelCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cancel DISK [JOB]",
		Short: "Stop a delete or a flatten",
		Long: `Stops the job under way, or only the one with the given number. What was copied
stays copied and every layer reads as before. A delete that was stopped leaves a
layer without a name; "varve delete DISK --unnamed" goes on with it.`,
		Example: `  varve cancel /mnt/vm1
  varve cancel /mnt/vm1 3`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return takes("DISK", "JOB")(cmd, args)
			}
			return takes("DISK")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			id := "" // the one under way
			if len(args) > 1 {
				id = args[1]
			}
			return perform(cmd, args[0], func(d client.Disk) error { return d.Cancel(id) })
		},
	}
}
