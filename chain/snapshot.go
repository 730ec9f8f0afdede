package chain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/manifest"
	"varve/chain/refusal"
	"varve/chain/view"
	"varve/overlay"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/measure"
)

func now() time.Time { return time.Now().UTC() }

// newLeaf makes the file of a new leaf on a parent (nil for none) and its
// record in m, which is to be committed. The file is durable and open. Called
// with opMu held; where the commit fails, undo it with dropLeaf.
func (d *Disk) newLeaf(m *manifest.Manifest, parent *manifest.Layer, size int64) (*manifest.Layer, *view.Layer, error) {
	number := m.NewNumber()
	d.numbers = max(d.numbers, m.Next) // never used twice, also when this fails
	rec := &manifest.Layer{ID: manifest.LayerID(number), Format: formatQcow2, File: manifest.LayerFile(number), Created: now(), Writing: true}
	o := overlay.CreateOptions{Size: size}
	if parent != nil {
		rec.Parent = parent.ID
		o.Backing, o.BackingFormat = parent.BackingName()
	}
	path := d.path(rec)
	if err := overlay.Create(d.fs, path, o); err != nil {
		if !errors.Is(err, os.ErrExist) { // else it is somebody else's
			d.mayComeBack(path)
		}
		return nil, nil, err
	}
	l, err := openWritable(d.fs, path, d.overlayOptions(false))
	for end := time.Now().Add(newLeafPatience); errors.Is(err, hostfs.ErrLocked) && time.Now().Before(end); {
		time.Sleep(newLeafPoll)
		l, err = openWritable(d.fs, path, d.overlayOptions(false))
	}
	if err == nil {
		err = d.fs.SyncDir(filepath.Dir(path))
		if err != nil {
			l.Close()
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, d.drop(path))
	}
	m.Add(rec)
	m.Leaf = rec.ID
	l.LogTo(d.log)
	return rec, l, nil
}

// newLeafPatience is how long a new leaf's file waits for somebody who has it locked:
// who tries to open every file of a directory, as QEMU does, with the lock first and a
// look then, holds it for a moment.
const newLeafPatience = time.Second

// newLeafPoll is how often a new leaf's file is tried again meanwhile.
const newLeafPoll = 20 * time.Millisecond

// dropLeaf takes newLeaf back after a commit failed with err. When it is not
// known whether chain.json names the file, the file stays until a later commit
// says that it does not.
func (d *Disk) dropLeaf(l *view.Layer, err error) {
	l.Close()
	if errors.Is(err, manifest.ErrUnknown) {
		d.mayComeBack(l.Path)
		return
	}
	if err := d.drop(l.Path); err != nil {
		d.log.Warn("cannot remove a file that no layer owns", "file", l.Path, "error", err)
	}
}

// drop removes the file of a layer that never came to be.
func (d *Disk) drop(path string) error {
	d.mayComeBack(path)
	return d.fs.Remove(path)
}

// mayComeBack has the next commit list a file as one to be removed: its number counts
// as used, and a power cut could undo the removal.
func (d *Disk) mayComeBack(path string) {
	d.orphans = append(d.orphans, manifest.LayersDir+"/"+filepath.Base(path))
}

// Snapshot freezes the leaf under a name and goes on in a new leaf. It returns
// when what the guest had written before is durable. Writers wait only for the
// writes in flight, never for chain.json (M11, D9).
func (d *Disk) Snapshot(name string) error {
	if err := d.begin(); err != nil {
		return err
	}
	defer d.opMu.Unlock()
	if err := d.manifest.CheckNew(name); err != nil {
		return err
	}
	if err := d.keepsChain(d.manifest, d.manifest.Layer(d.manifest.Leaf)); err != nil {
		return err
	}
	return d.freezeLeaf(name)
}

// freezeLeaf is Snapshot with a name that is right. Called with opMu held.
func (d *Disk) freezeLeaf(name string) error {
	m := d.edit()
	old := m.Layer(m.Leaf)
	oldNode := d.nodes[old.ID]
	rec, l, err := d.newLeaf(m, old, d.Size())
	if err != nil {
		return fmt.Errorf("make a new leaf: %w", err)
	}
	old.Name, old.Frozen, old.Size = name, rec.Created, d.Size()
	// The guest goes on writing to it until the swap, and the flush comes after
	// it: it is not judged until it is settled (M16).
	old.Writing, old.Fingerprint = true, nil
	// From here on every crash finds the new leaf empty, with the same view as
	// the old one, whatever else was written.
	if err := d.commit(m); err != nil {
		d.dropLeaf(l, err)
		return err
	}
	leaf := view.NewNode(rec.ID, l, oldNode, d.cache)
	over := oldNode.Layer().Over()
	d.swapLeaf(over, leaf)
	d.install(m, func(nodes map[string]*view.Node) { nodes[leaf.ID] = leaf })
	d.changed(Change{Layers: true})
	if err := d.Flush(); err != nil {
		return fmt.Errorf("the snapshot was taken, but writing its data to the host failed: %w", err)
	}
	d.settleFrozen(old.ID)
	return nil
}

// swapLeaf closes the gate: the writes in flight finish, the leaf is swapped,
// the next ones go to the new leaf. Nothing in here can fail or touches the
// disk. A merge that was moving the old leaf down goes on with a frozen layer.
func (d *Disk) swapLeaf(old *overlay.Overlay, leaf *view.Node) {
	if old != nil { // a snapshot
		begun := measure.Now()
		defer func() { d.measures.stall.Observe(measure.Now() - begun) }()
	}
	d.gate.Lock()
	defer d.gate.Unlock()
	d.move = nil
	d.flushes.swap(old, leaf)
}

// settleFrozen brings a layer that was frozen and flushed to rest, unless a
// job writes it, which does it then. What goes wrong is mended by Close or by
// the next Open, and takes nothing from the snapshot. Called with opMu held.
func (d *Disk) settleFrozen(id string) {
	if d.jobWrites(id) {
		return
	}
	m := d.edit()
	rec := m.Layer(id)
	if rec == nil || !rec.Writing {
		return
	}
	// What is known of the leaf is known of the frozen layer: it never changes again.
	n := d.nodes[id]
	counts, counted := d.figures.OfTheLeaf(n)
	err := d.settle(rec)
	if err == nil {
		if counted {
			counts.Of = m.CountedIn()[id]
			rec.Counts = &counts
		}
		err = d.commit(m)
	}
	if err != nil {
		d.log.Warn("a frozen layer could not be brought to rest; the unmount tries again", "layer", rec.Label(), "error", err)
		return
	}
	var known *manifest.Counts // chain.json has none where a layer below is being written
	if counted {
		known = &counts
	}
	d.figures.Froze(n, known)
	d.install(m, nil)
}

// Rename gives a snapshot another name.
func (d *Disk) Rename(oldName, newName string) error {
	if err := d.begin(); err != nil {
		return err
	}
	defer d.opMu.Unlock()
	m := d.edit()
	rec, err := m.Snapshot(oldName)
	if err != nil {
		return err
	}
	if rec.ID == m.Base {
		return fmt.Errorf("%w: the base cannot be renamed", ErrInvalid)
	}
	if oldName == newName {
		return nil
	}
	if err := m.CheckNew(newName); err != nil {
		return err
	}
	rec.Name = newName
	if err := d.commit(m); err != nil {
		return err
	}
	d.install(m, nil)
	d.changed(Change{Layers: true})
	return nil
}

// growLeaf grows the layer into which the leaf is being moved first: it must
// take every write that is routed to it. Where the end of the disk has moved there, the
// leaf gets nothing of its own, which would hide what is written there.
func (d *Disk) growLeaf(leaf *view.Node, size int64) error {
	d.gate.RLock()
	move := d.move
	d.gate.RUnlock()
	over, below := leaf.Layer().Over(), leaf.Backing()
	if move != nil {
		if err := d.growWithin(move.into, size, move.below); err != nil {
			return err
		}
		move.growing.Lock()
		defer move.growing.Unlock()
		if move.frontier > over.Size()&^(over.SubclusterSize()-1) {
			below = nil
		}
	}
	return d.growWithin(over, size, below)
}

// checkGrowth says whether a leaf can have a size: ErrTooLarge.
func checkGrowth(leaf *view.Node, size int64) error {
	if most := min(maxDiskBytes, leaf.Layer().Over().MaxSize()); size > most {
		return refusal.Of(ErrTooLarge, fmt.Errorf("%d bytes are more than the disk can have (%d)", size, most))
	}
	return nil
}

// growthSlack is what of a growth may have its place on the host already: the rest of
// the last cluster.
const growthSlack = 2 << 20

// CheckGrowth says, before the disk grows to a size of which the last bytes are to be
// reserved, what stands against that: ErrTooLarge, or an error that is ENOSPC where the
// host certainly has no room for them. A growth cannot be taken back when the
// reservation fails. Both are in bytes.
func (d *Disk) CheckGrowth(size, reserve int64) error {
	if err := checkGrowth(d.leaf.Load(), size); err != nil {
		return err
	}
	if free, known := d.hostFree(); known && reserve-growthSlack > free {
		return fmt.Errorf("reserve %d bytes behind the end of the disk, where the host has %d: %w", reserve, free, unix.ENOSPC)
	}
	return nil
}

// Resize grows the disk, by whole sectors; ErrInvalid for a smaller size, ErrTooLarge for
// one that no disk can have. What is new reads as zeros.
func (d *Disk) Resize(size int64) error {
	if err := d.begin(); err != nil {
		return err
	}
	defer d.opMu.Unlock()
	leaf := d.leaf.Load()
	size = extent.WholeSectors(size)
	switch old := leaf.Size(); {
	case size < old:
		return fmt.Errorf("%w: the disk has %d bytes and cannot shrink to %d", ErrInvalid, old, size)
	case size == old:
		return nil
	}
	if err := checkGrowth(leaf, size); err != nil {
		return err
	}
	if err := d.growLeaf(leaf, size); err != nil {
		return fmt.Errorf("grow to %d bytes: %w", size, err)
	}
	d.touch()
	d.changed(Change{Size: true})
	return nil
}
