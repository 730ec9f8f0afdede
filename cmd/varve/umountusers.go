package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/chain/dirlock"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/holders"
	"varve/cmd/varve/internal/waiting"
	"varve/fs/device"
)

// users are the reasons for which a mount goes on.
type users struct {
	uses   []holders.Use  // open files and the like, wherever the mount is seen
	places []mounts.Mount // where somebody wanted it to be seen, but at its mountpoint
	// copies are what other mount namespaces have at the same mountpoint, as each has that
	// is made while a disk is mounted, by a container or by libvirt for a VM. Nobody asked
	// for them: where no file is open by them, they keep nothing.
	copies []mounts.Mount
}

func (u users) none() bool { return len(u.uses) == 0 && len(u.places) == 0 }

// String says who uses the mount.
func (u users) String() string {
	var words []string
	if u.none() && len(u.copies) > 0 {
		return "copies of the mount in other mount namespaces: " + placesOf(u.copies)
	}
	if len(u.uses) > 0 || len(u.places) == 0 {
		words = append(words, usersOf(u.uses))
	}
	if len(u.places) > 0 {
		words = append(words, "it can also be seen elsewhere: "+placesOf(u.places))
	}
	return strings.Join(words, "; ")
}

// refusal is why a mount is not unmounted.
func (u users) refusal() error {
	if len(u.uses) == 0 && len(u.places) > 0 {
		return fmt.Errorf("%v; unmount that first, or use --wait", u)
	}
	return fmt.Errorf("it is in use: %v; close that first, or use --wait", u)
}

// numberIsAnothers says whether places that have the mount's device number show another
// disk: the kernel gives the number of a mount that is gone to the next one.
func (t target) numberIsAnothers(places []mounts.Mount) bool {
	return t.dir != "" && slices.ContainsFunc(places, func(m mounts.Mount) bool {
		if m.Source == t.dir || !isDiskDirectory(m.Source) {
			return false
		}
		own, err := os.Stat(t.dir)
		other, otherErr := os.Stat(m.Source)
		return err == nil && otherErr == nil && !os.SameFile(own, other)
	})
}

// users finds out who uses a mount. With asking its daemon is asked too, which knows
// of files that /proc does not show to this user, such as those of another user's
// processes; the answer passes through the mountpoint.
func (t target) users(asking bool) (users, error) {
	places, err := otherPlaces(t.device, t.mountpoint)
	if err != nil {
		return users{}, err
	}
	if t.numberIsAnothers(places) {
		return users{}, nil
	}
	all := places
	if t.mountpoint != "" {
		all = append([]mounts.Mount{{Mountpoint: t.mountpoint, Root: "/", Device: t.device}}, places...)
	}
	u := users{uses: holders.Find(t.device, all)}
	for _, m := range places {
		if m.PID != 0 && m.Whole() && m.Mountpoint == t.mountpoint {
			u.copies = append(u.copies, m)
		} else {
			u.places = append(u.places, m)
		}
	}
	if !asking {
		return u, nil
	}
	// A loop device is opened by a program that may have ended; the device is what
	// counts then.
	if st, err := t.documentSoon(); err == nil {
		for _, o := range st.Open {
			if !known(u.uses, o) {
				u.uses = append(u.uses, holders.Use{PID: o.PID, Command: o.Command, How: "open", What: o.File})
			}
		}
	}
	return u, nil
}

func known(uses []holders.Use, o chain.OpenStatus) bool {
	for _, u := range uses {
		if u.What == o.File && (u.PID == o.PID || u.Device != "") {
			return true
		}
	}
	return o.PID == os.Getpid()
}

// usersOf puts uses into words, the first few of them.
func usersOf(uses []holders.Use) string {
	const most = 4
	if len(uses) == 0 {
		return "by a process that cannot be seen from here (another user's, or in a container)"
	}
	var words []string
	for i, u := range uses {
		if i == most {
			words = append(words, fmt.Sprintf("%d more", len(uses)-most))
			break
		}
		words = append(words, u.String())
	}
	return strings.Join(words, ", ")
}

// refuseBind refuses to unmount by the path of a bind mount of a part of a mount.
func refuseBind(arg string) error {
	defer waiting.For(pathWait(arg))()
	path, err := mounts.Resolve(arg)
	if err != nil {
		return err
	}
	m, ok, err := mounts.At(path)
	if err != nil || !ok || m.Whole() {
		return err
	}
	way := fmt.Sprintf("\"umount %s\" takes it away", chain.ShellWord(path))
	if main, ok, err := mounts.Main(m.Device); err == nil && ok {
		return fmt.Errorf("it is a bind mount of %s of the varve mount %s: %s, \"varve umount %s\" unmounts the disk", m.Part(), main.Mountpoint, way, chain.ShellWord(main.Mountpoint))
	}
	return fmt.Errorf("it is a bind mount of %s of the disk %s, whose mount cannot be seen from here: %s", m.Part(), m.Source, way)
}

// isMain refuses to unmount a disk by the path of a bind mount, which could mean the
// bind mount alone. When the mount's daemon is gone there is nothing else to be meant.
func (t target) isMain() error {
	m, ok, err := mounts.Main(t.device)
	if err != nil || !ok || m.Mountpoint == t.mountpoint || daemonGone(t.mountpoint) {
		return err
	}
	at := chain.ShellWord(t.mountpoint)
	return fmt.Errorf("it is a bind mount of the varve mount %s: \"umount %s\" takes it away, \"varve umount %s\" unmounts the disk", m.Mountpoint, at, chain.ShellWord(m.Mountpoint))
}

// leaveBehind says where a mount can still be seen that was taken from its mountpoint. When
// nobody wanted it anywhere else, its daemon is told to end with its last user: copies are
// not to keep it for ever.
func (t target) leaveBehind(stderr io.Writer, daemon process) {
	u, err := t.users(false)
	switch {
	case err != nil:
	case len(u.places) > 0:
		say(stderr, "umount %s: its daemon goes on, for the mount can also be seen elsewhere: %s", t.arg, placesOf(u.places))
	default:
		_ = daemon.terminate() // it has ended, or is another user's
	}
}

// umountUnseen unmounts a disk whose mount cannot be seen from here: it is in another mount
// namespace, or was unmounted while it was in use.
func umountUnseen(ctx context.Context, stderr io.Writer, arg string, unseen unseenError, flags umountFlags) error {
	t := target{arg: arg, dir: unseen.dir, mountpoint: unseen.mountpoint, device: unseen.device, owner: -1}
	daemon := processEnd(unseen.pid)
	defer daemon.close()
	if pid, _, held, err := dirlock.Holder(t.dir); err != nil || !held || pid != unseen.pid {
		return err // it has ended meanwhile
	}
	c := closing{t: t, pid: unseen.pid, held: true}
	defer c.close()
	var err error
	if c.session, err = dirlock.SessionAt(t.dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if flags.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, flags.timeout)
		defer cancel()
	}
	if !flags.force && !flags.lazy {
		if err := c.checkInPlace(); err != nil {
			return err
		}
	}
	u, err := t.users(false)
	if err != nil {
		return err
	}
	if !flags.wait && len(u.uses)+len(u.places) > 0 {
		return fmt.Errorf("%w: %v; close that first, or use --wait", unseen, u)
	}
	if err := daemon.terminate(); err != nil {
		return fmt.Errorf("%w, and it cannot be asked to end: %w", unseen, err)
	}
	if flags.lazy || flags.force {
		// A daemon that would lose files of its disk ends at the second signal only.
		if missing, err := chain.Missing(t.dir); err == nil && len(missing) > 0 {
			time.Sleep(endSoon)
			_ = daemon.terminate() // it may have ended
		}
	}
	if flags.lazy {
		return nil
	}
	if err := waitReleased(ctx, stderr, &c, daemon, flags.wait); err != nil {
		return err
	}
	daemon.wait(patience)
	return c.check(stderr)
}

// patience is how long umount waits in silence.
const patience = 2 * time.Second

// endSoon is after how long a daemon that is still there is asked to end: most are gone by
// then.
const endSoon = 100 * time.Millisecond

// waitReleased waits until the daemon, of which ended is a handle, has let go of the disk
// directory. A daemon that only copies of the mount keep is asked to end. When somebody
// uses the mount still, as from another mount namespace, that is an error, or with wait
// what it waits for.
func waitReleased(ctx context.Context, stderr io.Writer, c *closing, ended process, wait bool) error {
	t, pid := c.t, c.pid
	said, begun := "", time.Now()
	next := begun.Add(endSoon)
	for {
		if released, err := c.released(); err != nil || released {
			return err
		}
		if time.Now().After(next) {
			u, err := t.users(false)
			if err != nil {
				return err
			}
			if u.none() && (len(u.copies) > 0 || inPIDNamespace()) {
				if err := ended.terminate(); err != nil {
					return fmt.Errorf("%s is no longer mounted here, but pid %d goes on for copies of the mount in other mount namespaces (%s), and cannot be asked to end: %w", t.mountpoint, pid, placesOf(u.copies), err)
				}
			}
			next = time.Now().Add(patience)
			if time.Since(begun) > patience && len(u.uses) == 0 && len(u.places) == 0 && len(u.copies) > 0 {
				if err := t.endCopies(pid, u.copies); err != nil {
					return err
				}
			}
			if time.Since(begun) > patience {
				next = time.Now().Add(lookUsers)
				what := fmt.Sprintf("waiting for pid %d to write everything", pid)
				switch {
				case u.none():
				case !wait:
					return t.stillUsed(pid, u)
				default:
					what = fmt.Sprintf("still in use, waiting: %v", u)
				}
				if what != said {
					said = what
					say(stderr, "umount %s: %s", t.arg, what)
				}
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			if u, err := t.users(false); err == nil && !u.none() {
				return fmt.Errorf("%s: %w", endOfWait(ctx), t.stillUsed(pid, u))
			}
			return fmt.Errorf("%s: %s is unmounted, but its daemon (pid %d) has not written everything yet; wait until that process has ended before you copy or use %s", endOfWait(ctx), t.mountpoint, pid, c.dir())
		}
	}
}

// endCopies ends a connection that copies of its mount keep, by which no file is open: an
// ordinary user's daemon has no way to end it where the control file system of FUSE is not
// mounted. Root alone does so, who sees whether somebody has a file open.
func (t target) endCopies(daemon int, copies []mounts.Mount) error {
	if _, err := os.Stat(fmt.Sprintf("%s/%d", device.Connections, unix.Minor(t.device))); err == nil {
		return nil // the daemon ends it by itself
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s is no longer mounted here, but pid %d goes on for copies of the mount in other mount namespaces (%s): a user's daemon cannot end these where %s is not mounted; \"varve umount %s\" as root ends them, or before the next mount root runs \"mount -t fusectl none %s\"; until it has ended do not touch %s",
			t.mountpoint, daemon, placesOf(copies), device.Connections, chain.ShellWord(t.dir), device.Connections, t.dir)
	}
	if serves, known := holders.Connection(daemon); !known || serves != t.device {
		return nil
	}
	abort, err := device.OpenAbort(unix.Minor(t.device))
	if err != nil {
		return err
	}
	return errors.Join(abort.End(), abort.Close())
}

func (t target) stillUsed(pid int, u users) error {
	return fmt.Errorf("%s is no longer mounted, but pid %d goes on for those who use it: %v; until it has ended do not touch %s", t.mountpoint, pid, u, t.dir)
}
