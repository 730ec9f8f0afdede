package manifest

// Deletion is what a delete of a layer takes away.
type Deletion struct {
	Files []string // layers whose files go
	// Merged is a layer that is merged with the one that stands on it, Into; "" for
	// none.
	Merged, Into string
}

// DeletionOf says what a delete of a layer would do, or of an unnamed one the
// command that goes on with it.
func (m *Manifest) DeletionOf(id string) (del Deletion) {
	rec := m.Layer(id)
	if rec == nil || rec.Foreign || id == m.Leaf || id == m.Base {
		return del
	}
	on := m.Children(id)
	if len(on) == 1 && !on[0].Foreign {
		del.Merged, del.Into = id, on[0].ID
	}
	if len(on) > 0 {
		return del
	}
	// Unnamed layers that nothing else keeps go with it, as in RemoveDead and
	// QueueMerge.
	for {
		del.Files = append(del.Files, id)
		below := m.Layer(rec.Parent)
		if below == nil || below.Foreign || below.Name != "" || below.ID == m.Base || below.ID == m.SetAside {
			return del
		}
		var rest []*Layer
		for _, l := range m.Children(below.ID) {
			if l.ID != id {
				rest = append(rest, l)
			}
		}
		if len(rest) == 1 && !rest[0].Foreign {
			del.Merged, del.Into = below.ID, rest[0].ID
		}
		if len(rest) > 0 {
			return del
		}
		rec, id = below, below.ID
	}
}
