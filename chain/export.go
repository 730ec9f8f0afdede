package chain

import (
	"fmt"

	"varve/chain/manifest"
	"varve/overlay"
)

// ExportSource is the view of a snapshot, of "base" or of "leaf" for an export,
// with its size in bytes. Only of a disk that is open read-only: nothing in it
// changes then, so the view needs no grace section and is of one moment, and
// where its content stands holds until the disk is closed. ErrNotExist,
// ErrInvalid.
func (d *Disk) ExportSource(name string) (overlay.Source, int64, error) {
	if !d.readOnly {
		return nil, 0, fmt.Errorf("%w: an export of a disk that may be written", ErrInvalid)
	}
	m, nodes := d.tree()
	n := d.leaf.Load()
	if name != manifest.LeafName {
		rec, err := m.Snapshot(name)
		if err != nil {
			return nil, 0, err
		}
		n = nodes[rec.ID]
	}
	return n, n.Size(), nil
}

// LeafHolds says whether the leaf holds anything that would be gone with it: what was
// written to it, or what it stands on and no name leads to. ErrReadOnly.
func (d *Disk) LeafHolds() (bool, error) {
	if err := d.begin(); err != nil {
		return false, err
	}
	defer d.opMu.Unlock()
	leaf := d.manifest.Layer(d.manifest.Leaf)
	own, err := d.nodes[leaf.ID].Layer().OwnBytes()
	return own > 0 || !d.manifest.StandsOnNamed(leaf), err
}
