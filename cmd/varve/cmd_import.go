package main

import (
	"github.com/spf13/cobra"

	"varve/cmd/varve/internal/flagvalue"
	"varve/cmd/varve/internal/importing"
	"varve/cmd/varve/internal/where"
)

func newImportCommand() *cobra.Command {
	var o importing.Options
	var saved savedStateFlag
	c := &cobra.Command{
		Use:   "import FILE DISK",
		Short: "Copy an image into the disk",
		Long: `Makes the disk's content that of an image: raw, or qcow2 with all its backing
files. What is zeros in the image takes no space, and what the disk had there is
gone from it. Where the image is smaller the rest of the disk becomes zeros; one
that is larger is refused. It is durable when the command returns.

The VM must be off: while somebody has disk.raw open for writing an import is
refused, and a VM of QEMU's does not start before it has ended. It is refused
too while libvirt keeps the VM's memory (virsh managedsave), which
--discard-saved-state gives up, or an image of QEMU's stands on disk.raw.

What the disk holds is not lost: where no snapshot has it one is taken first,
named by --snapshot or by the time. With --force it is overwritten in place,
which needs less space. An import that is interrupted, or fails, leaves the disk
half written, and says how to go back.

FILE is raw unless its name ends in .qcow2, a domain of libvirt's has it as
qcow2, or --format says so. With "-" a raw image comes from standard input.`,
		Example: `  varve import backup.qcow2 /mnt/vm1
  varve import old.raw vm1.varve --snapshot before-restore
  zstdcat vm1.raw.zst | varve import - /mnt/vm1`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := takes("FILE", "DISK")(cmd, args); err != nil {
				return err
			}
			if err := flagvalue.CheckFormat(o.Format); err != nil {
				return wrongUse(cmd, "%w", err)
			}
			switch {
			case o.Snapshot != "" && o.Force:
				return wrongUse(cmd, "--snapshot keeps what the disk holds, --force does not; choose one")
			case args[0] == importing.Stdin && o.Format == "qcow2":
				return wrongUse(cmd, "a qcow2 cannot be read from a pipe: its tables may stand anywhere in it; name the file")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := saved.clear(cmd, args[1], true); err != nil {
				return err
			}
			return wrapped(cmd, args[1], importImage(cmd, args[0], args[1], o))
		},
	}
	c.Flags().StringVar(&o.Format, "format", "", "`FORMAT` of FILE: raw or qcow2")
	c.Flags().StringVar(&o.Snapshot, "snapshot", "", "take a snapshot of that `NAME` first, in any case")
	c.Flags().BoolVar(&o.Force, "force", false, "take no snapshot: what the disk holds is overwritten")
	saved.register(c.Flags())
	return c
}

func importImage(cmd *cobra.Command, file, arg string, o importing.Options) error {
	t, err := where.Find(arg)
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	o.Command, o.Input, o.Stderr = cmd.Name(), cmd.InOrStdin(), cmd.ErrOrStderr()
	return importing.Run(ctx, file, t, o)
}
