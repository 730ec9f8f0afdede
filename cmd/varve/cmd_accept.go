package main

import (
	"github.com/spf13/cobra"

	"varve/chain"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/waiting"
	"varve/cmd/varve/internal/where"
)

func newAcceptCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "accept DISK LAYER",
		Short: "Take a changed layer's file as right",
		Long: `A disk whose base, or another frozen layer, was changed by somebody else is
refused: what newer layers hold was written over other content. Accept takes the
file of LAYER (a name, or a number as in the list) as it is now.

Whether the snapshots above it still make sense only you can know: after the
base was booted or repaired they usually do not. The disk must not be mounted.`,
		Example: `  varve accept vm1.varve base`,
		Args:    takes("DISK", "LAYER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return wrapped(cmd, args[0], acceptLayer(cmd, args[0], args[1]))
		},
	}
}

func acceptLayer(cmd *cobra.Command, arg, layer string) error {
	t, err := where.Find(arg)
	if err != nil {
		return err
	}
	if err := t.NotMounted(); err != nil {
		return err
	}
	defer waiting.For(where.PathWait(t.Dir))()
	return chain.Accept(t.Dir, layer, chain.OpenOptions{Log: tell.Warnings(cmd.ErrOrStderr()), LockWait: where.LockWait})
}
