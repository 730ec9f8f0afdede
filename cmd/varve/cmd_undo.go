package main

import (
	"github.com/spf13/cobra"

	"varve/cmd/varve/internal/client"
)

func newUndoCommand() *cobra.Command {
	var forget, background bool
	var saved savedStateFlag
	c := &cobra.Command{
		Use:   "undo DISK [--forget]",
		Short: "Take the last revert back",
		Long: `Makes the leaf that the last revert set aside the leaf again: disk.raw is what
it was before the revert. What was written since is set aside in turn, so a
second undo takes the first one back.

The VM must be off: an undo is refused for the same reasons as a revert. One
leaf at most is set aside: a revert in which something had been written removes
the one before. "varve tree" shows it with its bytes.

With --forget it is removed instead, and its space comes free.`,
		Example: `  varve undo /mnt/vm1
  varve undo /mnt/vm1 --forget`,
		Args: takes("DISK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if forget {
				return runJob(cmd, args[0], client.Disk.Forget, background, rateFlag{})
			}
			if background {
				return wrongUse(cmd, "--background is for --forget")
			}
			if err := saved.clear(cmd, args[0], true); err != nil {
				return err
			}
			return perform(cmd, args[0], client.Disk.Undo)
		},
	}
	c.Flags().BoolVar(&forget, "forget", false, "remove what was set aside")
	saved.register(c.Flags())
	c.Flags().BoolVar(&background, "background", false, "with --forget: return when it is recorded")
	return c
}
