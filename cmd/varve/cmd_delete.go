package main

import (
	"github.com/spf13/cobra"

	"varve/chain"
	"varve/cmd/varve/internal/client"
)

func newDeleteCommand() *cobra.Command {
	var unnamed, background bool
	var rate rateFlag
	var dry dryRun
	c := &cobra.Command{
		Use:   "delete DISK (NAME... | --unnamed)",
		Short: "Remove snapshots",
		Long: `Removes snapshots. The names are gone at once; then what newer layers need of
them is merged into these, while the VM goes on. Every other snapshot stays as
it is. Of several names all go or none, and each byte is copied once at most.

The merge waits for a layer with several children until all but one are gone.
It survives an unmount or a crash and goes on at the next mount. A snapshot that
is held, or that another disk was cloned from, cannot be deleted.

On a host with next to no room it frees before it needs: what newer layers hide
of a snapshot goes first, the rest moves in small steps. --dry-run without a
NAME says which snapshot's delete gives back most, of those deletes that the
host has room for.

With --unnamed it goes on with layers that have no name any more, those of a
delete that was cancelled.`,
		Example: `  varve delete /mnt/vm1 before-upgrade
  varve delete /mnt/vm1 monday --background
  varve delete /mnt/vm1 --dry-run        # which one gives back most
  varve delete /mnt/vm1 --unnamed`,
		Args: func(cmd *cobra.Command, args []string) error {
			if unnamed {
				if dry.on {
					return wrongUse(cmd, "--dry-run needs a name")
				}
				return takes("DISK")(cmd, args)
			}
			if dry.on && len(args) == 1 {
				return nil // of the best one
			}
			if err := takes("DISK", "NAME")(cmd, args[:min(len(args), 2)]); err != nil {
				return err
			}
			return dry.check(cmd)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if unnamed {
				return runJob(cmd, args[0], client.Disk.DeleteUnnamed, background, rate)
			}
			names := args[1:]
			if dry.on {
				return dry.show(cmd, args[0], chain.OpDelete, names...)
			}
			return runJob(cmd, args[0], func(d client.Disk) (client.Job, error) {
				return d.Delete(names...)
			}, background, rate)
		},
	}
	c.Flags().BoolVar(&unnamed, "unnamed", false, "merge the layers that have no name any more")
	c.Flags().BoolVar(&background, "background", false, "return when the delete is recorded")
	dry.register(c.Flags())
	rate.register(c.Flags())
	return c
}
