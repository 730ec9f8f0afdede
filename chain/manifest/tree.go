package manifest

import (
	"fmt"

	"varve/chain/refusal"
)

// Layer is the layer with an id, or nil.
func (m *Manifest) Layer(id string) *Layer {
	for _, l := range m.Layers {
		if l.ID == id {
			return l
		}
	}
	return nil
}

// ByName is the layer with a name, or nil; "" names none.
func (m *Manifest) ByName(name string) *Layer {
	if name == "" {
		return nil
	}
	for _, l := range m.Layers {
		if l.Name == name {
			return l
		}
	}
	return nil
}

// Snapshot is the layer with a name, the base included. ErrInvalid for what can be no name,
// ErrNotExist where no layer has it.
func (m *Manifest) Snapshot(name string) (*Layer, error) {
	if name != BaseName {
		if err := CheckName(name); err != nil {
			return nil, err
		}
	}
	rec := m.ByName(name)
	if rec == nil {
		return nil, fmt.Errorf("snapshot %s: %w", name, refusal.ErrNotExist)
	}
	return rec, nil
}

// Children are the layers whose backing is the layer with an id, in the order
// of the manifest. Children("") are the bottom ones.
func (m *Manifest) Children(id string) []*Layer {
	var found []*Layer
	for _, l := range m.Layers {
		if l.Parent == id {
			found = append(found, l)
		}
	}
	return found
}

// Chain is the layer with an id and all its backing layers, top first; nil
// when there is no such layer. It ends at a missing parent or a loop, both of
// which validate refuses.
func (m *Manifest) Chain(id string) []*Layer {
	byID := make(map[string]*Layer, len(m.Layers))
	for _, l := range m.Layers {
		byID[l.ID] = l
	}
	var chain []*Layer
	for l := byID[id]; l != nil && len(chain) < len(m.Layers); l = byID[l.Parent] {
		chain = append(chain, l)
	}
	return chain
}

// Above are all layers that have the layer with an id in their chain, itself
// not among them, in the order of the manifest.
func (m *Manifest) Above(id string) []*Layer {
	byParent := make(map[string][]*Layer, len(m.Layers))
	for _, l := range m.Layers {
		byParent[l.Parent] = append(byParent[l.Parent], l)
	}
	reached := map[string]bool{id: true}
	for queue := []string{id}; len(queue) > 0; queue = queue[1:] {
		for _, l := range byParent[queue[0]] {
			if !reached[l.ID] {
				reached[l.ID] = true
				queue = append(queue, l.ID)
			}
		}
	}
	var found []*Layer
	for _, l := range m.Layers {
		if l.ID != id && reached[l.ID] {
			found = append(found, l)
		}
	}
	return found
}

// State says what a layer is in the tree.
func (m *Manifest) State(l *Layer) State {
	switch {
	case l.ID == m.Leaf:
		return StateLeaf
	case l.ID == m.Base:
		return StateBase
	case l.Name == "":
		return StateUnnamed
	default:
		return StateFrozen
	}
}

// StandsOnNamed says that what a layer stands on can be had by name. Else the layer
// alone keeps it: a merge downwards that was cancelled may have moved all that it held.
func (m *Manifest) StandsOnNamed(l *Layer) bool {
	parent := m.Layer(l.Parent)
	return parent == nil || parent.Name != "" || parent.ID == m.Base
}

// Pinned are the ids of all layers that clones read: nil where there are none. No
// merge writes or removes them, and none of them is flattened.
func (m *Manifest) Pinned() map[string]bool {
	if len(m.Clones) == 0 {
		return nil
	}
	ids := make(map[string]bool)
	for _, c := range m.Clones {
		for _, l := range m.Chain(c.Layer) {
			ids[l.ID] = true
		}
	}
	return ids
}

// ClonesOf are the disks that were cloned from a layer.
func (m *Manifest) ClonesOf(id string) []string {
	disks := []string{}
	for _, c := range m.Clones {
		if c.Layer == id {
			disks = append(disks, c.Disk)
		}
	}
	return disks
}
