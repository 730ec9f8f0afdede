// Package umount takes the mount of a disk away, and waits until its daemon has written all.
//
// A mount that somebody uses stays, and who that is is said; one whose daemon is gone, or that
// is out of sight, has its own way. That the daemon has closed the disk in order it says itself
// (package dirlock's session). Package where finds the mount and its users.
package umount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"varve/chain/mounts"
	"varve/cmd/varve/internal/claim"
	"varve/cmd/varve/internal/process"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/where"
)

// Run unmounts the disk that arg means.
func Run(ctx context.Context, stderr io.Writer, arg string, flags Options) error {
	if err := refuseBind(arg); err != nil {
		return err
	}
	t, err := where.FindSeen(arg)
	if unseen := (where.Unseen{}); errors.As(err, &unseen) {
		return umountUnseen(ctx, stderr, arg, unseen, flags)
	}
	if err != nil {
		return err
	}
	if t.Mountpoint == "" {
		// The mount of a daemon that is gone stands at its mountpoint still.
		m, there, err := claim.MountOf(t.Dir)
		if err != nil {
			return err
		}
		if !there {
			return errors.New("it is not mounted")
		}
		t = t.At(m)
	}
	if err := isMain(t); err != nil {
		return err
	}
	if uid := os.Geteuid(); uid != 0 && t.Owner >= 0 && t.Owner != uid {
		return t.Explain(os.ErrPermission) // fusermount3 says that there is no such mount
	}
	c, err := watchClosing(t)
	if err != nil {
		return err
	}
	defer c.close()
	ended := process.Open(c.pid)
	defer ended.Close()
	if flags.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, flags.Timeout)
		defer cancel()
	}
	inPlace := c.checkInPlace
	if flags.Force || flags.Lazy {
		inPlace = func() error { return nil }
	}
	if err := inPlace(); err != nil {
		return err
	}
	if flags.Force {
		if err := endConnection(t, stderr); err != nil {
			return err
		}
	}
	if err := takeDown(ctx, t, stderr, flags, inPlace); err != nil {
		return t.Explain(err)
	}
	if flags.Lazy {
		leaveBehind(t, stderr, ended)
		return nil // those who use it decide how long the daemon goes on
	}
	if t.Dir == "" && c.session == nil {
		return nil // nothing was ever written
	}
	if err := waitReleased(ctx, stderr, &c, ended, flags.Wait); err != nil || t.ReadOnly {
		return err
	}
	// Its last words go into the log in the disk directory.
	ended.Wait(patience)
	return c.check(stderr)
}

// Unmount asks the kernel, or where that is root's business fusermount3,
// to unmount a device's mount. The error is unix.EBUSY when the mount is in use.
func Unmount(mountpoint string, device uint64) error { return unmount(mountpoint, device, false) }

// unmount is Unmount, or with lazily takes the mount out of sight, whoever
// uses it.
func unmount(mountpoint string, device uint64, lazily bool) error {
	flags, option := 0, "-u"
	if lazily {
		flags, option = unix.MNT_DETACH, "-uz"
	}
	if os.Geteuid() == 0 {
		return mounts.Unmount(mountpoint, device, flags)
	}
	// C-locale words: they decide what the error was.
	var words bytes.Buffer
	c := exec.Command("fusermount3", option, "--", mountpoint)
	c.Env = append(os.Environ(), "LC_ALL=C")
	c.Stderr = &words
	err := c.Run()
	switch text := strings.TrimSpace(words.String()); {
	case err == nil:
		return nil
	case strings.Contains(strings.ToLower(text), "busy"):
		return unix.EBUSY
	case text != "":
		return errors.New(text)
	}
	return fmt.Errorf("run fusermount3: %w", err)
}

// Detach takes a mount whose daemon is gone from those who have files of it
// open: they get errors now and will then. It says who they are.
func Detach(stderr io.Writer, what, mountpoint string, device uint64) error {
	who, err := where.Target{Mountpoint: mountpoint, Device: device}.Users(false)
	if err != nil {
		return err
	}
	if err := unmount(mountpoint, device, true); err != nil {
		return err
	}
	if len(who.Uses) > 0 || len(who.Places) == 0 {
		tell.Line(stderr, "%s: still in use, although its daemon is gone: %s; that only gets errors now, and has to be started again", what, where.UseWords(who.Uses))
	}
	if len(who.Places) > 0 {
		tell.Line(stderr, "%s: its daemon is gone, and the other places at which it can be seen give errors only: %s", what, where.PlaceWords(who.Places))
	}
	return nil
}
