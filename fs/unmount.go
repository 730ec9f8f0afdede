package fs

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"varve/chain/mounts"
	"varve/fs/device"
)

// ErrNotMounted is what Unmount says when the mount was taken from its mountpoint
// while files were open (lazily), and is served until they are closed.
var ErrNotMounted = errors.New("not mounted there any more")

// ErrBound is what Unmount says when the mount, or a part of it, can be seen at
// further places of this mount namespace: without its mountpoint it would go on there,
// out of sight.
var ErrBound = errors.New("it is mounted a second time")

// Device is the device of the mount's files, 0 when it could not be told.
func (s *Server) Device() uint64 { return s.device }

// Mountpoint is where the mount was made, as the mount table shows it.
func (s *Server) Mountpoint() string { return s.mountpoint }

// Unmount asks the kernel to take the mount away, wherever it was moved to; Wait
// returns after it. The error is unix.EBUSY while a file of the mount is open or in
// use as a directory: then it goes on serving, as it does with ErrBound. A mount that
// is gone is no error; one that was unmounted lazily and is still in use is
// ErrNotMounted: by now something else may be mounted at the same place, which is left
// alone.
func (s *Server) Unmount() error {
	const tries = 5 // the kernel may still be closing what was in use
	var err error
	at := s.mountpoint
	for i, pause := 0, 5*time.Millisecond; i < tries; i, pause = i+1, 2*pause {
		select {
		case <-s.done:
			return nil
		default:
		}
		if at, err = s.place(); err == nil {
			err = device.Unmount(at, s.direct)
		}
		if err == nil {
			return nil
		}
		select {
		case <-s.done: // somebody else was quicker
			return nil
		case <-time.After(pause):
		}
	}
	return fmt.Errorf("unmount %s: %w", at, err)
}

// place is where the mount is now. It reads the mount table only.
func (s *Server) place() (string, error) {
	table, err := mounts.Read()
	if err != nil || s.device == 0 {
		return s.mountpoint, nil // as far as anybody knows
	}
	m, ok := table.Main(s.device)
	switch {
	case !ok:
		return s.mountpoint, ErrNotMounted
	case len(m.Binds) > 0:
		var words []string
		for _, b := range m.Binds {
			words = append(words, b.String())
		}
		return m.Mountpoint, fmt.Errorf("%w: %s", ErrBound, strings.Join(words, ", "))
	case !m.Reachable():
		return m.Mountpoint, fmt.Errorf("%s is mounted over it at %s", m.Over, m.OverAt)
	}
	return m.Mountpoint, nil
}
