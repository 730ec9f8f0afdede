package umount

import (
	"fmt"
	"os"

	"varve/chain"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/claim"
	"varve/cmd/varve/internal/where"
)

// checkInPlace refuses to unmount a disk whose files were removed while it was
// mounted: the daemon has them open still, and with the unmount their content would be
// gone. The mount itself is not asked, since a question to a daemon that hangs would
// keep the mount busy.
// A directory that was moved as a whole is in order.
func (c *closing) checkInPlace() error {
	t := c.t
	if t.ReadOnly {
		return nil
	}
	dir := c.dir()
	if dir == "" {
		m, there, err := mounts.At(t.Mountpoint)
		if err != nil || !there || !claim.Believed(m) {
			return err
		}
		dir = m.Source
	}
	missing, err := chain.Missing(dir)
	switch {
	case err != nil:
		return nil // whoever may unmount may not read the directory, or the daemon will say more
	case len(missing) == 0, where.DaemonGone(t.Mountpoint):
		return nil
	}
	more := ""
	if len(missing) > 1 {
		more = fmt.Sprintf(" (and %d more)", len(missing)-1)
	}
	return fmt.Errorf("%s%s is not there any more, and what it holds would be lost with the mount: put it back if it was moved; if it was removed, copy disk.raw and what is needed of layers/ out of %s first, then unmount with --lazy: %w",
		missing[0], more, t.Mountpoint, os.ErrNotExist)
}
