package chain

import (
	"context"

	"varve/chain/view"
)

// A merge on a host with next to no room frees before it needs (M13, D25):
//
//	1. what the upper layer hides of the lower one goes, for which nothing is copied
//	   (hidden.go);
//	2. the rest moves in windows of half of what is free: copy a little, make it
//	   durable, give the source's blocks back, go on;
//	3. where not even that fits the piece becomes smaller, down to one subcluster, and
//	   then the room is taken that is kept for this (reserve.go).
//
// So a merge comes to its end with as much room as one piece and the tables of its
// target take.

// mergeRegions makes the copies of a merge of x with c, in the steps that the host has
// the room for.
func (d *Disk) mergeRegions(j *job, x, c *view.Node, w regionWork) error {
	if !d.isShort(j) {
		err := d.copyRegions(j, w)
		if !isFull(err) || j.ctx.Err() != nil {
			return err
		}
		// What is settled stays so; it is looked at again, and passed over.
		d.log.Info("the host is full; the job goes on in small steps", "job", j.id, "error", err)
		j.doneBytes.Store(0)
	}
	if err := d.punchHidden(j, x, c); err != nil {
		return err
	}
	t := tightCopy{disk: d, job: j, work: w, piece: tightPiece, shares: d.canShare(), inPlace: !d.neverInPlace()}
	w.target.Thrift(t.shares)
	defer w.target.Thrift(false)
	return t.run()
}

// isShort says whether the host may have less room than the windows of a job take.
func (d *Disk) isShort(j *job) bool {
	free, ok := d.hostFree()
	most := min(j.totalBytes.Load(), windowExtra)
	return ok && free < most+tablesExtra(most)
}

// withRoom does a part of a job that can be done again when the host was full, and does
// so with the room that is kept for it.
func (d *Disk) withRoom(j *job, work func() error) error {
	err := work()
	if isFull(err) && d.giveSteps(j) {
		err = work()
	}
	return err
}

const (
	// tightPiece is the most that is copied at a time where room is short, in bytes.
	tightPiece = 1 << 20
	// sharedPiece is dealt with at a time where nothing is free and blocks are shared.
	sharedPiece = 64 << 10
)

// tightCopy is copyRegions for a host that is nearly full: nothing is copied while a
// window is settled, and a window ends anywhere.
type tightCopy struct {
	disk    *Disk
	job     *job
	work    regionWork
	piece   int64 // how much is copied at a time
	shares  bool  // the host can share blocks
	inPlace bool  // what is written again takes no room on the host
	// The window: where it began, what was free then, and what was copied and dealt with
	// since.
	from, room, copied, held int64
}

func (t *tightCopy) run() error {
	w := t.work
	t.begin(0)
	for off, upTo := int64(0), int64(0); off < w.size(); off = upTo {
		var held int64
		var err error
		if upTo, held, err = w.look(off); err != nil {
			return err
		}
		if t.job.ctx.Err() != nil {
			return context.Cause(t.job.ctx)
		}
		if held == 0 {
			_, err = w.copy(off, upTo, 0)
		}
		if held > 0 || isFull(err) { // the guest may have written there since
			upTo = off + view.RegionSize
			err = t.region(off, held)
		}
		if err != nil {
			return err
		}
		t.held += held
		t.job.progress(held)
		if t.isWindow() || t.held >= heldWindow {
			if err := t.settle(upTo); err != nil {
				return err
			}
		}
	}
	return t.settle(w.size())
}

// region deals with a region in pieces.
func (t *tightCopy) region(off, held int64) error {
	end := off + view.RegionSize
	for at := off; at < min(end, t.work.size()); {
		n := min(t.nextPiece(), end-at)
		copied, err := t.work.part(at, n)
		t.copied += copied
		switch {
		case isFull(err) && t.job.ctx.Err() == nil:
			if err := t.makeRoom(at, err); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		at += n
		if t.isWindow() {
			if err := t.settle(at); err != nil {
				return err
			}
			t.piece = min(2*t.piece, tightPiece)
		}
		if err := t.job.pace(copied); err != nil {
			return err
		}
	}
	return nil
}

// makeRoom is called when a piece at an offset does not fit: it settles the window up
// to there, or has the next try be of a smaller piece, or takes the room that is kept.
// What of the piece was copied stays where it is, and is not copied again. A host that
// writes nothing in place has no room for a refcount or a table either then, however
// small the piece is: there the room that is kept comes first, before pieces of it are
// taken that leave none for the tables.
func (t *tightCopy) makeRoom(at int64, full error) error {
	switch {
	case at > t.from:
		return t.settle(at)
	case !t.inPlace && t.giveSteps():
		return nil
	case t.piece > t.work.unit:
		t.piece = max(t.work.unit, t.piece/2)
		return nil
	case t.giveSteps():
		return nil
	}
	return full
}

func (t *tightCopy) giveSteps() bool {
	if !t.disk.giveSteps(t.job) {
		return false
	}
	t.room, _ = t.disk.hostFree()
	return true
}

// nextPiece is how much is copied next: half of what is free at most, since the flush
// that settles a window may need room for tables where the host never writes in place.
// Where the piece before was shared, at least most of it, that is all of it: what is
// shared takes no room.
func (t *tightCopy) nextPiece() int64 {
	n := t.piece
	free, ok := t.disk.hostFree()
	switch {
	case !ok:
	case t.shares && t.work.target.Shares():
		n = min(n, max(free, sharedPiece))
	default:
		n = min(n, free/2, t.room/2-t.copied)
	}
	return max(t.work.unit, n&^(t.work.unit-1))
}

// isWindow says whether enough was copied to be settled: half of what was free, the
// other half is for the tables and the guest. What is free now does not tell that alone:
// btrfs counts what it has not written yet as free.
func (t *tightCopy) isWindow() bool {
	most := t.disk.window
	if free, ok := t.disk.hostFree(); ok {
		most = min(most, free, t.room/2)
	}
	return t.copied > 0 && t.copied >= most
}

// begin begins a window at a guest offset.
func (t *tightCopy) begin(off int64) {
	t.from, t.copied, t.held = off, 0, 0
	t.room, _ = t.disk.hostFree()
}

// settle makes the window final, and begins the next one where it ends.
func (t *tightCopy) settle(to int64) error {
	from := t.from
	if from >= to {
		t.begin(to)
		return nil
	}
	err := t.disk.withRoom(t.job, func() error {
		return t.disk.survive(t.job, func() error { return t.work.settle(from, to) })
	})
	t.begin(to)
	return err
}
