package figures

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"time"

	"varve/chain/view"
	"varve/overlay/extent"
	"varve/overlay/qcow2"
)

// Map is where the layers of the leaf's chain hold what: the disk cut into bins of equal
// size, from the tables alone. It is a value of the moment, which nobody changes.
type Map struct {
	Size     int64 // guest bytes
	BinBytes int64 // guest bytes of a bin, a power of two
	Layers   []MapRow
	Known    []bool // of each bin: its figures are there
}

// MapRow is a layer of a Map, the leaf being the first one. The slices have one figure for
// each bin, in guest bytes.
type MapRow struct {
	ID   string    // layer id
	Data []float32 // data that the layer itself maps
	Zero []float32 // zeros that it maps: discarded or written
	Seen []float32 // of the leaf's view: data that comes from this layer
	Lost []float32 // what cannot be read since an entry of its tables is damaged; nil for nothing
}

const (
	mapBins  = 1024    // at most, in a map
	mapCells = 1 << 18 // bins of all layers together: 3 MiB
	leastBin = 4 << 10
	mapChunk = qcow2.TouchedSpans * view.RegionSize // 1 GiB
)

// rowBins has the figures of a layer, see MapRow.
type rowBins struct{ data, zero, seen, lost []float32 }

// mapKey says what of a frozen layer a row was made of.
type mapKey struct {
	id        string
	forgotten uint64 // nodeFigures.own.forgotten
}

// mapper keeps what a map was made of. Where only frozen layers hold something it
// stays right; the rest is looked at anew each time.
type mapper struct {
	mu      sync.Mutex
	size    int64
	binBits int
	frozen  []mapKey  // bottom first
	ids     []string  // of rows
	rows    []rowBins // bottom first; above those of frozen are layers that are written
	known   []bool    // by unit: the rows have it
	// upTo is, by unit, how many of the frozen layers, from the bottom, the rows were
	// made of when no other one held something there; 0 where one did.
	upTo []int
	next int // the step with which the next look begins

	extents []extent.Extent // room for those of one layer
}

// unit is how much of the disk is looked at together: a bin, or a region where that
// is more.
func (c *mapper) unit() int64 { return max(int64(1)<<c.binBits, view.RegionSize) }

// step is a unit, or what Touched tells of at a time where that is more.
func (c *mapper) step() int64 { return max(c.unit(), mapChunk) }

// DrawMap makes a map, in about that time at most; 0 is as long as it takes. What it
// did not come to is not Known; the next call goes on there. Errors: those of reading
// the tables, and ctx's cause.
func (f *Figures) DrawMap(ctx context.Context, most time.Duration) (*Map, error) {
	var deadline time.Time
	if most > 0 {
		deadline = time.Now().Add(most)
	}
	f.mapper.mu.Lock()
	defer f.mapper.mu.Unlock()
	for {
		var m *Map
		err := Again(f.in.Tree, func() (err error) {
			m, err = f.mapper.draw(ctx, f, deadline)
			return err
		})
		if !errors.Is(err, errTreeChanged) {
			return m, err
		}
	}
}

func (c *mapper) draw(ctx context.Context, f *Figures, deadline time.Time) (*Map, error) {
	path := f.mapPath(f.in.Leaf())
	size := f.in.Leaf().Size()
	c.follow(path, size)
	steps := int((size + c.step() - 1) / c.step())
	for looked := range steps {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		// One step at least: who asks again and again comes to the end.
		if looked > 0 && !deadline.IsZero() && time.Now().After(deadline) {
			break
		}
		i := c.next % steps
		if err := c.look(f, path, int64(i)*c.step()); err != nil {
			return nil, fmt.Errorf("map the layers: %w", err)
		}
		c.next = (i + 1) % steps
	}
	return c.result(path), nil
}

// mapPath is the chain of a node, bottom first.
func (f *Figures) mapPath(tip *view.Node) (path []passLayer) {
	for n := tip; n != nil; n = n.Parent() {
		l := n.Link()
		if l.Layer == nil {
			continue
		}
		c := f.of(n)
		p := passLayer{node: n, counts: c, link: l, layer: l.Layer, over: l.Layer.Over(), ownOf: c.own.forgotten.Load()}
		p.raw = l.Layer.Raw()
		path = append(path, p)
	}
	slices.Reverse(path)
	return path
}

// frozenPart is how many layers of a path, from the bottom, nobody writes.
func frozenPart(path []passLayer) (keys []mapKey) {
	for i := range path {
		if path[i].over != nil || path[i].node.Absorbing() {
			break
		}
		keys = append(keys, mapKey{path[i].node.ID, path[i].ownOf})
	}
	return keys
}

// follow takes over what is still right of what was kept.
func (c *mapper) follow(path []passLayer, size int64) {
	binBits, frozen := mapBinBits(size, len(path)), frozenPart(path)
	kept := len(c.frozen) <= len(frozen) && slices.Equal(c.frozen, frozen[:len(c.frozen)])
	if c.size != size || c.binBits != binBits || !kept {
		c.size, c.binBits, c.next = size, binBits, 0
		units := (size + c.unit() - 1) / c.unit()
		c.frozen, c.ids, c.rows = nil, nil, nil
		c.known, c.upTo = make([]bool, units), make([]int, units)
	}
	same := slices.EqualFunc(c.ids, path, func(id string, p passLayer) bool { return id == p.node.ID })
	if same && len(c.frozen) == len(frozen) {
		return
	}
	// What was written before and is not any more is looked at once again.
	bins := int((size-1)>>binBits) + 1
	c.rows, c.ids = c.rows[:len(c.frozen)], nil
	for i := range path {
		c.ids = append(c.ids, path[i].node.ID)
		if i >= len(c.rows) {
			c.rows = append(c.rows, rowBins{make([]float32, bins), make([]float32, bins), make([]float32, bins), make([]float32, bins)})
		}
	}
	c.frozen = frozen
	for i := range c.known {
		c.known[i] = c.upTo[i] > 0
	}
}

// mapBinBits is how many bits of an offset lie within a bin.
func mapBinBits(size int64, layers int) int {
	most := int64(mapBins)
	for most > 16 && most*int64(layers) > mapCells {
		most /= 2
	}
	binBits := bits.Len(leastBin) - 1
	for (size-1)>>binBits >= most {
		binBits++
	}
	return binBits
}

// look brings the rows up to date in the step that begins at off.
func (c *mapper) look(f *Figures, path []passLayer, off int64) error {
	end := min(off+c.step(), c.size)
	units := make([]mapUnit, (end-off+c.unit()-1)/c.unit())
	lowest := len(path)
	for i := range units {
		u := &units[i]
		u.index = int(off/c.unit()) + i
		u.upTo = c.upTo[u.index]
		u.wanted = !c.known[u.index] || u.upTo == 0
		lowest = min(lowest, u.upTo)
	}
	chunks, err := f.mapChunks(path, off, end)
	if err != nil {
		return err
	}
	// Layers above those of which a unit is final are asked each time, and those below
	// only where one of them holds something.
	ask := func(from, to int) error {
		for _, c := range chunks {
			if err := f.mapTouched(path, from, to, c.off, c.touched); err != nil {
				return err
			}
		}
		return nil
	}
	if err := ask(lowest, len(path)); err != nil {
		return err
	}
	regions := func(visit func(u *mapUnit, at int64, layer func(i int) bool) error) error {
		for _, chunk := range chunks {
			f.in.Cache.Step()
			for bit := range int64(qcow2.TouchedSpans) {
				at := chunk.off + bit<<view.RegionBits
				if at >= end {
					break
				}
				err := visit(&units[(at-off)/c.unit()], at, func(i int) bool { return chunk.touched[i]>>bit&1 != 0 })
				if err != nil {
					return err
				}
			}
		}
		return nil
	}
	wanted := false
	regions(func(u *mapUnit, _ int64, layer func(i int) bool) error { // never fails
		for i := u.upTo; i < len(path); i++ {
			if layer(i) {
				u.wanted = true
				u.live = u.live || i >= len(c.frozen)
			}
		}
		wanted = wanted || u.wanted
		return nil
	})
	if wanted && lowest > 0 {
		if err := ask(0, lowest); err != nil {
			return err
		}
	}
	for i := range units {
		if units[i].wanted {
			c.clear(units[i].index)
		}
	}
	err = regions(func(u *mapUnit, at int64, layer func(i int) bool) error {
		if !u.wanted {
			return nil
		}
		return c.mapRegion(f, path, at, layer)
	})
	if err != nil {
		return err
	}
	for i := range units {
		u := &units[i]
		c.known[u.index], c.upTo[u.index] = true, len(c.frozen)
		if u.live {
			c.upTo[u.index] = 0
		}
	}
	return nil
}

// mapPiece is a piece of mapChunk bytes in which a layer of the path may hold something:
// touched says of each in which regions, see Touched.
type mapPiece struct {
	off     int64
	touched []uint64
}

// mapChunks finds the pieces between two offsets.
func (f *Figures) mapChunks(path []passLayer, off, end int64) (list []mapPiece, err error) {
	section := f.in.Readers.Enter()
	defer f.in.Readers.Exit(section)
	for i := range path {
		if path[i].node.Link() != path[i].link {
			return nil, errTreeChanged
		}
	}
	for at := off; at < end; {
		if at, err = nextOfPath(path, at); err != nil || at >= end {
			break
		}
		f.in.Cache.Step()
		at = off + (at-off)&^(mapChunk-1)
		list = append(list, mapPiece{at, make([]uint64, len(path))})
		at += mapChunk
	}
	return list, err
}

// mapUnit is a unit of the step under way.
type mapUnit struct {
	index  int
	upTo   int  // see mapper.upTo
	wanted bool // to be looked at
	live   bool // a layer that is written holds something there
}

// clear takes a unit out of the rows.
func (c *mapper) clear(unit int) {
	c.known[unit], c.upTo[unit] = false, 0
	perUnit := int(c.unit() >> c.binBits)
	for i := range c.rows {
		row := &c.rows[i]
		from, to := unit*perUnit, min((unit+1)*perUnit, len(row.data))
		clear(row.data[from:to])
		clear(row.zero[from:to])
		clear(row.seen[from:to])
		clear(row.lost[from:to])
	}
}

// mapTouched asks some layers of a path in which regions from off on they hold
// something, see Touched.
func (f *Figures) mapTouched(path []passLayer, from, to int, off int64, masks []uint64) error {
	section := f.in.Readers.Enter()
	defer f.in.Readers.Exit(section)
	for i := from; i < to; i++ {
		if path[i].node.Link() != path[i].link {
			return errTreeChanged
		}
		if err := touched(path, i, off); err != nil {
			return err
		}
		masks[i] = path[i].touched
	}
	return nil
}

// mapRegion adds what stands in one region, of the layers that hold something there.
func (c *mapper) mapRegion(f *Figures, path []passLayer, at int64, layer func(i int) bool) error {
	section := f.in.Readers.Enter()
	defer f.in.Readers.Exit(section)
	b := view.Build(at >> view.RegionBits)
	for i := range slices.Backward(path) {
		if !layer(i) {
			continue
		}
		p := &path[i]
		if p.node.Link() != p.link {
			return errTreeChanged
		}
		var err error
		if c.extents, err = p.layer.Extents(c.extents[:0], at, view.RegionSize); err != nil {
			return err
		}
		size := min(c.size, p.node.Size())
		for _, e := range c.extents {
			switch {
			case e.Kind == extent.Unallocated, e.Kind == extent.Zero && p.raw:
				// Of a raw image only what is no hole counts.
			case e.Kind == extent.Damaged:
				c.add(c.rows[i].lost, e.Start, min(e.End(), size))
			case e.Kind == extent.Zero:
				c.add(c.rows[i].zero, e.Start, min(e.End(), size))
			default:
				c.add(c.rows[i].data, e.Start, min(e.End(), size))
			}
		}
		if b.Open() {
			b.Fill(p.layer, c.extents)
		}
	}
	for s := range b.Finish(extent.Zero).Each(at, c.size) {
		if s.Kind == extent.Zero || s.Kind == extent.Damaged {
			continue
		}
		i := slices.IndexFunc(path, func(p passLayer) bool { return p.layer == s.Layer })
		c.add(c.rows[i].seen, s.Start, s.End)
	}
	return nil
}

// add counts guest bytes in the bins that they lie in.
func (c *mapper) add(bins []float32, from, to int64) {
	for from < to {
		i := from >> c.binBits
		stop := min(to, (i+1)<<c.binBits)
		bins[i] += float32(stop - from)
		from = stop
	}
}

// lostBins are bins of what is damaged; nil where nothing is.
func lostBins(bins []float32) []float32 {
	if !slices.ContainsFunc(bins, func(b float32) bool { return b > 0 }) {
		return nil
	}
	return slices.Clone(bins)
}

// result copies what is known.
func (c *mapper) result(path []passLayer) *Map {
	m := &Map{Size: c.size, BinBytes: 1 << c.binBits}
	for i := range slices.Backward(path) {
		row := &c.rows[i]
		m.Layers = append(m.Layers, MapRow{
			ID:   path[i].node.ID,
			Data: slices.Clone(row.data), Zero: slices.Clone(row.zero), Seen: slices.Clone(row.seen),
			Lost: lostBins(row.lost),
		})
	}
	bins := int((c.size-1)>>c.binBits) + 1
	perUnit := int(c.unit() >> c.binBits)
	for i := range bins {
		m.Known = append(m.Known, c.known[i/perUnit])
	}
	return m
}
