package device

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Connections is where the control file system of FUSE is, once somebody has mounted it
// (systemd does). It has a directory for each connection, by its device's minor number,
// whose files belong to the user who mounted.
const Connections = "/sys/fs/fuse/connections"

// Abort is the handle by which a connection can be ended from outside, wherever its mount
// can still be seen.
type Abort struct{ f *os.File }

// OpenAbort opens the handle of the connection whose files have the device number 0:minor.
// That must be alive meanwhile: the number is given to another one afterwards, but the
// handle never comes to mean that. Root needs no mounted control file system.
func OpenAbort(minor uint32) (*Abort, error) {
	f, err := os.OpenFile(fmt.Sprintf("%s/%d/abort", Connections, minor), os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) && os.Geteuid() == 0 {
		f, err = openDetached(minor)
	}
	if err != nil {
		return nil, fmt.Errorf("look for the way to end the connection: %w", err)
	}
	return &Abort{f}, nil
}

// End ends the connection: requests that are not answered yet fail with ECONNABORTED, all
// others with ENOTCONN, and Serve returns. On one that has ended it does nothing.
func (a *Abort) End() error {
	if _, err := a.f.WriteString("1"); err != nil {
		return fmt.Errorf("end the connection: %w", err)
	}
	return nil
}

// Close gives the handle back; the connection goes on.
func (a *Abort) Close() error { return a.f.Close() }

// openDetached opens a connection's control file in a mount of the control file system
// that stands at no place (fsopen(2), fsmount(2): Linux 5.2).
func openDetached(minor uint32) (*os.File, error) {
	const kind = "fusectl"
	context, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen "+kind, err)
	}
	defer unix.Close(context)
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, os.NewSyscallError("fsconfig "+kind, err)
	}
	mount, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fsmount "+kind, err)
	}
	defer unix.Close(mount)
	name := fmt.Sprintf("%d/abort", minor)
	fd, err := unix.Openat(mount, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: kind + "/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
