package figures

import (
	"varve/chain/manifest"
	"varve/chain/view"
)

// What a delete of a layer gives back on the host stands in the tables alone.
//
//	nothing stands on it      its file goes, with all that it takes
//	one layer stands on it    what that layer hides of its data; the rest moves there
//	several, or a foreign     nothing for now
//	file would be written
//
// How much data of the layer below each layer hides is counted with the other counts
// (pass.go), for a frozen layer once, and kept in chain.json.

// Frees is what a delete of each layer would give back, by layer id, of what the files
// take on the host: 0 where nothing can be deleted, none while it is not known. counted is
// false where counting would tell more.
func (f *Figures) Frees(m *manifest.Manifest, nodes map[string]*view.Node, host map[string]int64) (frees map[string]int64, counted bool) {
	frees, counted = make(map[string]int64, len(m.Layers)), true
	for _, l := range m.Layers {
		del := m.DeletionOf(l.ID)
		total := int64(0)
		for _, id := range del.Files {
			total += host[id]
		}
		if del.Merged != "" {
			x, c := nodes[del.Merged], nodes[del.Into]
			if x == nil || c == nil {
				continue
			}
			hidden, known, busy := f.Hidden(x, c)
			if x.Damaged() || c.Damaged() { // what its merge would free nobody knows
				continue
			}
			if !known {
				counted = counted && busy
				continue
			}
			// Data that is a hole of the file takes no space.
			total += min(hidden, host[del.Merged])
		}
		frees[l.ID] = total
	}
	return frees, counted
}

// Hidden is how many bytes of data of x the layer c, which stands on it, hides;
// of the leaf as it was at the last look; a leaf that is only read is counted as a
// frozen layer is. busy: it cannot be known before a job ends.
func (f *Figures) Hidden(x, c *view.Node) (bytes int64, known, busy bool) {
	l := c.Layer()
	if l == nil || c.Parent() != x || !x.Frozen() {
		return 0, false, true
	}
	if c != f.in.Leaf() || c.Frozen() {
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
