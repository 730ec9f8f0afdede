package chain

import (
	"errors"
	"fmt"
	"path/filepath"

	"varve/chain/manifest"
	"varve/chain/view"
	"varve/overlay"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// A disk is whole sectors (M2). Files that are not:
//
//	a raw base             its view has the file's own length, and what stands on it more
//	a qcow2 of others'     its view is rounded up; QEMU rounds down, so the layer of ours
//	                       that stands on it has a copy of the last sector, and a larger one of
//	                       others' shows zeros there, and one of another disk of varve's, as
//	                       clones read them, what that disk shows
//	a layer of ours        made by an earlier version: it grows at the next mount, unless a
//	                       clone knows its file as it is or it cannot be written; then it
//	                       is as one of others

// unevenWords says what is wrong with a header's size.
func unevenWords(size int64) string {
	return fmt.Sprintf("its size is %d bytes, no whole number of sectors of %d: QEMU leaves out the last %d", size, extent.SectorSize, size%extent.SectorSize)
}

// canGrowWhole says whether a layer is one of ours whose size is to become whole sectors.
func (d *Disk) canGrowWhole(m *manifest.Manifest, rec *manifest.Layer) bool {
	l := d.nodes[rec.ID].Layer()
	h := l.Header()
	if rec.Foreign || h == nil || !extent.Uneven(h.Size) || overlay.Plain(h) != nil {
		return false
	}
	return rec.ID != m.Leaf && !m.Pinned()[rec.ID] || l.Over() != nil
}

// growWhole makes a layer's size whole sectors. A frozen one that cannot be opened for
// writing stays as it is: varve reads it all the same. Called with its record marked as
// being written.
func (d *Disk) growWhole(n *view.Node) error {
	l := n.Layer()
	frozen, was := l.Over() == nil, l.Header().Size
	if _, err := d.thaw(n); err != nil {
		if frozen && l.Over() == nil {
			d.log.Warn("a layer keeps a size that is no whole number of sectors: it cannot be opened for writing", "file", l.Path, "size", was, "error", err)
			return nil
		}
		return err
	}
	d.log.Info("a layer has whole sectors now", "file", l.Path, "was", was, "size", l.Size())
	return nil
}

// keepTail gives a leaf that stands on a qcow2 of an uneven size what of it QEMU leaves
// out, durably, so that QEMU reads the leaf as varve does (D15).
func (d *Disk) keepTail(leaf *view.Node) error {
	o, below := leaf.Layer().Over(), leaf.Parent()
	if o == nil || below == nil || below.Layer() == nil {
		return nil
	}
	h := below.Layer().Header()
	if h == nil || !extent.Uneven(h.Size) || h.Size >= o.Size() {
		return nil
	}
	changes := o.Changes()
	section := d.readers.Enter()
	err := o.KeepTail(h.Size, below)
	d.readers.Exit(section)
	if qcow2.IsDamage(err) {
		d.log.Warn("the last sector cannot be copied; QEMU would read zeros there", "file", below.Layer().Path, "error", err)
		return nil
	}
	if err == nil && o.Changes() != changes {
		err = o.Flush()
	}
	if err != nil {
		return fmt.Errorf("copy the last sector of %s: %w", below.Layer().Path, err)
	}
	return nil
}

// hideTail has a layer of others show what QEMU does where the one below it ends.
func hideTail(over, below *view.Layer) {
	if isOwnFile(over.Path) {
		return
	}
	if im, under := over.Image(), below.Image(); im != nil && under != nil {
		im.HideTail(under)
	}
}

// isOwnFile says whether a path is that of a layer of a disk of varve's.
func isOwnFile(path string) bool {
	dir, name := filepath.Split(path)
	_, ours := manifest.LayerFileNumber(filepath.Join(filepath.Base(dir), name))
	return ours
}

// viewOfImages is the view of a chain of open images, top first; nil for none.
func viewOfImages(images []*foreignImage) *view.Node {
	var top *view.Node
	cache := view.NewCache(defaultCacheBytes)
	for i := len(images) - 1; i >= 0; i-- {
		top = view.NewNode("", view.NewFrozen(images[i].path, images[i].image), top, cache)
	}
	return top
}

// keepTail is Disk.keepTail for a layer of a disk that is being made.
func (l ownLayer) keepTail(fs hostfs.FS, path string) (err error) {
	if l.below == nil {
		return nil
	}
	h := l.below.Layer().Header()
	if h == nil || !extent.Uneven(h.Size) {
		return nil
	}
	o, err := overlay.OpenOverlay(fs, path, overlay.OverlayOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	if err := o.KeepTail(h.Size, l.below); err != nil {
		return fmt.Errorf("copy the last sector of %s: %w", l.below.Layer().Path, err)
	}
	return o.Settle()
}

// Uneven is what the disk's size was in bytes, when that is no whole number of sectors
// and was rounded up: of a disk of an earlier version, which Open has mended unless it is
// read-only, and of an image that OpenForeign shows. 0: it is as it was made.
func (d *Disk) Uneven() int64 { return d.uneven }

// noteUneven sets what Uneven says.
func (d *Disk) noteUneven() {
	for _, rec := range d.manifest.Layers {
		h := d.nodes[rec.ID].Layer().Header()
		if !rec.Foreign && h != nil && extent.Uneven(h.Size) {
			d.uneven = max(d.uneven, h.Size)
		}
	}
}

// sayUneven logs it once.
func (d *Disk) sayUneven(what string) {
	if d.uneven > 0 {
		d.log.Warn(fmt.Sprintf("an earlier version gave this disk a size of %d bytes, no whole number of sectors of %d; %s", d.uneven, extent.SectorSize, what))
	}
}
