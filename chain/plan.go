package chain

import (
	"fmt"
	"math"
	"slices"
	"time"

	"varve/chain/figures"
	"varve/chain/manifest"
	"varve/chain/view"
	"varve/overlay/extent"
)

// Plan says what an operation would do, from the tables alone. Nothing is changed by
// making one. Its figures are those of the moment; a guest that goes on writing
// changes them.
type Plan struct {
	Version   int       `json:"version"` // 1
	Operation Operation `json:"operation"`
	// Gone are the layers that go, SetAside what a revert sets aside.
	Gone     []PlanLayer `json:"gone"`
	SetAside *PlanLayer  `json:"set_aside"`
	// Waiting are layers that lose their name and stay, since several layers stand on
	// them, or a clone reads them.
	Waiting []PlanLayer `json:"waiting"`
	// CopyBytes are the guest's bytes that jobs copy. ExtraBytes is what they take on
	// the host at the worst moment on top of what it holds now, where there is room;
	// LeastBytes is what they cannot do without: with less free they are refused.
	// FreedBytes is what the host has free in the end that it has not now; below 0 it
	// has less. HostFree is what it has free now, -1 when that is not known.
	CopyBytes  int64 `json:"copy_bytes"`
	ExtraBytes int64 `json:"extra_bytes"`
	LeastBytes int64 `json:"least_bytes"`
	FreedBytes int64 `json:"freed_bytes"`
	HostFree   int64 `json:"host_free"`
	// Before and After are the chains that change, each top first, by name.
	Before [][]string `json:"before"`
	After  [][]string `json:"after"`
}

// PlanLayer is one layer of a plan.
type PlanLayer struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	OwnBytes  int64  `json:"own_bytes"`  // guest bytes that it maps
	HostBytes int64  `json:"host_bytes"` // its file's blocks on the host, in bytes
}

// tablesExtra is what a layer's tables take on the host for data that is copied into
// it: of each cluster of 64 KiB at least an L2 entry of 16 bytes and a refcount of 2,
// and some clusters for what is begun (qcow2 specification, "L2 table entries").
func tablesExtra(bytes int64) int64 {
	if bytes == 0 {
		return 0 // what is only given back needs no room
	}
	return bytes/2048 + 1<<20
}

// Plan makes a plan of deleting snapshots, of flattening one (or "leaf"), or of
// reverting to one. Of a delete of none it is the plan for the one snapshot whose delete,
// of those that the host has the room for, gives back most; nothing is gone in it when
// there is none. Errors are those of the operation, as far as they can be known
// before.
func (d *Disk) Plan(operation Operation, names []string) (p Plan, err error) {
	if operation == OpDelete && len(names) == 0 {
		best, err := d.bestDelete()
		if err != nil || best == nil {
			free, ok := d.hostFree()
			if !ok {
				free = -1
			}
			return Plan{Version: 1, Operation: OpDelete, Gone: []PlanLayer{}, Waiting: []PlanLayer{}, HostFree: free, Before: [][]string{}, After: [][]string{}}, err
		}
		return *best, nil
	}
	err = figures.Again(d.tree, func() error {
		p, err = d.plan(operation, names)
		return err
	})
	return p, err
}

func (d *Disk) plan(operation Operation, names []string) (Plan, error) {
	m, nodes := d.tree()
	s := &planner{
		d: d, before: m, m: m.Copy(), parts: make(map[string][]*view.Node), own: make(map[string]int64), share: d.sharesBlocks(),
		runs: make(map[string]planRun),
		Plan: Plan{Version: 1, Operation: operation, Gone: []PlanLayer{}, Waiting: []PlanLayer{}, HostFree: -1},
	}
	for id, n := range nodes {
		s.parts[id] = []*view.Node{n}
	}
	s.free = math.MaxInt64 / 2
	if free, ok := d.hostFree(); ok {
		s.HostFree, s.free = free, free+d.stepsHeld()
	}
	var err error
	switch operation {
	case OpDelete:
		err = s.delete(names)
	case OpFlatten:
		err = s.flatten(names[0])
	case OpRevert:
		err = s.revert(names[0])
	default:
		_, err = ParseOperation(operation.String())
	}
	if err != nil {
		return Plan{}, err
	}
	s.Before, s.After = changedChains(m, s.m)
	return s.Plan, nil
}

// planner plays an operation on a copy of the manifest.
type planner struct {
	Plan
	d      *Disk
	before *manifest.Manifest
	m      *manifest.Manifest
	// parts are the layers, top first, whose content a layer's file has after the
	// merges so far.
	parts map[string][]*view.Node
	own   map[string]int64 // bytes that they map together, where that is known
	runs  map[string]planRun
	share bool
	free  int64 // what jobs can have now
}

func (s *planner) delete(names []string) error {
	recs, err := s.m.Deletable(names)
	if err != nil {
		return err
	}
	for _, rec := range recs {
		rec.Name, rec.Held = "", false
	}
	if err := s.merges(nil); err != nil {
		return err
	}
	for _, rec := range recs {
		if s.m.Layer(rec.ID) != nil {
			l, err := s.layer(rec.ID)
			if err != nil {
				return err
			}
			s.Waiting = append(s.Waiting, l)
		}
	}
	return nil
}

func (s *planner) revert(name string) error {
	target, _, err := s.m.RevertTarget(name)
	if err != nil {
		return err
	}
	old := s.m.Layer(s.m.Leaf)
	l, err := s.layer(old.ID)
	if err != nil {
		return err
	}
	if l.OwnBytes > 0 || !s.m.StandsOnNamed(old) {
		s.SetAside, s.m.SetAside = &l, old.ID
	}
	leaf := &manifest.Layer{ID: manifest.LayerID(s.m.NewNumber()), Format: formatQcow2}
	if target != nil {
		leaf.Parent = target.ID
	}
	s.m.Add(leaf)
	s.m.Leaf = leaf.ID
	s.extra(0)
	return s.merges(s.before.Mergeable())
}

func (s *planner) flatten(name string) error {
	rec := s.m.Layer(s.m.Leaf)
	if name != manifest.LeafName {
		var err error
		if rec, err = s.m.Snapshot(name); err != nil {
			return err
		}
	}
	if err := s.m.Flattenable(rec, name); err != nil || rec.Parent == "" {
		return err
	}
	n := s.parts[rec.ID][0]
	copied, err := s.d.missing(n)
	if err != nil {
		return err
	}
	s.CopyBytes = copied
	if !s.share {
		s.extra(copied)
		s.FreedBytes -= copied
	} else {
		s.extra(0)
	}
	s.LeastBytes = s.ExtraBytes
	rec.Parent = ""
	return s.merges(s.before.Mergeable())
}

// extra notes that the host must have room for bytes that are copied, and tables.
func (s *planner) extra(copied int64) {
	s.ExtraBytes = max(s.ExtraBytes, copied+tablesExtra(s.CopyBytes)-max(0, s.FreedBytes))
}

// least notes that no less room will do.
func (s *planner) least(bytes int64) {
	s.LeastBytes = max(s.LeastBytes, bytes-max(0, s.FreedBytes))
}

// merges plays all merges that are possible, known ones only after another one, as
// the jobs make them; and takes out what nothing stands on.
func (s *planner) merges(known map[string]bool) error {
	for {
		for _, rec := range s.m.RemoveDead() {
			if err := s.gone(rec, 0); err != nil {
				return err
			}
		}
		i := slices.IndexFunc(s.m.Layers, func(l *manifest.Layer) bool { return s.m.CanMerge(l) && !known[l.ID] })
		if i < 0 {
			return nil
		}
		x := s.m.MergeFirst(s.m.Layers[i], known, s.cost)
		if err := s.merge(x, s.m.Children(x.ID)[0]); err != nil {
			return err
		}
		known = nil
	}
}

// cost is what MergeFirst asks, of the layers as they are after the merges so far.
func (s *planner) cost(l *manifest.Layer) (own int64, writable bool) {
	own, known := s.own[l.ID]
	if !known {
		n := s.parts[l.ID][0]
		bytes, counted, err := s.d.figures.Own(n, time.Time{})
		if err == nil && !counted && n.Layer() != nil {
			bytes, _ = n.Layer().OwnBytes() // an error comes again where it is looked at
		}
		own, s.own[l.ID] = bytes, bytes
	}
	return own, s.writable(l)
}

func (s *planner) writable(l *manifest.Layer) bool {
	return !l.Foreign && len(s.parts[l.ID]) > 0 && plain(s.parts[l.ID][0].Layer()) == nil
}

// merge plays the merge of x with what stands on it, c (see mergeLayer).
func (s *planner) merge(x, c *manifest.Layer) error {
	upper, lower, err := s.runsOf(x, c, false)
	if err != nil {
		return err
	}
	// Where there is room for a window and all tables nobody asks which tables a merge
	// needs: they are counted by looking at the layers again for each merge.
	var need needs
	if most := lower.mapped() + upper.mapped(); s.free < windowExtra+tablesExtra(most) {
		if need, err = s.d.needsOf(s.parts[c.ID], s.parts[x.ID]); err != nil {
			return err
		}
	}
	up := need.goesUp(mergesUp(lower.mapped(), upper.mapped(), c.ID == s.m.Leaf, s.writable(x)), s.writable(x), s.free+max(0, s.FreedBytes))
	hidden := lower.data() + upper.data() - planRun{upper.scan, upper.first, lower.last}.data()
	if !up {
		if upper, lower, err = s.runsOf(x, c, true); err != nil {
			return err
		}
	}
	both := planRun{upper.scan, upper.first, lower.last}
	copied := both.data() - upper.data()
	growth := copied
	if !up {
		copied = upper.data()
		growth = both.scan.below[both.scan.cell(both.first, both.last)]
	}
	s.CopyBytes += copied
	tables := need.of(up)
	least := tables
	if copied > 0 {
		least += leastStep
	}
	switch {
	case s.share:
		growth = 0 // the blocks change hands
		s.extra(0)
	case up && x.Foreign:
		s.extra(copied) // nothing of it is given back
		least += copied
	default:
		s.extra(min(copied, windowExtra))
	}
	if !x.Foreign { // what is hidden goes first
		host, err := s.d.hostBytesOf(s.before, x.File)
		if err != nil {
			return err
		}
		least -= min(hidden, host)
	}
	s.least(least)
	growth += tables
	goes, keeps := x, c
	if !up {
		// c's file goes; for people x does.
		goes = c
	}
	if err := s.freed(goes, growth); err != nil {
		return err
	}
	l, err := s.layer(x.ID)
	if err != nil {
		return err
	}
	s.Gone = append(s.Gone, l)
	keeps.Parent = x.Parent
	s.parts[keeps.ID] = slices.Concat(s.parts[c.ID], s.parts[x.ID])
	s.own[keeps.ID], s.runs[keeps.ID] = both.mapped(), both
	if !up {
		keeps.File = x.File
	}
	s.m.Remove(x.ID)
	return nil
}

// freed notes that a layer's file goes, while another one grows.
func (s *planner) freed(l *manifest.Layer, growth int64) error {
	if l.Foreign {
		s.FreedBytes -= growth
		return nil
	}
	// The file that l has now may have been another's, and has grown since: that growth
	// was counted against what is free already.
	host, err := s.d.hostBytesOf(s.before, l.File)
	s.FreedBytes += host - growth
	return err
}

func (s *planner) gone(rec *manifest.Layer, growth int64) error {
	if err := s.freed(rec, growth); err != nil {
		return err
	}
	l, err := s.layer(rec.ID)
	s.Gone = append(s.Gone, l)
	return err
}

// layer describes one of the layers that there were before.
func (s *planner) layer(id string) (PlanLayer, error) {
	rec := s.before.Layer(id)
	l := PlanLayer{ID: id, Name: rec.Name}
	_, nodes := s.d.tree()
	n := nodes[id]
	if n == nil || n.Layer() == nil {
		return l, nil
	}
	var err error
	if l.OwnBytes, err = s.ownBytes(n); err != nil {
		return l, fmt.Errorf("count layer %s: %w", id, err)
	}
	l.HostBytes, err = s.d.hostBytes(n)
	return l, err
}

// ownBytes is how many bytes a layer maps that there was before.
func (s *planner) ownBytes(n *view.Node) (int64, error) {
	if bytes, known, err := s.d.figures.Own(n, time.Time{}); err == nil && known && n.Frozen() {
		return bytes, nil
	}
	section := s.d.readers.Enter()
	defer s.d.readers.Exit(section)
	return n.Layer().OwnBytes()
}

// hostBytesOf is what a file of ours takes on the host.
func (d *Disk) hostBytesOf(m *manifest.Manifest, file string) (int64, error) {
	_, nodes := d.tree()
	for _, l := range m.Layers {
		if n := nodes[l.ID]; l.File == file && n != nil && n.Layer() != nil {
			return d.hostBytes(n)
		}
	}
	return 0, nil
}

// changedChains are the chains from each top down that are not the same in both.
func changedChains(a, b *manifest.Manifest) (before, after [][]string) {
	before, after = [][]string{}, [][]string{}
	in := func(m *manifest.Manifest, l *manifest.Layer) []string {
		var titles []string
		for _, c := range m.Chain(l.ID) {
			title := Title(m.State(c), c.Name, c.ID)
			if c.ID == m.SetAside {
				title = "(set aside " + c.ID + ")"
			}
			titles = append(titles, title)
		}
		return titles
	}
	tops := func(m *manifest.Manifest) (all [][]string) {
		for _, l := range slices.Backward(m.Layers) {
			if len(m.Children(l.ID)) == 0 {
				all = append(all, in(m, l))
			}
		}
		return all
	}
	was, is := tops(a), tops(b)
	for _, c := range was {
		if !slices.ContainsFunc(is, func(o []string) bool { return slices.Equal(o, c) }) {
			before = append(before, c)
		}
	}
	for _, c := range is {
		if !slices.ContainsFunc(was, func(o []string) bool { return slices.Equal(o, c) }) {
			after = append(after, c)
		}
	}
	return before, after
}

// missing is how many bytes of data of the views below a node its layer does not hide:
// what a flatten copies.
func (d *Disk) missing(n *view.Node) (total int64, err error) {
	parent := n.Parent()
	if parent == nil {
		return 0, nil
	}
	var extents []extent.Extent
	size := min(n.Size(), parent.Size())
	count := func(off int64) (next int64, err error) {
		section := d.readers.Enter()
		defer d.readers.Exit(section)
		if off, err = parent.NextHeld(off); err != nil || off >= size {
			return off, err
		}
		off &^= view.RegionSize - 1
		next = off + view.RegionSize
		r, err := parent.Peek(off >> view.RegionBits)
		if err != nil {
			return off, err
		}
		if r.DataBytes(size) == 0 {
			return next, nil
		}
		extents, err = n.Layer().Extents(extents[:0], off, min(view.RegionSize, size-off))
		if err != nil {
			return off, err
		}
		for _, e := range extents {
			if e.Kind == extent.Unallocated {
				total += r.DataBetween(e.Start, e.End())
			}
		}
		return next, nil
	}
	for off := int64(0); off < size; {
		if off, err = count(off); err != nil {
			return 0, fmt.Errorf("count layer %s: %w", n.ID, err)
		}
	}
	return total, nil
}
