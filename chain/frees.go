package chain

import (
	"varve/chain/manifest"
	"varve/chain/view"
	"varve/overlay/extent"
)

// What a delete of a layer gives back on the host stands in the tables alone.
//
//	nothing stands on it      its file goes, with all that it takes
//	one layer stands on it    what that layer hides of its data; the rest moves there
//	several, or a foreign     nothing for now
//	file would be written
//
// How much data of the layer below each layer hides is counted with the other counts
// (countpass.go), for a frozen layer once, and kept in chain.json.

// deletion is what a delete of a layer takes away.
type deletion struct {
	files []string // layers whose files go
	// merged is a layer that is merged with the one that stands on it, into; "" for
	// none.
	merged, into string
}

// deletionOf says what a delete of a layer would do, or of an unnamed one the
// command that goes on with it.
func deletionOf(m *manifest.Manifest, id string) (del deletion) {
	rec := m.Layer(id)
	if rec == nil || rec.Foreign || id == m.Leaf || id == m.Base {
		return del
	}
	on := m.Children(id)
	if len(on) == 1 && !on[0].Foreign {
		del.merged, del.into = id, on[0].ID
	}
	if len(on) > 0 {
		return del
	}
	// Unnamed layers that nothing else keeps go with it, as in RemoveDead and
	// QueueMerge.
	for {
		del.files = append(del.files, id)
		below := m.Layer(rec.Parent)
		if below == nil || below.Foreign || below.Name != "" || below.ID == m.Base || below.ID == m.SetAside {
			return del
		}
		var rest []*manifest.Layer
		for _, l := range m.Children(below.ID) {
			if l.ID != id {
				rest = append(rest, l)
			}
		}
		if len(rest) == 1 && !rest[0].Foreign {
			del.merged, del.into = below.ID, rest[0].ID
		}
		if len(rest) > 0 {
			return del
		}
		rec, id = below, below.ID
	}
}

// frees fills in what a delete of each layer would give back. counted is false
// where that is not known and counting would tell.
func (f *figures) frees(m *manifest.Manifest, nodes map[string]*view.Node, layers []LayerStatus) (counted bool) {
	counted = true
	host := make(map[string]int64, len(layers))
	for _, l := range layers {
		host[l.ID] = l.HostBytes
	}
	for i := range layers {
		del := deletionOf(m, layers[i].ID)
		total := int64(0)
		for _, id := range del.files {
			total += host[id]
		}
		if del.merged != "" {
			x, c := nodes[del.merged], nodes[del.into]
			if x == nil || c == nil {
				continue
			}
			hidden, known, busy := f.hidden(x, c)
			if x.Damaged() || c.Damaged() { // what its merge would free nobody knows
				continue
			}
			if !known {
				counted = counted && busy
				continue
			}
			// Data that is a hole of the file takes no space.
			total += min(hidden, host[del.merged])
		}
		layers[i].Frees = &total
	}
	return counted
}

// hidden is how many bytes of data of x the layer c, which stands on it, hides;
// of the leaf as it was at the last look; a leaf that is only read is counted as a
// frozen layer is. busy: it cannot be known before a job ends.
func (f *figures) hidden(x, c *view.Node) (bytes int64, known, busy bool) {
	l := c.Layer()
	if l == nil || c.Parent() != x || !x.Frozen() {
		return 0, false, true
	}
	if c != f.leaf() || c.Frozen() {
		bytes, known = f.of(c).hides.get(l)
		return bytes, known && c.Frozen(), !c.Frozen()
	}
	live := &f.of(c).live
	live.mu.Lock()
	defer live.mu.Unlock()
	if !live.of(l, x) {
		return 0, false, false
	}
	return live.hidden, true, false
}

// hiddenIn is how many bytes of data of the layer below a node's own layer hides, in
// the region that begins at off.
func (f *figures) hiddenIn(n *view.Node, off int64) (int64, error) {
	section := f.readers.Enter()
	defer f.readers.Exit(section)
	link := n.Link()
	if link.Layer == nil || link.Parent == nil || link.Parent.Layer() == nil {
		return 0, nil
	}
	below, err := link.Parent.Alone().Map(nil, off, view.RegionSize)
	if err != nil {
		return 0, err
	}
	own, err := link.Layer.Extents(nil, off, view.RegionSize)
	return hiddenBytes(below, own), err
}

// hiddenBytes is how much data of below lies where above maps something, both being
// in order and without gaps. Map gives zeros past a layer's size, so what a shorter
// layer cuts off is hidden too (M2).
func hiddenBytes(below, above []extent.Extent) (total int64) {
	i := 0
	for _, e := range below {
		if e.Kind != extent.Data && e.Kind != extent.Compressed {
			continue
		}
		for i < len(above) && above[i].End() <= e.Start {
			i++
		}
		for k := i; k < len(above) && above[k].Start < e.End(); k++ {
			if above[k].Kind != extent.Unallocated && above[k].Kind != extent.Damaged {
				total += min(e.End(), above[k].End()) - max(e.Start, above[k].Start)
			}
		}
	}
	return total
}
