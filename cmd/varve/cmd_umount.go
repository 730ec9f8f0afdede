package main

import (
	"github.com/spf13/cobra"

	"varve/cmd/varve/internal/umount"
)

func newUmountCommand() *cobra.Command {
	var flags umount.Options
	c := &cobra.Command{
		Use:     "umount DISK",
		Aliases: []string{"unmount"},
		Short:   "Unmount a disk and wait until all is written",
		Long: `Unmounts a disk and returns when its daemon has written everything and let go of
the disk directory: then the files can be copied, or opened by other programs.

A mount that somebody uses is not unmounted; the error says who has what open.
With --wait it is unmounted as soon as they are done: a VM is shut down first.

umount(8) does the same of a mount with the option uhelper=fuse.varve.`,
		Example: `  varve umount /mnt/vm1
  varve umount vm1.varve --timeout 30s
  varve umount /mnt/vm1 --wait             # until the VM is off`,
		Args: takes("DISK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := flags.Check(); err != nil {
				return wrongUse(cmd, "%w", err)
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			return wrapped(cmd, args[0], umount.Run(ctx, cmd.ErrOrStderr(), args[0], flags))
		},
	}
	c.Flags().DurationVar(&flags.Timeout, "timeout", 0, "wait no longer than `TIME` (default: as long as it takes)")
	c.Flags().BoolVarP(&flags.Wait, "wait", "w", false, "while the mount is in use, wait until it is not")
	c.Flags().BoolVarP(&flags.Lazy, "lazy", "l", false, "take it out of sight now; the daemon goes on until nobody uses it")
	c.Flags().BoolVarP(&flags.Force, "force", "f", false, "of a daemon that does not answer, end the connection (root)")
	return c
}
