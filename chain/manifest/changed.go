package manifest

import (
	"fmt"
	"log/slog"
	"strings"

	"varve/chain/parallel"
	"varve/chain/refusal"
	"varve/chain/shellword"
	"varve/overlay/hostfs"
)

// CheckFingerprints compares the files of all frozen layers, by layer id, with
// what chain.json says of them. Layers that are being written are not judged
// (M16). The error wraps ErrChanged and names the layer, what changed, the
// views that it falsifies and the way out (D21). The image locks must be held.
func (m *Manifest) CheckFingerprints(log *slog.Logger, dir string, files map[string]hostfs.File, workers int) error {
	taken, err := m.takeFingerprints(files, workers)
	if err != nil {
		return err
	}
	var first error
	var others []string
	for i, l := range m.Layers {
		now := taken[i]
		if now == nil {
			continue
		}
		changes, noted := l.Fingerprint.Compare(now)
		if len(noted) > 0 {
			log.Info("a layer's file was moved or restored, or cannot be read everywhere", "layer", l.Label(), "file", l.Path(dir), "noted", strings.Join(noted, ", "))
		}
		switch {
		case len(changes) == 0:
		case first == nil:
			first = m.changedError(dir, l, changes)
		default:
			others = append(others, l.Label())
		}
	}
	if len(others) > 0 {
		return fmt.Errorf("%w (changed too: %s)", first, strings.Join(others, ", "))
	}
	return first
}

// takeFingerprints takes those of all layers that are judged, in the order of the
// manifest; nil for the others.
func (m *Manifest) takeFingerprints(files map[string]hostfs.File, workers int) ([]*Fingerprint, error) {
	taken := make([]*Fingerprint, len(m.Layers))
	return taken, parallel.Do(workers, len(taken), func(i int) (err error) {
		l := m.Layers[i]
		if l.ID == m.Leaf || l.Writing {
			return nil
		}
		f := files[l.ID]
		if f == nil {
			return fmt.Errorf("check %s: its file is not open", l.Label())
		}
		if taken[i], err = TakeFingerprint(f, l.Format); err != nil {
			return fmt.Errorf("check %s: %w", l.Label(), err)
		}
		return nil
	})
}

// changedError says that a layer's file is not the one that it was.
func (m *Manifest) changedError(dir string, l *Layer, changes []string) error {
	return fmt.Errorf("%s (%s) %w: %s; affected: %s; %s",
		l.Label(), l.Path(dir), refusal.ErrChanged, strings.Join(changes, ", "), m.FalsifiedBy(l), l.AcceptWords(dir))
}

// FalsifiedBy lists the views that a changed layer falsifies.
func (m *Manifest) FalsifiedBy(l *Layer) string {
	var views []string
	for _, other := range append([]*Layer{l}, m.Above(l.ID)...) {
		switch {
		case other.ID == m.Leaf:
			views = append(views, "the leaf")
		case other.Name != "":
			views = append(views, other.Name)
		}
	}
	if len(views) == 0 {
		return "nothing that has a name"
	}
	return strings.Join(views, ", ")
}

// AcceptWords is the way out of a changed layer.
func (l *Layer) AcceptWords(dir string) string {
	return fmt.Sprintf("put the file back as it was, or, if the change is wanted: varve accept %s %s", shellword.Quote(dir), shellword.Quote(l.Argument()))
}

// Argument is what a command calls a layer.
func (l *Layer) Argument() string {
	if l.Name != "" {
		return l.Name
	}
	return l.ID
}
