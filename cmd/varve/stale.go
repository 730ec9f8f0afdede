package main

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/chain/dirlock"
	"varve/chain/mounts"
)

// A daemon that was killed leaves its mount behind: whoever touches it is told
// "Transport endpoint is not connected". A mount that was unmounted lazily while
// files were open is the other way round: nobody sees it, and its daemon goes on,
// with the disk's lock, until the last of them is closed.

// clearStale takes the mount of a daemon that is gone from the mountpoint, and
// says so. It is called with the disk's lock held; exclusive says that it is one
// that nobody else has, so that the mount has no daemon, also where that cannot be
// seen (in another user's), and is not a new one.
func (p plan) clearStale(stderr io.Writer, arg string, exclusive bool) error {
	if !p.stale {
		return nil
	}
	stale, there, err := mounts.At(p.mountpoint)
	switch {
	case err != nil:
		return err
	case there && (stale.Source != p.name() || !exclusive && !daemonGone(p.mountpoint)):
		return fmt.Errorf("at %s the disk %s was mounted meanwhile", p.mountpoint, stale.Source)
	case !there:
		_, _, err = checkMountpoint(p.mountpoint)
		return err
	}
	err = unmountPath(p.mountpoint, stale.Device)
	if errors.Is(err, unix.EBUSY) {
		err = detach(stderr, "mount "+arg, p.mountpoint, stale.Device)
	}
	if err != nil {
		return fmt.Errorf("at %s is a mount of this disk whose daemon is gone, and it cannot be unmounted: %w", p.mountpoint, err)
	}
	lost := ""
	if !stale.ReadOnly {
		lost = "; what the guest had not flushed then is lost, and the disk is in order again"
	}
	say(stderr, "mount %s: at %s was a mount of this disk whose daemon was gone; unmounted it%s", arg, p.mountpoint, lost)
	_, another, err := checkMountpoint(p.mountpoint)
	if another != nil {
		err = fmt.Errorf("at %s was another such mount below the first, of %s; clear it with \"varve umount %s\"", p.mountpoint, another.Source, chain.ShellWord(p.mountpoint))
	}
	return err
}

// detach takes a mount whose daemon is gone from those who have files of it
// open: they get errors now and will then. It says who they are.
func detach(stderr io.Writer, what, mountpoint string, device uint64) error {
	who, err := target{mountpoint: mountpoint, device: device}.users(false)
	if err != nil {
		return err
	}
	if err := unmount(mountpoint, device, true); err != nil {
		return err
	}
	if len(who.uses) > 0 || len(who.places) == 0 {
		say(stderr, "%s: still in use, although its daemon is gone: %s; that only gets errors now, and has to be started again", what, usersOf(who.uses))
	}
	if len(who.places) > 0 {
		say(stderr, "%s: its daemon is gone, and the other places at which it can be seen give errors only: %s", what, placesOf(who.places))
	}
	return nil
}

// explainInUse says, of a disk that cannot be opened because somebody holds it,
// whether that is the daemon of a mount that is out of sight.
func (p plan) explainInUse(err error) error {
	if !errors.Is(err, chain.ErrInUse) || p.dir == "" {
		return err
	}
	pid, mountpoint, held, holderErr := dirlock.Holder(p.dir)
	if holderErr != nil || !held || mountpoint == "" {
		return err
	}
	if _, there, tableErr := mountOfDisk(pid, mountpoint, p.dir); tableErr != nil || there {
		return err
	}
	return heldElsewhere(p.dir, pid, mountpoint)
}
