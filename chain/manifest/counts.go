package manifest

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
)

// Counts are the counts of a frozen layer in chain.json, and a digest of all
// that they were counted in: the fingerprints of the layer and of all below it.
// Whatever changes one of these files, this varve, another one or accept, gives
// another digest, and the counts are not believed any more.
type Counts struct {
	Own  int64 // bytes that the layer maps
	View int64 // bytes of its view that are data
	// Hides is how many bytes of data of the layer directly below it hides; negative
	// where it was not counted.
	Hides int64
	Of    string
}

func (s *Counts) own() *int64 {
	if s == nil {
		return nil
	}
	return &s.Own
}

func (s *Counts) view() *int64 {
	if s == nil {
		return nil
	}
	return &s.View
}

func (s *Counts) hides() *int64 {
	if s == nil || s.Hides < 0 {
		return nil
	}
	return &s.Hides
}

func (s *Counts) of() *string {
	if s == nil {
		return nil
	}
	return &s.Of
}

// countsFrom makes them of what chain.json says; nil for less than all, but an older
// varve did not count what a layer hides.
func countsFrom(own, view, hides *int64, of *string) *Counts {
	if own == nil || view == nil || of == nil || *own < 0 || *view < 0 || *of == "" {
		return nil
	}
	s := &Counts{Own: *own, View: *view, Hides: -1, Of: *of}
	if hides != nil && *hides >= 0 {
		s.Hides = *hides
	}
	return s
}

// CountedIn gives the digests of all chains of m, by layer id; none for the leaf and
// where a layer is being written.
func (m *Manifest) CountedIn() map[string]string {
	byID := make(map[string]*Layer, len(m.Layers))
	for _, l := range m.Layers {
		byID[l.ID] = l
	}
	digests := make(map[string]string, len(m.Layers))
	for _, l := range m.Layers {
		var path []*Layer
		for at := l; at != nil; at = byID[at.Parent] {
			if _, known := digests[at.ID]; known {
				break
			}
			path = append(path, at)
		}
		for i := len(path) - 1; i >= 0; i-- {
			digests[path[i].ID] = m.chainDigest(path[i], digests)
		}
	}
	return digests
}

func (m *Manifest) chainDigest(l *Layer, digests map[string]string) string {
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
