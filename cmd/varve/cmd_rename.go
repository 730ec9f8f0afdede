package main

import (
	"github.com/spf13/cobra"

	"varve/chain"
	"varve/cmd/varve/internal/client"
)

func newRenameCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rename DISK OLD NEW",
		Short: "Give a snapshot another name",
		Long: `Gives a snapshot another name. Nothing else changes: the file on the host keeps
its number, and what has the layer open goes on reading it.`,
		Example: `  varve rename /mnt/vm1 before-upgrade upgrade-1`,
		Args:    takes("DISK", "OLD", "NEW"),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args[1:] {
				if err := chain.CheckName(name); err != nil && name != "base" && name != "leaf" {
					return wrapped(cmd, args[0], err)
				}
			}
			from, to := args[1], args[2]
			return perform(cmd, args[0], func(d client.Disk) error { return d.Rename(from, to) })
		},
	}
}
