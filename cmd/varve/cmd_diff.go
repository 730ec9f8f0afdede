package main

import (
	"errors"

	"github.com/spf13/cobra"

	"varve/cmd/varve/internal/client"
	"varve/cmd/varve/internal/diff"
	"varve/cmd/varve/internal/progress"
	"varve/cmd/varve/internal/where"
)

type diffFlags struct {
	json  bool
	exact bool
	all   bool
}

func newDiffCommand() *cobra.Command {
	var flags diffFlags
	c := &cobra.Command{
		Use:   "diff DISK A B",
		Short: "Show where two views of a disk differ",
		Long: `Lists the stretches in which two views differ, and how many bytes that are. A
and B are snapshots, base or leaf, in whatever branch.

It goes by the tables of the layers and reads no data: it lists where the two
do not have their bytes from the same place of the same layer. That is all that
can differ, in whole clusters or parts of them; what was written again as it
was, and what a flatten has copied, is listed too. Columns A and B say in which
layer each view has the bytes, or that they are zeros there, or that the view
has ended.

With --exact it compares the data there and lists only blocks of 4 KiB, counted
from the disk's start, in which any byte differs, and says how many bytes do,
as cmp -l counts them. Where one view is longer, all that lies past the end of
the other counts as differing.

On a terminal a long list is shortened. The disk may be mounted and in use; of
a leaf that is written meanwhile each part is of the moment when it was looked
at. The exit code is 0 whether they differ or not.`,
		Example: `  varve diff /mnt/vm1 before-upgrade leaf
  varve diff vm1.varve base monday --exact
  varve diff /mnt/vm1 monday tuesday --json | jq .bytes`,
		Args: takes("DISK", "A", "B"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return wrapped(cmd, args[0], diffViews(cmd, args[0], args[1], args[2], flags))
		},
	}
	c.Flags().BoolVar(&flags.json, "json", false, "print JSON")
	c.Flags().BoolVar(&flags.exact, "exact", false, "compare the data as well")
	c.Flags().BoolVar(&flags.all, "all", false, "do not shorten the list on a terminal")
	return c
}

func diffViews(cmd *cobra.Command, arg, a, b string, flags diffFlags) error {
	t, err := where.Find(arg)
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	return readTarget(cmd, t, func(d client.Disk) (err error) {
		source, err := d.Diff(a, b)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, source.Close()) }()
		bar := progress.New(cmd.ErrOrStderr(), cmd.Name()+" "+t.Name())
		defer bar.Clear()
		return diff.Write(ctx, cmd.OutOrStdout(), source, diff.Options{
			Exact: flags.exact, JSON: flags.json, All: flags.all, Screen: progress.IsTerminal(cmd.OutOrStdout()),
			Progress: bar.Update, Clear: bar.Clear,
		})
	})
}
