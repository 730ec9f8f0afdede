package chain

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Layers lists the layers without counting anything: cheap, from memory.
// OwnBytes and HostBytes are 0.
func (d *Disk) Layers() []LayerStatus {
	m, nodes := d.tree()
	known := d.listed.Load()
	if known == nil || known.manifest != m {
		known = &listedLayers{manifest: m, layers: d.listLayers(m, nodes)}
		d.listed.Store(known)
	}
	list := slices.Clone(known.layers)
	for i := range list {
		if list[i].ID == m.Leaf {
			list[i].Size = d.Size() // grows without a new manifest
		}
		if n := nodes[list[i].ID]; n != nil && n.damaged() {
			list[i].Damage = n.layer().damages.all()
		}
	}
	return list
}

// listedLayers is what Layers gave for a manifest, which never changes.
type listedLayers struct {
	manifest *manifest
	layers   []LayerStatus
}

func (d *Disk) listLayers(m *manifest, nodes map[string]*node) []LayerStatus {
	depth := make(map[string]int, len(m.Layers))
	children := make(map[string][]string, len(m.Layers))
	byID := make(map[string]*layerRecord, len(m.Layers))
	list := make([]LayerStatus, 0, len(m.Layers))
	for _, l := range m.Layers {
		byID[l.ID] = l
		if l.Parent != "" {
			children[l.Parent] = append(children[l.Parent], l.ID)
		}
	}
	for _, l := range m.Layers {
		s := LayerStatus{
			ID: l.ID, Name: l.Name, State: stateOf(m, l), Foreign: l.Foreign,
			Children: append([]string{}, children[l.ID]...),
			Format:   l.Format, File: d.path(l), Created: l.Created, Frozen: l.Frozen,
			Depth: depthOf(byID, l, depth),
			Held:  l.Held, Clones: m.clonesOf(l.ID), SetAside: l.ID == m.SetAside,
		}
		if l.Parent != "" {
			parent := l.Parent
			s.Parent = &parent
		}
		if n := nodes[l.ID]; n != nil {
			s.Size = n.size()
			if n.layer() == nil {
				s.File = "" // the leaf that an image shown read-only has not
			}
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b LayerStatus) int { return strings.Compare(a.ID, b.ID) })
	return list
}

func stateOf(m *manifest, l *layerRecord) string {
	switch {
	case l.ID == m.Leaf:
		return "leaf"
	case l.ID == m.Base:
		return "base"
	case l.Name == "":
		return "unnamed"
	default:
		return "frozen"
	}
}

// depthOf counts a layer's chain, remembering what it passes.
func depthOf(byID map[string]*layerRecord, l *layerRecord, known map[string]int) int {
	var path []*layerRecord
	for l != nil && known[l.ID] == 0 {
		path = append(path, l)
		l = byID[l.Parent]
	}
	depth := 0
	if l != nil {
		depth = known[l.ID]
	}
	for _, p := range slices.Backward(path) {
		depth++
		known[p.ID] = depth
	}
	return depth
}

// Status is Layers with the open files, the job, and what is counted: as far as it
// is known after some 100 ms at most. Counted says of each layer whether OwnBytes
// is what it is now, or the best figure so far.
func (d *Disk) Status() (s Status, err error) {
	err = d.recount(func() error {
		_, err := d.waiting(func(until time.Time) (bool, error) {
			var counted bool
			s, counted, err = d.countAll(until)
			return counted, err
		})
		return err
	})
	return s, err
}

// recount runs a count of what the tree holds, and again when it met a layer
// that was closed meanwhile because the tree lost it. A count has a section for
// each layer, or less: one for all would hold up jobs.
func (d *Disk) recount(count func() error) error {
	for {
		before, _ := d.tree()
		err := count()
		if now, _ := d.tree(); now == before || !errors.Is(err, os.ErrClosed) {
			return err
		}
	}
}

// countAll is one look. counted is false where going on counting would tell more.
func (d *Disk) countAll(until time.Time) (s Status, counted bool, err error) {
	s = Status{Version: 1, Disk: d.dir, Size: d.Size(), Layers: d.Layers(), Open: []OpenStatus{}}
	m, nodes := d.tree()
	s.Leaf = m.Leaf
	counted = true
	names := make(map[string]string, len(s.Layers))
	for i := range s.Layers {
		l := &s.Layers[i]
		names[l.ID] = l.Name
		n := nodes[l.ID]
		if n == nil || n.layer() == nil {
			l.Counted = true // there is no file to count
			continue
		}
		if l.HostBytes, err = d.hostBytes(n); err == nil {
			l.OwnBytes, l.Counted, err = d.ownCount(n, until)
		}
		if err != nil {
			return Status{}, false, fmt.Errorf("count layer %s: %w", l.ID, err)
		}
		counted = counted && l.Counted
	}
	counted = d.countFrees(m, nodes, s.Layers) && counted
	for _, h := range d.handles.list() {
		s.Open = append(s.Open, OpenStatus{File: h.file(names[h.id]), PID: h.who.PID, Command: h.who.Command, Write: h.write})
	}
	slices.SortFunc(s.Open, func(a, b OpenStatus) int {
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		return a.PID - b.PID
	})
	if j := d.lastJob(); j != nil {
		status := j.status()
		s.Job = &status
	}
	return s, counted, nil
}

// hostBytes is what a layer's file takes on the host.
func (d *Disk) hostBytes(n *node) (int64, error) {
	section := d.readers.enter() // the file stays open
	defer d.readers.exit(section)
	info, err := n.layer().file.Stat()
	return info.Blocks, err
}
