package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"varve/chain"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/holders"
)

// users are the reasons for which a mount goes on.
type users struct {
	uses   []holders.Use  // open files and the like, wherever the mount is seen
	places []mounts.Mount // where it can be seen but at its mountpoint
}

func (u users) none() bool { return len(u.uses) == 0 && len(u.places) == 0 }

// String says who uses the mount.
func (u users) String() string {
	var words []string
	if len(u.uses) > 0 || len(u.places) == 0 {
		words = append(words, usersOf(u.uses))
	}
	if len(u.places) > 0 {
		words = append(words, "mounted a second time: "+placesOf(u.places))
	}
	return strings.Join(words, "; ")
}

// refusal is why a mount is not unmounted.
func (u users) refusal() error {
	if len(u.uses) == 0 && len(u.places) > 0 {
		return fmt.Errorf("it is %v; that has to go first, or let --wait wait for that", u)
	}
	return fmt.Errorf("it is in use: %v; close that first, or let --wait wait for that", u)
}

// users finds out who uses a mount. With asking its daemon is asked too, which knows
// of files that /proc does not show to this user, such as those of another user's
// processes; the answer passes through the mountpoint.
func (t target) users(asking bool) (users, error) {
	places, err := otherPlaces(t.device, t.mountpoint)
	if err != nil {
		return users{}, err
	}
	all := places
	if t.mountpoint != "" {
		all = append([]mounts.Mount{{Mountpoint: t.mountpoint, Root: "/", Device: t.device}}, places...)
	}
	u := users{uses: holders.Find(t.device, all), places: places}
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

// tellRest says where a mount can still be seen that was taken from its mountpoint.
func (t target) tellRest(stderr io.Writer) {
	places, err := otherPlaces(t.device, t.mountpoint)
	if err == nil && len(places) > 0 {
		say(stderr, "umount %s: its daemon goes on, since it is mounted a second time: %s", t.arg, placesOf(places))
	}
}

// patience is how long umount waits in silence.
const patience = 2 * time.Second

// waitReleased waits until the daemon has let go of the disk directory. When somebody
// uses the mount still, as from another mount namespace, that is an error, or with wait
// what it waits for.
func waitReleased(ctx context.Context, stderr io.Writer, t target, daemon int, wait bool) error {
	said, looked := "", time.Now().Add(patience-lookUsers)
	for {
		pid, _, held, err := chain.Holder(t.dir)
		if err != nil {
			return err
		}
		if !held || pid != daemon {
			return nil
		}
		if time.Since(looked) > lookUsers {
			looked = time.Now()
			u, err := t.users(false)
			if err != nil {
				return err
			}
			what := fmt.Sprintf("waiting for pid %d to write everything", pid)
			switch {
			case u.none():
			case !wait:
				return fmt.Errorf("%s is no longer mounted, but pid %d goes on for those who use it: %v; until it has ended do not touch %s", t.mountpoint, pid, u, t.dir)
			default:
				what = fmt.Sprintf("still in use, waiting: %v", u)
			}
			if what != said {
				said = what
				say(stderr, "umount %s: %s", t.arg, what)
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			u, err := t.users(false)
			if err == nil && !u.none() {
				return fmt.Errorf("%s is no longer mounted, but pid %d goes on for those who use it: %v; until it has ended do not touch %s", t.mountpoint, pid, u, t.dir)
			}
			return fmt.Errorf("%s is no longer mounted, but pid %d still writes; do not touch %s until it has ended", t.mountpoint, pid, t.dir)
		}
	}
}
