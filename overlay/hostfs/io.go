package hostfs

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sys/unix"
)

// ErrUnreadable says that the host could not read a place of a file. Other places of
// the same file may be read all the same.
var ErrUnreadable = errors.New("cannot be read")

// unreadable is a read's error that is ErrUnreadable too; the host's words say enough.
type unreadable struct{ error }

func (unreadable) Is(target error) bool { return target == ErrUnreadable }
func (u unreadable) Unwrap() error      { return u.error }

// damageErrors are the errors with which a host says that a place of a file cannot be
// read: of a disk, and of a file system that checks what it reads.
var damageErrors = []error{unix.EIO, unix.EUCLEAN, unix.EBADMSG, unix.ENODATA, unix.EREMOTEIO, unix.EILSEQ}

// CannotRead says whether an error of a call to the host means that a place of a
// file cannot be read.
func CannotRead(err error) bool {
	return err != nil && slices.ContainsFunc(damageErrors, func(e error) bool { return errors.Is(err, e) })
}

// ReadError marks the error of a read with ErrUnreadable where it is one of the place.
func ReadError(err error) error {
	if CannotRead(err) {
		return unreadable{err}
	}
	return err
}

// ReadWhole fills p from off. A file that ends before is an error, io.ErrUnexpectedEOF:
// metadata is never made up.
func ReadWhole(f File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return ReadError(err)
}

// ReadPadded fills p from off; what lies past the end of the file is zeros.
func ReadPadded(f File, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := f.ReadAt(p, off)
		p, off = p[n:], off+int64(n)
		if len(p) == 0 {
			return nil
		}
		if err == io.EOF {
			clear(p)
			return nil
		}
		if err != nil {
			return ReadError(err)
		}
		if n == 0 {
			return io.ErrNoProgress
		}
	}
	return nil
}

// WriteWhole is WriteAt with a short count turned into an error.
func WriteWhole(f File, p []byte, off int64) error {
	n, err := f.WriteAt(p, off)
	if err != nil {
		return fmt.Errorf("write %d bytes at 0x%x of %s: %w", len(p), off, f.Name(), err)
	}
	if n != len(p) {
		return fmt.Errorf("write %d bytes at 0x%x of %s: only %d were taken", len(p), off, f.Name(), n)
	}
	return nil
}
