package chain

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"varve/chain/manifest"
	"varve/chain/view"
	"varve/overlay/extent"
)

// A plan of many merges looks at each layer's tables once. Layers that end in one file
// stand on each other; what any two runs of them, one right below the other, hold
// together follows from sums that one pass over guest space makes:
//
//	             mapped[i][k]   bytes that any of the layers i to k maps, 0 the top one
//	             data[i][k]     those of them that are data in the topmost that maps them
//	i  XX..ZZ    below[i][k]    bytes that are data in i, and i+1 to k map nothing of them
//	   ..YY..
//	k  ..YYYY    A merge of the run i to j with j+1 to k copies
//	               up:   data[i][k] - data[i][j], all of which is new in the upper file
//	               down: data[i][j], of which below[i][k] is new in the lower one, i being j
//
// Where several layers map a byte, each is the topmost one of the runs that begin behind
// the one above it: so each adds to a rectangle of the sums, at two corners.

// scanUnits is how many units are scanned together at most: the sums have its square.
const scanUnits = 512

// planScan has the sums of a run of units. A unit is a layer, or several that were
// planned to be one file before.
type planScan struct {
	units               int
	mapped, data, below []int64 // by cell
}

func (s *planScan) cell(i, k int) int { return i*s.units + k }

// planRun is a run of units of a scan, the first one being the top.
type planRun struct {
	scan        *planScan
	first, last int
}

func (r planRun) mapped() int64 { return r.scan.mapped[r.scan.cell(r.first, r.last)] }
func (r planRun) data() int64   { return r.scan.data[r.scan.cell(r.first, r.last)] }

// isOn says whether r stands right on another run of the same scan.
func (r planRun) isOn(lower planRun) bool {
	return r.scan != nil && r.scan == lower.scan && r.last+1 == lower.first
}

// runs are those of x and of c, which stands on it. Where they are not of one scan, or c
// is more than one unit of it and has to be one, another scan is made, of all that may
// end in one file with them.
func (s *planner) runsOf(x, c *manifest.Layer, single bool) (upper, lower planRun, err error) {
	upper, lower = s.runs[c.ID], s.runs[x.ID]
	if !upper.isOn(lower) || single && upper.first != upper.last {
		if err := s.scan(x, c); err != nil {
			return upper, lower, err
		}
		upper, lower = s.runs[c.ID], s.runs[x.ID]
	}
	return upper, lower, nil
}

// scan scans the run of records that may be merged with each other, of which c stands
// on x.
func (s *planner) scan(x, c *manifest.Layer) error {
	var above, list []*manifest.Layer
	for at := c; s.m.CanMerge(at) && len(above) < scanUnits/2; {
		at = s.m.Children(at.ID)[0]
		above = append(above, at)
	}
	slices.Reverse(above)
	list = append(append(list, above...), c)
	for at := x; at != nil && len(list) < scanUnits && (at == x || s.m.CanMerge(at)); at = s.m.Layer(at.Parent) {
		list = append(list, at)
	}
	units := make([][]*view.Node, len(list))
	for i, rec := range list {
		units[i] = s.parts[rec.ID]
	}
	scan, err := s.d.scanUnits(units)
	if err != nil {
		return err
	}
	for i, rec := range list {
		s.runs[rec.ID] = planRun{scan, i, i}
	}
	return nil
}

// scanLayer is one layer of a scan.
type scanLayer struct {
	node *view.Node
	unit int
	next int64 // where it may hold something, at what is scanned or behind it
}

// scanEdge is where a layer begins to map something, or ends to.
type scanEdge struct {
	at    int64
	layer int
	kind  extent.Kind // Unallocated: it ends
}

// unitScan is a scan under way.
type unitScan struct {
	*planScan
	layers  []scanLayer // top first
	extents []extent.Extent
	edges   []scanEdge
	active  []int // layers that map what is looked at, in order
	kinds   []extent.Kind
}

// scanUnits makes the sums of units, the top one first.
func (d *Disk) scanUnits(units [][]*view.Node) (*planScan, error) {
	n := len(units)
	w := &unitScan{planScan: &planScan{units: n,
		mapped: make([]int64, (n+1)*n), data: make([]int64, (n+1)*n), below: make([]int64, (n+1)*n)}}
	for i, nodes := range units {
		for _, at := range nodes {
			w.layers = append(w.layers, scanLayer{node: at, unit: i})
		}
	}
	w.kinds = make([]extent.Kind, len(w.layers))
	for off := int64(0); off < math.MaxInt64; {
		var err error
		if off, err = d.scanRegion(w, off); err != nil {
			return nil, err
		}
	}
	w.sum()
	return w.planScan, nil
}

// scanRegion looks at the first region at or behind off of which a layer says
// something, and says where to go on.
func (d *Disk) scanRegion(w *unitScan, off int64) (int64, error) {
	d.cache.Step()
	section := d.readers.Enter()
	defer d.readers.Exit(section)
	next := int64(math.MaxInt64)
	for i := range w.layers {
		l := &w.layers[i]
		if l.next < off || off == 0 {
			if err := l.find(off); err != nil {
				return 0, err
			}
		}
		next = min(next, l.next)
	}
	if next == math.MaxInt64 {
		return next, nil
	}
	off = next &^ (view.RegionSize - 1)
	w.edges = w.edges[:0]
	for i := range w.layers {
		if w.layers[i].next < off+view.RegionSize {
			if err := w.look(i, off); err != nil {
				return 0, fmt.Errorf("count layer %s: %w", w.layers[i].node.ID, err)
			}
		}
	}
	slices.SortFunc(w.edges, func(a, b scanEdge) int { return cmp.Compare(a.at, b.at) })
	w.active = w.active[:0]
	for i, e := range w.edges {
		at, found := slices.BinarySearch(w.active, e.layer)
		switch {
		case e.kind == extent.Unallocated:
			if found && w.kinds[e.layer] != extent.Unallocated {
				w.active = slices.Delete(w.active, at, at+1)
			}
		case !found:
			w.active = slices.Insert(w.active, at, e.layer)
		}
		w.kinds[e.layer] = e.kind
		if i+1 < len(w.edges) {
			w.add(w.edges[i+1].at - e.at)
		}
	}
	return off + view.RegionSize, nil
}

func (l *scanLayer) find(off int64) (err error) {
	l.next, err = l.node.NextOwn(off)
	return err
}

// look notes what a layer maps in a region. A hole of a raw image is nothing that it
// maps.
func (w *unitScan) look(i int, off int64) (err error) {
	l := w.layers[i].node.Layer()
	if l == nil || l.Size() <= off {
		return nil
	}
	end := min(off+view.RegionSize, l.Size())
	if w.extents, err = l.Extents(w.extents[:0], off, end-off); err != nil {
		return err
	}
	raw := l.Raw()
	open := false
	for _, e := range w.extents {
		if e.Kind == extent.Unallocated || raw && e.Kind == extent.Zero {
			if open {
				w.edges = append(w.edges, scanEdge{e.Start, i, extent.Unallocated})
			}
			open = false
			continue
		}
		w.edges = append(w.edges, scanEdge{e.Start, i, e.Kind})
		open = true
	}
	if open {
		w.edges = append(w.edges, scanEdge{end, i, extent.Unallocated})
	}
	return nil
}

// add adds a stretch that the active layers map.
func (w *unitScan) add(length int64) {
	if length == 0 {
		return
	}
	n, above := w.units, -1
	for k, i := range w.active {
		u := w.layers[i].unit
		if u == above {
			continue // hidden within its unit
		}
		corner := func(sums []int64) {
			sums[(above+1)*n+u] += length
			sums[(u+1)*n+u] -= length
		}
		corner(w.mapped)
		if w.kinds[i] != extent.Zero {
			corner(w.data)
			below := n
			for _, j := range w.active[k+1:] {
				if w.layers[j].unit != u {
					below = w.layers[j].unit
					break
				}
			}
			if u+1 < below {
				w.below[w.cell(u, u+1)] += length
				if below < n {
					w.below[w.cell(u, below)] -= length
				}
			}
		}
		above = u
	}
}

// sum makes the sums of what was added at corners.
func (w *unitScan) sum() {
	n := w.units
	for _, sums := range [][]int64{w.mapped, w.data} {
		for i := 1; i <= n; i++ {
			for k := range n {
				sums[i*n+k] += sums[(i-1)*n+k]
			}
		}
	}
	for _, sums := range [][]int64{w.mapped, w.data, w.below} {
		for i := range n {
			for k := 1; k < n; k++ {
				sums[i*n+k] += sums[i*n+k-1]
			}
		}
	}
}
