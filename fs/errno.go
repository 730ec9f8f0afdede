package fs

import (
	"context"
	"errors"
	"os"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/fs/control"
	"varve/overlay"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// refusal is this package's own answer to a request: an errno and the reason
// in words.
type refusal struct {
	errno  syscall.Errno
	reason string
}

func (r *refusal) Error() string { return r.reason }

// refuse is a refusal as an error.
func refuse(errno syscall.Errno, reason string) error { return &refusal{errno, reason} }

// errnoOf is the one place where an error becomes an errno (M19). It unwraps;
// what it does not know is EIO, and never ENOSYS, which the kernel would take
// as "this file system has no such operation" for the rest of the mount.
// expected is false for what belongs in the log.
//
// An errno of the host's that is found inside an error passes only where it
// means the same to our caller: a host file that is missing is no ENOENT of a
// snapshot's name, nor is an EINVAL of the host the guest's fault.
func errnoOf(err error) (errno syscall.Errno, expected bool) {
	if err == nil {
		return 0, true
	}
	var own *refusal
	if errors.As(err, &own) {
		return own.errno, true
	}
	// These say that a file's content is wrong or unknown, whatever the call
	// underneath gave.
	for _, target := range []error{qcow2.ErrCorrupt, overlay.ErrFailed, qcow2.ErrUnsupported, chain.ErrChanged} {
		if errors.Is(err, target) {
			return unix.EIO, false
		}
	}
	if errno := control.ErrnoOf(err); errno != 0 {
		return errno, true
	}
	for _, is := range []struct {
		target error
		errno  syscall.Errno
	}{
		{chain.ErrInUse, unix.EBUSY},
		{hostfs.ErrLocked, unix.EBUSY},
		{context.Canceled, unix.EINTR},
		{context.DeadlineExceeded, unix.ETIMEDOUT},
	} {
		if errors.Is(err, is.target) {
			return is.errno, true
		}
	}
	var host syscall.Errno
	if errors.As(err, &host) {
		switch host {
		case unix.ENOSPC, unix.EDQUOT, unix.EFBIG, unix.EROFS, unix.EACCES, unix.EPERM,
			unix.ENOMEM, unix.EMFILE, unix.ENFILE:
			return host, false
		case unix.EOPNOTSUPP:
			return host, true
		}
		return unix.EIO, false
	}
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return unix.EOPNOTSUPP, true
	case errors.Is(err, os.ErrPermission):
		return unix.EACCES, false
	}
	return unix.EIO, false
}

// status answers a request with an error's errno. what names the operation
// for the log.
func (f *fileSystem) status(what string, err error) fuse.Status {
	errno, expected := errnoOf(err)
	if !expected {
		f.unexpected.report(f.log, what, err)
	}
	return fuse.Status(errno)
}

// diskStatus is status for what changes disk.raw. A used-up quota and a file that
// may not grow further are a full host to whoever uses a disk: a disk has no such
// errors, and QEMU stops its VM for ENOSPC (werror=enospc) where any other errno
// reaches the guest, which then gives up its file system. The log has the host's own.
func (f *fileSystem) diskStatus(what string, err error) fuse.Status {
	switch status := f.status(what, err); status {
	case fuse.Status(unix.EDQUOT), fuse.Status(unix.EFBIG):
		return fuse.Status(unix.ENOSPC)
	default:
		return status
	}
}
