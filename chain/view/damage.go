package view

import (
	"cmp"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"varve/overlay/extent"
	"varve/overlay/qcow2"
)

// A damaged entry of a layer costs the bytes that it maps, and nothing else (M22, D28):
//
//	reads of those bytes          fail with the reason, all others work
//	counts, the map, diff         leave them out, and say so
//	jobs                          stop there: what cannot be read is not copied, and
//	                              not given back either
//	a damaged leaf                is kept as a frozen layer, under a new one (coverLeaf)
//
// Each layer remembers what was found damaged in its file, by whoever looked.

// Damage is a run of guest bytes that a layer should hold, or hide, and that cannot be
// read from its file.
type Damage struct {
	Start  int64  `json:"start"`  // guest offset in bytes
	Length int64  `json:"length"` // bytes
	Reason string `json:"reason"`
	// Partition is the one of the disk in which Start lies, as the mount names it
	// (p1); "" for none.
	Partition string `json:"partition,omitempty"`
}

// End is the guest offset behind the damage.
func (d Damage) End() int64 { return d.Start + d.Length }

const (
	// mostDamages is how many runs a layer remembers.
	mostDamages = 256
	// mostDamagesSaid is how many of them the log names.
	mostDamagesSaid = 16
)

// damages are what of a layer's file cannot be read, as far as somebody has looked.
// Safe for concurrent use.
type damages struct {
	found atomic.Bool // list is not empty

	mu   sync.Mutex // guards the rest
	list []foundDamage
	said int
	log  *slog.Logger // nil for nobody
}

type foundDamage struct {
	Damage
	// read says that the tables are right, and what they name cannot be read.
	read bool
}

// Damages are what was found, in the order of the guest's bytes.
func (d *damages) Damages() []Damage {
	if !d.found.Load() {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]Damage, len(d.list))
	for i, f := range d.list {
		list[i] = f.Damage
	}
	return list
}

// mapped takes note of what a Map of [off, off+length) has said.
func (l *Layer) mapped(extents []extent.Extent, off, length int64) {
	d := &l.damages
	i := slices.IndexFunc(extents, func(e extent.Extent) bool { return e.Kind == extent.Damaged })
	if i < 0 && !d.found.Load() {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.list
	// What the tables say now counts.
	d.list = without(before, off, off+length, func(f foundDamage) bool { return !f.read })
	for ; i >= 0 && i < len(extents); i++ {
		if e := extents[i]; e.Kind == extent.Damaged {
			d.put(l, foundDamage{Damage: Damage{Start: e.Start, Length: e.Length, Reason: l.whyDamaged(e)}}, before)
		}
	}
	d.found.Store(len(d.list) > 0)
}

// lookAround takes note of the damage in the region around a Damaged extent of a layer
// that is written, of which a read has only met a part.
func (l *Layer) lookAround(e extent.Extent) {
	_, _ = l.Extents(nil, e.Start&^(RegionSize-1), RegionSize) // the read has its own error
}

// whyDamaged is what the file says of a Damaged extent.
func (l *Layer) whyDamaged(e extent.Extent) string {
	var p [1]byte
	err := l.state.Load().ReadExtent(p[:], e, e.Start)
	if err == nil {
		err = qcow2.ErrReadable
	}
	return err.Error()
}

func (f foundDamage) part(start, end int64) foundDamage {
	f.Start, f.Length = start, end-start
	return f
}

// put adds a damage, joined with its neighbours, and has the log say it unless it is, or
// touches, one of before. Called with mu held.
func (d *damages) put(l *Layer, f foundDamage, before []foundDamage) {
	known := slices.ContainsFunc(slices.Concat(before, d.list), func(o foundDamage) bool { return o.Start <= f.End() && f.Start <= o.End() })
	i, _ := slices.BinarySearchFunc(d.list, f.Start, func(o foundDamage, at int64) int { return cmp.Compare(o.Start, at) })
	if i > 0 && d.list[i-1].End() >= f.Start && d.list[i-1].read == f.read {
		i--
		o := &d.list[i]
		o.Length = max(o.End(), f.End()) - o.Start
	} else if len(d.list) < mostDamages {
		d.list = slices.Insert(d.list, i, f)
	}
	for i+1 < len(d.list) && d.list[i].End() >= d.list[i+1].Start && d.list[i].read == d.list[i+1].read {
		d.list[i].Length = max(d.list[i].End(), d.list[i+1].End()) - d.list[i].Start
		d.list = slices.Delete(d.list, i+1, i+2)
	}
	if known || d.log == nil || d.said > mostDamagesSaid {
		return
	}
	if d.said++; d.said > mostDamagesSaid {
		d.log.Error("a layer has more damaged places; check lists them all", "file", l.Path)
		return
	}
	d.log.Error("a layer is damaged: these bytes of the disk cannot be read, all others can",
		"file", l.Path, "guest_offset", f.Start, "bytes", f.Length, "reason", f.Reason)
}

// failedRead takes note of a read of n guest bytes at off that failed although the
// tables are right, and gives the error back. A shorter one that fails later says
// better where it is.
func (l *Layer) failedRead(off, n int64, kind extent.Kind, err error) error {
	if kind == extent.Damaged || !qcow2.IsDamage(err) || errors.Is(err, qcow2.ErrReadable) {
		return err
	}
	d := &l.damages
	d.mu.Lock()
	defer d.mu.Unlock()
	f := foundDamage{Damage{Start: off, Length: n, Reason: err.Error()}, true}
	before := slices.Clone(d.list)
	for i, o := range d.list {
		if o.read && o.Start <= f.Start && f.End() <= o.End() {
			d.list = slices.Delete(d.list, i, i+1)
			break
		}
	}
	d.put(l, f, before)
	d.found.Store(true)
	return err
}

// readWell takes note of a read of n guest bytes at off that the host has answered: where it
// failed before, the host could not read for a while, and can again.
func (l *Layer) readWell(off, n int64) {
	d := &l.damages
	d.mu.Lock()
	defer d.mu.Unlock()
	if slices.ContainsFunc(d.list, func(f foundDamage) bool { return f.read && f.overlaps(off, off+n) }) {
		d.list = without(d.list, off, off+n, func(f foundDamage) bool { return f.read })
		d.found.Store(len(d.list) > 0)
	}
}

// overlaps says whether a damage has a byte of [start, end).
func (d Damage) overlaps(start, end int64) bool { return d.Start < end && start < d.End() }

// without is a list of damages in which those that match have no byte of [start, end) any
// more; what of one lies before or behind it stays.
func without(list []foundDamage, start, end int64, match func(foundDamage) bool) []foundDamage {
	var left []foundDamage
	for _, f := range list {
		if !match(f) || !f.overlaps(start, end) {
			left = append(left, f)
			continue
		}
		if f.Start < start {
			left = append(left, f.part(f.Start, start))
		}
		if f.End() > end {
			left = append(left, f.part(end, f.End()))
		}
	}
	return left
}

// Extents is Map of the layer's file, which takes note of damage.
func (l *Layer) Extents(dst []extent.Extent, off, length int64) ([]extent.Extent, error) {
	first := len(dst)
	list, err := l.state.Load().Map(dst, off, length)
	if err == nil {
		l.mapped(list[first:], off, length)
	}
	return list, err
}

// isDamaged says whether something of the layer was found damaged.
func (l *Layer) isDamaged() bool { return l.damages.found.Load() }

// readAnew reads p again after a table could not be read and now can: the regions of
// the view and of those below it are looked up once more.
func (n *Node) readAnew(p []byte, off int64) error {
	affected := make(map[*Node]bool)
	for at := n; at != nil; at = at.Parent() {
		affected[at] = true
	}
	n.cache.Drop(affected, off, int64(len(p)))
	r, err := n.region(off >> RegionBits)
	if err != nil {
		return err
	}
	return r.read(p, off, uint32(off&(RegionSize-1)))
}

// Damaged says whether something of the node's own layer was found damaged.
func (n *Node) Damaged() bool {
	l := n.Layer()
	return l != nil && l.isDamaged()
}
