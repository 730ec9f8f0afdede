package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "varve COMMAND",
		Short: "Mount a virtual disk's layers",
		Long: `varve mounts a virtual disk together with its snapshots.

The mount has disk.raw, the one writable file to point a VM at, and a read-only
raw file for every snapshot in layers/. Snapshots are taken while the VM runs;
a revert, a delete or a flatten never needs the VM to be told another path.

DISK is a disk directory (such as vm1.varve), a mountpoint, or the image that
the disk directory was made for.`,
		Example: `  varve mount ubuntu.raw /mnt/vm1          # first time: makes ubuntu.raw.varve
  varve snapshot /mnt/vm1 before-upgrade
  varve list /mnt/vm1
  varve revert /mnt/vm1 before-upgrade
  varve umount /mnt/vm1`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := ""
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				hint = fmt.Sprintf("; did you mean %q?", near[0])
			}
			return usagef("unknown command %q%s; \"varve help\" lists the commands", args[0], hint)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usagef("which command? \"varve help\" lists them")
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return wrongUse(cmd, "%w", err)
	})
	root.SetHelpFunc(printHelp)
	root.SetUsageFunc(printUsage)
	root.AddGroup(
		&cobra.Group{ID: "disk", Title: "Disks:"},
		&cobra.Group{ID: "layer", Title: "Layers:"},
		&cobra.Group{ID: "see", Title: "Looking:"},
	)
	for group, commands := range map[string][]*cobra.Command{
		"disk": {newCreateCommand(), newMountCommand(), newUmountCommand(), newResizeCommand(), newAcceptCommand(),
			newCloneCommand(), newRebaseCommand()},
		"layer": {newSnapshotCommand(), newRevertCommand(), newDeleteCommand(), newFlattenCommand(),
			newRenameCommand(), newExportCommand(), newImportCommand(), newCancelCommand(),
			newUndoCommand(), newHoldCommand(), newReleaseCommand(), newPruneCommand()},
		"see": {newListCommand(), newStatusCommand(), newCheckCommand(), newDiffCommand(),
			newTreeCommand(), newMapCommand(), newMetricsCommand(), newDoctorCommand()},
	} {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	root.AddCommand(newVersionCommand(), newManCommand())
	addCompletion(root)
	return root
}

// wrongUse is a usageError of a command, with the way to its help.
func wrongUse(cmd *cobra.Command, format string, args ...any) error {
	name := strings.TrimPrefix(cmd.CommandPath(), "varve ")
	if !cmd.HasParent() {
		return usagef("%w; \"varve help\" says more", fmt.Errorf(format, args...))
	}
	return usagef("%s: %w; \"varve %s --help\" says more", name, fmt.Errorf(format, args...), name)
}

// takes says which arguments a command needs, by their names in its help.
func takes(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return wrongUse(cmd, "%s is missing", names[len(args)])
		case len(args) > len(names):
			return wrongUse(cmd, "%q is one argument too many", args[len(names)])
		}
		for i, arg := range args {
			if arg == "" {
				return wrongUse(cmd, "%s is empty", names[i])
			}
		}
		return nil
	}
}
