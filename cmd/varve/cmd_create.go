package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"varve/chain"
	"varve/cmd/varve/internal/flagvalue"
	"varve/cmd/varve/internal/libvirt"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/waiting"
	"varve/cmd/varve/internal/where"
)

func newCreateCommand() *cobra.Command {
	var size, base, format string
	c := &cobra.Command{
		Use:   "create DIR (--size SIZE | --base IMAGE)",
		Short: "Make a disk directory, blank or on an image",
		Long: `Makes the disk directory DIR: a blank disk of the given size, or one on top of
an image that is only read from then on. With --base, --size makes the disk
larger than the image; what is beyond it reads as zeros.

IMAGE is raw unless its name ends in .qcow2, a domain of libvirt's has it as
qcow2, or --format says so. A qcow2 image with backing files is adopted with all
of them.

"varve mount IMAGE MOUNTPOINT" does the same for an image when it is mounted for
the first time, and puts the disk directory beside it.`,
		Example: `  varve create vm1.varve --size 20G
  varve create vm1.varve --base ubuntu.raw
  varve create vm1.varve --base golden.img --format qcow2 --size 40G`,
		Args: takes("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := chain.CreateOptions{Base: base, Format: format, Witness: libvirt.ThisHost()}
			if err := flagvalue.CheckFormat(format); err != nil {
				return wrongUse(cmd, "%w", err)
			}
			switch {
			case base == "" && !cmd.Flags().Changed("base") && size == "":
				return wrongUse(cmd, "say --size for a blank disk, or --base for one on an image")
			case base == "" && cmd.Flags().Changed("base"):
				return wrongUse(cmd, "--base is empty")
			case base == "" && format != "":
				return wrongUse(cmd, "--format is the image's and needs --base")
			}
			if size != "" {
				var err error
				if o.Size, err = chain.ParseSize(size); err != nil {
					return wrongUse(cmd, "%w", err)
				}
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			o.Context = ctx
			subject := where.PathWait(args[0])
			subject.Left = "what was begun there the next \"varve create\" of it removes"
			begun := waiting.For(subject)
			made, err := chain.Create(args[0], o)
			begun()
			if errors.Is(err, context.Canceled) {
				err = errors.New("interrupted; nothing was made")
			}
			if err != nil {
				return wrapped(cmd, args[0], where.ExplainLocked(err))
			}
			tell.Created(cmd.ErrOrStderr(), made)
			return nil
		},
	}
	c.Flags().StringVar(&size, "size", "", "`SIZE` in bytes, or with K, M, G, T")
	c.Flags().StringVar(&base, "base", "", "the `IMAGE` at the bottom")
	c.Flags().StringVar(&format, "format", "", "the image's `FORMAT`: raw or qcow2")
	return c
}
