package manifest

import (
	"slices"
)

// CanMerge says whether an unnamed layer can be merged with the one that
// stands on it. A leaf that was set aside counts as standing on it.
func (m *Manifest) CanMerge(l *Layer) bool {
	if l.Name != "" || l.ID == m.Leaf || l.ID == m.Base || l.ID == m.SetAside {
		return false
	}
	children := m.Children(l.ID)
	return len(children) == 1 && !children[0].Foreign && !m.Pinned()[l.ID]
}

// Mergeable lists the layers that can be merged.
func (m *Manifest) Mergeable() map[string]bool {
	ids := make(map[string]bool)
	for _, l := range m.Layers {
		if m.CanMerge(l) {
			ids[l.ID] = true
		}
	}
	return ids
}

// QueueMerge records a merge for a layer that can be merged and is not in known; those of first
// come before the others. It returns false when there is none, or a job is recorded already. Of
// several layers that stand on each other it takes the one that MergeFirst chooses by cost.
func (m *Manifest) QueueMerge(known map[string]bool, cost MergeCost, first ...*Layer) bool {
	if m.Job != nil {
		return false
	}
	for _, l := range slices.Concat(first, m.Layers) {
		if m.Layer(l.ID) == l && m.CanMerge(l) && !known[l.ID] {
			m.RecordJob(DeleteJob, m.MergeFirst(l, known, cost).ID)
			return true
		}
	}
	return false
}

// MergeCost says of a layer how many bytes it maps, and whether a merge can write it.
type MergeCost func(l *Layer) (own int64, writable bool)

// MergeFirst is where to begin with a run of layers that can be merged, of which l
// is one. All of them end in one file: that of the layer which holds the most, into
// which those above it move down, one after the other, and then those below it up.
// Each byte is copied once at most. (From the bottom up, layer by layer, those of the
// lowest would be copied again with each merge.)
func (m *Manifest) MergeFirst(l *Layer, known map[string]bool, cost MergeCost) *Layer {
	inRun := func(l *Layer) bool { return l != nil && m.CanMerge(l) && !known[l.ID] }
	top := l
	for above := m.Children(top.ID)[0]; inRun(above); above = m.Children(top.ID)[0] {
		top = above
	}
	if top == l && !inRun(m.Layer(l.Parent)) {
		return l // nothing to choose
	}
	most, first := int64(0), top
	for at := top; inRun(at); at = m.Layer(at.Parent) {
		if own, writable := cost(at); writable && own > most {
			most, first = own, at
		}
	}
	// What stands on the run takes all of it when it holds more; the leaf also when
	// moving it would not be worth what that costs its writers (chooseDirection).
	into := m.Children(top.ID)[0]
	if own, _ := cost(into); own >= most || into.ID == m.Leaf && own >= most/2 {
		return top
	}
	return first
}

// JobHasWork says whether the job of a valid manifest has something to do.
func (m *Manifest) JobHasWork() bool {
	l := m.Layer(m.Job.Layer)
	if m.Job.Kind == FlattenJob {
		return l.Parent != "" && !l.Foreign
	}
	return m.CanMerge(l)
}
