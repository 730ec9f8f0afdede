package umount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/chain/dirlock"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/holders"
	"varve/cmd/varve/internal/process"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/waiting"
	"varve/cmd/varve/internal/where"
	"varve/fs/device"
)

// refusalFor is why a mount is not unmounted.
func refusalFor(u where.Users) error {
	if len(u.Uses) == 0 && len(u.Places) > 0 {
		return fmt.Errorf("%v; unmount that first, or use --wait", u)
	}
	return fmt.Errorf("it is in use: %v; close that first, or use --wait", u)
}

// refuseBind refuses to unmount by the path of a bind mount of a part of a mount.
func refuseBind(arg string) error {
	defer waiting.For(where.PathWait(arg))()
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
func isMain(t where.Target) error {
	m, ok, err := mounts.Main(t.Device)
	if err != nil || !ok || m.Mountpoint == t.Mountpoint || where.DaemonGone(t.Mountpoint) {
		return err
	}
	at := chain.ShellWord(t.Mountpoint)
	return fmt.Errorf("it is a bind mount of the varve mount %s: \"umount %s\" takes it away, \"varve umount %s\" unmounts the disk", m.Mountpoint, at, chain.ShellWord(m.Mountpoint))
}

// leaveBehind says where a mount can still be seen that was taken from its mountpoint. When
// nobody wanted it anywhere else, its daemon is told to end with its last user: copies are
// not to keep it for ever.
func leaveBehind(t where.Target, stderr io.Writer, daemon process.Process) {
	u, err := t.Users(false)
	switch {
	case err != nil:
	case len(u.Places) > 0:
		tell.Line(stderr, "umount %s: its daemon goes on, for the mount can also be seen elsewhere: %s", t.Arg, where.PlaceWords(u.Places))
	default:
		_ = daemon.Terminate() // it has ended, or is another user's
	}
}

// umountUnseen unmounts a disk whose mount cannot be seen from here: it is in another mount
// namespace, or was unmounted while it was in use.
func umountUnseen(ctx context.Context, stderr io.Writer, arg string, unseen where.Unseen, flags Options) error {
	t := where.Target{Arg: arg, Dir: unseen.Dir, Mountpoint: unseen.Mountpoint, Device: unseen.Device, Owner: -1}
	daemon := process.Open(unseen.PID)
	defer daemon.Close()
	if pid, _, held, err := dirlock.Holder(t.Dir); err != nil || !held || pid != unseen.PID {
		return err // it has ended meanwhile
	}
	c := closing{t: t, pid: unseen.PID, held: true, asked: !flags.Lazy && !flags.Force}
	defer c.close()
	var err error
	if c.session, err = dirlock.SessionAt(t.Dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if flags.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, flags.Timeout)
		defer cancel()
	}
	if !flags.Force && !flags.Lazy {
		if err := c.checkInPlace(); err != nil {
			return err
		}
	}
	u, err := t.Users(false)
	if err != nil {
		return err
	}
	if !flags.Wait && len(u.Uses)+len(u.Places) > 0 {
		return fmt.Errorf("%w: %v; close that first, or use --wait", unseen, u)
	}
	if err := daemon.Terminate(); err != nil {
		return fmt.Errorf("%w, and it cannot be asked to end: %w", unseen, err)
	}
	if flags.Lazy || flags.Force {
		// A daemon that would lose files of its disk ends at the second signal only.
		if missing, err := chain.Missing(c.dir()); err == nil && len(missing) > 0 {
			time.Sleep(endSoon)
			_ = daemon.Terminate() // it may have ended
		}
	}
	if flags.Lazy {
		return nil
	}
	if err := waitReleased(ctx, stderr, &c, daemon, flags.Wait); err != nil {
		return err
	}
	daemon.Wait(patience)
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
func waitReleased(ctx context.Context, stderr io.Writer, c *closing, ended process.Process, wait bool) error {
	t, pid := c.t, c.pid
	said, begun := "", time.Now()
	next := begun.Add(endSoon)
	for {
		if released, err := c.released(); err != nil || released {
			return err
		}
		if time.Now().After(next) {
			u, err := t.Users(false)
			if err != nil {
				return err
			}
			if c.asked && time.Since(begun) > patience {
				if err := c.checkInPlace(); err != nil {
					return err // which is why the daemon has refused to end
				}
			}
			if u.None() && !c.asked && (len(u.Copies) > 0 || inPIDNamespace()) {
				if err := ended.Terminate(); err != nil {
					return fmt.Errorf("%s is no longer mounted here, but pid %d goes on for copies of the mount in other mount namespaces (%s), and cannot be asked to end: %w", t.Mountpoint, pid, where.PlaceWords(u.Copies), err)
				}
			}
			next = time.Now().Add(patience)
			if time.Since(begun) > patience && len(u.Uses) == 0 && len(u.Places) == 0 && len(u.Copies) > 0 {
				if err := endCopies(t, pid, u.Copies); err != nil {
					return err
				}
			}
			if time.Since(begun) > patience {
				next = time.Now().Add(lookUsers)
				what := fmt.Sprintf("waiting for pid %d to write everything", pid)
				switch {
				case u.None():
				case !wait:
					return stillUsed(t, pid, u)
				default:
					what = fmt.Sprintf("still in use, waiting: %v", u)
				}
				if what != said {
					said = what
					tell.Line(stderr, "umount %s: %s", t.Arg, what)
				}
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			if u, err := t.Users(false); err == nil && !u.None() {
				return fmt.Errorf("%s: %w", endOfWait(ctx), stillUsed(t, pid, u))
			}
			return fmt.Errorf("%s: %s is unmounted, but its daemon (pid %d) has not written everything yet; wait until that process has ended before you copy or use %s", endOfWait(ctx), t.Mountpoint, pid, c.dir())
		}
	}
}

// endCopies ends a connection that copies of its mount keep, by which no file is open: an
// ordinary user's daemon has no way to end it where the control file system of FUSE is not
// mounted. Root alone does so, who sees whether somebody has a file open.
func endCopies(t where.Target, daemon int, copies []mounts.Mount) error {
	if _, err := os.Stat(fmt.Sprintf("%s/%d", device.Connections, unix.Minor(t.Device))); err == nil {
		return nil // the daemon ends it by itself
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s is no longer mounted here, but pid %d goes on for copies of the mount in other mount namespaces (%s): a user's daemon cannot end these where %s is not mounted; \"varve umount %s\" as root ends them, or before the next mount root runs \"mount -t fusectl none %s\"; until it has ended do not touch %s",
			t.Mountpoint, daemon, where.PlaceWords(copies), device.Connections, chain.ShellWord(t.Dir), device.Connections, t.Dir)
	}
	if serves, known := holders.Connection(daemon); !known || serves != t.Device {
		return nil
	}
	abort, err := device.OpenAbort(unix.Minor(t.Device))
	if err != nil {
		return err
	}
	return errors.Join(abort.End(), abort.Close())
}

func stillUsed(t where.Target, pid int, u where.Users) error {
	return fmt.Errorf("%s is no longer mounted, but pid %d goes on for those who use it: %v; until it has ended do not touch %s", t.Mountpoint, pid, u, t.Dir)
}
