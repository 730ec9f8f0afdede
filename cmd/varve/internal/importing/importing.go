// Package importing makes the content of a disk that of an image: a file of any format that
// varve reads, or a raw stream.
//
// The image comes in pieces, in order (source), and is poured over the leaf, which nobody else
// writes meanwhile (client.Leaf): zeros are discarded, and nothing that a snapshot does not
// have is lost without a word. It knows no flags.
package importing

import (
	"context"
	"errors"
	"fmt"
	"io"

	"varve/chain"
	"varve/cmd/varve/internal/client"
	"varve/cmd/varve/internal/keep"
	"varve/cmd/varve/internal/progress"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/waiting"
	"varve/cmd/varve/internal/where"
	"varve/fs/show"
)

// Options are what an import is asked for, and where it reads and speaks.
type Options struct {
	Format   string // raw or qcow2, "" where the file tells
	Snapshot string // the name of a snapshot that is taken first, "" for one where it is needed
	Force    bool   // take none

	Command string    // the command's name, with which its lines begin
	Input   io.Reader // standard input
	Stderr  io.Writer // for people
}

// Stdin is the name that stands for standard input.
const Stdin = "-"

// Run makes the content of the leaf of a disk that of an image.
func Run(ctx context.Context, file string, t where.Target, o Options) (err error) {
	source, err := openImport(t, file, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.close()) }()
	to, err := client.OpenLeaf(t, tell.Warnings(o.Stderr))
	if err != nil {
		return err
	}
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, to.Close())
		}
	}()
	if source.size > to.Size() {
		return tooLarge(t, source.name, source.size, to.Size())
	}
	if ctx.Err() != nil {
		return errors.New("interrupted; nothing was done")
	}
	back, kept, err := keepFirst(t, to, o)
	if err != nil {
		return err
	}
	defer waiting.Leaves("the disk is half written: " + back)()
	bar := progress.New(o.Stderr, o.Command+" "+t.Name())
	copied, err := pourAll(ctx, source, to, kept, bar.Update)
	bar.Clear()
	closed = true
	err = errors.Join(err, to.Close())
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("interrupted; the disk is half written: %s", back)
	case errors.As(err, new(tooLong)):
		return fmt.Errorf("%w; the disk is half written: %s; count the image's bytes with \"wc -c\", make the disk as large with \"varve resize %s BYTES\", and import again", err, back, chain.ShellWord(t.Arg))
	case errors.As(err, new(givenUp)):
		return fmt.Errorf("%w; what was imported is discarded again: make room and import again, or %s", err, back)
	case noRoom(err):
		return fmt.Errorf("%w; the disk is half written: make room and import again, or %s", err, back)
	default:
		return fmt.Errorf("%w; the disk is half written: %s", err, back)
	}
	bar.Finish(copied)
	if rest := to.Size() - copied; rest > 0 {
		tell.Line(o.Stderr, "%s has %s; the rest of the disk, %s, is zeros", source.name, show.Size(copied), show.Size(rest))
	}
	return nil
}

func tooLarge(t where.Target, name string, size, disk int64) error {
	const sector = 512
	return fmt.Errorf("%s has %d bytes and the disk %d; make it larger first with \"varve resize %s %d\"",
		name, size, disk, chain.ShellWord(t.Arg), (size+sector-1)/sector*sector)
}

// keepFirst takes a snapshot of what would be lost otherwise. back says how to have the
// disk as it is now again; kept is false where that cannot be.
func keepFirst(t where.Target, to client.Leaf, o Options) (back string, kept bool, err error) {
	holds, parent, err := to.Holds()
	if err != nil {
		return "", false, err
	}
	switch {
	case o.Snapshot != "":
		parent = o.Snapshot
		err = to.Snapshot(parent)
	case holds && o.Force:
		return "import again; what it held before is gone", false, nil
	case holds:
		if parent, err = keep.ByTime(to.Snapshot); err == nil {
			tell.Line(o.Stderr, "what the disk held is snapshot %s", parent)
		}
	}
	if err != nil {
		return "", false, fmt.Errorf("take a snapshot first: %w", err)
	}
	return fmt.Sprintf("\"varve revert %s %s\" brings back what it held", chain.ShellWord(t.Arg), parent), true, nil
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
func pourAll(ctx context.Context, source *importSource, to client.Leaf, kept bool, progress func(done, total int64)) (int64, error) {
	w := pour{to: to}
	total := source.size
	if total < 0 {
		total = to.Size() // at most
	}
	err := source.each(ctx, func(p piece) error {
		if p.off+p.n > to.Size() {
			return tooLong{to.Size()}
		}
		if err := w.write(p); err != nil {
			return err
		}
		progress(w.end, total)
		return to.Alone()
	})
	if err == nil {
		err = w.discard(to.Size())
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
