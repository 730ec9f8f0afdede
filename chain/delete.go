package chain

import "fmt"

// Delete removes a snapshot's name and queues the merge of its layer into what
// stands on it. It returns the job's id, or "" when nothing was left to do,
// once that is durable. A layer on which several others stand stays, unnamed,
// until one is left; so does a foreign one under a foreign one, which is never
// written. ErrBusy during a job and while the layer's file is open.
func (d *Disk) Delete(name string) (string, error) {
	if err := d.begin(); err != nil {
		return "", err
	}
	defer d.opMu.Unlock()
	m := d.edit()
	rec, err := findSnapshot(m, name)
	if err != nil {
		return "", err
	}
	if rec.ID == m.Base {
		return "", fmt.Errorf("%w: the base cannot be deleted", ErrInvalid)
	}
	if err := d.jobBusy(); err != nil {
		return "", err
	}
	who := d.handles.block(rec.ID)
	defer d.handles.unblock(rec.ID)
	if len(who) > 0 {
		return "", fmt.Errorf("%w: layers/%s.raw is open (%s)", ErrBusy, name, describe(who))
	}
	rec.Name = ""
	gone := removeDead(m)
	id := ""
	if m.layer(rec.ID) != nil && canMerge(m, rec) {
		id = recordJob(m, jobDelete, rec.ID)
	} else if queueMerge(m, nil) {
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
	if !queueMerge(m, nil) {
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
	return len(children) == 1 && !children[0].Foreign
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
// known; false when there is none, or a job is recorded already.
func queueMerge(m *manifest, known map[string]bool) bool {
	if m.Job != nil {
		return false
	}
	for _, l := range m.Layers {
		if canMerge(m, l) && !known[l.ID] {
			recordJob(m, jobDelete, l.ID)
			return true
		}
	}
	return false
}

// Flatten copies into a snapshot, or into the leaf (name "leaf"), all that it
// needs from below, so that it has no backing. It returns the job's id, or ""
// when it has none already. ErrInvalid for the base, and for an adopted layer,
// which is never written.
func (d *Disk) Flatten(name string) (string, error) {
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
	switch {
	case rec.ID == m.Base:
		return "", fmt.Errorf("%w: the base has nothing below it", ErrInvalid)
	case rec.Foreign:
		return "", fmt.Errorf("%w: %s is a foreign file (%s), which varve never writes", ErrInvalid, name, rec.File)
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
