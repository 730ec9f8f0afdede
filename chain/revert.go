package chain

import (
	"fmt"
	"path/filepath"
)

// Revert sets the leaf aside and starts a new one on the named layer ("base"
// too; on a blank disk "base" is the blank disk that it began as). The leaf
// that an earlier revert set aside is removed (D13), unless nothing was written
// since: then that one stays, and the empty leaf goes. ErrBusy while disk.raw
// is open or a job runs.
func (d *Disk) Revert(name string) error {
	if err := d.begin(); err != nil {
		return err
	}
	defer d.opMu.Unlock()
	m := d.edit()
	target, size, err := revertTarget(m, name)
	if err != nil {
		return err
	}
	if err := d.jobBusy(); err != nil {
		return err
	}
	who := d.handles.block("")
	defer d.handles.unblock("")
	if len(who) > 0 {
		return fmt.Errorf("%w: disk.raw is open (%s); stop the VM first", ErrBusy, describe(who))
	}
	if err := d.Flush(); err != nil {
		return err
	}
	old := m.layer(m.Leaf)
	oldLayer := d.nodes[old.ID].layer()
	own, err := oldLayer.ownBytes()
	if err != nil {
		return err
	}
	old.Frozen, old.Size = now(), oldLayer.size()
	old.Writing, old.Fingerprint = true, nil // as after a crash, until it is settled below
	rec, l, err := d.newLeaf(m, target, size)
	if err != nil {
		return fmt.Errorf("make a new leaf: %w", err)
	}
	empty := own == 0 && (old.Parent == "" || m.layer(old.Parent).Size == old.Size)
	if !empty {
		m.SetAside = old.ID
	}
	gone := removeDead(m)
	queued := queueMerge(m, mergeable(d.manifest))
	// The guest sees the snapshot from the commit on, should we be killed.
	modified := d.modified.Load()
	d.touch()
	if err := d.commit(m); err != nil {
		d.modified.Store(modified)
		d.dropLeaf(l, err)
		return err
	}
	var parent *node
	if target != nil {
		parent = d.nodes[target.ID]
	}
	leaf := newNode(rec.ID, l, parent, d.cache)
	d.swapLeaf(nil, leaf)
	d.installWithout(m, gone, leaf)
	if m.layer(old.ID) != nil {
		d.settleFrozen(old.ID)
	}
	if queued {
		d.startJob(m.Job)
	}
	d.changed(Change{Size: true, Content: true, Layers: true})
	return nil
}

// revertTarget is the layer to go back to, nil for blank, and its size.
func revertTarget(m *manifest, name string) (*layerRecord, int64, error) {
	if name == baseName && m.Base == "" {
		return nil, m.BlankSize, nil
	}
	rec, err := findSnapshot(m, name)
	if err != nil {
		return nil, 0, err
	}
	return rec, rec.Size, nil
}

// removeDead takes out of m the unnamed layers that nothing stands on any more.
func removeDead(m *manifest) (gone []*layerRecord) {
	for again := true; again; {
		again = false
		for _, l := range m.Layers {
			if l.Name == "" && l.ID != m.Leaf && l.ID != m.SetAside && l.ID != m.Base && len(m.children(l.ID)) == 0 {
				m.removeWithFile(l)
				gone = append(gone, l)
				again = true
				break
			}
		}
	}
	return gone
}

// installWithout puts a committed manifest in force that lacks layers, with a
// new leaf or nil, and then closes and unlinks their files: last, when no
// header and no chain.json names them (M15), and nobody reads them (M1).
// Foreign files are only closed. Called with opMu held.
func (d *Disk) installWithout(m *manifest, gone []*layerRecord, leaf *node) {
	var layers []*layer
	nodes := make(map[*node]bool, len(gone))
	for _, rec := range gone {
		n := d.nodes[rec.ID]
		layers, nodes[n] = append(layers, n.layer()), true
	}
	d.install(m, func(nodes map[string]*node) {
		for _, rec := range gone {
			delete(nodes, rec.ID)
		}
		if leaf != nil {
			nodes[leaf.id] = leaf
		}
	})
	for i, rec := range gone {
		d.discardLayer(layers[i], rec.Foreign)
	}
	d.cache.forget(nodes)
}

// discardLayer closes a layer that nothing refers to any more, and unlinks its
// file unless it is foreign. Called with opMu held and no grace section open.
func (d *Disk) discardLayer(l *layer, foreign bool) {
	d.flushes.forget(l.over())
	d.readers.synchronize()
	if err := l.close(); err != nil {
		d.log.Warn("closing a layer that is no longer needed", "file", l.path, "error", err)
	}
	if foreign {
		return
	}
	d.unlink(layersDir + "/" + filepath.Base(l.path))
}

// removeWithFile takes a layer out of m; its file, unless foreign, is to be
// unlinked after the commit.
func (m *manifest) removeWithFile(l *layerRecord) {
	m.remove(l.ID)
	if !l.Foreign {
		m.Removing = append(m.Removing, l.File)
	}
}
