package main

import (
	"errors"

	"github.com/spf13/cobra"

	"varve/cmd/varve/internal/export"
	"varve/cmd/varve/internal/flagvalue"
	"varve/cmd/varve/internal/output"
	"varve/cmd/varve/internal/progress"
	"varve/cmd/varve/internal/where"
)

func newExportCommand() *cobra.Command {
	var o export.Options
	c := &cobra.Command{
		Use:   "export DISK (NAME | base | leaf) OUT",
		Short: "Copy a layer's view into an image of its own",
		Long: `Writes the disk as it was at a snapshot, at the base, or as it is now (leaf),
into OUT: one image that needs no other file and no varve. What is zeros takes
no space. OUT appears under its name when it is complete and durable.

A qcow2 is of the plain kind that every program reads. With "-" for OUT a raw
image goes to standard output, zeros included. OUT can be a block device too,
with --force: it is overwritten from its beginning on, unless something uses it.

A place that cannot be read, since a table or the host's disk is damaged, ends
the export. With --skip-damaged there are zeros in its stead, all such places
are listed on standard error, and the exit code is 4 when there were any.

Snapshots can be exported while the disk is mounted. The leaf of a mounted disk
changes while it is read: take a snapshot and export that.`,
		Example: `  varve export vm1.varve before-upgrade old.raw
  varve export /mnt/vm1 golden golden.qcow2 --format qcow2 --compress
  varve export vm1.varve leaf - | zstd > vm1.raw.zst`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := takes("DISK", "NAME", "OUT")(cmd, args); err != nil {
				return err
			}
			if err := flagvalue.CheckFormat(o.Format); err != nil {
				return wrongUse(cmd, "%w", err)
			}
			switch {
			case o.Compress && o.Format != "qcow2":
				return wrongUse(cmd, "--compress needs --format qcow2")
			case args[2] == output.Stdout && progress.IsTerminal(cmd.OutOrStdout()):
				return wrongUse(cmd, "standard output is a terminal; send the image into a pipe or a file")
			case args[2] == output.Stdout && o.Format == "qcow2":
				return wrongUse(cmd, "a qcow2 cannot be written into a pipe: its tables come first in the file and are written last")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return wrapped(cmd, args[0], exportView(cmd, args[0], args[1], args[2], o))
		},
	}
	c.Flags().StringVar(&o.Format, "format", "raw", "`FORMAT` of OUT: raw or qcow2")
	c.Flags().BoolVar(&o.Compress, "compress", false, "compress the clusters of a qcow2 (zlib)")
	c.Flags().BoolVar(&o.Force, "force", false, "replace a file OUT that is there, or overwrite a block device")
	c.Flags().BoolVar(&o.Skip, "skip-damaged", false, "write zeros for what cannot be read, and list the places")
	return c
}

func exportView(cmd *cobra.Command, arg, name, out string, o export.Options) error {
	t, err := where.Find(arg)
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	o.Command, o.Stdout, o.Stderr = cmd.Name(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	err = export.Run(ctx, t, name, out, o)
	if errors.Is(err, export.ErrSkipped) {
		return reportedError{exitSkipped}
	}
	return err
}
