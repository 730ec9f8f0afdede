package chain

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"varve/chain/view"
	"varve/overlay"
)

// discardPiece is how much of a long discard or reservation passes the gate at
// a time, so that a snapshot waits for no more than that (M11).
const discardPiece = view.RegionSize

// ReadAt fills p from the leaf's view; bytes past the end read as zeros.
func (d *Disk) ReadAt(p []byte, off int64) error {
	section := d.readers.Enter()
	defer d.readers.Exit(section)
	return d.leaf.Load().ReadLive(p, off)
}

// SeekData finds the first offset at or behind off that is not in a hole of
// the leaf's view; io.EOF when only a hole follows, or off is at or past the
// end.
func (d *Disk) SeekData(off int64) (int64, error) { return d.leaf.Load().Seek(&d.readers, off, true) }

// SeekHole finds the first offset at or behind off that is in a hole of the
// leaf's view, the size at the latest; io.EOF when off is at or past the end.
func (d *Disk) SeekHole(off int64) (int64, error) { return d.leaf.Load().Seek(&d.readers, off, false) }

// leafWrite changes a range of one layer; below completes subclusters.
type leafWrite func(o *overlay.Overlay, off, length int64, below overlay.Backing) error

// write runs f on the leaf with the gate held shared and within a grace
// section: f completes subclusters from the layers below.
func (d *Disk) write(off, length int64, f leafWrite) error {
	d.gate.RLock()
	defer d.gate.RUnlock()
	section := d.readers.Enter()
	defer d.readers.Exit(section)
	leaf := d.leaf.Load()
	o := leaf.Layer().Over()
	if o == nil {
		return fmt.Errorf("%s: %w", d.dir, os.ErrClosed)
	}
	var err error
	dirty := o
	if move := d.move; move != nil {
		err, dirty = move.write(off, length, f), move.into
	} else {
		err = f(o, off, length, leaf.Backing())
	}
	if max(o.DirtyBytes(), dirty.DirtyBytes()) > dirtyLimit {
		d.background.kickFlush()
	}
	return err
}

// checkRange refuses what does not lie within the disk.
func (d *Disk) checkRange(off, length int64) error {
	if d.readOnly {
		return fmt.Errorf("%s: %w", d.dir, ErrReadOnly)
	}
	if size := d.Size(); off < 0 || length < 0 || off > size-length {
		return fmt.Errorf("%w: a request for %d bytes at offset %d goes beyond the end of the disk, which has %d bytes", ErrInvalid, length, off, size)
	}
	return nil
}

// WriteAt writes p, which must lie within the disk (ErrInvalid otherwise).
func (d *Disk) WriteAt(p []byte, off int64) error {
	if err := d.checkRange(off, int64(len(p))); err != nil {
		return err
	}
	err := d.write(off, int64(len(p)), func(o *overlay.Overlay, at, length int64, below overlay.Backing) error {
		return o.WriteAt(p[at-off:at-off+length], at, below)
	})
	d.touch()
	return err
}

// Discard makes the range, which must lie within the disk, read as zeros and
// gives its blocks back.
func (d *Disk) Discard(off, length int64) error {
	return d.inPieces(off, length, (*overlay.Overlay).Discard, func(off int64) (int64, error) {
		section := d.readers.Enter()
		defer d.readers.Exit(section)
		return d.leaf.Load().NextHeld(off)
	})
}

// Reserve gives the range, which must lie within the disk, space on the host;
// its content stays.
func (d *Disk) Reserve(off, length int64) error {
	return d.inPieces(off, length, func(o *overlay.Overlay, off, length int64, _ overlay.Backing) error {
		return o.Reserve(off, length)
	}, func(off int64) (int64, error) { return off, nil })
}

// inPieces runs f on a range, in pieces. Between two next says from where on there is
// something to do.
func (d *Disk) inPieces(off, length int64, f leafWrite, next func(off int64) (int64, error)) error {
	if err := d.checkRange(off, length); err != nil {
		return err
	}
	defer d.touch()
	for end := off + length; off < end; {
		d.cache.Step()
		n := min(end-off, discardPiece-off%discardPiece)
		if err := d.write(off, n, f); err != nil {
			return err
		}
		if off += n; off < end {
			var err error
			if off, err = next(off); err != nil {
				return err
			}
		}
	}
	return nil
}

// flushGroup lets flushes share one write-back. A flush joins only one that
// has not started yet, so that it covers everything before the call (M5).
type flushGroup struct {
	disk *Disk
	run  sync.Mutex // held by the write-back under way

	mu   sync.Mutex
	next *flushRound // not started yet; nil for none
	// frozen are layers that a snapshot froze and no flush has covered yet,
	// oldest first.
	frozen []*overlay.Overlay
}

type flushRound struct {
	finished bool // guarded by run
	err      error
}

func (g *flushGroup) flush() error {
	g.mu.Lock()
	if g.next == nil {
		g.next = new(flushRound)
	}
	round := g.next
	g.mu.Unlock()

	g.run.Lock()
	defer g.run.Unlock()
	if round.finished {
		return round.err
	}
	g.mu.Lock()
	g.next = nil // whoever comes from now on starts the next one
	g.mu.Unlock()
	round.err = g.writeBack()
	round.finished = true
	return round.err
}

// writeBack flushes what is unflushed, the lower layer first: what the guest
// wrote later must not be durable without what it wrote before.
func (g *flushGroup) writeBack() error {
	g.mu.Lock()
	frozen := g.frozen
	leaf := g.disk.leaf.Load()
	g.mu.Unlock()
	top := leaf.Layer().Over()
	for _, o := range append(slices.Clip(frozen), top) {
		if o == nil {
			continue
		}
		if err := o.Flush(); err != nil {
			if top != nil && errors.Is(err, overlay.ErrFailed) {
				top.Fail(err) // no later flush can succeed, so no write may (D3)
			}
			return err
		}
	}
	g.mu.Lock()
	g.frozen = g.frozen[len(frozen):]
	g.mu.Unlock()
	// Woken for nothing, its thread would take the processor from whoever waits for
	// this flush.
	if top != nil && top.PunchesWait() {
		g.disk.background.kickPunch()
	}
	return nil
}

// swap makes another node the leaf, and has the next flush cover the old one.
// The gate is the caller's.
func (g *flushGroup) swap(old *overlay.Overlay, leaf *view.Node) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if old != nil {
		g.frozen = append(g.frozen, old)
	}
	g.disk.leaf.Store(leaf)
}

const (
	dirtyLimit    = 8 << 20 // bytes of tables in memory that start a flush
	flushInterval = 5 * time.Second
)

// background flushes when tables pile up and now and then (D7), so that a guest
// that never flushes bounds memory, and punches what flushes made due.
type background struct {
	disk  *Disk
	flush chan struct{}
	punch chan struct{}
	quit  chan struct{}
	done  sync.WaitGroup
}

// startBackground sets d.background before anything of it runs: flushes look
// at it.
func startBackground(d *Disk) {
	b := &background{
		disk:  d,
		flush: make(chan struct{}, 1),
		punch: make(chan struct{}, 1),
		quit:  make(chan struct{}),
	}
	d.background = b
	b.done.Go(b.flushLoop)
	b.done.Go(b.punchLoop)
}

// kickFlush and kickPunch never wait. They may be called on nil.
func (b *background) kickFlush() {
	if b != nil {
		kick(b.flush)
	}
}

func (b *background) kickPunch() {
	if b != nil {
		kick(b.punch)
	}
}

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (b *background) stop() {
	close(b.quit)
	b.done.Wait()
}

func (b *background) flushLoop() {
	tick := time.NewTicker(flushInterval)
	defer tick.Stop()
	failed := false
	for {
		select {
		case <-b.quit:
			return
		case <-b.flush:
		case <-tick.C:
		}
		err := b.disk.Flush()
		if err != nil && !failed {
			b.disk.log.Error("writing back failed; the disk takes no writes until it is mounted again", "error", err)
		}
		failed = err != nil
		b.disk.holdReserveAgain() // once there is room
	}
}

func (b *background) punchLoop() {
	for {
		select {
		case <-b.quit:
			return
		case <-b.punch:
		}
		b.disk.punchLeaf()
	}
}

// punchLeaf gives back what discards of the leaf made free. While the leaf is
// being moved into the layer below, the job does that when its readers are gone.
func (d *Disk) punchLeaf() {
	d.punchMu.Lock()
	defer d.punchMu.Unlock()
	if o := d.leaf.Load().Layer().Over(); o != nil && o != d.kept {
		if err := o.Punch(); err != nil && !errors.Is(err, overlay.ErrFailed) && !errors.Is(err, os.ErrClosed) {
			d.log.Warn("cannot give back discarded blocks", "error", err)
		}
	}
}

// forget takes a layer that is being removed out of what flushes cover.
func (g *flushGroup) forget(o *overlay.Overlay) {
	g.run.Lock()
	defer g.run.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.frozen = slices.DeleteFunc(g.frozen, func(f *overlay.Overlay) bool { return f == o })
}
