package chain

import (
	"fmt"
	"slices"
	"time"
)

// Delete removes the names of snapshots and queues the merges of their layers into
// what stands on them. It returns the id of the first job, or "" when nothing was
// left to do, once that is durable; each job begins the next one. All names go or
// none. A layer on which several others stand stays, unnamed, until one is left; so
// does a foreign one under a foreign one, which is never written, and one that a
// clone reads. ErrBusy during a job, while a layer's file is open, and for a held
// snapshot; ENOSPC where the host has not the room that the merges need.
func (d *Disk) Delete(names ...string) (string, error) {
	if err := d.roomFor(d.mergeBound(names), opDelete, names...); err != nil {
		return "", err
	}
	if err := d.begin(); err != nil {
		return "", err
	}
	defer d.opMu.Unlock()
	m := d.edit()
	recs, err := deletable(m, names)
	if err != nil {
		return "", err
	}
	if err := d.jobBusy(); err != nil {
		return "", err
	}
	for _, rec := range recs {
		who := d.handles.block(rec.ID)
		defer d.handles.unblock(rec.ID)
		if len(who) > 0 {
			return "", fmt.Errorf("%w: layers/%s.raw is open (%s)", ErrBusy, rec.Name, describe(who))
		}
	}
	for _, rec := range recs {
		rec.Name = ""
	}
	gone := removeDead(m)
	id := ""
	if d.queueMerge(m, nil, recs...) {
		id = m.Job.ID
	}
	if err := d.commit(m); err != nil {
		return "", err
	}
	d.installWithout(m, gone, nil)
	if id != "" {
		d.startJob(m.Job)
	}
	d.changed(Change{Layers: true})
	return id, nil
}

// deletable finds the snapshots with some names, and refuses what cannot go.
func deletable(m *manifest, names []string) ([]*layerRecord, error) {
	var recs []*layerRecord
	for _, name := range names {
		rec, err := findSnapshot(m, name)
		if err != nil {
			return nil, err
		}
		switch {
		case rec.ID == m.Base:
			return nil, fmt.Errorf("%w: the base cannot be deleted", ErrInvalid)
		case rec.Held:
			return nil, fmt.Errorf("%w: snapshot %s is held; release it first", ErrBusy, name)
		}
		for _, c := range m.Clones {
			if c.Layer == rec.ID {
				return nil, fmt.Errorf("%w: the disk %s was cloned from snapshot %s and reads its files; if that disk is gone, release the snapshot", ErrBusy, c.Disk, name)
			}
		}
		if slices.Contains(recs, rec) {
			return nil, fmt.Errorf("%w: %s is named twice", ErrInvalid, name)
		}
		recs = append(recs, rec)
	}
	return recs, nil
}

// DeleteUnnamed goes on with merging unnamed layers on which one other stands:
// what a cancelled delete left. It returns the job's id, or "" when there is
// nothing to merge.
func (d *Disk) DeleteUnnamed() (string, error) {
	if err := d.begin(); err != nil {
		return "", err
	}
	defer d.opMu.Unlock()
	if err := d.jobBusy(); err != nil {
		return "", err
	}
	m := d.edit()
	if !d.queueMerge(m, nil) {
		return "", nil
	}
	if err := d.commit(m); err != nil {
		return "", err
	}
	d.install(m, nil)
	d.startJob(m.Job)
	return m.Job.ID, nil
}

// canMerge says whether an unnamed layer can be merged with the one that
// stands on it. A leaf that was set aside counts as standing on it.
func canMerge(m *manifest, l *layerRecord) bool {
	if l.Name != "" || l.ID == m.Leaf || l.ID == m.Base || l.ID == m.SetAside {
		return false
	}
	children := m.children(l.ID)
	return len(children) == 1 && !children[0].Foreign && !m.pinned()[l.ID]
}

// mergeable lists the layers that can be merged.
func mergeable(m *manifest) map[string]bool {
	ids := make(map[string]bool)
	for _, l := range m.Layers {
		if canMerge(m, l) {
			ids[l.ID] = true
		}
	}
	return ids
}

// queueMerge records a merge in m for a layer that can be merged and is not in
// known, those of first before others; false when there is none, or a job is
// recorded already. Of several that stand on each other it is the one that
// mergeFirst says.
func (d *Disk) queueMerge(m *manifest, known map[string]bool, first ...*layerRecord) bool {
	return queueMerge(m, known, d.mergeCost, first...)
}

func queueMerge(m *manifest, known map[string]bool, cost mergeCost, first ...*layerRecord) bool {
	if m.Job != nil {
		return false
	}
	for _, l := range slices.Concat(first, m.Layers) {
		if m.layer(l.ID) == l && canMerge(m, l) && !known[l.ID] {
			recordJob(m, jobDelete, mergeFirst(m, l, known, cost).ID)
			return true
		}
	}
	return false
}

// mergeCost says of a layer how many bytes it maps, and whether a merge can write it.
type mergeCost func(l *layerRecord) (own int64, writable bool)

func (d *Disk) mergeCost(l *layerRecord) (own int64, writable bool) {
	n := d.nodes[l.ID]
	if n == nil || n.layer() == nil {
		return 0, false
	}
	if own, known, err := d.figures.own(n, time.Time{}); err == nil && known {
		return own, !l.Foreign && plain(n.layer()) == nil
	}
	return d.fileCost(l, n.layer())
}

// fileCost is mergeCost for a layer that has, or will have, another file.
func (d *Disk) fileCost(l *layerRecord, file *layer) (own int64, writable bool) {
	own, err := file.ownBytes()
	if err != nil {
		d.log.Warn("a layer cannot be counted; merges may copy more than they must", "layer", l.label(), "error", err)
	}
	return own, !l.Foreign && plain(file) == nil
}

// mergeFirst is where to begin with a run of layers that can be merged, of which l
// is one. All of them end in one file: that of the layer which holds the most, into
// which those above it move down, one after the other, and then those below it up.
// Each byte is copied once at most. (From the bottom up, layer by layer, those of the
// lowest would be copied again with each merge.)
func mergeFirst(m *manifest, l *layerRecord, known map[string]bool, cost mergeCost) *layerRecord {
	inRun := func(l *layerRecord) bool { return l != nil && canMerge(m, l) && !known[l.ID] }
	top := l
	for above := m.children(top.ID)[0]; inRun(above); above = m.children(top.ID)[0] {
		top = above
	}
	if top == l && !inRun(m.layer(l.Parent)) {
		return l // nothing to choose
	}
	most, first := int64(0), top
	for at := top; inRun(at); at = m.layer(at.Parent) {
		if own, writable := cost(at); writable && own > most {
			most, first = own, at
		}
	}
	// What stands on the run takes all of it when it holds more; the leaf also when
	// moving it would not be worth what that costs its writers (chooseDirection).
	into := m.children(top.ID)[0]
	if own, _ := cost(into); own >= most || into.ID == m.Leaf && own >= most/2 {
		return top
	}
	return first
}

// Flatten copies into a snapshot, or into the leaf (name "leaf"), all that it
// needs from below, so that it has no backing. It returns the job's id, or ""
// when it has none already. ErrInvalid for the base, and for an adopted layer,
// which is never written.
func (d *Disk) Flatten(name string) (string, error) {
	if err := d.roomFor(d.flattenBound(name), opFlatten, name); err != nil {
		return "", err
	}
	if err := d.begin(); err != nil {
		return "", err
	}
	defer d.opMu.Unlock()
	m := d.edit()
	rec := m.layer(m.Leaf)
	if name != leafName {
		var err error
		if rec, err = findSnapshot(m, name); err != nil {
			return "", err
		}
	}
	if err := flattenable(m, rec, name); err != nil {
		return "", err
	}
	if err := d.jobBusy(); err != nil {
		return "", err
	}
	if rec.Parent == "" {
		return "", nil
	}
	id := recordJob(m, jobFlatten, rec.ID)
	if err := d.commit(m); err != nil {
		return "", err
	}
	d.install(m, nil)
	d.startJob(m.Job)
	return id, nil
}

// flattenable says why a layer cannot be flattened, nil when it can.
func flattenable(m *manifest, rec *layerRecord, name string) error {
	switch {
	case rec.ID == m.Base:
		return fmt.Errorf("%w: the base has nothing below it", ErrInvalid)
	case rec.Foreign:
		return fmt.Errorf("%w: %s is a foreign file (%s), which varve never writes", ErrInvalid, name, rec.File)
	case m.pinned()[rec.ID]:
		return fmt.Errorf("%w: a disk was cloned from %s, or from a snapshot above it, and reads its file as it is", ErrBusy, name)
	}
	return nil
}
