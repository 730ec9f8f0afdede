package umount

import (
	"fmt"
	"os"
	"path/filepath"

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
	if filepath.Dir(missing[0]) == filepath.Clean(dir) { // chain.json, with the whole directory perhaps
		return fmt.Errorf("%s was removed while the disk was mounted, and all that the disk holds would be lost with the unmount: put it back if it was moved; otherwise copy disk.raw and what is needed of layers/ out of %s first, and unmount with --lazy: %w",
			missing[0], t.Mountpoint, os.ErrNotExist)
	}
	more := ""
	if len(missing) > 1 {
		more = fmt.Sprintf(" (and %d more)", len(missing)-1)
	}
	if t.ReadOnly { // nothing is written into a new file then
		return fmt.Errorf("%s%s was removed or replaced while the disk was mounted, and what was in it would be lost with the unmount: put the file back if it was moved; otherwise \"varve export %s leaf OUT\" copies the disk into an image; --lazy unmounts all the same: %w",
			missing[0], more, chain.ShellWord(t.Mountpoint), os.ErrNotExist)
	}
	return fmt.Errorf("%s%s was removed or replaced while the disk was mounted, and what was in it would be lost with the unmount: put the file back if it was moved; otherwise \"varve flatten %s leaf\" copies what disk.raw needs into a new file, and \"varve export %s NAME OUT\" copies a snapshot out; --lazy unmounts all the same: %w",
		missing[0], more, chain.ShellWord(t.Mountpoint), chain.ShellWord(t.Mountpoint), os.ErrNotExist)
}
