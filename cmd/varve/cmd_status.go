package main

import (
	"github.com/spf13/cobra"

	"varve/fs"
)

func newStatusCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status DISK",
		Short: "Show a disk: its layers, who has what open, the job under way",
		Long: `Shows a disk's size and layers, who has which of its files open, and the job
under way or the last one. It is what the mount's own file "status" reads, and
with --json what "status.json" reads.

It changes nothing: a disk that is not mounted is only read.`,
		Example: `  varve status /mnt/vm1
  varve status vm1.varve --json | jq .job`,
		Args: takes("DISK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return wrapped(cmd, args[0], show(cmd, args[0], asJSON, fs.Table))
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print what status.json says")
	return c
}
