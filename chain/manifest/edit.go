package manifest

import (
	"slices"
	"strconv"
)

// Copy copies the manifest so deeply that no change of the copy is seen in
// the original.
func (m *Manifest) Copy() *Manifest {
	c := *m
	c.extra = m.extra.clone()
	c.Removing = slices.Clone(m.Removing)
	c.Layers = make([]*Layer, len(m.Layers))
	for i, l := range m.Layers {
		c.Layers[i] = l.Copy()
	}
	if m.Job != nil {
		job := *m.Job
		job.extra = m.Job.extra.clone()
		c.Job = &job
	}
	c.Clones = slices.Clone(m.Clones) // never changed in place
	return &c
}

// Copy copies the layer as Manifest.Copy does.
func (l *Layer) Copy() *Layer {
	c := *l
	c.extra = l.extra.clone()
	c.Fingerprint = l.Fingerprint.copy()
	return &c
}

// NewNumber takes the next number.
func (m *Manifest) NewNumber() int {
	number := m.Next
	m.Next++
	return number
}

// Add puts a layer at the end of the list.
func (m *Manifest) Add(l *Layer) { m.Layers = append(m.Layers, l) }

// Remove takes the layer with an id out of the list.
func (m *Manifest) Remove(id string) {
	kept := make([]*Layer, 0, len(m.Layers))
	for _, l := range m.Layers {
		if l.ID != id {
			kept = append(kept, l)
		}
	}
	m.Layers = kept
}

// RemoveWithFile takes a layer out of m; its file, unless foreign, is to be
// unlinked after the commit.
func (m *Manifest) RemoveWithFile(l *Layer) {
	m.Remove(l.ID)
	if !l.Foreign {
		m.Removing = append(m.Removing, l.File)
	}
}

// RemoveDead takes out of m the unnamed layers that nothing stands on any more.
func (m *Manifest) RemoveDead() (gone []*Layer) {
	for again := true; again; {
		again = false
		for _, l := range m.Layers {
			if l.Name == "" && l.ID != m.Leaf && l.ID != m.SetAside && l.ID != m.Base && len(m.Children(l.ID)) == 0 {
				m.RemoveWithFile(l)
				gone = append(gone, l)
				again = true
				break
			}
		}
	}
	return gone
}

// MarkWriting marks the layers of ours among recs as being written (M16), and returns their ids.
func (m *Manifest) MarkWriting(recs ...*Layer) []string {
	var ids []string
	for _, r := range recs {
		if r.Foreign {
			continue
		}
		r.Writing = true
		if r.ID != m.Leaf {
			r.Fingerprint = nil
		}
		ids = append(ids, r.ID)
	}
	return ids
}

// RecordJob puts a new job into m, which is to be committed, and returns its id.
func (m *Manifest) RecordJob(kind JobKind, layer string) string {
	m.NextJob = max(1, m.NextJob)
	m.Job = &Job{ID: strconv.Itoa(m.NextJob), Kind: kind, Layer: layer}
	m.NextJob++
	return m.Job.ID
}
