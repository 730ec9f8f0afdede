package fs

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/mounts"
	"varve/fs/device"
)

// ErrNotMounted is what Unmount says when the mount is gone from this process's mount
// namespace, as after a lazy unmount, and is served on until nobody has a file of it open.
var ErrNotMounted = errors.New("not mounted there any more")

// Device is the device of the mount's files, 0 when it could not be told.
func (s *Server) Device() uint64 { return s.device }

// Mountpoint is where the mount was made, as the mount table shows it.
func (s *Server) Mountpoint() string { return s.mountpoint }

// Mounted says whether the mount is there in this process's mount namespace, as far as anybody
// knows.
func (s *Server) Mounted() bool {
	_, err := s.Place().find()
	return !errors.Is(err, ErrNotMounted)
}

// Unmount takes the mount away, wherever it was moved to, and ends the connection; Wait
// returns after it. Bind mounts of it, and copies in other mount namespaces, are left
// behind with ENOTCONN. While a file of the mount is open, in whatever namespace, or the
// mount is in use as a directory in this one, it goes on serving, and the error is
// unix.EBUSY, or ErrNotMounted where only those who have files open keep it. A mount that
// is gone is no error.
func (s *Server) Unmount() error {
	const tries = 6 // the kernel may still be closing what was in use, and tells of it late
	var err error
	for i, pause := 0, 5*time.Millisecond; i < tries; i, pause = i+1, 2*pause {
		select {
		case <-s.done:
			return nil
		default:
		}
		if err = s.tryUnmount(); err == nil {
			return nil
		}
		select {
		case <-s.done: // somebody else was quicker
			return nil
		case <-time.After(pause):
		}
	}
	return fmt.Errorf("unmount %s: %w", s.mountpoint, err)
}

func (s *Server) tryUnmount() error {
	_, err := s.Place().find()
	mounted := !errors.Is(err, ErrNotMounted)
	switch {
	case s.fs.open.any():
		if !mounted {
			return ErrNotMounted
		}
		return unix.EBUSY // which the kernel says of this mount namespace alone
	case !mounted:
	case err != nil:
		return err
	default:
		if err := s.takeAway(); err != nil {
			return err
		}
	}
	// Somebody may have opened a file at another place meanwhile.
	if !s.fs.open.end() {
		return ErrNotMounted
	}
	if s.abort == nil {
		return s.unkept()
	}
	if err := s.abort.End(); err != nil {
		s.fs.open.goOn()
		return err
	}
	return nil
}

// Abandon ends the service of a mount that nobody can take away for this process, and Wait
// returns. The mount stays behind: who looks there is told ENOTCONN, at the latest when this
// process has ended. unix.EBUSY while somebody has a file open, and nothing is changed then.
// Not to be called again after it has succeeded.
func (s *Server) Abandon() error {
	if !s.fs.open.end() {
		return fmt.Errorf("leave %s: %w", s.mountpoint, unix.EBUSY)
	}
	if s.abort == nil || s.abort.End() != nil {
		// Nothing can be opened any more, so nobody writes. The end of this process ends the
		// connection.
		close(s.left)
	}
	return nil
}

// unkept waits a moment for the end of a mount that nothing should keep any more. The
// error is ErrNotMounted when something does, such as a copy in another mount namespace.
func (s *Server) unkept() error {
	select {
	case <-s.done:
		return nil
	case <-time.After(endTime):
		s.fs.open.goOn()
		return ErrNotMounted
	}
}

// endTime is more than the kernel takes to tell that a mount is gone.
const endTime = time.Second

// takeAway takes the mount from its place.
func (s *Server) takeAway() error {
	if s.byOther != nil {
		return s.byOther()
	}
	return s.Place().Unmount()
}

// UnmountBy has somebody else do what Place().Unmount does, because this process may not:
// the same errors mean the same. It is to be called before Unmount is.
func (s *Server) UnmountBy(other func() error) { s.byOther = other }

// Place says which mount a Server has, for one who takes it away in its stead.
type Place struct {
	Mountpoint string // where it was made
	Device     uint64 // of its files; 0 when it could not be told
	Direct     bool   // made by mount(2), and not by fusermount3
}

// Place is where this mount was made.
func (s *Server) Place() Place { return Place{s.mountpoint, s.device, s.direct} }

// Unmount takes the mount away, wherever it was moved to, once. The error is ErrNotMounted
// when it is gone from this process's mount namespace, and unix.EBUSY when it is in use
// there. The connection goes on.
func (p Place) Unmount() error {
	at, err := p.find()
	if err != nil {
		return err
	}
	if p.Direct && p.Device != 0 {
		return mounts.Unmount(at, p.Device, 0)
	}
	return device.Unmount(at, p.Direct)
}

// find is where the mount is now. It reads the mount table only.
func (p Place) find() (string, error) {
	table, err := mounts.Read()
	if err != nil || p.Device == 0 {
		return p.Mountpoint, nil // as far as anybody knows
	}
	m, ok := table.Main(p.Device)
	switch {
	case !ok:
		return p.Mountpoint, ErrNotMounted
	case !m.Reachable():
		return m.Mountpoint, fmt.Errorf("%s is mounted over it at %s", m.Over, m.OverAt)
	}
	return m.Mountpoint, nil
}
