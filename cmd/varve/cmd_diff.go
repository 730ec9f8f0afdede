package main

import (
	"bufio"
	"context"
	"errors"

	"github.com/spf13/cobra"

	"varve/chain"
	"varve/cmd/varve/internal/client"
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
		return showDifferences(ctx, cmd, t.Name(), source, flags)
	})
}

// showDifferences writes what differs, as it is found.
func showDifferences(ctx context.Context, cmd *cobra.Command, disk string, source client.Differences, flags diffFlags) error {
	if flags.exact {
		source = &exactDifferences{Differences: source}
	}
	bar := progress.New(cmd.ErrOrStderr(), cmd.Name()+" "+disk)
	defer bar.Clear()
	shown := bar.Update
	var out diffWriter
	switch onScreen := progress.IsTerminal(cmd.OutOrStdout()); {
	case flags.json:
		out = &diffJSON{out: bufio.NewWriter(cmd.OutOrStdout())}
	case onScreen && flags.all:
		out = &diffTable{out: bufio.NewWriter(cmd.OutOrStdout()), titles: source.Titles(), width: screenWidth}
		shown = func(_, _ int64) {} // the list shows it
	case onScreen:
		out = &diffTable{out: bufio.NewWriter(cmd.OutOrStdout()), titles: source.Titles(), width: screenWidth, most: shortList, clear: bar.Clear}
	default:
		out = &diffTable{out: bufio.NewWriter(cmd.OutOrStdout()), titles: source.Titles()}
	}
	err := writeDifferences(ctx, out, source, shown)
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted; the list is not complete")
	}
	return err
}

// writeDifferences goes through all differences.
func writeDifferences(ctx context.Context, out diffWriter, source client.Differences, shown func(done, total int64)) error {
	a, b := source.Views()
	if err := out.begin(diffHead{a: a, b: b, disk: source.Disk(), exact: isExact(source)}); err != nil {
		return err
	}
	var sum diffSum
	for more := true; more; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var list []chain.Difference
		var done int64
		var err error
		if list, done, more, err = source.Next(); err != nil {
			return err
		}
		shown(done, max(a.Size, b.Size))
		for _, d := range list {
			sum.count++
			sum.bytes += d.Length
			if err := out.add(d); err != nil {
				return err
			}
		}
	}
	if exact, ok := source.(*exactDifferences); ok {
		sum.differing = exact.differing
	}
	return out.end(sum)
}

func isExact(source client.Differences) bool {
	_, ok := source.(*exactDifferences)
	return ok
}
