package main

import (
	"github.com/spf13/cobra"

	"varve/chain"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/waiting"
	"varve/cmd/varve/internal/where"
)

func newRebaseCommand() *cobra.Command {
	var base string
	var accept bool
	c := &cobra.Command{
		Use:   "rebase DISK --base IMAGE",
		Short: "Tell a disk where its base is now",
		Long: `Has a disk read its base at another place, after the image was moved. Nothing is
copied, and no view changes: IMAGE must be the same file, which is compared by
its size, its time and a digest of sampled blocks.

Of a disk on a qcow2 with backing files IMAGE is the topmost of these files; the
others are found as its header says. The disk must not be mounted.

--accept takes a copy that has another modification time.`,
		Example: `  varve rebase vm1.varve --base /srv/images/ubuntu.raw`,
		Args:    takes("DISK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if base == "" {
				return wrongUse(cmd, "say with --base where the image is now")
			}
			return wrapped(cmd, args[0], rebase(cmd, args[0], base, accept))
		},
	}
	c.Flags().StringVar(&base, "base", "", "the `IMAGE` that the disk stands on")
	c.Flags().BoolVar(&accept, "accept", false, "take an image with another modification time")
	return c
}

func rebase(cmd *cobra.Command, arg, base string, accept bool) error {
	t, err := where.Find(arg)
	if err != nil {
		return err
	}
	if err := t.NotMounted(); err != nil {
		return err
	}
	defer waiting.For(where.PathWait(t.Dir))()
	files, err := chain.Rebase(t.Dir, base, chain.RebaseOptions{
		OpenOptions: chain.OpenOptions{Log: tell.Warnings(cmd.ErrOrStderr()), LockWait: where.LockWait},
		AcceptTime:  accept,
	})
	if err != nil {
		return err
	}
	tell.Line(cmd.ErrOrStderr(), "%s now reads:", t.Arg)
	tell.Files(cmd.ErrOrStderr(), files)
	return nil
}
