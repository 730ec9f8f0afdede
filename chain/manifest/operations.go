package manifest

import (
	"fmt"
	"slices"

	"varve/chain/refusal"
	"varve/overlay/extent"
)

// CheckNew refuses a snapshot's name that is not legal (ErrInvalid) or not free (ErrExist).
func (m *Manifest) CheckNew(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if m.ByName(name) != nil {
		return fmt.Errorf("snapshot %s: %w", name, refusal.ErrExist)
	}
	return nil
}

// Deletable finds the snapshots with some names, and refuses what cannot go: ErrNotExist,
// ErrInvalid for the base and for a name that is given twice, ErrBusy for what is held or cloned.
func (m *Manifest) Deletable(names []string) ([]*Layer, error) {
	var recs []*Layer
	for _, name := range names {
		rec, err := m.Snapshot(name)
		if err != nil {
			return nil, err
		}
		switch {
		case rec.ID == m.Base:
			return nil, fmt.Errorf("%w: the base cannot be deleted", refusal.ErrInvalid)
		case rec.Held:
			return nil, fmt.Errorf("%w: snapshot %s is held; release it first", refusal.ErrBusy, name)
		}
		for _, c := range m.Clones {
			if c.Layer == rec.ID {
				return nil, fmt.Errorf("%w: the disk %s was cloned from snapshot %s and reads its files; if that disk is gone, release the snapshot", refusal.ErrBusy, c.Disk, name)
			}
		}
		if slices.Contains(recs, rec) {
			return nil, fmt.Errorf("%w: %s is named twice", refusal.ErrInvalid, name)
		}
		recs = append(recs, rec)
	}
	return recs, nil
}

// Flattenable says why a layer, which the user calls name, cannot be flattened; nil when it can.
func (m *Manifest) Flattenable(rec *Layer, name string) error {
	switch {
	case rec.ID == m.Base:
		return fmt.Errorf("%w: the base stands on nothing, so there is nothing to flatten", refusal.ErrInvalid)
	case rec.Foreign:
		return fmt.Errorf("%w: %s is a foreign file (%s), which varve never writes", refusal.ErrInvalid, name, rec.File)
	case m.Pinned()[rec.ID]:
		return fmt.Errorf("%w: a disk was cloned from %s, or from a snapshot above it, and needs its file unchanged", refusal.ErrBusy, name)
	}
	return nil
}

// RevertTarget is the layer to go back to, nil for the blank disk that it was, and the size in
// guest bytes of a leaf on it. Errors are those of Snapshot.
func (m *Manifest) RevertTarget(name string) (*Layer, int64, error) {
	if name == BaseName && m.Base == "" {
		return nil, m.BlankSize, nil
	}
	rec, err := m.Snapshot(name)
	if err != nil {
		return nil, 0, err
	}
	return rec, extent.WholeSectors(rec.Size), nil
}
