package overlay

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"varve/overlay/hostfs"
)

const (
	// zeroOutFrom is from how many bytes on zeros are not written but asked for.
	zeroOutFrom = 64 << 10
	// zeroOutMost is how much is asked for at once: a device that cannot do it by itself
	// has the kernel write it, and Ctrl-C waits for that.
	zeroOutMost = 64 << 20
)

// Device writes the view over the beginning of a block device, which must be as long
// as the view at least, and makes it durable. What is behind it stays. Zeros are
// discarded where that makes zeros of them. Errors as of Raw; the device is written in
// part then.
func (e Export) Device(ctx context.Context, f hostfs.File) error {
	c := NewCopier(f)
	z := zeroWriter{file: f}
	err := e.each(ctx, c, func(off, n int64) error {
		if err := z.flush(ctx); err != nil {
			return err
		}
		if err := c.Copy(e.Source, off, off, n); err != nil {
			return err
		}
		c.StartWriteBack()
		return nil
	}, func(off, n int64) error {
		if z.n == 0 {
			z.off = off
		}
		z.n = off + n - z.off
		return nil
	}, nothingPutOff)
	if err == nil {
		err = z.flush(ctx)
	}
	if err != nil {
		return err
	}
	return finish(f, c)
}

// zeroWriter collects a range of zeros and writes it in the cheapest way that the
// device has: by a discard of which the kernel says that it makes zeros (fallocate(2),
// punch hole), else by ZeroOut, else as bytes.
type zeroWriter struct {
	file   hostfs.File
	off, n int64 // what waits
	bytes  bool  // the device has no other way
}

func (z *zeroWriter) flush(ctx context.Context) error {
	for z.n > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := z.some()
		if err != nil {
			return err
		}
		z.off, z.n = z.off+n, z.n-n
	}
	return nil
}

// some writes the beginning of what waits.
func (z *zeroWriter) some() (int64, error) {
	if head := -z.off & (ZeroUnit - 1); head > 0 && head < z.n {
		return head, z.write(head)
	}
	n := min(z.n, zeroOutMost) &^ (ZeroUnit - 1)
	if n < zeroOutFrom || z.off%ZeroUnit != 0 || z.bytes {
		n = min(z.n, copyPiece)
		return n, z.write(n)
	}
	err := z.file.PunchHole(z.off, n)
	if d, ok := z.file.(interface{ ZeroOut(off, length int64) error }); ok && err != nil {
		err = d.ZeroOut(z.off, n)
	}
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, unix.EINVAL) {
		z.bytes = true
		n = min(n, copyPiece)
		return n, z.write(n)
	}
	return n, err
}

func (z *zeroWriter) write(n int64) error {
	buf := getBuffer(n)
	defer putBuffer(buf)
	clear(*buf)
	return hostfs.WriteWhole(z.file, *buf, z.off)
}
