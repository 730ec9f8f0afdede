package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"varve/chain"
	"varve/cmd/varve/internal/progress"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/where"
)

func newCheckCommand() *cobra.Command {
	var repair, asJSON bool
	c := &cobra.Command{
		Use:   "check DISK",
		Short: "Check that a disk's files are in order",
		Long: `Checks everything that the files of a disk promise to each other: chain.json,
the file of each layer, its header, tables and reference counts, whether
somebody else changed it, and what else lies in the disk directory. Nothing is
written; the disk must not be mounted. The content itself has no checksums.

Exit code 0: in order; 1: errors; 3: leaks, space that is lost without harm.
After a crash leaks are normal; the next mount gives them back.

With --repair it mends what it can without losing anything: what the next mount
would mend, and leaks and reference counts in all layers that varve made. It
writes no file that is not varve's, and no view changes. Then it checks again
and shows what is left.`,
		Example: `  varve check vm1.varve
  varve check vm1.varve --repair
  varve check vm1.varve --json | jq '.findings[]'`,
		Args: takes("DISK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return wrapped(cmd, args[0], checkDisk(cmd, args[0], repair, asJSON))
		},
	}
	c.Flags().BoolVar(&repair, "repair", false, "mend what can be mended")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func checkDisk(cmd *cobra.Command, arg string, repair, asJSON bool) error {
	t, err := where.Find(arg)
	if err != nil {
		return err
	}
	if err := t.NotMounted(); err != nil {
		return err
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	bar := progress.New(cmd.ErrOrStderr(), cmd.Name()+" "+t.Name())
	report, err := chain.Check(ctx, t.Dir, chain.CheckOptions{
		Repair: repair, LockWait: where.LockWait, Log: tell.Warnings(cmd.ErrOrStderr()), Progress: bar.Update,
	})
	bar.Clear()
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted before it had looked at everything")
	}
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if asJSON {
		err = writeJSON(out, report)
	} else {
		err = writeReport(out, report)
	}
	switch {
	case err != nil:
		return err
	case report.Errors > 0:
		return fmt.Errorf("%s; the findings say what to do", counts(report))
	case report.Leaks > 0:
		return reportedError{exitLeaks}
	}
	return nil
}

// reportWidth is how wide the findings are, for terminals of 80 columns; only a
// word that is longer goes beyond.
const reportWidth = 79

// writeReport writes a report for people: what was mended, the findings by file,
// and the sum.
func writeReport(out io.Writer, r chain.CheckReport) error {
	w := &reportWriter{out: out, disk: r.Disk}
	for _, l := range r.Layers {
		w.name(l)
	}
	if len(r.Mended) > 0 {
		w.line("mended:")
		w.findings(r.Mended, false)
		if len(r.Findings) > 0 {
			w.line("left:")
		}
	}
	w.findings(r.Findings, true)
	w.line(fmt.Sprintf("%d layers: %s", len(r.Layers), counts(r)))
	return w.err
}

// counts says how much is wrong in a few words.
func counts(r chain.CheckReport) string {
	return tell.Count(r.Errors, "error", "errors") + ", " + tell.Count(r.Leaks, "leaked cluster", "leaked clusters")
}
