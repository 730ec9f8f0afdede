package chain

import (
	"fmt"
	"time"

	"varve/chain/manifest"
	"varve/chain/view"
)

// Delete removes the names of snapshots and queues the merges of their layers into
// what stands on them. It returns the id of the first job, or "" when nothing was
// left to do, once that is durable; each job begins the next one. All names go or
// none. A layer on which several others stand stays, unnamed, until one is left; so
// does a foreign one under a foreign one, which is never written, and one that a
// clone reads. ErrBusy during a job, while a layer's file is open, and for a held
// snapshot; ENOSPC where the host has not the room that the merges need.
func (d *Disk) Delete(names ...string) (string, error) {
	if err := d.roomFor(d.mergeBound(names), OpDelete, names...); err != nil {
		return "", err
	}
	if err := d.begin(); err != nil {
		return "", err
	}
	defer d.opMu.Unlock()
	m := d.edit()
	recs, err := m.Deletable(names)
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
	gone := m.RemoveDead()
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

// queueMerge records a merge in m for a layer that can be merged and is not in
// known, those of first before others; false when there is none, or a job is
// recorded already. Of several that stand on each other it is the one that
// MergeFirst chooses.
func (d *Disk) queueMerge(m *manifest.Manifest, known map[string]bool, first ...*manifest.Layer) bool {
	return m.QueueMerge(known, d.mergeCost, first...)
}

func (d *Disk) mergeCost(l *manifest.Layer) (own int64, writable bool) {
	n := d.nodes[l.ID]
	if n == nil || n.Layer() == nil {
		return 0, false
	}
	if own, known, err := d.figures.Own(n, time.Time{}); err == nil && known {
		return own, !l.Foreign && plain(n.Layer()) == nil
	}
	return d.fileCost(l, n.Layer())
}

// fileCost is manifest.MergeCost for a layer that has, or will have, another file.
func (d *Disk) fileCost(l *manifest.Layer, file *view.Layer) (own int64, writable bool) {
	own, err := file.OwnBytes()
	if err != nil {
		d.log.Warn("a layer cannot be counted; merges may copy more than they must", "layer", l.Label(), "error", err)
	}
	return own, !l.Foreign && plain(file) == nil
}

// Flatten copies into a snapshot, or into the leaf (name "leaf"), all that it
// needs from below, so that it has no backing. It returns the job's id, or ""
// when it has none already. ErrInvalid for the base, and for an adopted layer,
// which is never written.
func (d *Disk) Flatten(name string) (string, error) {
	if err := d.roomFor(d.flattenBound(name), OpFlatten, name); err != nil {
		return "", err
	}
	if err := d.begin(); err != nil {
		return "", err
	}
	defer d.opMu.Unlock()
	m := d.edit()
	rec := m.Layer(m.Leaf)
	if name != manifest.LeafName {
		var err error
		if rec, err = m.Snapshot(name); err != nil {
			return "", err
		}
	}
	if err := m.Flattenable(rec, name); err != nil {
		return "", err
	}
	if err := d.jobBusy(); err != nil {
		return "", err
	}
	m, rec, err := d.coverLost(m, rec)
	if err != nil {
		return "", err
	}
	if rec.Parent == "" {
		return "", nil
	}
	id := m.RecordJob(FlattenJob, rec.ID)
	if err := d.commit(m); err != nil {
		return "", err
	}
	d.install(m, nil)
	d.startJob(m.Job)
	return id, nil
}
