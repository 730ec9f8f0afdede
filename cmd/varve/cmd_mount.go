package main

import (
	"errors"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"varve/cmd/varve/internal/background"
	"varve/cmd/varve/internal/daemon"
)

func newMountCommand() *cobra.Command {
	flags := daemon.NewFlags()
	c := &cobra.Command{
		Use:   "mount SOURCE MOUNTPOINT",
		Short: "Mount a disk",
		Long: `Mounts a disk and returns when it is ready; a daemon goes on in the background.

SOURCE is a disk directory, or an image. An image's disk directory stands beside
it (IMAGE.varve) and is made when it is mounted for the first time; the image
itself is only read, from then on and for good. A qcow2 image with backing files
is adopted with all of them, by the names and formats that their headers give.

MOUNTPOINT is an empty directory. Point the VM at MOUNTPOINT/disk.raw. An image
is raw unless its name ends in .qcow2, a domain of libvirt's has it as qcow2, or
--format says so; the format is decided once and never guessed from what a guest
may have written. The layers of an adopted chain have the names of the snapshots
of virsh's whose state they are, where libvirt knows them.

A mount that is given none of the options below but -f and -r has those of the
disk's last one, and says which; --defaults mounts it without.

-o takes allow_other, ro, uid=, gid=, umask=, cache=, job_rate=, disk= and
format= as the flags do, and the usual ones of mount(8) such as noatime.`,
		Example: `  varve mount ubuntu.raw /mnt/vm1          # first time: makes ubuntu.raw.varve
  varve mount vm1.varve /mnt/vm1
  varve mount vm2.s2 /mnt/vm2              # a chain as virsh leaves it
  varve mount /dev/vg/vm1 /mnt/vm1 --disk /var/lib/varve/vm1.varve
  varve mount -o allow_other,uid=107 vm1.varve /mnt/vm1`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := takes("SOURCE", "MOUNTPOINT")(cmd, args); err != nil {
				return err
			}
			flags.NoteTold(cmd.Flags())
			if err := flags.Check(); err != nil {
				return wrongUse(cmd, "%w", err)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return wrapped(cmd, args[0], mountDisk(cmd, flags, args[0], args[1]))
		},
	}
	flags.Register(c.Flags())
	return c
}

// mountDisk serves the mount in this process, or has a daemon do it.
func mountDisk(cmd *cobra.Command, flags *daemon.Flags, source, mountpoint string) error {
	pipe, isDaemon, err := background.Inherited()
	if err != nil {
		return err
	}
	if isDaemon || flags.Foreground {
		build, _ := debug.ReadBuildInfo()
		return daemon.Serve(daemon.Mount{
			Flags: flags, Source: source, Mountpoint: mountpoint, Stderr: cmd.ErrOrStderr(), Pipe: pipe,
			Number: versionNumber(version, build), Version: thisVersion(),
		})
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	// The daemon does the whole command again, in the same words, and says
	// itself what goes wrong.
	code, err := background.Start(ctx, os.Args[1:], os.Stderr)
	if err != nil {
		return err
	}
	if code != exitDone {
		return reportedError{code}
	}
	if ctx.Err() != nil {
		return errors.New("interrupted after it was mounted; it stays mounted")
	}
	return nil
}
