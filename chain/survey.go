package chain

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"varve/chain/figures"
	"varve/chain/manifest"
	"varve/chain/view"
	"varve/overlay/hostfs"
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
		if n := nodes[list[i].ID]; n != nil && n.Damaged() {
			list[i].Damage = n.Layer().Damages()
		}
	}
	return list
}

// listedLayers is what Layers gave for a manifest, which never changes.
type listedLayers struct {
	manifest *manifest.Manifest
	layers   []LayerStatus
}

func (d *Disk) listLayers(m *manifest.Manifest, nodes map[string]*view.Node) []LayerStatus {
	depth := make(map[string]int, len(m.Layers))
	children := make(map[string][]string, len(m.Layers))
	byID := make(map[string]*manifest.Layer, len(m.Layers))
	list := make([]LayerStatus, 0, len(m.Layers))
	for _, l := range m.Layers {
		byID[l.ID] = l
		if l.Parent != "" {
			children[l.Parent] = append(children[l.Parent], l.ID)
		}
	}
	for _, l := range m.Layers {
		s := LayerStatus{
			ID: l.ID, Name: l.Name, State: m.State(l), Foreign: l.Foreign,
			Children: append([]string{}, children[l.ID]...),
			Format:   l.Format, File: d.path(l), Created: l.Created, Frozen: l.Frozen,
			Depth: depthOf(byID, l, depth),
			Held:  l.Held, Clones: m.ClonesOf(l.ID), SetAside: l.ID == m.SetAside,
		}
		if l.Parent != "" {
			parent := l.Parent
			s.Parent = &parent
		}
		if n := nodes[l.ID]; n != nil {
			s.Size = n.Size()
			if n.Layer() == nil {
				s.File = "" // the leaf that an image shown read-only has not
			}
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b LayerStatus) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// depthOf counts a layer's chain, remembering what it passes.
func depthOf(byID map[string]*manifest.Layer, l *manifest.Layer, known map[string]int) int {
	var path []*manifest.Layer
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
	err = figures.Again(d.tree, func() error {
		_, err := d.figures.Await(func(until time.Time) (bool, error) {
			var counted bool
			s, counted, err = d.survey(until)
			return counted, err
		})
		return err
	})
	return s, err
}

// survey is one look. counted is false where going on counting would tell more.
func (d *Disk) survey(until time.Time) (s Status, counted bool, err error) {
	s = Status{Version: 1, Disk: d.dir, Size: d.Size(), Layers: d.Layers(), Open: []OpenStatus{}}
	m, nodes := d.tree()
	s.Leaf = m.Leaf
	counted = true
	names := make(map[string]string, len(s.Layers))
	for i := range s.Layers {
		l := &s.Layers[i]
		names[l.ID] = l.Name
		n := nodes[l.ID]
		if n == nil || n.Layer() == nil {
			l.Counted = true // there is no file to count
			continue
		}
		var info hostfs.Info
		if info, err = d.hostInfo(n); err == nil {
			l.HostBytes = info.Blocks
			// A look at the path of each file would cost more than all else.
			rec := m.Layer(l.ID)
			l.Lost = info.Links == 0 && rec != nil && d.isLost(rec, n)
			l.OwnBytes, l.Counted, err = d.figures.Own(n, until)
		}
		if err != nil {
			return Status{}, false, fmt.Errorf("count layer %s: %w", l.ID, err)
		}
		counted = counted && l.Counted
	}
	counted = d.tellFrees(m, nodes, s.Layers) && counted
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

// AllocatedBytes is how many bytes of the leaf's view are data. counted says
// whether that is what it is now; otherwise it is the best figure so far, and
// counting goes on in the background. It takes some 100 ms at most.
func (d *Disk) AllocatedBytes() (bytes int64, counted bool, err error) {
	return d.viewBytes(func() (*view.Node, error) { return d.leaf.Load(), nil })
}

// LayerAllocatedBytes is the same for a layer's view, by layer id. ErrNotExist.
func (d *Disk) LayerAllocatedBytes(id string) (bytes int64, counted bool, err error) {
	return d.viewBytes(func() (*view.Node, error) {
		_, nodes := d.tree()
		if n := nodes[id]; n != nil {
			return n, nil
		}
		return nil, ErrNotExist
	})
}

func (d *Disk) viewBytes(find func() (*view.Node, error)) (bytes int64, counted bool, err error) {
	err = figures.Again(d.tree, func() error {
		counted, err = d.figures.Await(func(until time.Time) (ok bool, err error) {
			n, err := find()
			if err == nil {
				bytes, ok, err = d.figures.View(n, until)
			}
			return ok, err
		})
		if err == nil {
			_, err = find() // it may have gone while we waited
		}
		return err
	})
	if err != nil {
		return 0, false, err
	}
	return bytes, counted, nil
}

// CountAll returns when all that can be counted is: Status and the AllocatedBytes
// then tell it. Errors: those of reading the tables, and ctx's cause.
func (d *Disk) CountAll(ctx context.Context) error { return d.figures.CountAll(ctx) }

// storeCounts commits what a pass has counted, unless an operation is under way:
// its commit, the next one, or Close does it then.
func (d *Disk) storeCounts() {
	if d.readOnly || !d.opMu.TryLock() {
		return
	}
	defer d.opMu.Unlock()
	if d.closed {
		return
	}
	m := d.edit()
	d.figures.Note(m)
	changed := false
	for i, l := range m.Layers {
		changed = changed || l.Counts != d.manifest.Layers[i].Counts
	}
	if !changed {
		return
	}
	if err := d.commit(m); err != nil {
		d.log.Warn("what was counted cannot be recorded; it is counted again after the next mount", "error", err)
		return
	}
	d.install(m, nil)
}

// tellFrees fills in what a delete of each layer would give back. counted is false where
// that is not known and counting would tell.
func (d *Disk) tellFrees(m *manifest.Manifest, nodes map[string]*view.Node, layers []LayerStatus) (counted bool) {
	host := make(map[string]int64, len(layers))
	for _, l := range layers {
		host[l.ID] = l.HostBytes
	}
	frees, counted := d.figures.Frees(m, nodes, host)
	for i := range layers {
		if total, known := frees[layers[i].ID]; known {
			layers[i].Frees = &total
		}
	}
	return counted
}

// hostBytes is what a layer's file takes on the host.
func (d *Disk) hostBytes(n *view.Node) (int64, error) {
	info, err := d.hostInfo(n)
	return info.Blocks, err
}

// hostInfo is what the host says of a layer's file.
func (d *Disk) hostInfo(n *view.Node) (hostfs.Info, error) {
	section := d.readers.Enter() // the file stays open
	defer d.readers.Exit(section)
	return n.Layer().File.Stat()
}
