package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"varve/chain"
	"varve/cmd/varve/internal/progress"
	"varve/cmd/varve/internal/waiting"
	"varve/fs/show"
)

// fromStdin is FILE for a pipe.
const fromStdin = "-"

type importFlags struct {
	format   string
	snapshot string
	force    bool
	saved    savedStateFlag
}

func newImportCommand() *cobra.Command {
	var flags importFlags
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
			if err := checkFormat(flags.format); err != nil {
				return wrongUse(cmd, "%w", err)
			}
			switch {
			case flags.snapshot != "" && flags.force:
				return wrongUse(cmd, "--snapshot keeps what the disk holds, --force does not; choose one")
			case args[0] == fromStdin && flags.format == "qcow2":
				return wrongUse(cmd, "a qcow2 cannot be read from a pipe: its tables may stand anywhere in it; name the file")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := flags.saved.clear(cmd, args[1], true); err != nil {
				return err
			}
			return wrapped(cmd, args[1], importImage(cmd, args[0], args[1], flags))
		},
	}
	c.Flags().StringVar(&flags.format, "format", "", "`FORMAT` of FILE: raw or qcow2")
	c.Flags().StringVar(&flags.snapshot, "snapshot", "", "take a snapshot of that `NAME` first, in any case")
	c.Flags().BoolVar(&flags.force, "force", false, "take no snapshot: what the disk holds is overwritten")
	flags.saved.register(c.Flags())
	return c
}

func importImage(cmd *cobra.Command, file, arg string, flags importFlags) (err error) {
	t, err := findTarget(arg)
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	source, err := t.openImport(cmd, file, flags.format)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.close()) }()
	to, err := t.openTarget(cmd)
	if err != nil {
		return err
	}
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, to.close())
		}
	}()
	if source.size > to.size() {
		return t.tooLarge(source.name, source.size, to.size())
	}
	if ctx.Err() != nil {
		return errors.New("interrupted; nothing was done")
	}
	back, kept, err := t.keep(cmd.ErrOrStderr(), to, flags)
	if err != nil {
		return err
	}
	defer waiting.Leaves("the disk is half written: " + back)()
	bar := progress.New(cmd.ErrOrStderr(), cmd.Name()+" "+t.name())
	copied, err := pourAll(ctx, source, to, kept, bar.Update)
	bar.Clear()
	closed = true
	err = errors.Join(err, to.close())
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("interrupted; the disk is half written: %s", back)
	case errors.As(err, new(tooLong)):
		return fmt.Errorf("%w; the disk is half written: %s; count the image's bytes with \"wc -c\", make the disk as large with \"varve resize %s BYTES\", and import again", err, back, chain.ShellWord(t.arg))
	case errors.As(err, new(givenUp)):
		return fmt.Errorf("%w; what was imported is discarded again: make room and import again, or %s", err, back)
	case noRoom(err):
		return fmt.Errorf("%w; the disk is half written: make room and import again, or %s", err, back)
	default:
		return fmt.Errorf("%w; the disk is half written: %s", err, back)
	}
	bar.Finish(copied)
	if rest := to.size() - copied; rest > 0 {
		say(cmd.ErrOrStderr(), "%s has %s; the rest of the disk, %s, is zeros", source.name, show.Size(copied), show.Size(rest))
	}
	return nil
}

func (t target) tooLarge(name string, size, disk int64) error {
	const sector = 512
	return fmt.Errorf("%s has %d bytes and the disk %d; make it larger first with \"varve resize %s %d\"",
		name, size, disk, chain.ShellWord(t.arg), (size+sector-1)/sector*sector)
}

// keep takes a snapshot of what would be lost otherwise. back says how to have the
// disk as it is now again; kept is false where that cannot be.
func (t target) keep(stderr io.Writer, to importTarget, flags importFlags) (back string, kept bool, err error) {
	holds, parent, err := to.holds()
	if err != nil {
		return "", false, err
	}
	switch {
	case flags.snapshot != "":
		parent = flags.snapshot
		err = to.snapshot(parent)
	case holds && flags.force:
		return "import again; what it held before is gone", false, nil
	case holds:
		if parent, err = byTime(to.snapshot); err == nil {
			say(stderr, "what the disk held is snapshot %s", parent)
		}
	}
	if err != nil {
		return "", false, fmt.Errorf("take a snapshot first: %w", err)
	}
	return fmt.Sprintf("\"varve revert %s %s\" brings back what it held", chain.ShellWord(t.arg), parent), true, nil
}

// tooLong says that a stream goes on behind the end of the disk.
type tooLong struct{ size int64 }

func (e tooLong) Error() string {
	return fmt.Sprintf("the image goes on behind the disk's end at %d bytes", e.size)
}

// givenUp is a failure after which the disk holds nothing of the image any more.
type givenUp struct{ error }

// pourAll copies all of source to the disk and makes it durable. It gives the bytes
// that source had. kept says that what the disk held before is kept elsewhere: where
// the host is full then, what was written is discarded, since a revert needs room too.
func pourAll(ctx context.Context, source *importSource, to importTarget, kept bool, progress func(done, total int64)) (int64, error) {
	w := pour{to: to}
	total := source.size
	if total < 0 {
		total = to.size() // at most
	}
	err := source.each(ctx, func(p piece) error {
		if p.off+p.n > to.size() {
			return tooLong{to.size()}
		}
		if err := w.write(p); err != nil {
			return err
		}
		progress(w.end, total)
		return to.alone()
	})
	if err == nil {
		err = w.discard(to.size())
	}
	if err == nil {
		err = to.Flush()
	}
	if err == nil {
		err = source.unchanged()
	}
	if kept && noRoom(err) && w.giveUp() == nil {
		err = givenUp{err}
	}
	return w.end, err
}
