package importing

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"varve/cmd/varve/internal/client"
	"varve/overlay"
)

// pour writes pieces, which come in order and without gaps, to a disk. Zeros of the
// image are discarded where the disk has data, and nowhere else.
type pour struct {
	to    client.Leaf
	zeros int64 // where zeros began that wait for their end
	end   int64 // of what was given
}

func (w *pour) write(p piece) error {
	if p.data == nil {
		w.end = p.off + p.n
		return nil
	}
	return overlay.EachRun(p.data, func(in, n int64, zero bool) error {
		off := p.off + in
		if !zero {
			if err := w.discard(off); err != nil {
				return err
			}
			if err := w.to.WriteAt(p.data[in:in+n], off); err != nil {
				return fmt.Errorf("write %d bytes at offset %d of the disk: %w", n, off, err)
			}
			w.zeros = off + n
		}
		w.end = off + n
		return nil
	})
}

// discard discards what waits, up to off.
func (w *pour) discard(off int64) error {
	for at := w.zeros; at < off; {
		start, err := w.to.SeekData(at)
		if errors.Is(err, io.EOF) || err == nil && start >= off {
			break
		}
		end := off
		if err == nil {
			end, err = w.to.SeekHole(start)
		}
		if err == nil {
			end = min(end, off)
			err = w.to.Discard(start, end-start)
		}
		if err != nil {
			return fmt.Errorf("discard from offset %d of the disk on: %w", at, err)
		}
		at = end
	}
	w.zeros = off
	return nil
}

// giveUp discards what was written.
func (w *pour) giveUp() error {
	w.zeros = 0
	if err := w.discard(w.end); err != nil {
		return err
	}
	return w.to.Flush()
}

// noRoom says whether an error means that the host is full.
func noRoom(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
