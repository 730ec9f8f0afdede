package chain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"varve/chain/manifest"
	"varve/chain/view"
	"varve/overlay"
	"varve/overlay/extent"
)

const (
	// copyWindow is how much a merge copies before it makes that durable and gives
	// the source's blocks back.
	copyWindow = 32 << 20
	// windowExtra is its use of extra space (M13): one window is copied while the
	// one before it is made durable.
	windowExtra = 2 * copyWindow
	// flattenWindows is how many of them a flatten, which gives nothing back, makes
	// durable at once.
	flattenWindows = 4
	// heldWindow ends a window of which most is shared: that takes no space.
	heldWindow = 1 << 30
)

// mergeLayer merges an unnamed layer x with the one layer c that stands on it,
// in the direction that moves less (M12):
//
//	up:   what c does not have comes from x into c; then c stands on what x
//	      stood on, and x's file goes.
//	down: what c has goes into x; then x's file is c's, and c's own file goes.
//
// c's view is the same at every moment (M14, D8), x's own is nobody's.
func (d *Disk) mergeLayer(j *job) error {
	x, c, direction, err := d.prepareMerge(j)
	if err != nil || x == nil {
		return err
	}
	if direction == manifest.Down {
		if err := d.copyDown(j, x, c); err != nil {
			return err
		}
		return d.finishDown(j, x, c)
	}
	if err := d.copyUp(j, x, c); err != nil {
		return err
	}
	return d.finishUp(j, x, c)
}

// prepareMerge records what will be written, durably, before the first byte is
// (M16), and opens it for writing. A nil x: nothing is left to do.
func (d *Disk) prepareMerge(j *job) (x, c *view.Node, direction manifest.Direction, err error) {
	if err := d.begin(); err != nil {
		return nil, nil, "", err
	}
	defer d.opMu.Unlock()
	m := d.edit()
	xr := m.Layer(j.layer)
	if xr == nil || !m.CanMerge(xr) {
		m.Job = nil
		if err := d.commit(m); err != nil {
			return nil, nil, "", err
		}
		d.install(m, nil)
		d.finished(j, m)
		return nil, nil, "", nil
	}
	cr := m.Children(xr.ID)[0]
	x, c = d.nodes[xr.ID], d.nodes[cr.ID]
	direction = m.Job.Direction
	total := int64(0)
	if direction == "" {
		if direction, total, err = d.chooseDirection(m, xr, cr); err != nil {
			return nil, nil, "", err
		}
	} else if source := map[manifest.Direction]*view.Node{manifest.Up: x, manifest.Down: c}[direction]; source != nil {
		if total, err = source.Layer().OwnBytes(); err != nil {
			return nil, nil, "", err
		}
	}
	if err := plain(c.Layer()); err != nil {
		return nil, nil, "", fmt.Errorf("merge into %s: %w", cr.Label(), err)
	}
	j.totalBytes.Store(total)
	m.Job.Direction, m.Job.Into = direction, cr.ID
	if direction == manifest.Down {
		m.Job.Into = xr.ID
	}
	d.log.Info("merging", "job", j.id, "layer", xr.Label(), "with", cr.Label(), "leaf", cr.ID == m.Leaf, "direction", direction, "bytes", total)
	writes := m.MarkWriting(xr, cr)
	if err := d.commit(m); err != nil {
		return nil, nil, "", err
	}
	d.install(m, nil)
	j.writes.Store(&writes)
	if _, err := d.thaw(c); err != nil {
		return nil, nil, "", err
	}
	switch {
	case direction == manifest.Down:
		err = d.withRoom(j, func() error { return d.beginAbsorbing(x, c) })
	case !xr.Foreign:
		err = x.Layer().Claim() // before it is punched
	}
	if err != nil {
		return nil, nil, "", err
	}
	return x, c, direction, nil
}

// plain says why a layer cannot be written in place (M17), nil when it can.
func plain(l *view.Layer) error {
	if h := l.Header(); h != nil {
		return overlay.Plain(h)
	}
	return overlay.ErrNotPlain
}

// chooseDirection compares what either way would copy. A foreign x is never
// written, nor one that another tool has changed. Moving a leaf down costs its
// writers something as well, and must be worth it.
func (d *Disk) chooseDirection(m *manifest.Manifest, x, c *manifest.Layer) (manifest.Direction, int64, error) {
	up, err := d.nodes[x.ID].Layer().OwnBytes()
	if err != nil {
		return "", 0, err
	}
	away, err := d.awayFromLost(m, x, c)
	if err != nil {
		return "", 0, err
	}
	if away == manifest.Up || x.Foreign || plain(d.nodes[x.ID].Layer()) != nil {
		return manifest.Up, up, nil
	}
	down, err := d.nodes[c.ID].Layer().OwnBytes()
	if err != nil {
		return "", 0, err
	}
	if away == manifest.Down {
		return manifest.Down, down, nil
	}
	goesUp := mergesUp(up, down, c.ID == m.Leaf, true)
	if goesUp, err = d.turn(goesUp, d.nodes[x.ID], d.nodes[c.ID]); err != nil {
		return "", 0, err
	}
	if goesUp {
		return manifest.Up, up, nil
	}
	return manifest.Down, down, nil
}

// mergesUp says whether a merge copies what the lower layer maps, up bytes, into the
// upper one, and not the other way round.
func mergesUp(up, down int64, leaf, lowerWritable bool) bool {
	return !lowerWritable || down >= up || leaf && down >= up/2
}

// regionWork is what a job does with the regions of its target.
type regionWork struct {
	window int64        // how much is copied before it is settled
	size   func() int64 // of the target; it may grow meanwhile
	// next is from where on, at off or behind it, the source may hold something.
	next func(off int64) (int64, error)
	// held is how many bytes the source holds in a region that are to be dealt with.
	held func(off int64) (int64, error)
	// copy deals with a region, or with a hole of several, and says how many bytes were
	// read and written.
	copy func(off, end, held int64) (int64, error)
	// part does so with a part of it, of whole units, and does not wait (pace).
	part func(off, length int64) (int64, error)
	unit int64
	// target is what is written.
	target *overlay.Overlay
	// settle makes what was copied to [from, to) final.
	settle func(from, to int64) error
}

// look says what is to be dealt with next: a region and what the source holds there, or
// a hole of any length.
func (w regionWork) look(off int64) (end, held int64, err error) {
	next, err := w.next(off)
	if err != nil {
		return 0, 0, err
	}
	if end = min(next, w.size()+view.RegionSize-1) &^ (view.RegionSize - 1); end > off {
		return end, 0, nil
	}
	held, err = w.held(off)
	return off + view.RegionSize, held, err
}

// copyRegions walks the target region by region. A window is settled while the next
// one is copied; all are when copyRegions returns nil, and none is being settled any
// more when it returns an error.
func (d *Disk) copyRegions(j *job, w regionWork) (err error) {
	settle := func(from, to int64) error {
		return d.survive(j, func() error { return w.settle(from, to) })
	}
	settling := make(chan error, 1)
	settling <- nil // who takes it may settle
	defer func() {
		if before := <-settling; before != nil && !errors.Is(err, errClosing) {
			err = before
		}
	}()
	var from, copied, held int64 // of the window
	for off, upTo := int64(0), int64(0); ; off = upTo {
		d.cache.Step()
		atEnd, next := off >= w.size(), int64(0)
		if !atEnd {
			if upTo, next, err = w.look(off); err != nil {
				return err
			}
		}
		if atEnd || copied > 0 && copied+next > w.window || held >= heldWindow {
			if err := <-settling; err != nil {
				settling <- nil
				return err
			}
			start, end := from, off
			switch {
			case start == end:
				settling <- nil
			case atEnd:
				settling <- settle(start, end)
			default:
				go func() { settling <- settle(start, end) }()
			}
			from, copied, held = off, 0, 0
			if !atEnd { // the guest went on while the window before was waited for
				if upTo, next, err = w.look(off); err != nil {
					return err
				}
			}
		}
		if j.ctx.Err() != nil {
			return context.Cause(j.ctx)
		}
		if atEnd {
			return nil
		}
		n, err := w.copy(off, upTo, next)
		if err != nil {
			return err
		}
		j.progress(next)
		copied, held = copied+n, held+next
	}
}

// within has f run within a grace section.
func (d *Disk) within(f func(off int64) (int64, error)) func(off int64) (int64, error) {
	return func(off int64) (int64, error) {
		section := d.readers.Enter()
		defer d.readers.Exit(section)
		return f(off)
	}
}

// jobPiece is how much a job copies, in guest bytes, before it looks at its rate
// and whether it is to go on: a region where the host shares blocks.
func jobPiece(target *overlay.Overlay) int64 {
	if target.Shares() {
		return view.RegionSize
	}
	return 1 << 20
}

// filling copies up into over, in parts and in regions of these.
func (d *Disk) filling(j *job, over *overlay.Overlay, source overlay.Source, below overlay.Backing) (part func(off, n int64) (int64, error), region func(off, end, held int64) (int64, error)) {
	part = func(off, length int64) (int64, error) {
		section := d.readers.Enter()
		defer d.readers.Exit(section) // also when it panics: others wait for it
		return over.Fill(source, off, length, below)
	}
	region = func(off, _, held int64) (int64, error) {
		if held == 0 {
			return 0, nil
		}
		return fillRegion(j, over, off, part)
	}
	return part, region
}

// fillRegion copies one region up, in pieces.
func fillRegion(j *job, over *overlay.Overlay, off int64, part func(off, length int64) (int64, error)) (int64, error) {
	var copied int64
	for at, piece := off, int64(0); at < min(off+view.RegionSize, over.Size()); at += piece {
		piece = min(jobPiece(over), off+view.RegionSize-at)
		n, err := part(at, piece)
		copied += n
		if err != nil {
			return copied, err
		}
		over.StartWriteBack()
		if err := j.pace(n); err != nil {
			return copied, err
		}
	}
	return copied, nil
}

func (d *Disk) copyUp(j *job, x, c *view.Node) error {
	over := c.Layer().Over()
	source := x.Alone()
	below := x.Backing()
	j.covered = over.Size()
	held := func(off int64) (int64, error) {
		section := d.readers.Enter()
		defer d.readers.Exit(section)
		held, idle, err := heldBytes(source, below, off)
		if idle {
			held = 0
		}
		return held, err
	}
	part, region := d.filling(j, over, source, below)
	// Behind its end x holds nothing and hides what is below it (M2).
	ends := x.Layer().FileSize()
	next := func(off int64) (int64, error) {
		next, err := source.Next(off)
		if behind := max(off, ends); err == nil && next > behind && x.Parent() != nil {
			var hidden int64
			hidden, err = x.Parent().NextHeld(behind)
			next = min(next, hidden)
		}
		return next, err
	}
	fill := func(off, end, held int64) (int64, error) {
		if held == 0 && below != nil && end > ends && end-off == view.RegionSize {
			return fillRegion(j, over, off, part)
		}
		return region(off, end, held)
	}
	// M1: what was copied is durable in c before the old regions go; their
	// readers are gone before the blocks of x do.
	settle := func(from, to int64) error {
		forget := over.Copied()
		if err := over.Flush(); err != nil {
			return err
		}
		d.dropRegions(c, from, to-from)
		d.readers.Synchronize()
		forget()
		if err := d.keepsTarget(c); err != nil {
			return err
		}
		return d.punchSource(x, from, to)
	}
	return d.mergeRegions(j, x, c, regionWork{d.window, over.Size, d.within(next), held, fill, part, over.SubclusterSize(), over, settle})
}

// coverGrowth copies up what lies behind the size that c had when the job looked
// at its end. x may be shorter than what is below it, whose bytes would show
// through there (M2). Called with opMu held: c grows no more.
func (d *Disk) coverGrowth(j *job, x, c *view.Node) error {
	over := c.Layer().Over()
	if over.Size() <= j.covered {
		return nil
	}
	section := d.readers.Enter()
	defer d.readers.Exit(section)
	from := j.covered &^ (view.RegionSize - 1)
	_, err := over.Fill(x.Alone(), from, over.Size()-from, x.Backing())
	return err
}

// heldBytes is how much of a region a layer maps, and whether a merge can pass
// it over: it maps nothing, or only zeros where below is zero too.
func heldBytes(source view.Own, below overlay.Backing, off int64) (held int64, idle bool, err error) {
	extents, err := source.Map(nil, off, view.RegionSize)
	if err != nil {
		return 0, false, err
	}
	size := source.Layer().Size()
	data, zero := false, false
	for _, e := range extents {
		switch e.Kind {
		case extent.Unallocated:
			continue
		case extent.Zero:
			zero = true
		default:
			data = true
		}
		held += max(0, min(e.End(), size)-e.Start)
	}
	if data || !zero {
		return held, !data, nil
	}
	if below == nil {
		return held, true, nil
	}
	idle, err = below.IsZero(off, view.RegionSize)
	return held, idle, err
}

// punchSource gives back the blocks of a layer that was merged upwards, in a
// range: c has it all, durably, and no reader looks at them any more. x's
// tables stay as they are; c covers what they say.
func (d *Disk) punchSource(x *view.Node, from, to int64) error {
	m, _ := d.tree()
	if m.Layer(x.ID).Foreign {
		return nil
	}
	l := x.Layer()
	extents, err := l.Extents(nil, from, to-from)
	if err != nil {
		return err
	}
	return d.punchExtents(l, extents)
}

// punchExtents punches what extents of a layer have as data.
func (d *Disk) punchExtents(l *view.Layer, extents []extent.Extent) error {
	// As they stand in the file: a hole for each 128 KiB takes several times as long.
	extents = slices.DeleteFunc(extents, func(e extent.Extent) bool { return e.Kind != extent.Data })
	slices.SortFunc(extents, func(a, b extent.Extent) int { return cmp.Compare(a.Host, b.Host) })
	for i := 0; i < len(extents); i++ {
		e := extents[i]
		for i+1 < len(extents) && extents[i+1].Host == e.Host+e.Length {
			i++
			e.Length += extents[i].Length
		}
		err := l.File.PunchHole(e.Host, e.Length)
		if errors.Is(err, errors.ErrUnsupported) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("give back %d bytes at 0x%x of %s: %w", e.Length, e.Host, l.Path, err)
		}
		d.measures.activity.Punched.Add(e.Length)
	}
	return nil
}

func (d *Disk) finishUp(j *job, x, c *view.Node) error {
	if err := d.begin(); err != nil {
		return err
	}
	defer d.opMu.Unlock()
	if err := d.withRoom(j, func() error { return d.coverGrowth(j, x, c) }); err != nil {
		return err
	}
	if err := d.keepsTarget(c); err != nil {
		return err
	}
	m := d.edit()
	xr, cr := m.Layer(x.ID), m.Layer(c.ID)
	// The same view already, whether chain.json still says x or not (M15).
	name, format := m.Layer(xr.Parent).BackingName()
	if err := d.withRoom(j, func() error { return c.Layer().Over().SetBacking(name, format) }); err != nil {
		return err
	}
	cr.Parent = xr.Parent
	m.RemoveWithFile(xr)
	return d.finishWithout(j, m, c, x.Parent(), c.Layer(), xr)
}

func (d *Disk) finishDown(j *job, x, c *view.Node) error {
	if err := d.begin(); err != nil {
		return err
	}
	defer d.opMu.Unlock()
	if err := d.keepsTarget(x); err != nil {
		return err
	}
	m := d.edit()
	children := m.Children(c.ID)
	writes := append(m.MarkWriting(children...), x.ID, c.ID)
	if err := d.commit(m); err != nil {
		return err
	}
	d.install(m, nil)
	j.writes.Store(&writes)

	// x is larger when it grew and c could not.
	if err := d.withRoom(j, func() error { return d.shrinkWithin(x.Layer().Over(), c.Size(), x.Backing()) }); err != nil {
		return err
	}
	m = d.edit()
	xr, cr := m.Layer(x.ID), m.Layer(c.ID)
	for _, child := range m.Children(c.ID) {
		over, err := d.thaw(d.nodes[child.ID])
		if err != nil {
			return err
		}
		name, format := xr.BackingName()
		if err := d.withRoom(j, func() error { return over.SetBacking(name, format) }); err != nil {
			return err
		}
		if child.ID != m.Leaf {
			if err := d.withRoom(j, func() error { return d.settle(child) }); err != nil {
				return err
			}
		}
	}
	m.Remove(xr.ID)
	m.Removing = append(m.Removing, cr.File)
	cr.File, cr.Parent = xr.File, xr.Parent
	return d.finishWithout(j, m, c, x.Parent(), x.Layer(), xr)
}

// finishWithout commits the tree after a merge: node n is now file over
// parent, and the record gone is no longer in m. Afterwards the other file goes.
func (d *Disk) finishWithout(j *job, m *manifest.Manifest, n *view.Node, parent *view.Node, file *view.Layer, gone *manifest.Layer) error {
	rec := m.Layer(n.ID)
	if n.ID != m.Leaf {
		if err := d.withRoom(j, func() error { return d.settleFile(file, rec) }); err != nil {
			return err
		}
	}
	m.Job = nil
	dead := m.RemoveDead()
	m.QueueMerge(nil, func(l *manifest.Layer) (int64, bool) {
		if l.ID == n.ID {
			return d.fileCost(l, file) // which it gets below
		}
		return d.mergeCost(l)
	})
	if err := d.commit(m); err != nil {
		return err
	}
	goneNode := d.nodes[gone.ID]
	other := goneNode.Layer()
	if other == file {
		other = n.Layer()
	}
	d.gate.Lock()
	n.Replace(file, parent)
	d.move = nil
	d.gate.Unlock()
	d.figures.Replaced(n)
	d.dropRegions(n, 0, n.Size())
	d.install(m, func(nodes map[string]*view.Node) { delete(nodes, gone.ID) })
	d.keepBlocks(nil)
	d.discardLayer(other, gone.Foreign)
	d.forgetNodes(map[*view.Node]bool{goneNode: true})
	d.installWithout(m, dead, nil)
	d.finished(j, m)
	d.changed(Change{Layers: true})
	return nil
}

// dropRegions forgets what is resolved, in a range, for a node's view and for
// all that stand on it.
func (d *Disk) dropRegions(n *view.Node, off, length int64) {
	for m, nodes := d.tree(); ; {
		affected := map[*view.Node]bool{n: true}
		for _, l := range m.Above(n.ID) {
			if a := nodes[l.ID]; a != nil {
				affected[a] = true
			}
		}
		for a := range affected {
			// Their content stays, but not always what of it is a hole.
			d.figures.ViewChanged(a)
		}
		d.cache.Drop(affected, off, length)
		// What is resolved from here on is right; a node that came before may have
		// something older.
		before := m
		if m, nodes = d.tree(); m == before {
			return
		}
	}
}
