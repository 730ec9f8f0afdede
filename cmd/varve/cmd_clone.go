package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"varve/chain"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/client"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/where"
	"varve/overlay/extent"
)

func newCloneCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "clone DISK NAME NEWDISK",
		Short: "Make a new disk on a snapshot of this one",
		Long: `Makes the disk directory NEWDISK, whose content is that of a snapshot (or of the
base) and which takes writes of its own: to boot a snapshot without losing the
leaf, or to run many VMs from one. Nothing is copied, and it takes a moment.

NEWDISK reads the files of DISK where they are. As long as it stands, the
snapshot cannot be deleted, and the layers below it are not merged or flattened.
"varve export NEWDISK leaf IMAGE" makes an image that needs none of them;
"varve release" forgets NEWDISK when it was removed.`,
		Example: `  varve clone /mnt/vm1 golden vm2.varve
  varve mount vm2.varve /mnt/vm2`,
		Args: takes("DISK", "NAME", "NEWDISK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return wrapped(cmd, args[0], clone(cmd, args[0], args[1], args[2]))
		},
	}
}

func clone(cmd *cobra.Command, arg, name, newDisk string) error {
	t, err := where.Find(arg)
	if err != nil {
		return err
	}
	parent, err := mounts.Resolve(filepath.Dir(filepath.Clean(newDisk)))
	if err != nil {
		return err
	}
	if err := t.RefuseInside(parent, newDisk); err != nil {
		return err
	}
	// The daemon has another working directory.
	dir := filepath.Join(parent, filepath.Base(filepath.Clean(newDisk)))
	var layers []chain.LayerStatus
	err = on(t, client.Options{Log: tell.Warnings(cmd.ErrOrStderr()), HoldJob: true}, func(d client.Disk) error {
		if err := d.Clone(name, dir); err != nil {
			return err
		}
		layers, _ = d.Layers() // where they cannot be listed the clone stands all the same
		return nil
	})
	if err != nil {
		return err
	}
	tell.Line(cmd.ErrOrStderr(), "made %s on %s of %s, whose files it reads: they must stay where they are", newDisk, name, t.Arg)
	for _, l := range layers {
		if l.Name == name {
			tell.Rounded(cmd.ErrOrStderr(), l.Size, extent.WholeSectors(l.Size))
		}
	}
	return nil
}
