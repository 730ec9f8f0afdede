package chain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"varve/chain/manifest"
)

// Hold keeps a snapshot from being deleted until it is released; of one that is held
// already it changes nothing. ErrInvalid for the leaf and the base, which cannot be
// deleted anyway.
func (d *Disk) Hold(name string) error {
	if name == manifest.LeafName {
		return invalidf("the leaf cannot be held: it goes on changing; take a snapshot and hold that")
	}
	return d.changeHold(name, func(_ *manifest.Manifest, rec *manifest.Layer) error {
		if rec.Name == manifest.BaseName {
			return invalidf("the base is never deleted; it needs no hold")
		}
		rec.Held = true
		return nil
	})
}

// Release takes back a hold, and forgets the clones of a snapshot that are not there
// any more. ErrInvalid for a snapshot that nothing holds, ErrBusy where clones do that
// stand on it still.
func (d *Disk) Release(name string) error {
	return d.changeHold(name, func(m *manifest.Manifest, rec *manifest.Layer) error {
		held := rec.Held
		rec.Held = false
		var left []*manifest.Clone
		standing := ""
		for _, c := range m.Clones {
			if c.Layer == rec.ID && !d.cloneStands(m, c) {
				held = true
				continue
			}
			if c.Layer == rec.ID {
				standing = c.Disk
			}
			left = append(left, c)
		}
		m.Clones = left
		switch {
		case held:
			return nil
		case standing != "":
			return fmt.Errorf("%w: the disk %s was cloned from snapshot %s and reads its files; remove that disk first (\"varve export\" copies out what is needed of it)", ErrBusy, standing, name)
		}
		return invalidf("snapshot %s is not held", name)
	})
}

// changeHold commits a change of who holds a snapshot, and starts the merges that
// become possible by that.
func (d *Disk) changeHold(name string, change func(m *manifest.Manifest, rec *manifest.Layer) error) error {
	if err := d.begin(); err != nil {
		return err
	}
	defer d.opMu.Unlock()
	m := d.edit()
	rec, err := m.Snapshot(name)
	if err != nil {
		return err
	}
	clones := len(m.Clones)
	if err := change(m, rec); err != nil {
		return err
	}
	if len(m.Clones) != clones && !d.lastJob().running() {
		_, err := d.commitFreed(m)
		return err
	}
	if err := d.commit(m); err != nil {
		return err
	}
	d.install(m, nil)
	d.changed(Change{Layers: true})
	return nil
}

// cloneStands says whether a clone is there and reads a file of its snapshot's chain.
// What cannot be told counts as standing.
func (d *Disk) cloneStands(m *manifest.Manifest, c *manifest.Clone) bool {
	other, err := d.otherChain(c.Disk)
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	if err != nil {
		return true
	}
	chain := m.Chain(c.Layer)
	return slices.ContainsFunc(other.Layers, func(l *manifest.Layer) bool {
		return l.Foreign && slices.ContainsFunc(chain, func(own *manifest.Layer) bool {
			// By the path, or where one of the two disks was moved, by the content.
			return !own.Foreign && (l.File == d.path(own) ||
				own.Fingerprint != nil && l.Fingerprint != nil && own.Fingerprint.Digest == l.Fingerprint.Digest)
		})
	})
}

// Clone makes a new disk directory whose leaf stands on a snapshot of this disk, or on
// its base: it reads the files of that snapshot's chain where they are. While it
// stands, the snapshot cannot be deleted and no job writes a file of that chain. dir is
// an absolute path. ErrExist where it is there, ErrBusy during a job, and what Create
// gives.
func (d *Disk) Clone(name, dir string) (Created, error) {
	if name == manifest.LeafName {
		return Created{}, invalidf("the leaf goes on changing; take a snapshot and clone that")
	}
	if !filepath.IsAbs(dir) {
		return Created{}, invalidf("%q is no absolute path", dir)
	}
	dir = filepath.Clean(dir)
	if err := manifest.CheckPath(dir); err != nil {
		return Created{}, err
	}
	if err := d.begin(); err != nil {
		return Created{}, err
	}
	defer d.opMu.Unlock()
	if err := d.jobBusy(); err != nil {
		return Created{}, err
	}
	m := d.edit()
	rec, err := m.Snapshot(name)
	if err != nil {
		return Created{}, err
	}
	if err := checkFree(d.fs, dir); err != nil {
		return Created{}, err
	}
	// Recorded first: no crash leaves a clone whose files this disk takes for its own
	// to change.
	if !rec.Foreign {
		m.Clones = append(m.Clones, &manifest.Clone{Layer: rec.ID, Disk: dir})
		if err := d.commit(m); err != nil {
			return Created{}, err
		}
		d.install(m, nil)
	}
	created, err := d.makeClone(m, rec, dir)
	if err != nil && !rec.Foreign && !errors.Is(err, ErrUnfinished) {
		m = d.edit()
		m.Clones = m.Clones[:len(m.Clones)-1]
		if failed := d.commit(m); failed != nil {
			return Created{}, errors.Join(err, fmt.Errorf("snapshot %s still counts as cloned, \"varve release\" frees it: %w", name, failed))
		}
		d.install(m, nil)
	}
	return created, err
}
