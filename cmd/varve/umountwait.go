package main

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
	"varve/cmd/varve/internal/waiting"
)

// umountFlags is how "varve umount" was asked to go about it.
type umountFlags struct {
	timeout time.Duration // 0 for no limit
	wait    bool
	lazy    bool
	force   bool
}

func (u umountFlags) check() error {
	switch {
	case u.timeout < 0:
		return fmt.Errorf("the timeout %s is negative", u.timeout)
	case u.wait && u.lazy:
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
// one whose daemon is gone is taken from its users.
func (t target) takeDown(ctx context.Context, stderr io.Writer, flags umountFlags) error {
	if flags.lazy {
		return unmount(t.mountpoint, t.device, true)
	}
	var looked time.Time
	said, begun := "", time.Now()
	for {
		err := t.tryUnmount()
		if !errors.Is(err, unix.EBUSY) {
			if said != "" && t.unmountedMeanwhile() {
				return nil
			}
			return err
		}
		if time.Since(looked) > lookUsers {
			if daemonGone(t.mountpoint) {
				// Nothing can be lost any more by taking it from its users.
				return detach(stderr, "umount "+t.arg, t.mountpoint, t.device)
			}
			who, err := t.users(true)
			if err != nil {
				return err
			}
			switch {
			case flags.wait:
			case who.none() && len(who.copies) == 0 && time.Since(begun) < patience:
				// Whoever had it open between the two questions has gone since.
				time.Sleep(gonePoll)
				continue
			default:
				return who.refusal()
			}
			if words := who.String(); words != said {
				said = words
				say(stderr, "umount %s: in use, waiting: %s", t.arg, words)
				// Under systemd "systemctl status" shows it; elsewhere nobody listens.
				_, _ = daemon.SdNotify(false, "STATUS=in use, waiting to unmount: "+visible(words))
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
func (t target) tryUnmount() error {
	u, err := t.users(false)
	if err != nil {
		return err
	}
	unseen := len(u.copies) > 0 || inPIDNamespace()
	if unseen && len(u.uses) == 0 {
		// The daemon sees also those whom this user does not.
		if u, err = t.users(true); err != nil {
			return err
		}
	}
	if len(u.places) > 0 || unseen && len(u.uses) > 0 {
		return unix.EBUSY
	}
	defer waiting.For(t.changeWait())()
	return unmountPath(t.mountpoint, t.device)
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
func (t target) unmountedMeanwhile() bool {
	m, there, err := mounts.At(t.mountpoint)
	return err == nil && (!there || t.dir != "" && m.Source != t.dir)
}

// force ends the connection of a mount whose daemon does not answer, so that
// whoever waits for it gets an error. A daemon that answers needs no force, and
// what the guest writes would be lost by it.
func (t target) force(stderr io.Writer) error {
	if answers(t.mountpoint) {
		return nil
	}
	say(stderr, "umount %s: its daemon does not answer; ending its connection", t.arg)
	err := mounts.Unmount(t.mountpoint, t.device, unix.MNT_FORCE)
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
	case <-time.After(answerTime):
		return false
	}
}
