package chain

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	reserveName = "reserve"
	// reserveBytes is room for a chain.json of some hundred layers, besides the
	// one that is there.
	reserveBytes = 512 << 10
)

// holdReserve keeps some room on the host in a file of its own, so that the end
// of a job and the closing of the disk can be recorded when the guest or the job
// has filled the file system. Best effort: without room there is none to keep.
func (d *Disk) holdReserve() {
	path := filepath.Join(d.dir, reserveName)
	f, err := d.fs.Open(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Blocks >= reserveBytes {
		return
	}
	if err := f.Allocate(0, reserveBytes); err != nil {
		d.log.Debug("no room is kept for chain.json", "error", err)
	}
}

// commitWithReserve is manifest.commit that gives up the reserve when the host
// is full.
func (d *Disk) commitWithReserve(m *manifest) error {
	err := m.commit(d.fs, d.dir)
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
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
