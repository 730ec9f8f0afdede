package chain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"varve/chain/diskdir"
	"varve/chain/manifest"
	"varve/chain/shellword"
	"varve/overlay"
	"varve/overlay/hostfs"
)

const (
	reserveName = "reserve"
	// reserveBytes is room for a chain.json of some hundred layers, besides the
	// one that is there.
	reserveBytes = 512 << 10
	// leastReserve is what of it is kept where there is no more, for a chain.json of a
	// dozen layers.
	leastReserve = 64 << 10
	// stepsBytes is room for the first steps of a merge on a full host: the tables of
	// its target, and what the host's file system itself needs to punch a hole.
	stepsBytes = 1536 << 10
	// mixedBytes is kept on btrfs besides: where data and metadata share the room
	// (mkfs.btrfs --mixed) a rename is refused with less than 3 MiB (seen with Linux 6.18).
	mixedBytes = 2 << 20
)

// reserve is room on the host that is kept in a file of its own, so that what frees
// space, the opening and the closing of the disk can be done when the guest or a job has
// filled the file system: some of it for chain.json, the rest for merges. Best effort:
// without room there is none to keep.
type reserve struct {
	mu    sync.Mutex
	given int  // jobs that have it, but for what is kept for chain.json
	lacks bool // not all of it is held
}

// holdReserve takes the room that is to be kept, as far as it is there.
func (d *Disk) holdReserve() {
	d.reserve.mu.Lock()
	defer d.reserve.mu.Unlock()
	d.holdReserveLocked()
}

func (d *Disk) holdReserveLocked() {
	d.reserve.lacks = true
	path := filepath.Join(d.dir, reserveName)
	// No link: who owns the directory could have this lead to a file of somebody else.
	f, err := d.fs.Open(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	have := int64(0)
	ends := []int64{leastReserve, reserveBytes, reserveBytes + stepsBytes}
	if d.neverInPlace() {
		ends = append(ends, reserveBytes+stepsBytes+mixedBytes)
	}
	for _, end := range ends {
		if end > leastReserve && d.reserve.given > 0 {
			return
		}
		if info, err := f.Stat(); err == nil && info.Blocks >= end {
			have = end
			continue
		}
		// In pieces of their own: btrfs gives an extent back as a whole or not at all.
		if err := f.Allocate(have, end-have); err != nil {
			d.log.Debug("no room is kept for chain.json and for merges", "bytes", end, "error", err)
			// The host may have given a part, which others need more.
			if err := f.Truncate(have); err != nil {
				d.log.Debug("the reserve stays as it is", "error", err)
			}
			return
		}
		have = end
	}
	d.reserve.lacks = false
}

// holdReserveAgain is holdReserve where something of it is not held.
func (d *Disk) holdReserveAgain() {
	d.reserve.mu.Lock()
	defer d.reserve.mu.Unlock()
	if d.reserve.lacks {
		d.holdReserveLocked()
	}
}

// leastHeld is what of the reserve is never given away: room for the next chain.json.
func (d *Disk) leastHeld() int64 {
	least := int64(16 << 10)
	if info, err := d.fs.Stat(filepath.Join(d.dir, manifest.FileName)); err == nil {
		least += 2 * info.Size &^ 4095
	}
	if d.neverInPlace() {
		least = max(least, leastReserve) // which is one extent, of which no part can be given
	}
	return least
}

// stepsHeld is how much of the reserve merges can have, in bytes.
func (d *Disk) stepsHeld() int64 {
	info, err := d.fs.Stat(filepath.Join(d.dir, reserveName))
	if err != nil {
		return 0
	}
	return max(0, info.Blocks-d.leastHeld())
}

// giveRoom gives away the reserve, but for what the next chain.json needs; false when
// there is none. holdReserve takes it again.
func (d *Disk) giveRoom() bool {
	f, err := d.fs.Open(filepath.Join(d.dir, reserveName), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	least := d.leastHeld()
	info, err := f.Stat()
	if err != nil || info.Blocks <= least {
		return false
	}
	d.reserve.lacks = true
	if err := f.Truncate(least); isFull(err) {
		// btrfs can be so full that it cuts nothing off a file, and then removes one still.
		err = d.fs.Remove(filepath.Join(d.dir, reserveName))
		if err != nil {
			return false
		}
	} else if err != nil {
		return false
	}
	settleFreed(d.fs)
	return true
}

// settleFreed has the host make room of what was freed: btrfs gives it out again only
// after its next transaction (seen: writes and renames fail with ENOSPC until then).
func settleFreed(fs hostfs.FS) {
	if dir, ok := fs.(*diskdir.Dir); ok && neverInPlace(fs) {
		_ = dir.Syncfs() // what it cannot do shows in the next write
	}
}

// neverInPlace says whether the host is btrfs, which gives each block that is written
// again a new place, frees the old one with its next transaction, and an extent only as
// a whole. (A file with chattr +C is written in place there; that is not looked at.)
func (d *Disk) neverInPlace() bool { return neverInPlace(d.fs) }

func neverInPlace(fs hostfs.FS) bool { return isOn(fs, unix.BTRFS_SUPER_MAGIC) }

// isOn says whether a disk directory that was entered is on a file system of one of some
// types, by their numbers in statfs(2).
func isOn(fs hostfs.FS, types ...int64) bool {
	dir, ok := fs.(*diskdir.Dir)
	if !ok {
		return false
	}
	st, err := dir.Statfs()
	return err == nil && slices.Contains(types, int64(st.Type))
}

// giveReserve removes the reserve of a disk directory whose lock is held, before the disk
// is opened or after it was closed; false when there is none.
func giveReserve(fs hostfs.FS, dir string) bool {
	if fs.Remove(filepath.Join(dir, reserveName)) != nil {
		return false
	}
	settleFreed(fs)
	return true
}

// giveSteps gives a job the reserve until takeSteps; false when it has it already, or
// there is none.
func (d *Disk) giveSteps(j *job) bool {
	d.reserve.mu.Lock()
	defer d.reserve.mu.Unlock()
	if !d.giveRoom() {
		return false
	}
	d.log.Info("the host file system is full; a merge uses the room that was reserved for it", "job", j.id)
	if !j.hasSteps {
		j.hasSteps = true
		d.reserve.given++
	}
	return true
}

// takeSteps holds the reserve again when a job has ended.
func (d *Disk) takeSteps(j *job) {
	d.reserve.mu.Lock()
	defer d.reserve.mu.Unlock()
	if j.hasSteps {
		j.hasSteps = false
		d.reserve.given--
	}
	if d.reserve.lacks {
		d.holdReserveLocked()
	}
}

// withReserve does what can be done again when the host was full, and then has the
// reserve for it.
func (d *Disk) withReserve(work func() error) error {
	err := work()
	if !isFull(err) {
		return err
	}
	d.reserve.mu.Lock()
	given := d.giveRoom()
	d.reserve.mu.Unlock()
	if !given {
		return err
	}
	d.log.Warn("the host file system is full; using the room that was reserved for this", "error", err)
	return work()
}

// isFull says that an error is the want of room on the host (hostfs.IsFull), and that nothing
// was lost by it: the same can be tried again where there is room, and a smaller piece may fit.
func isFull(err error) bool {
	return hostfs.IsFull(err) && !errors.Is(err, overlay.ErrFailed)
}

// tooFull adds the way out to an error of a host that has not even the room to free some.
func (d *Disk) tooFull(err error) error {
	if !errors.Is(err, unix.ENOSPC) || !isFull(err) || !d.neverInPlace() {
		return err
	}
	dir := shellword.Quote(d.dir)
	return fmt.Errorf("btrfs, which writes nothing in place, has not the room here for one change of a file: remove a file that is not needed, move free chunks to metadata (\"btrfs balance start -dusage=50 %s\"), or enlarge it (\"btrfs filesystem resize\", \"btrfs device add\"): %w", dir, err)
}

// commitWithReserve is Manifest.Commit that gives up the reserve when the host
// is full.
func (d *Disk) commitWithReserve(m *manifest.Manifest) error {
	err := m.Commit(d.fs, d.dir)
	if !isFull(err) {
		return err
	}
	if removeErr := d.fs.Remove(filepath.Join(d.dir, reserveName)); removeErr != nil {
		return d.tooFull(err)
	}
	d.log.Warn("the host file system is full; chain.json uses the room that was reserved for it")
	settleFreed(d.fs)
	if err := m.Commit(d.fs, d.dir); err != nil {
		return d.tooFull(err)
	}
	d.holdReserve()
	return nil
}
