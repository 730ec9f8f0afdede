package chain

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"

	"varve/chain/dirlock"
	"varve/chain/diskdir"
	"varve/chain/figures"
	"varve/chain/manifest"
	"varve/chain/parallel"
	"varve/chain/refusal"
	"varve/chain/view"
	"varve/overlay"
	"varve/overlay/check"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// Open locks a disk directory, checks the fingerprints of its layers, brings it
// in order after a crash, and resumes its job. Errors: ErrInUse with the
// holder, ErrChanged with the way out, hostfs.ErrLocked when a layer is open
// elsewhere, and what reading chain.json and the layers gives.
func Open(dir string, o OpenOptions) (d *Disk, err error) {
	o = o.withDefaults()
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if info, err := o.FS.Stat(dir); err != nil {
		return nil, err
	} else if !info.Mode.IsDir() {
		return nil, fmt.Errorf("%s: %w: not a disk directory", dir, ErrInvalid)
	}
	fs, leave, err := enter(o.FS, dir)
	if err != nil {
		return nil, err
	}
	o.FS = fs
	// Looked at before it is locked: a directory that is none of ours gets no
	// lock file.
	var chainFile manifest.Reader
	if _, err := chainFile.Load(o.FS, dir); err != nil {
		return nil, errors.Join(err, leave())
	}
	lock, err := lockDir(o.FS, dir, !o.ReadOnly, o.Mountpoint, o.LockWait)
	if err != nil {
		return nil, errors.Join(err, leave())
	}
	lock.Leave = leave
	if dir, entered := fs.(*diskdir.Dir); entered && o.Locked != nil {
		if err := o.Locked(dir.Descriptor()); err != nil {
			return nil, errors.Join(err, lock.Unlock())
		}
	}
	return openUnderLock(dir, o, lock, &chainFile)
}

// openUnderLock is Open for a directory whose lock is held: by lock, which the disk
// takes over, or with a nil one by the caller, who keeps it.
func openUnderLock(dir string, o OpenOptions, lock *dirlock.Lock, chainFile *manifest.Reader) (d *Disk, err error) {
	d = newDisk(dir, o)
	d.lock = lock
	opened := d // "return nil, err" takes d away
	defer func() {
		if err != nil {
			opened.abandon()
		}
	}()
	m, err := chainFile.Load(o.FS, dir)
	if err != nil {
		return nil, err
	}
	d.manifest, d.numbers = m, m.Next
	if err := d.setModified(m); err != nil {
		return nil, err
	}
	var strays []string
	if !o.ReadOnly {
		if strays, err = d.findStrays(); err != nil { // before anything is written
			return nil, err
		}
	}
	if err := d.openLayers(o); err != nil {
		return nil, err
	}
	d.noteUneven()
	if o.ReadOnly {
		d.sayUneven("it is shown rounded up, with zeros, and a mount that may write mends its files")
	} else {
		// With the leaf locked: somebody may have removed the lock file of a mounted
		// disk, whose new leaf looks like a stray until chain.json names it (M18).
		if err := d.removeStrays(strays); err != nil {
			return nil, err
		}
		d.holdReserve()
		if err := d.putInOrder(); err != nil {
			return nil, err
		}
		d.sayUneven("it was rounded up, with zeros")
		startBackground(d)
		d.resumeJob()
	}
	return d, nil
}

// setModified tells the time of the last write: chain.json says it for a disk
// that was closed, the leaf's file for one that was not.
func (d *Disk) setModified(m *manifest.Manifest) error {
	modified := m.Modified
	if leaf := m.Layer(m.Leaf); leaf.Writing {
		info, err := d.fs.Stat(d.path(leaf))
		if err != nil {
			return fmt.Errorf("open the leaf: %w", err)
		}
		if info.ModTime.After(modified) {
			modified = info.ModTime
		}
	}
	d.modified.Store(modified.UnixNano())
	return nil
}

func newDisk(dir string, o OpenOptions) *Disk {
	d := &Disk{
		fs: o.FS, dir: dir, readOnly: o.ReadOnly, log: o.Log,
		nodes: make(map[string]*view.Node),
		cache: view.NewCache(o.CacheBytes),
	}
	d.flushes.disk = d
	d.handles.init()
	d.figures = d.newFigures()
	d.holdJob, d.pacer, d.window = o.HoldJob, newPacer(o.JobRate), o.window
	d.maxSlices = int(o.CacheBytes / 4 / 4096)
	return d
}

// newFigures are figures that have counted nothing yet.
func (d *Disk) newFigures() *figures.Figures {
	return figures.New(figures.Source{Tree: d.tree, Leaf: d.leaf.Load, Readers: &d.readers, Cache: d.cache, Store: d.storeCounts, Log: d.log})
}

func (d *Disk) overlayOptions(unclean bool) overlay.OverlayOptions {
	return overlay.OverlayOptions{Unclean: unclean, MaxSlices: d.maxSlices, Log: d.log, Activity: &d.measures.activity}
}

// abandon closes what a failed Open has opened.
func (d *Disk) abandon() {
	for _, n := range d.nodes {
		if l := n.Layer(); l != nil {
			l.Close()
		}
	}
	if d.lock != nil {
		d.lock.Unlock()
	}
}

// findStrays gives the files that were made for a number which no committed chain.json
// counts as used (M15). They are empty; else they are refused.
func (d *Disk) findStrays() (paths []string, err error) {
	names, err := d.fs.ReadDir(filepath.Join(d.dir, manifest.LayersDir))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if n, ok := manifest.LayerFileNumber(manifest.LayersDir + "/" + name); ok && n >= d.manifest.Next {
			path := filepath.Join(d.dir, manifest.LayersDir, name)
			if err := noData(d.fs, path); err != nil {
				return nil, err
			}
			paths = append(paths, path)
		}
	}
	return paths, nil
}

// removeStrays removes files that a crash left behind (D19): those of layers that
// chain.json says are gone, and those that findStrays has found.
func (d *Disk) removeStrays(found []string) error {
	for _, file := range d.manifest.Removing {
		d.unlink(file)
	}
	for _, path := range found {
		d.log.Info("removing a file that no layer owns", "file", filepath.Base(path))
		if err := d.fs.Remove(path); err != nil {
			return err
		}
	}
	if len(found) == 0 {
		return nil
	}
	// Before a commit counts its number as used.
	return d.fs.SyncDir(filepath.Join(d.dir, manifest.LayersDir))
}

// noData refuses a file that no layer owns and that holds data. A crash leaves none: a
// layer's file is empty until a chain.json that names it is durable. But one that was
// put back from a backup does not know what came after it.
func noData(fs hostfs.FS, path string) error {
	data, err := check.HasData(fs, path)
	if err != nil {
		return fmt.Errorf("see whether %s, which chain.json does not know, holds data: %w", path, err)
	}
	if data {
		return refusal.Changedf("%s holds data, and chain.json does not know it: "+
			"is it an older one, from a backup? Put the newest one back, or move the file elsewhere if nothing in it is missed", path)
	}
	return nil
}

// openLayers opens every layer and checks the fingerprints. What fails is told of
// the layer that stands first in chain.json.
func (d *Disk) openLayers(o OpenOptions) error {
	files := make(map[string]hostfs.File)
	records := d.manifest.Layers
	workers := openWorkers(o.FS)
	layers := make([]*view.Layer, len(records))
	err := parallel.Do(workers, len(records), func(i int) (err error) {
		err = d.withReserve(func() (err error) {
			layers[i], err = d.openLayer(records[i])
			return err
		})
		if err != nil {
			return fmt.Errorf("open %s: %w", records[i].Label(), err)
		}
		return nil
	})
	for i, l := range layers {
		if l != nil { // also when another one failed: abandon closes them
			l.LogTo(d.log)
			d.nodes[records[i].ID] = view.NewNode(records[i].ID, l, nil, d.cache)
			files[records[i].ID] = l.File
		}
	}
	if err != nil {
		return explainLimit(err, len(records))
	}
	type identity struct{ device, inode uint64 }
	seen := make(map[identity]*manifest.Layer)
	for _, rec := range d.manifest.Layers {
		n := d.nodes[rec.ID]
		// A file that is two layers would change under one of them.
		info, err := n.Layer().File.Stat()
		if err != nil {
			return fmt.Errorf("open %s: %w", rec.Label(), err)
		}
		at := identity{info.Device, info.Inode}
		if other := seen[at]; other != nil {
			return fmt.Errorf("%w: %s and %s are the same file, %s", manifest.ErrCorrupt, other.Label(), rec.Label(), n.Layer().Path)
		}
		seen[at] = rec
	}
	for _, rec := range d.manifest.Layers {
		n := d.nodes[rec.ID]
		n.Replace(n.Layer(), d.nodes[rec.Parent])
	}
	d.leaf.Store(d.nodes[d.manifest.Leaf])
	for _, rec := range d.manifest.Layers {
		if rec.Foreign && rec.Parent != "" {
			hideTail(d.nodes[rec.ID].Layer(), d.nodes[rec.Parent].Layer())
		}
	}
	if err := d.manifest.CheckFingerprints(d.log, d.dir, files, workers); err != nil {
		return err
	}
	d.figures.Believe()
	return d.checkForeignHeaders()
}

// checkForeignHeaders refuses a foreign layer whose header names something else
// than what chain.json has below it. varve would go on with chain.json's, but
// QEMU would see another disk, and a fingerprint need not show a changed name.
func (d *Disk) checkForeignHeaders() error {
	for _, rec := range d.manifest.Layers {
		if !rec.Foreign {
			continue
		}
		if err := sameBacking(d.manifest, rec, d.nodes[rec.ID].Layer().Header()); err != nil {
			return fmt.Errorf("check %s: %w", rec.Label(), err)
		}
	}
	return nil
}

// openLayer opens one layer as its record says. What was being written when
// varve was killed is recovered; a leaf that another tool has changed is opened
// frozen, and gets a new leaf on top (M17).
func (d *Disk) openLayer(rec *manifest.Layer) (*view.Layer, error) {
	path := d.path(rec)
	if d.readOnly || rec.Foreign || (rec.ID != d.manifest.Leaf && !rec.Writing) {
		return openFrozen(d.fs, path, rec.Format, rec.Foreign, d.readOnly)
	}
	// Locked before it is judged: nobody can change it between the two (M18).
	f, err := openLocked(d.fs, path, hostfs.LockWritable)
	if err != nil {
		return nil, err
	}
	unclean := rec.Writing
	if !unclean && rec.Fingerprint != nil {
		changed, err := touchedByOthers(f, rec)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if changed {
			d.log.Warn("the leaf was changed since varve closed it; looking through its tables", "file", path)
		}
		unclean = changed
	}
	l, err := view.NewWritable(path, f, d.overlayOptions(unclean))
	if errors.Is(err, hostfs.ErrUnreadable) { // once is no damage
		l, err = openWritable(d.fs, path, d.overlayOptions(unclean))
	}
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, overlay.ErrNotPlain):
		if rec.ID == d.manifest.Leaf {
			d.log.Warn("the leaf holds what varve does not write; it is kept as a frozen layer and a new leaf goes on top", "reason", err)
		}
	case qcow2.IsDamage(err):
		// Nothing more is written to it (D29): where its tables or refcounts are wrong, what is
		// free in it is not known. What can be read is read.
		what := "a layer that was being written is damaged; it is kept as it is"
		if rec.ID == d.manifest.Leaf {
			what = "the leaf is damaged; it is kept as it is, as a frozen layer, and a new leaf goes on top"
		}
		d.log.Error(what, "layer", rec.Label(), "file", path, "reason", err)
	default:
		return nil, err
	}
	l, again := openFrozen(d.fs, path, rec.Format, false, false)
	if again != nil {
		return nil, errors.Join(err, again)
	}
	return l, nil
}

// touchedByOthers says whether the leaf's file, which is locked, differs from
// what it was when varve closed it.
func touchedByOthers(f hostfs.File, rec *manifest.Layer) (bool, error) {
	now, err := manifest.TakeFingerprint(f, rec.Format)
	if err != nil {
		return false, err
	}
	changes, _ := rec.Fingerprint.Compare(now)
	return len(changes) > 0, nil
}

// putInOrder makes the files follow chain.json after a crash (M15, D16), settles
// what was being written, and marks the leaf as being written from now on.
func (d *Disk) putInOrder() error {
	if err := d.markAstray(); err != nil {
		return err
	}
	m := d.edit()
	for _, rec := range m.Layers {
		if rec.Foreign {
			continue
		}
		if err := d.withReserve(func() error { return d.followRecord(m, rec) }); err != nil {
			return fmt.Errorf("bring %s in order: %w", rec.Label(), err)
		}
	}
	if leaf := m.Layer(m.Leaf); d.nodes[m.Leaf].Layer().Over() == nil {
		if err := d.coverLeaf(m, leaf); err != nil {
			return err
		}
	}
	m.Layer(m.Leaf).Writing = true
	if err := d.commit(m); err != nil {
		return err
	}
	d.install(m, nil)
	return d.withReserve(func() error { return d.keepTail(d.leaf.Load()) })
}

// markAstray records the frozen layers whose header does not follow chain.json, and
// those whose size is to become whole sectors, as being written, before followRecord
// writes them (M16).
func (d *Disk) markAstray() error {
	m := d.edit()
	var astray []*manifest.Layer
	for _, rec := range m.Layers {
		if rec.Foreign || rec.Writing {
			continue
		}
		if rec.ID != m.Leaf && d.isAstray(m, rec) || d.canGrowWhole(m, rec) {
			astray = append(astray, rec)
		}
	}
	if len(astray) == 0 {
		return nil
	}
	m.MarkWriting(astray...)
	if err := d.commit(m); err != nil {
		return err
	}
	d.install(m, nil)
	return nil
}

// isAstray says whether a layer's header names another backing file than m.
func (d *Disk) isAstray(m *manifest.Manifest, rec *manifest.Layer) bool {
	name, format := m.Layer(rec.Parent).BackingName()
	h := d.nodes[rec.ID].Layer().Header()
	return h.BackingName != name || h.BackingFormat != format
}

// followRecord sets the backing name in a layer's header to what chain.json
// says, makes its size whole sectors, and settles a frozen layer that was being written.
func (d *Disk) followRecord(m *manifest.Manifest, rec *manifest.Layer) error {
	n := d.nodes[rec.ID]
	l := n.Layer()
	name, format := m.Layer(rec.Parent).BackingName()
	if d.isAstray(m, rec) {
		if rec.ID == m.Leaf && l.Over() == nil {
			return fmt.Errorf("its header names the backing file %q and chain.json %q: %w", l.Header().BackingName, name, manifest.ErrCorrupt)
		}
		d.log.Info("setting a backing name to what chain.json says", "file", l.Path, "was", l.Header().BackingName, "is", name)
		o, err := d.thaw(n)
		switch {
		case qcow2.IsDamage(err):
			// varve goes by chain.json; the header tells QEMU alone.
			d.log.Error("a damaged layer keeps a header that does not follow chain.json: QEMU shows another disk through it", "file", l.Path, "reason", err)
		case err != nil:
			return err
		default:
			if err := o.SetBacking(name, format); err != nil {
				return err
			}
			rec.Writing = true
		}
	} else if d.canGrowWhole(m, rec) {
		if err := d.growWhole(n); err != nil {
			return err
		}
	}
	if rec.ID != m.Leaf && rec.Writing {
		return d.settle(rec)
	}
	return nil
}

// coverLeaf freezes a leaf that another tool has changed, as an unnamed layer,
// under a new leaf; m is to be committed.
func (d *Disk) coverLeaf(m *manifest.Manifest, old *manifest.Layer) error {
	l := d.nodes[old.ID].Layer()
	print, err := manifest.TakeFingerprint(l.File, old.Format)
	if err != nil {
		return err
	}
	old.Fingerprint, old.Writing, old.Frozen, old.Size = print, false, now(), l.Size()
	leaf, file, err := d.newLeaf(m, old, l.Size())
	if err != nil {
		return err
	}
	n := view.NewNode(leaf.ID, file, d.nodes[old.ID], d.cache)
	d.nodes[leaf.ID] = n
	d.leaf.Store(n)
	return nil
}

// OpenForeign shows an image, with what it stands on, without making a disk
// directory: read-only, nothing is written anywhere. format is as in
// CreateOptions. The disk's Dir is the image's path.
func OpenForeign(image, format string, o OpenOptions) (*Disk, error) {
	d, err := OpenImage(image, format, o)
	if err != nil {
		return nil, fmt.Errorf("base %s: %w", image, err)
	}
	return d, nil
}

// Adoption is what an image that is shown stands on.
type Adoption struct {
	Files  []ForeignFile // top first
	Notes  []string      // what to know of their formats, a line each
	Naming []string      // and of the names of their layers
}

// Adopted tells of an image that OpenForeign or OpenImage shows.
func (d *Disk) Adopted() Adoption { return d.adopted }

// OpenImage is OpenForeign for an image that is to be the base of nothing.
func OpenImage(image, format string, o OpenOptions) (*Disk, error) {
	o = o.withDefaults()
	o.ReadOnly = true
	path, err := absolutePath(image)
	if err != nil {
		return nil, err
	}
	images, err := adoptImages(o.FS, path, format, o.Witness, false)
	if err != nil {
		return nil, err
	}
	plan, err := planDisk(images, CreateOptions{Base: path, Format: format, Witness: o.Witness}, false)
	if err != nil {
		return nil, errors.Join(err, closeImages(images))
	}
	d := newDisk(path, o)
	d.adopted = Adoption{Files: plan.files, Notes: plan.notes, Naming: plan.naming}
	m := plan.manifest
	d.manifest = m
	d.modified.Store(m.Modified.UnixNano())
	files := make(map[string]*foreignImage, len(images))
	for _, i := range images {
		files[i.path] = i
	}
	for _, rec := range m.Layers { // bottom first
		var l *view.Layer
		if i := files[rec.File]; rec.Foreign && i != nil {
			l = view.NewFrozen(i.path, i.image)
			l.LogTo(d.log)
		}
		d.nodes[rec.ID] = view.NewNode(rec.ID, l, d.nodes[rec.Parent], d.cache)
	}
	d.leaf.Store(d.nodes[m.Leaf])
	if given := images[0].image.Size(); given != d.Size() {
		d.uneven = given
	}
	return d, nil
}

// openWorkers is how many layers are looked at at a time while a disk is opened:
// more than the processors, since a cold file waits for its device. A simulated
// host gets its calls one by one, or no run could be repeated.
func openWorkers(fs hostfs.FS) int {
	if !diskdir.OnHost(fs) {
		return 1
	}
	return max(8, 2*runtime.NumCPU())
}
