package overlay

import (
	"fmt"

	"varve/overlay/extent"
)

// Zeros that a guest has written are data for the tables. Where an export reads what
// it copies, it finds them and leaves them out, as qemu-img convert does; where the
// host shares the blocks nothing is read, and they stay what they are.

// readAhead is what an export has read of its source before it copies it, so that
// nothing is read twice.
type readAhead struct {
	off int64  // guest offset
	p   []byte // what the source has there
}

// at is the content at off, or nil where not all n bytes were read.
func (r *readAhead) at(off, n int64) []byte {
	in := off - r.off
	if in < 0 || in+n > int64(len(r.p)) {
		return nil
	}
	return r.p[in : in+n]
}

// eachWritten is what each does with the extents of a step, where zeros are looked
// for in the data: a window of copyPiece at a time, which stays in a core's own cache
// until it is copied. After each window it calls done.
func (e Export) eachWritten(c *Copier, extents []extent.Extent, f, zero func(off, n int64) error, done func() error) error {
	window := int64(-1)
	for i, x := range extents {
		if x.Kind == extent.Zero || x.Kind == extent.Unallocated {
			if err := zero(x.Start, x.Length); err != nil {
				return err
			}
			continue
		}
		for pos := x.Start; pos < x.End(); {
			w := pos / copyPiece
			if w != window {
				if err := done(); err != nil {
					return err
				}
				if err := e.readWindow(c, w*copyPiece, extents[i:], extents[0].Start); err != nil {
					return err
				}
				window = w
			}
			n := min(x.End(), (w+1)*copyPiece) - pos
			err := EachRun(c.ahead.at(pos, n), func(in, n int64, zeros bool) error {
				if zeros {
					return zero(pos+in, n)
				}
				return f(pos+in, n)
			})
			if err != nil {
				return err
			}
			pos += n
		}
	}
	return done()
}

// readWindow reads the data in a window from start on. extents are those of the step
// from the first with data in the window on; the step begins at from.
func (e Export) readWindow(c *Copier, start int64, extents []extent.Extent, from int64) error {
	stop := start + copyPiece
	if end := extents[len(extents)-1].End(); end < e.Size {
		stop = min(stop, end) // of what is behind nothing is known yet
	}
	start = max(start, from)
	if cap(c.ahead.p) == 0 {
		c.ahead.p = make([]byte, copyPiece)
	}
	c.ahead.off, c.ahead.p = start, c.ahead.p[:stop-start]
	filled := int64(0) // of the window
	for _, x := range extents {
		if x.Start >= stop {
			break
		}
		if x.Kind == extent.Zero || x.Kind == extent.Unallocated {
			continue
		}
		at := max(x.Start, start)
		n := min(x.End(), stop) - at
		clear(c.ahead.p[filled : at-start])
		filled = at + n - start
		c.beforeRead(e.Source, at, n)
		if err := e.Source.ReadAt(c.ahead.at(at, n), at); err != nil {
			return fmt.Errorf("copy %d bytes at guest offset %d into %s: %w", n, at, c.to.Name(), err)
		}
	}
	clear(c.ahead.p[filled:])
	return nil
}

// beforeRead takes note of what of a range is in the host's page cache before it is
// read: copyPiece asks too late then.
func (c *Copier) beforeRead(source Source, off, n int64) {
	placed, ok := source.(Placed)
	for ok && n > 0 {
		f, host, length, err := placed.Place(off, n)
		if err != nil || length <= 0 {
			return // the copy meets it again
		}
		c.copied.isCold(f, host, length)
		off, n = off+length, n-length
	}
}
