package chain

import (
	"context"
	"fmt"
	"math"
	"time"

	"varve/chain/manifest"
	"varve/chain/view"
	"varve/overlay/extent"
)

// Two views differ where they do not get their bytes from the same place of the
// same layer. What both get from the layers that they share is the same: so only
// the layers from each view down to the first shared one are asked what they hold,
// and the shared ones only where one of the views is zeros. No data is read.
//
//	leaf    ......XX......      what differs by the tables:
//	two     ..YY..........          leaf and one:  ..YY..XX......
//	one     ZZ............          leaf and two:  ......XX......
//	base    BBBBBBBBBBBBBB
//
// A job moves content between the layers of one side, which changes nothing of what
// that side holds: it may run meanwhile. Only a flatten makes copies on its side.

// Where the bytes of a Difference may lie besides in a layer.
const (
	InZeros = "zeros" // nowhere: they read as zeros
	InEnd   = "end"   // behind the end of the view
	// InDamage: nobody knows, since an entry of a layer is damaged; that layer's id
	// follows.
	InDamage = "damaged:"
)

// Difference is a run of guest bytes in which two views may differ.
type Difference struct {
	Start  int64
	Length int64
	// A and B say where each view has the bytes: the layer's id, InZeros, InEnd or
	// InDamage.
	A, B string
}

// End is the guest offset behind the difference.
func (d Difference) End() int64 { return d.Start + d.Length }

// DiffView is one of two views that are compared.
type DiffView struct {
	Name string // "base" or "leaf" or a snapshot's
	ID   string // of the layer
	Size int64  // bytes
}

// Diff compares two views. It goes from the front to the end; what it has passed it
// does not look at again. Not safe for concurrent use, but for Close.
type Diff struct {
	A, B DiffView

	disk    *Disk
	at      int64 // what is compared
	end     int64 // where the shorter view ends
	pending Difference
	close   []func()
}

// Diff opens two views to compare them: each is the name of a snapshot, "base" or
// "leaf". It counts as an open of both, until it is closed, and waits as OpenView
// and OpenDisk do. The leaf may be written meanwhile: then each stretch of 16 MiB is
// of the moment in which it was looked at. ErrNotExist, ErrInvalid.
func (d *Disk) Diff(ctx context.Context, a, b string, who Opener) (*Diff, error) {
	x := &Diff{disk: d}
	for _, side := range []struct {
		name string
		view *DiffView
	}{{a, &x.A}, {b, &x.B}} {
		var err error
		if *side.view, err = x.open(ctx, side.name, who); err != nil {
			x.Close()
			return nil, err
		}
	}
	x.end = min(x.A.Size, x.B.Size)
	return x, nil
}

func (x *Diff) open(ctx context.Context, name string, who Opener) (DiffView, error) {
	if name == manifest.LeafName {
		h, err := x.disk.OpenDisk(ctx, who, false)
		if err != nil {
			return DiffView{}, err
		}
		x.close = append(x.close, h.Close)
		n := x.disk.leaf.Load()
		return DiffView{Name: name, ID: n.ID, Size: n.Size()}, nil
	}
	m, _ := x.disk.tree()
	rec, err := m.Snapshot(name)
	if err != nil {
		return DiffView{}, err
	}
	v, err := x.disk.OpenView(ctx, rec.ID, who)
	if err != nil {
		return DiffView{}, fmt.Errorf("snapshot %s: %w", name, err)
	}
	x.close = append(x.close, v.Close)
	return DiffView{Name: name, ID: rec.ID, Size: v.Size()}, nil
}

// Close ends the opens. A second one does nothing.
func (x *Diff) Close() {
	for _, f := range x.close {
		f()
	}
	x.close = nil
}

// Views are the two that are compared.
func (x *Diff) Views() (a, b DiffView) { return x.A, x.B }

// Size is how many bytes there are to compare: as many as the longer view has.
func (x *Diff) Size() int64 { return max(x.A.Size, x.B.Size) }

// Done is how many bytes are compared, from the front on.
func (x *Diff) Done() int64 { return x.at }

// diffAtOnce is how many differences Next gives at once, about.
const diffAtOnce = 4096

// Next appends to dst the differences that it finds next, in order: none touches
// the one before with the same A and B. It returns when there are some thousands,
// or until has passed; more is false when there are no others. Errors are those of
// reading the tables.
func (x *Diff) Next(dst []Difference, until time.Time) (list []Difference, more bool, err error) {
	first := len(dst)
	add := func(d Difference) {
		if p := &x.pending; p.Length > 0 && p.End() == d.Start && p.A == d.A && p.B == d.B {
			p.Length += d.Length
			return
		}
		if x.pending.Length > 0 {
			dst = append(dst, x.pending)
		}
		x.pending = d
	}
	for x.at < x.end && len(dst)-first < diffAtOnce {
		if err := x.region(add); err != nil {
			return dst, true, err
		}
		if time.Now().After(until) {
			return dst, true, nil
		}
	}
	if x.at < x.end {
		return dst, true, nil
	}
	if size := x.Size(); x.at < size {
		tail := Difference{Start: x.at, Length: size - x.at, A: InEnd, B: x.B.ID}
		if x.A.Size == size {
			tail.A, tail.B = x.A.ID, InEnd
		}
		add(tail)
		x.at = size
	}
	if x.pending.Length > 0 {
		dst = append(dst, x.pending)
		x.pending = Difference{}
	}
	return dst, false, nil
}

// region compares one region and tells add of what differs.
func (x *Diff) region(add func(Difference)) error {
	x.disk.cache.Step()
	section := x.disk.readers.Enter()
	defer x.disk.readers.Exit(section)
	a, err := x.node(x.A)
	if err != nil {
		return err
	}
	b, err := x.node(x.B)
	if err != nil {
		return err
	}
	shared := sharedNode(a, b)
	if x.at, err = x.next(a, b, shared); err != nil || x.at == x.end {
		return err
	}
	i := x.at >> view.RegionBits
	stop := min(x.end, (i+1)<<view.RegionBits)
	s := diffSides{names: make(map[*view.Layer]string)}
	if s.a, err = s.resolve(a, shared, i); err != nil {
		return err
	}
	if s.b, err = s.resolve(b, shared, i); err != nil {
		return err
	}
	below := func() (*view.Region, error) { return s.resolve(shared, nil, i) }
	if err := s.compare(below, i<<view.RegionBits, stop, add); err != nil {
		return err
	}
	x.at = stop
	return nil
}

// next is where, at what is compared or behind it, one of the layers that the views do
// not share may hold something: before that both views are the same. A layer that is
// shorter than what is compared hides what the shared ones hold behind its end (M2).
func (x *Diff) next(a, b, shared *view.Node) (int64, error) {
	best, ends := int64(math.MaxInt64), x.end
	for _, side := range []*view.Node{a, b} {
		for n := side; n != nil && n != shared; n = n.Parent() {
			l := n.Layer()
			if l == nil {
				continue
			}
			next, err := l.NextOwn(x.at)
			if err != nil {
				return 0, err
			}
			best, ends = min(best, next), min(ends, l.Size())
		}
	}
	if shared != nil && ends < x.end && best > x.at {
		next, err := shared.NextHeld(max(x.at, ends))
		if err != nil {
			return 0, err
		}
		best = min(best, next)
	}
	return max(x.at, min(best, x.end)), nil
}

// node is a view's node now: the leaf's changes with every snapshot.
func (x *Diff) node(v DiffView) (*view.Node, error) {
	if v.Name == manifest.LeafName {
		return x.disk.leaf.Load(), nil
	}
	return x.disk.namedNode(v.ID)
}

// sharedNode is the topmost node that two views share, nil when they share none.
func sharedNode(a, b *view.Node) *view.Node {
	ofA := make(map[*view.Node]bool)
	for n := a; n != nil; n = n.Parent() {
		ofA[n] = true
	}
	for n := b; n != nil; n = n.Parent() {
		if ofA[n] {
			return n
		}
	}
	return nil
}

// diffSides are the resolved answers of both sides for one region, as far as the
// layers above the shared ones have one: elsewhere a span is Unallocated.
type diffSides struct {
	a, b, below *view.Region
	names       map[*view.Layer]string // the ids of all layers that were asked
}

// resolve asks the layers from a node on downwards, and stops before another. What
// they leave open is zeros when there is nothing below.
func (s *diffSides) resolve(from, stop *view.Node, i int64) (*view.Region, error) {
	b := view.Build(i)
	at := from
	for at != nil && at != stop && b.Open() {
		l := at.Link()
		if l.Layer != nil {
			s.names[l.Layer] = at.ID
			if err := b.Ask(l.Layer); err != nil {
				return nil, err
			}
		}
		at = l.Parent
	}
	if at == nil {
		return b.Finish(extent.Zero), nil
	}
	return b.Finish(extent.Unallocated), nil
}

// compare tells add what differs between two guest offsets. below gives the answers of
// the shared layers; it is asked only where they matter.
func (s *diffSides) compare(below func() (*view.Region, error), start, stop int64, add func(Difference)) error {
	cursorA, cursorB, cursorBelow := s.a.Cursor(), s.b.Cursor(), view.Cursor{}
	for at := start; at < stop; {
		spanA, spanB := cursorA.At(at), cursorB.At(at)
		end := min(stop, spanA.End, spanB.End)
		if spanA.Kind == spanB.Kind && (spanA.Kind == extent.Unallocated || spanA.Kind == extent.Zero) {
			at = end
			continue
		}
		ofA, ofB := s.place(spanA), s.place(spanB)
		if spanA.Kind == extent.Unallocated || spanB.Kind == extent.Unallocated {
			if s.below == nil {
				var err error
				if s.below, err = below(); err != nil {
					return err
				}
				cursorBelow = s.below.Cursor()
			}
			span := cursorBelow.At(at)
			end = min(end, span.End)
			if spanA.Kind == extent.Unallocated {
				ofA = s.place(span)
			} else {
				ofB = s.place(span)
			}
		}
		if ofA != InZeros || ofB != InZeros {
			add(Difference{Start: at, Length: end - at, A: ofA, B: ofB})
		}
		at = end
	}
	return nil
}

// place says where the bytes of a span lie.
func (s *diffSides) place(at view.Span) string {
	if at.Kind == extent.Zero || at.Kind == extent.Unallocated {
		return InZeros
	}
	if at.Kind == extent.Damaged {
		return InDamage + s.names[at.Layer]
	}
	return s.names[at.Layer]
}
