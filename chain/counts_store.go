package chain

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
)

// storedCounts are the counts of a frozen layer in chain.json, and a digest of all
// that they were counted in: the fingerprints of the layer and of all below it.
// Whatever changes one of these files, this varve, another one or accept, gives
// another digest, and the counts are not believed any more.
type storedCounts struct {
	Own  int64 // bytes that the layer maps
	View int64 // bytes of its view that are data
	// Hides is how many bytes of data of the layer directly below it hides; negative
	// where it was not counted.
	Hides int64
	Of    string
}

func (s *storedCounts) own() *int64 {
	if s == nil {
		return nil
	}
	return &s.Own
}

func (s *storedCounts) view() *int64 {
	if s == nil {
		return nil
	}
	return &s.View
}

func (s *storedCounts) hides() *int64 {
	if s == nil || s.Hides < 0 {
		return nil
	}
	return &s.Hides
}

func (s *storedCounts) of() *string {
	if s == nil {
		return nil
	}
	return &s.Of
}

// countsFrom makes them of what chain.json says; nil for less than all, but an older
// varve did not count what a layer hides.
func countsFrom(own, view, hides *int64, of *string) *storedCounts {
	if own == nil || view == nil || of == nil || *own < 0 || *view < 0 || *of == "" {
		return nil
	}
	s := &storedCounts{Own: *own, View: *view, Hides: -1, Of: *of}
	if hides != nil && *hides >= 0 {
		s.Hides = *hides
	}
	return s
}

// countedIn gives the digests of all chains of m, by layer id; none for the leaf and
// where a layer is being written.
func (m *manifest) countedIn() map[string]string {
	byID := make(map[string]*layerRecord, len(m.Layers))
	for _, l := range m.Layers {
		byID[l.ID] = l
	}
	digests := make(map[string]string, len(m.Layers))
	for _, l := range m.Layers {
		var path []*layerRecord
		for at := l; at != nil; at = byID[at.Parent] {
			if _, known := digests[at.ID]; known {
				break
			}
			path = append(path, at)
		}
		for i := len(path) - 1; i >= 0; i-- {
			digests[path[i].ID] = chainDigest(m, path[i], digests)
		}
	}
	return digests
}

func chainDigest(m *manifest, l *layerRecord, digests map[string]string) string {
	below := digests[l.Parent]
	if l.ID == m.Leaf || l.Writing || l.Fingerprint == nil || l.Parent != "" && below == "" {
		return ""
	}
	sum := sha256.New()
	var numbers [16]byte
	binary.BigEndian.PutUint64(numbers[:], uint64(l.Fingerprint.Size))
	binary.BigEndian.PutUint64(numbers[8:], uint64(l.Fingerprint.ModTime))
	sum.Write(numbers[:]) // a hash's Write never fails
	sum.Write([]byte(l.Fingerprint.Digest))
	sum.Write([]byte(below))
	return hex.EncodeToString(sum.Sum(nil)[:16])
}

// believeCounts takes over the counts of a chain.json whose fingerprints were just
// found right.
func (d *Disk) believeCounts() {
	in := d.manifest.countedIn()
	for _, l := range d.manifest.Layers {
		if s, n := l.Counts, d.nodes[l.ID]; s != nil && s.Of == in[l.ID] && n.frozen() {
			n.own.set(n.layer(), n.own.forgotten.Load(), s.Own)
			n.view.set(n.layer(), n.view.forgotten.Load(), s.View)
			if s.Hides >= 0 {
				n.hides.set(n.layer(), n.hides.forgotten.Load(), s.Hides)
			}
		}
	}
}

// noteCounts puts into m, which is about to be committed, the counts that are known,
// and takes out those that are not right any more. Only of layers that stand in m
// as in the manifest in force, on the same files, nothing of them being written: of
// others it is not sure when they were counted. Called with opMu held.
func (d *Disk) noteCounts(m *manifest) {
	in, before := m.countedIn(), d.manifest.countedIn()
	damaged := slices.ContainsFunc(m.Layers, func(l *layerRecord) bool { return d.nodes[l.ID] != nil && d.nodes[l.ID].damaged() })
	for _, l := range m.Layers {
		of := in[l.ID]
		if l.Counts != nil && (of == "" || l.Counts.Of != of) {
			l.Counts = nil
		}
		if damaged && d.pathDamaged(m, l) {
			l.Counts = nil // the next mount finds the damage when it counts again
			continue
		}
		if of == "" || l.Counts != nil && l.Counts.Hides >= 0 || before[l.ID] != of {
			continue
		}
		if n := d.nodes[l.ID]; n != nil && n.frozen() {
			own, ownKnown := n.own.get(n.layer())
			view, viewKnown := n.view.get(n.layer())
			hides, hidesKnown := n.hides.get(n.layer())
			if !hidesKnown {
				hides = -1
			}
			if ownKnown && viewKnown && (l.Counts == nil || hidesKnown) {
				l.Counts = &storedCounts{Own: own, View: view, Hides: hides, Of: of}
			}
		}
	}
}

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
	d.noteCounts(m)
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

// CountAll returns when all that can be counted is: Status and the AllocatedBytes
// then tell it. Errors: those of reading the tables, and ctx's cause.
func (d *Disk) CountAll(ctx context.Context) error {
	for range 2 { // the pass under way may have begun before what we want
		p := d.counter.start()
		if p == nil {
			return nil
		}
		d.counter.waiting.Add(1)
		select {
		case <-p.ended:
		case <-ctx.Done():
		}
		d.counter.waiting.Add(-1)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if p.err != nil {
			return p.err
		}
	}
	return nil
}
