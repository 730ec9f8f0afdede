package umount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"varve/chain/mounts"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/waiting"
	"varve/cmd/varve/internal/where"
)

// Options is how "varve umount" was asked to go about it.
type Options struct {
	Timeout time.Duration // 0 for no limit
	Wait    bool
	Lazy    bool
	Force   bool
}

func (u Options) Check() error {
	switch {
	case u.Timeout < 0:
		return fmt.Errorf("the timeout %s is negative", u.Timeout)
	case u.Wait && u.Lazy:
		return errors.New("--wait waits for those who use the mount, --lazy for nobody; choose one")
	}
	return nil
}

// A mount that is in use is tried again after busyPoll, and who uses it is looked
// up every lookUsers; both go through all of /proc or ask the kernel only.
const (
	busyPoll  = 250 * time.Millisecond
	lookUsers = 5 * time.Second
	// A mount that the kernel calls busy and that nobody is seen to use is tried again after
	// gonePoll, for the time of patience.
	gonePoll = 50 * time.Millisecond
)

// takeDown unmounts at the mountpoint. A mount in use is an error that says by
// whom, unless the flags say otherwise, and so is one that can be seen at other places;
// one whose daemon is gone is taken from its users. inPlace is asked before each try: files
// of the disk may be removed while it waits.
func takeDown(ctx context.Context, t where.Target, stderr io.Writer, flags Options, inPlace func() error) error {
	if flags.Lazy {
		return unmount(t.Mountpoint, t.Device, true)
	}
	var looked time.Time
	said, begun := "", time.Now()
	for {
		if err := inPlace(); err != nil {
			return err
		}
		err := tryUnmount(t)
		if !errors.Is(err, unix.EBUSY) {
			if said != "" && unmountedMeanwhile(t) {
				return nil
			}
			return err
		}
		if time.Since(looked) > lookUsers {
			if where.DaemonGone(t.Mountpoint) {
				// Nothing can be lost any more by taking it from its users.
				return Detach(stderr, "umount "+t.Arg, t.Mountpoint, t.Device)
			}
			who, err := t.Users(true)
			if err != nil {
				return err
			}
			switch {
			case flags.Wait:
			case who.None() && len(who.Copies) == 0 && time.Since(begun) < patience:
				// Whoever had it open between the two questions has gone since.
				time.Sleep(gonePoll)
				continue
			default:
				return refusalFor(who)
			}
			if words := who.String(); words != said {
				said = words
				tell.Line(stderr, "umount %s: in use, waiting: %s", t.Arg, words)
				// Under systemd "systemctl status" shows it; elsewhere nobody listens.
				_, _ = daemon.SdNotify(false, "STATUS=in use, waiting to unmount: "+tell.Visible(words))
			}
			looked = time.Now()
		}
		select {
		case <-time.After(busyPoll):
		case <-ctx.Done():
			return fmt.Errorf("%s: it is still in use: %s; it stays mounted", endOfWait(ctx), said)
		}
	}
}

// endOfWait says why a wait has ended before what was waited for came.
func endOfWait(ctx context.Context) string {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return "the time of --timeout is over"
	}
	return "interrupted"
}

// tryUnmount unmounts at the mountpoint, unless the mount is wanted at another place or
// somebody uses a copy of it, of which the kernel says nothing; the error is unix.EBUSY
// then too.
func tryUnmount(t where.Target) error {
	u, err := t.Users(false)
	if err != nil {
		return err
	}
	unseen := len(u.Copies) > 0 || inPIDNamespace()
	if unseen && len(u.Uses) == 0 {
		// The daemon sees also those whom this user does not.
		if u, err = t.Users(true); err != nil {
			return err
		}
	}
	if len(u.Places) > 0 || unseen && len(u.Uses) > 0 {
		return unix.EBUSY
	}
	defer waiting.For(t.ChangeWait())()
	return Unmount(t.Mountpoint, t.Device)
}

// inPIDNamespace says whether /proc may lack processes of this host, with the copies of
// the mount that they have, as in a container. The kernel's own namespace has this number
// always (PROC_PID_INIT_INO of include/linux/proc_ns.h).
func inPIDNamespace() bool {
	is, err := os.Readlink("/proc/self/ns/pid")
	return err != nil || is != "pid:[4026531836]"
}

// unmountedMeanwhile says that somebody else has unmounted the disk while this
// process waited.
func unmountedMeanwhile(t where.Target) bool {
	m, there, err := mounts.At(t.Mountpoint)
	return err == nil && (!there || t.Dir != "" && m.Source != t.Dir)
}

// endConnection ends the connection of a mount whose daemon does not answer, so that
// whoever waits for it gets an error. A daemon that answers needs no force, and
// what the guest writes would be lost by it.
func endConnection(t where.Target, stderr io.Writer) error {
	if answers(t.Mountpoint) {
		return nil
	}
	tell.Line(stderr, "umount %s: its daemon does not answer; ending its connection", t.Arg)
	err := mounts.Unmount(t.Mountpoint, t.Device, unix.MNT_FORCE)
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("only root may unmount by force: %w", err)
	}
	// What it says of the unmounting itself the next attempt finds out again.
	return nil
}

// answers says whether a mount's daemon answers, if only that it is gone.
func answers(mountpoint string) bool {
	answer := make(chan struct{})
	go func() {
		defer close(answer)
		var st unix.Statfs_t
		_ = unix.Statfs(mountpoint, &st)
	}()
	select {
	case <-answer:
		return true
	case <-time.After(where.AnswerTime):
		return false
	}
}
