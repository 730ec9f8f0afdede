package overlay

import (
	"context"
	"fmt"
	"io"

	"varve/overlay/extent"
	"varve/overlay/hostfs"
)

// Export is a copy of a view into a file of its own, which needs nothing below.
type Export struct {
	Source Source // Map gives Data and Zero; may be Placed
	Size   int64  // guest bytes
	// Progress is told the guest bytes that are dealt with, of Size; nil for nobody.
	Progress func(done, total int64)
}

// exportStep is how much an export maps and copies before it looks whether it is
// to go on, in guest bytes: aheadShared where the host shares blocks.
const exportStep = 1 << 20

// exportHole is how much of a hole is written as zeros before that, where it is.
const exportHole = 64 << 20

// each calls f for every extent with data, in pieces of at most a step, and zero, where
// it is not nil, for what is between. c is what f copies with, or nil; with it zeros are looked for in the
// data that f would read (eachWritten), and done is called when f is to copy what it
// has put off.
func (e Export) each(ctx context.Context, c *Copier, f, zero func(off, n int64) error, done func() error) error {
	var extents []extent.Extent
	longest := int64(exportHole) // so that the context is heard
	if zero == nil {
		zero, longest = leaveOut, e.Size
	}
	skipper, _ := e.Source.(Skipper)
	for off := int64(0); off < e.Size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if skipper != nil {
			next, err := skipper.Next(off)
			if err != nil {
				return err
			}
			if hole := min(min(next, e.Size)-off, longest); hole > 0 {
				if err := zero(off, hole); err != nil {
					return err
				}
				off += hole
				if e.Progress != nil {
					e.Progress(off, e.Size)
				}
				continue
			}
		}
		step := int64(exportStep)
		if c != nil && c.shares.Load() {
			step = aheadShared
		}
		end := min(e.Size, off+step)
		var err error
		if extents, err = e.Source.Map(extents[:0], off, end-off); err != nil {
			return err
		}
		var dealt, shared int64 // of what f copies now, which may be what it was given before
		if c != nil {
			dealt, shared = c.dealt.Load(), c.shared.Load()
		}
		if c != nil && !c.shares.Load() {
			err = e.eachWritten(c, extents, f, zero, done)
		} else {
			err = eachExtent(extents, f, zero)
		}
		if err != nil {
			return err
		}
		if c != nil {
			c.judge(c.dealt.Load()-dealt, c.shared.Load()-shared)
		}
		off = end
		if e.Progress != nil {
			e.Progress(off, e.Size)
		}
	}
	return nil
}

func eachExtent(extents []extent.Extent, f, zero func(off, n int64) error) error {
	for _, x := range extents {
		do := f
		if x.Kind == extent.Zero || x.Kind == extent.Unallocated {
			do = zero
		}
		if err := do(x.Start, x.Length); err != nil {
			return err
		}
	}
	return nil
}

// leaveOut and nothingPutOff do nothing, for exports that have nothing to do there.
func leaveOut(_, _ int64) error { return nil }
func nothingPutOff() error      { return nil }

// Raw writes a raw image into an empty file, with holes where the view is zeros,
// and makes it durable. Errors are those of the source and of the host, or the
// context's cause; the file is then not complete.
func (e Export) Raw(ctx context.Context, f hostfs.File) error {
	if err := f.Truncate(e.Size); err != nil {
		return err
	}
	c := NewCopier(f)
	err := e.each(ctx, c, func(off, n int64) error {
		if err := c.Copy(e.Source, off, off, n); err != nil {
			return err
		}
		c.StartWriteBack()
		return nil
	}, nil, nothingPutOff)
	if err != nil {
		return err
	}
	return finish(f, c)
}

// finish makes an export durable, and leaves the page cache as it was.
func finish(f hostfs.File, c *Copier) error {
	forget := c.Copied()
	if err := f.Sync(); err != nil {
		return err
	}
	_ = forget() // the export is there either way
	return nil
}

// Stream writes the view as a raw image into a pipe, zeros included.
func (e Export) Stream(ctx context.Context, w io.Writer) error {
	var zeros [64 << 10]byte
	buf := make([]byte, copyPiece)
	return e.each(ctx, nil, func(off, n int64) error {
		for n > 0 {
			part := buf[:min(n, copyPiece)]
			if err := e.Source.ReadAt(part, off); err != nil {
				return fmt.Errorf("read %d bytes at guest offset %d: %w", len(part), off, err)
			}
			if _, err := w.Write(part); err != nil {
				return err
			}
			off, n = off+int64(len(part)), n-int64(len(part))
		}
		return nil
	}, func(_, n int64) error {
		for n > 0 {
			k, err := w.Write(zeros[:min(n, int64(len(zeros)))])
			if err != nil {
				return err
			}
			n -= int64(k)
		}
		return nil
	}, nothingPutOff)
}
