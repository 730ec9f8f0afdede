package umount

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"varve/chain"
	"varve/chain/dirlock"
	"varve/cmd/varve/internal/claim"
	"varve/cmd/varve/internal/holders"
	"varve/cmd/varve/internal/logfile"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/where"
)

// closing is how umount learns what becomes of a disk that it unmounts: from the daemon
// itself, which leaves word in the file that it has locked. That file is found by the process
// that serves the mount, so it does not matter where the disk directory is by then, nor who
// mounts the disk next.
type closing struct {
	t       where.Target
	pid     int              // of the daemon; 0 where it is gone or cannot be told
	session *dirlock.Session // nil for a read-only mount, and where pid is 0
	held    bool             // somebody held the disk
	dead    bool             // the mount's daemon is gone
	asked   bool             // the daemon was asked to end once, and is not to be asked again
}

// watchClosing finds the daemon of a mount that is to be unmounted. A question to a daemon
// that hangs would keep the mount busy, so it is asked nothing.
func watchClosing(t where.Target) (c closing, err error) {
	c.t = t
	for _, pid := range holders.Servers(t.Device) {
		c.pid, c.held = pid, true
		if c.session, err = dirlock.SessionOf(pid); err == nil && !t.ReadOnly {
			return c, nil
		} else if err == nil {
			c.close()
		}
	}
	if t.Dir == "" {
		return c, nil
	}
	pid, _, held, err := dirlock.Holder(t.Dir)
	if err != nil {
		return c, err
	}
	if serves, known := holders.Connection(pid); held && known && serves != t.Device && !claim.Serves(t.Dir, t.Device) {
		// Any user can mount something under this name.
		return c, fmt.Errorf("the mount there claims to be %s, but that disk is mounted elsewhere, by pid %d; \"umount %s\" takes the false mount away", t.Dir, pid, chain.ShellWord(t.Mountpoint))
	}
	if c.pid == 0 {
		c.pid, c.held = pid, held
	}
	if held && !t.ReadOnly {
		if c.session, err = dirlock.SessionAt(t.Dir); errors.Is(err, os.ErrNotExist) {
			c.session = nil // it has just ended
		} else if err != nil {
			return c, err
		}
	}
	// Nobody who hangs can be asked then.
	c.dead = !held && where.DaemonGone(t.Mountpoint)
	return c, nil
}

func (c *closing) close() {
	if c.session != nil {
		c.session.Close() // read only
		c.session = nil
	}
}

// released says whether the daemon has let go of the disk.
func (c *closing) released() (bool, error) {
	if c.session != nil {
		return c.session.Ended()
	}
	if c.t.Dir == "" {
		return true, nil
	}
	pid, _, held, err := dirlock.Holder(c.t.Dir)
	return !held || pid != c.pid, err
}

// dir is where the disk directory is.
func (c *closing) dir() string {
	if c.session != nil {
		if dir := c.session.Dir(); dir != "" {
			return dir
		}
	}
	return c.t.Dir
}

// check says how the daemon closed the disk.
func (c *closing) check(stderr io.Writer) error {
	log := filepath.Join(c.dir(), logfile.Name)
	if c.session == nil {
		clean, err := dirlock.ClosedInOrder(c.t.Dir)
		switch {
		case err != nil:
			return err
		case c.dead && !clean:
			tell.Line(stderr, "umount %s: its daemon was gone before; what the guest had not flushed is lost, and the next mount puts the disk in order", c.t.Arg)
			return nil
		case c.dead || clean && c.held:
			return nil
		}
		return unknownEnd(log)
	}
	reason := ""
	switch end, why := c.session.End(); {
	case end == dirlock.EndInOrder:
		return nil
	case end == dirlock.EndUnknown:
		return unknownEnd(log)
	case why != "":
		reason = " (" + why + ")"
	}
	return fmt.Errorf("unmounted, but the daemon could not close the disk in order and what was written last may be lost%s; %s says why, or the system's log where that could not be written", reason, log)
}

func unknownEnd(log string) error {
	return fmt.Errorf("unmounted, but it cannot be told whether the daemon closed the disk in order; if it did, the last line of %s says \"closed\"", log)
}
