package chain

import (
	"errors"
	"math"
	"sync"

	"varve/chain/manifest"
	"varve/chain/view"
	"varve/overlay"
)

// A merge downwards writes what layer c holds into layer x below it, and takes
// it out of c. c may be the leaf: then the guest's writes go, by a frontier that
// moves through guest space, into x where c's content has moved already and into
// c where it has not.
//
//	guest space   0 ........... frontier ............. size
//	c (the leaf)    unallocated           as before
//	x below it      what the guest sees   as before
//	writes go to    x                     c
//
// In the end c is empty and gets no writes: c over x and x alone are the same
// view, so chain.json may name x's file as the leaf before that is so in memory.
// It is a snapshot run backwards, and stalls nobody either.

// leafMove routes writes while the leaf moves down.
type leafMove struct {
	into  *overlay.Overlay // x
	below overlay.Backing  // what is below x
	from  *overlay.Overlay // c, the leaf
	over  overlay.Backing  // what is below c: x and all below it

	// growing keeps the frontier where it is while the disk grows, and writers do not
	// wait for it. Taken before mu.
	growing  sync.Mutex
	mu       sync.RWMutex // writers share it, the mover owns it for a step
	frontier int64        // changed with both
}

// moveStep is how much is moved while the writers wait, in guest bytes; sharedMoveStep
// of a layer that nobody writes, to a host that shares blocks.
const (
	moveStep       = 256 << 10
	sharedMoveStep = 1 << 20
)

func (v *leafMove) write(off, length int64, f leafWrite) error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if n := min(length, v.frontier-off); n > 0 {
		defer v.from.MarkChanged(off, n) // the leaf's view changes; no entry of its own does
		if err := f(v.into, off, n, v.below); err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	if length <= 0 {
		return nil
	}
	return f(v.from, off, length, v.over)
}

// step owns the routing while one piece moves.
func (v *leafMove) step(end int64, move func() error) error {
	v.growing.Lock()
	defer v.growing.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := move(); err != nil {
		return err
	}
	v.frontier = max(v.frontier, end)
	return nil
}

// beginAbsorbing makes x ready to take what c holds, and routes the writes when
// c is the leaf. Called with opMu held, x and c recorded as being written.
func (d *Disk) beginAbsorbing(x, c *view.Node) error {
	into, err := d.thaw(x)
	if err != nil {
		return err
	}
	from := c.Layer().Over()
	x.SetAbsorbing(true)
	d.figures.Moving(x, c)
	d.readers.Synchronize() // nobody is about to keep a region of x
	d.cache.Drop(map[*view.Node]bool{x: true}, 0, math.MaxInt64/2)
	// The disk may grow meanwhile: what x holds behind the leaf's end must not be seen.
	if err := d.shrinkWithin(into, from.Size(), x.Backing()); err != nil {
		return err
	}
	if from.Size() > into.Size() {
		if err := d.growWithin(into, from.Size(), x.Backing()); err != nil {
			return err
		}
	}
	from.FlushAfter(into)
	d.keepBlocks(from)
	if d.leaf.Load() == c {
		d.gate.Lock()
		d.move = &leafMove{into: into, below: x.Backing(), from: from, over: x}
		d.gate.Unlock()
	}
	return nil
}

// growWithin grows a layer within a grace section.
func (d *Disk) growWithin(o *overlay.Overlay, size int64, below overlay.Backing) error {
	section := d.readers.Enter()
	defer d.readers.Exit(section)
	return o.Grow(size, below)
}

// shrinkWithin makes a layer smaller within a grace section.
func (d *Disk) shrinkWithin(o *overlay.Overlay, size int64, below overlay.Backing) error {
	section := d.readers.Enter()
	defer d.readers.Exit(section)
	return o.Shrink(size, below)
}

// keepBlocks leaves the punching of a leaf to the job that moves it, nil for
// none: what moved is punched when nobody looks for it any more, not when a
// flush makes it due (M1).
func (d *Disk) keepBlocks(o *overlay.Overlay) {
	d.punchMu.Lock()
	defer d.punchMu.Unlock()
	d.kept = o
}

// stopAbsorbing takes beginAbsorbing back, for a merge that does not finish:
// what was moved stays moved, and writes go to the leaf again. Called with opMu
// held.
func (d *Disk) stopAbsorbing(m *manifest.Manifest) (failed error) {
	d.gate.Lock()
	d.move = nil
	d.gate.Unlock()
	for _, rec := range m.Layers {
		over := d.nodes[rec.ID].Layer().Over()
		parent := d.nodes[rec.ID].Parent()
		if over == nil || parent == nil || !parent.Absorbing() {
			continue
		}
		// Where that fails, the next flush of c flushes x before it.
		if err := over.Flush(); err != nil {
			failed = errors.Join(failed, err)
		} else {
			over.FlushAfter(nil)
		}
		// Nobody writes x any more, and nobody may look for what moved where it
		// was: settling punches it, also when only that flush succeeds.
		parent.SetAbsorbing(false)
		d.figures.Moving(parent, d.nodes[rec.ID])
		d.dropRegions(d.nodes[rec.ID], 0, math.MaxInt64/2)
		d.readers.Synchronize()
	}
	d.keepBlocks(nil)
	return failed
}

// copyDown moves everything from c into x, region by region.
func (d *Disk) copyDown(j *job, x, c *view.Node) error {
	into, from := x.Layer().Over(), c.Layer().Over()
	below := x.Backing()
	source := c.AloneLive()
	held := func(off int64) (int64, error) {
		section := d.readers.Enter()
		defer d.readers.Exit(section)
		held, _, err := heldBytes(c.Alone(), nil, off)
		return held, err
	}
	part := func(off, length int64) (moved int64, err error) {
		err = d.moveStep(off+length, func() error {
			section := d.readers.Enter()
			defer d.readers.Exit(section)
			var err error
			if moved, err = into.Overwrite(source, off, length, below); err != nil {
				return err
			}
			return from.Unmap(off, length)
		})
		return moved, err
	}
	// What a guest writes into a hole, between the look and the step, moves with it.
	move := func(off, end, held int64) (copied int64, err error) {
		for at, step := off, end-off; at < end; at += step {
			if held > 0 {
				step = d.moveBytes(into, end-at)
			}
			moved, err := part(at, step)
			copied += moved
			if err != nil {
				return copied, err
			}
			into.StartWriteBack()
			if err := j.pace(moved); err != nil {
				return copied, err
			}
		}
		return copied, nil
	}
	// M1: c's flush makes it durable in x first, then takes it out of c's
	// tables on disk; then it goes out of the regions; when no reader is left
	// c's blocks go, of this window alone: what has left the next one by now may
	// be durable too, and has readers still. What the guest discarded has none.
	settle := func(start, end int64) error {
		// Where room is short a window ends anywhere, and nothing behind it has moved.
		end = (end + from.ClusterSize() - 1) &^ (from.ClusterSize() - 1)
		if err := d.keepsTarget(x); err != nil {
			return err
		}
		forget := into.Copied()
		if err := from.Flush(); err != nil {
			return err
		}
		d.dropRegions(c, start, end-start)
		d.readers.Synchronize()
		forget()
		if err := from.PunchBefore(end); err != nil {
			return err
		}
		return into.Punch()
	}
	unit := max(into.SubclusterSize(), from.SubclusterSize())
	for {
		if err := d.mergeRegions(j, x, c, regionWork{d.window, from.Size, d.within(source.Next), held, move, part, unit, into, settle}); err != nil {
			return err
		}
		if d.sealMove(from.Size) {
			return nil
		}
	}
}

// sealMove sends all further writes to x when everything has moved; false when
// the disk grew since, and there is more.
func (d *Disk) sealMove(size func() int64) bool {
	d.gate.RLock()
	defer d.gate.RUnlock()
	v := d.move
	if v == nil {
		return true
	}
	v.growing.Lock()
	defer v.growing.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.frontier < size() {
		return false
	}
	v.frontier = math.MaxInt64
	return true
}

// moveBytes is how much of the next n bytes is moved in one step: more of a frozen
// layer where the host shares blocks, for which a snapshot alone waits.
func (d *Disk) moveBytes(into *overlay.Overlay, n int64) int64 {
	d.gate.RLock()
	defer d.gate.RUnlock()
	if d.move == nil && into.Shares() {
		return min(n, sharedMoveStep)
	}
	return min(n, moveStep)
}

// moveStep moves one piece that ends at a guest offset, with the writers kept
// out when c is the leaf. Once it is frozen nobody else writes it.
func (d *Disk) moveStep(end int64, move func() error) error {
	d.gate.RLock()
	defer d.gate.RUnlock()
	if v := d.move; v != nil {
		return v.step(end, move)
	}
	return move()
}
