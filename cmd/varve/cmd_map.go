package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"varve/cmd/varve/internal/client"
	"varve/cmd/varve/internal/export"
	"varve/cmd/varve/internal/output"
	"varve/cmd/varve/internal/progress"
	"varve/cmd/varve/internal/where"
)

func newMapCommand() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "map DISK",
		Short: "Draw where a disk's layers hold what, as an SVG picture",
		Long: `Draws a disk from left to right, a row for each layer of the leaf's chain, the
newest on top, and below them disk.raw in the colours of the layers that its
content comes from. It is what the mount's own file "map.svg" reads: an SVG
picture for browsers, 1,000 pixels wide and less than 300 KB long.

It looks at tables only and reads no data. Layers beside the leaf's chain are
counted, not drawn.`,
		Example: `  varve map vm1.varve > map.svg
  varve map /mnt/vm1 -o map.svg`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := takes("DISK")(cmd, args); err != nil {
				return err
			}
			if cmd.Flags().Changed("output") && out == "" {
				return wrongUse(cmd, "--output is empty")
			}
			if out == "" && progress.IsTerminal(cmd.OutOrStdout()) {
				return wrongUse(cmd, "a terminal shows no picture; write it to a file, with \"> map.svg\" or \"-o map.svg\"")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return wrapped(cmd, args[0], drawMap(cmd, args[0], out))
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "", "write to `FILE` instead of standard output; an older picture is replaced")
	return c
}

func drawMap(cmd *cobra.Command, arg, out string) error {
	t, err := where.Find(arg)
	if err != nil {
		return err
	}
	toFile := out != "" && out != output.Stdout
	var place output.Place
	if toFile {
		if place, err = output.Find(out); err != nil {
			return err
		}
	}
	if toFile && !place.Direct() {
		// A picture may be replaced, and nothing else.
		if err := export.CheckOut(t, place.Path, true); err != nil {
			return err
		}
		if err := checkPicture(place.Path); err != nil {
			return err
		}
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	var picture []byte
	err = readTarget(cmd, t, func(d client.Disk) (err error) {
		picture, err = d.Map(ctx)
		return err
	})
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted; nothing was drawn")
	case err != nil:
		return err
	case toFile:
		return output.Write(ctx, place, picture, 0)
	}
	_, err = cmd.OutOrStdout().Write(picture)
	return err
}

// checkPicture refuses to replace what is no picture: a disk's image, say.
func checkPicture(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, 5)
	n, err := io.ReadFull(f, head)
	if errors.Is(err, io.EOF) || string(head[:n]) == "<svg " || string(head[:n]) == "<?xml" {
		return nil
	}
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return fmt.Errorf("%s exists already and is no SVG picture; name another file", path)
}
