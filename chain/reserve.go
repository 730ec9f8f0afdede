package chain

import (
	"errors"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"varve/overlay"
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
)

// reserve is room on the host that is kept in a file of its own, so that what frees
// space can be done when the guest or a job has filled the file system: the first
// reserveBytes are for chain.json, stepsBytes behind them for merges. Best effort:
// without room there is none to keep.
type reserve struct {
	mu    sync.Mutex
	given int // jobs that have what is kept for merges
}

// holdReserve takes the room that is to be kept, as far as it is there.
func (d *Disk) holdReserve() {
	d.reserve.mu.Lock()
	defer d.reserve.mu.Unlock()
	d.holdReserveLocked()
}

func (d *Disk) holdReserveLocked() {
	path := filepath.Join(d.dir, reserveName)
	f, err := d.fs.Open(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	have := int64(0)
	for _, end := range []int64{leastReserve, reserveBytes, reserveBytes + stepsBytes} {
		if end > reserveBytes && d.reserve.given > 0 {
			return
		}
		if info, err := f.Stat(); err == nil && info.Blocks >= end {
			have = end
			continue
		}
		if err := f.Allocate(0, end); err != nil {
			d.log.Debug("no room is kept for chain.json and for merges", "bytes", end, "error", err)
			// The host may have given a part, which others need more.
			if err := f.Truncate(have); err != nil {
				d.log.Debug("the reserve stays as it is", "error", err)
			}
			return
		}
		have = end
	}
}

// stepsHeld is how much room is kept for merges, in bytes.
func (d *Disk) stepsHeld() int64 {
	info, err := d.fs.Stat(filepath.Join(d.dir, reserveName))
	if err != nil {
		return 0
	}
	return max(0, info.Blocks-reserveBytes)
}

// giveSteps gives a job the room that is kept for merges, until takeSteps; false when
// it has it already, or there is none.
func (d *Disk) giveSteps(j *job) bool {
	if j.hasSteps {
		return false
	}
	d.reserve.mu.Lock()
	defer d.reserve.mu.Unlock()
	f, err := d.fs.Open(filepath.Join(d.dir, reserveName), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Blocks <= reserveBytes {
		return false
	}
	if err := f.Truncate(reserveBytes); err != nil {
		return false
	}
	d.log.Info("the host file system is full; a merge takes the room that was kept for it", "job", j.id)
	j.hasSteps = true
	d.reserve.given++
	return true
}

// takeSteps keeps room for merges again when a job has ended.
func (d *Disk) takeSteps(j *job) {
	if !j.hasSteps {
		return
	}
	j.hasSteps = false
	d.reserve.mu.Lock()
	defer d.reserve.mu.Unlock()
	d.reserve.given--
	d.holdReserveLocked()
}

// isFull says that an error is the want of room on the host, and that nothing was
// lost by it: the same can be tried again where there is room.
func isFull(err error) bool {
	return (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) && !errors.Is(err, overlay.ErrFailed)
}

// commitWithReserve is manifest.commit that gives up the reserve when the host
// is full.
func (d *Disk) commitWithReserve(m *manifest) error {
	err := m.commit(d.fs, d.dir)
	if !isFull(err) {
		return err
	}
	if removeErr := d.fs.Remove(filepath.Join(d.dir, reserveName)); removeErr != nil {
		return err
	}
	d.log.Warn("the host file system is full; chain.json takes the room that was kept for it")
	if err := m.commit(d.fs, d.dir); err != nil {
		return err
	}
	d.holdReserve()
	return nil
}
