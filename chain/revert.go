package chain

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"varve/chain/manifest"
	"varve/chain/refusal"
	"varve/chain/view"
	"varve/overlay/extent"
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
	target, size, err := m.RevertTarget(name)
	if err != nil {
		return err
	}
	if err := d.jobBusy(); err != nil {
		return err
	}
	if err := d.keepsChain(m, target); err != nil {
		return err
	}
	unblock, err := d.blockDisk()
	if err != nil {
		return err
	}
	defer unblock()
	old, err := d.setAside(m)
	if err != nil {
		return err
	}
	rec, l, err := d.newLeaf(m, target, size)
	if err != nil {
		return fmt.Errorf("make a new leaf: %w", err)
	}
	var parent *view.Node
	if target != nil {
		parent = d.nodes[target.ID]
	}
	if err := d.replaceLeaf(m, old, view.NewNode(rec.ID, l, parent, d.cache)); err != nil {
		d.dropLeaf(l, err)
		return err
	}
	return nil
}

// Undo makes the leaf that the last revert set aside the leaf again, and sets the
// present one aside, so that a second Undo takes the first one back; one in which
// nothing was written goes instead. ErrNotExist when none is set aside, ErrBusy
// while disk.raw is open or a job runs.
func (d *Disk) Undo() error {
	if err := d.begin(); err != nil {
		return err
	}
	defer d.opMu.Unlock()
	if err := d.someAside(); err != nil {
		return err
	}
	if err := d.jobBusy(); err != nil {
		return err
	}
	aside := d.nodes[d.manifest.SetAside]
	if err := d.keepsChain(d.manifest, d.manifest.Layer(aside.ID)); err != nil {
		return err
	}
	if err := plain(aside.Layer()); err != nil {
		return fmt.Errorf("%w: the leaf that was set aside (%s) cannot be written any more: %w", ErrInvalid, aside.Layer().Path, err)
	}
	unblock, err := d.blockDisk()
	if err != nil {
		return err
	}
	defer unblock()
	if err := d.reviveLeaf(aside); err != nil {
		d.settleFrozen(aside.ID)
		return err
	}
	d.cache.Forget(map[*view.Node]bool{aside: true}) // what is resolved of a view that changes again
	return nil
}

// reviveLeaf makes a layer writable, and the leaf. When it fails, settle the layer.
func (d *Disk) reviveLeaf(aside *view.Node) error {
	m := d.edit()
	m.MarkWriting(m.Layer(aside.ID)) // before a byte of it is written (M16)
	if err := d.commit(m); err != nil {
		return err
	}
	d.install(m, nil)
	if _, err := d.thaw(aside); err != nil {
		return err
	}
	d.figures.ViewChanged(aside) // the other counts go when it is settled again
	m = d.edit()
	m.SetAside = ""
	old, err := d.setAside(m)
	if err != nil {
		return err
	}
	rec := m.Layer(aside.ID)
	rec.Frozen, rec.Size, rec.Fingerprint, rec.Counts = time.Time{}, 0, nil, nil
	m.Leaf = rec.ID
	return d.replaceLeaf(m, old, aside)
}

// Forget removes the leaf that the last revert set aside. It returns the id of the
// job that merges what became free by that, or "" for none. ErrNotExist when none
// is set aside, ErrBusy during a job.
func (d *Disk) Forget() (string, error) {
	if err := d.begin(); err != nil {
		return "", err
	}
	defer d.opMu.Unlock()
	if err := d.someAside(); err != nil {
		return "", err
	}
	if err := d.jobBusy(); err != nil {
		return "", err
	}
	m := d.edit()
	m.SetAside = ""
	return d.commitFreed(m)
}

// commitFreed commits a manifest in which layers became free to go or to be merged,
// and starts the merge. It returns the job's id, or "" for none. Called with opMu
// held and no job under way.
func (d *Disk) commitFreed(m *manifest.Manifest) (string, error) {
	gone := m.RemoveDead()
	queued := d.queueMerge(m, d.manifest.Mergeable())
	if err := d.commit(m); err != nil {
		return "", err
	}
	d.installWithout(m, gone, nil)
	d.changed(Change{Layers: true})
	if !queued {
		return "", nil
	}
	d.startJob(m.Job)
	return m.Job.ID, nil
}

func (d *Disk) someAside() error {
	if d.manifest.SetAside == "" {
		return refusal.Of(ErrNotExist, errors.New("no leaf is set aside; only a revert does that"))
	}
	return nil
}

// blockDisk keeps opens of disk.raw waiting until unblock is called; ErrBusy while
// it is open.
func (d *Disk) blockDisk() (unblock func(), err error) {
	who := d.handles.block("")
	if len(who) > 0 {
		d.handles.unblock("")
		return nil, fmt.Errorf("%w: disk.raw is open (%s); stop the VM first", ErrBusy, describe(who))
	}
	return func() { d.handles.unblock("") }, nil
}

// setAside flushes the leaf and makes it a frozen, unnamed layer in m, which is to
// be committed: the one that is set aside, in place of an earlier one, unless
// nothing was written to it. Called with opMu held and disk.raw not open.
func (d *Disk) setAside(m *manifest.Manifest) (old *manifest.Layer, err error) {
	if err := d.Flush(); err != nil {
		return nil, err
	}
	old = m.Layer(m.Leaf)
	l := d.nodes[old.ID].Layer()
	own, err := l.OwnBytes()
	if err != nil {
		return nil, err
	}
	old.Frozen, old.Size = now(), l.Size()
	old.Writing, old.Fingerprint = true, nil // as after a crash, until it is settled
	parent := m.Layer(old.Parent)
	empty := own == 0 && m.StandsOnNamed(old) && (parent == nil || extent.WholeSectors(parent.Size) == old.Size)
	if !empty {
		m.SetAside = old.ID
	}
	return old, nil
}

// replaceLeaf commits m, in which leaf is the leaf and old no more, and puts it in
// force. The guest sees the new content from the commit on, should we be killed. When
// there is an error leaf is not the leaf.
func (d *Disk) replaceLeaf(m *manifest.Manifest, old *manifest.Layer, leaf *view.Node) error {
	gone := m.RemoveDead()
	queued := d.queueMerge(m, d.manifest.Mergeable())
	modified := d.modified.Load()
	d.touch()
	if err := d.commit(m); err != nil {
		d.modified.Store(modified)
		return err
	}
	d.swapLeaf(nil, leaf)
	d.installWithout(m, gone, leaf)
	if m.Layer(old.ID) != nil {
		d.settleFrozen(old.ID)
	}
	// It cannot be taken back any more, and for varve the leaf is right without that.
	if err := d.keepTail(leaf); err != nil {
		d.log.Warn("QEMU would read zeros at the end of the leaf's file; the next mount tries again", "error", err)
	}
	if queued {
		d.startJob(m.Job)
	}
	d.changed(Change{Size: true, Content: true, Layers: true})
	return nil
}

// installWithout puts a committed manifest in force that lacks layers, with a
// new leaf or nil, and then closes and unlinks their files: last, when no
// header and no chain.json names them (M15), and nobody reads them (M1).
// Foreign files are only closed. Called with opMu held.
func (d *Disk) installWithout(m *manifest.Manifest, gone []*manifest.Layer, leaf *view.Node) {
	var layers []*view.Layer
	nodes := make(map[*view.Node]bool, len(gone))
	for _, rec := range gone {
		n := d.nodes[rec.ID]
		layers, nodes[n] = append(layers, n.Layer()), true
	}
	d.install(m, func(nodes map[string]*view.Node) {
		for _, rec := range gone {
			delete(nodes, rec.ID)
		}
		if leaf != nil {
			nodes[leaf.ID] = leaf
		}
	})
	for i, rec := range gone {
		d.discardLayer(layers[i], rec.Foreign)
	}
	d.forgetNodes(nodes)
}

// discardLayer closes a layer that nothing refers to any more, and unlinks its
// file unless it is foreign. Called with opMu held and no grace section open.
func (d *Disk) discardLayer(l *view.Layer, foreign bool) {
	d.flushes.forget(l.Over())
	d.readers.Synchronize()
	file := manifest.LayersDir + "/" + filepath.Base(l.Path)
	replaced := !foreign && d.lost(&manifest.Layer{File: file}, l) == fileReplaced
	if err := l.Close(); err != nil {
		d.log.Warn("a layer that is no longer needed could not be closed", "file", l.Path, "error", err)
	}
	switch {
	case foreign:
	case replaced: // perhaps by what somebody has put back from a backup
		d.log.Warn("the layer is no longer needed; another file stands in its place, and stays", "file", l.Path)
		d.removed = append(d.removed, file)
	default:
		d.unlink(file)
	}
}
