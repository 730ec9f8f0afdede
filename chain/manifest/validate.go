package manifest

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"varve/chain/refusal"
	"varve/overlay/qcow2"
)

// maxNameLength is the highest length, in bytes, of a backing file's name in a
// qcow2 header (qcow2 specification, "Header", backing_file_size).
const maxNameLength = 1023

// validate checks that the manifest does not contradict itself. Its error is
// one line and wraps ErrCorrupt.
func (m *Manifest) validate() error {
	if err := m.fault(); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil
}

func (m *Manifest) fault() error {
	if m.Version != CurrentVersion {
		return fmt.Errorf("version %d", m.Version)
	}
	if m.Next < 1 || m.Next > 1_000_000_000 {
		return fmt.Errorf("next number %d is out of range", m.Next)
	}
	if m.NextJob < 0 {
		return fmt.Errorf("next job number %d is negative", m.NextJob)
	}
	byID, err := m.index()
	if err != nil {
		return err
	}
	if err := m.treeFault(byID); err != nil {
		return err
	}
	if err := m.leafFault(byID); err != nil {
		return err
	}
	if err := m.baseFault(byID); err != nil {
		return err
	}
	for _, l := range m.Layers {
		if err := m.layerFault(l, byID); err != nil {
			return fmt.Errorf("%s: %w", l.ID, err)
		}
		if slices.Contains(m.Removing, l.File) {
			return fmt.Errorf("%s: its file %s is to be removed", l.ID, l.File)
		}
	}
	for _, file := range m.Removing {
		if number, ok := LayerFileNumber(file); !ok || number >= m.Next {
			return fmt.Errorf("the file %q, which is to be removed, is no layer's", file)
		}
	}
	if err := m.clonesFault(byID); err != nil {
		return err
	}
	return m.jobFault(byID)
}

// index maps ids to layers and checks that ids, names and files are unique.
func (m *Manifest) index() (map[string]*Layer, error) {
	byID := make(map[string]*Layer, len(m.Layers))
	names := make(map[string]string, len(m.Layers))
	files := make(map[string]string, len(m.Layers))
	for _, l := range m.Layers {
		if l == nil {
			return nil, fmt.Errorf("a layer is null")
		}
		if number, ok := layerNumber(l.ID); !ok {
			return nil, fmt.Errorf("%q is no layer id", l.ID)
		} else if number >= m.Next {
			return nil, fmt.Errorf("layer %s is not below the next number, %d", l.ID, m.Next)
		}
		if byID[l.ID] != nil {
			return nil, fmt.Errorf("layer %s is listed twice", l.ID)
		}
		byID[l.ID] = l
		if other, taken := names[l.Name]; taken && l.Name != "" {
			return nil, fmt.Errorf("layers %s and %s have the same name %q", other, l.ID, l.Name)
		}
		names[l.Name] = l.ID
		if other, taken := files[l.File]; taken {
			return nil, fmt.Errorf("layers %s and %s have the same file %q", other, l.ID, l.File)
		}
		files[l.File] = l.ID
	}
	return byID, nil
}

// treeFault checks that every parent exists and that no layer backs itself.
func (m *Manifest) treeFault(byID map[string]*Layer) error {
	for _, l := range m.Layers {
		if l.Parent != "" && byID[l.Parent] == nil {
			return fmt.Errorf("layer %s stands on layer %q, which is not there", l.ID, l.Parent)
		}
	}
	rooted := make(map[string]bool, len(m.Layers)) // known to reach a bottom
	for _, l := range m.Layers {
		onPath := map[string]bool{}
		for at := l; at != nil && !rooted[at.ID]; at = byID[at.Parent] {
			if onPath[at.ID] {
				return fmt.Errorf("layer %s stands on itself", at.ID)
			}
			onPath[at.ID] = true
		}
		for id := range onPath {
			rooted[id] = true
		}
	}
	return nil
}

func (m *Manifest) leafFault(byID map[string]*Layer) error {
	leaf := byID[m.Leaf]
	switch {
	case leaf == nil:
		return fmt.Errorf("the leaf %q is not there", m.Leaf)
	case leaf.Foreign:
		return fmt.Errorf("the leaf %s is a foreign file", m.Leaf)
	case leaf.Name != "":
		return fmt.Errorf("the leaf %s has a name, %q", m.Leaf, leaf.Name)
	}
	for _, l := range m.Layers {
		if l.Parent == m.Leaf {
			return fmt.Errorf("layer %s stands on the leaf %s", l.ID, m.Leaf)
		}
	}
	if m.SetAside == "" {
		return nil
	}
	aside := byID[m.SetAside]
	switch {
	case aside == nil:
		return fmt.Errorf("the leaf that was set aside, %q, is not there", m.SetAside)
	case aside == leaf:
		return fmt.Errorf("the leaf %s is also the one that was set aside", m.Leaf)
	case aside.Name != "" || aside.Foreign:
		return fmt.Errorf("the leaf that was set aside, %s, has a name or is foreign", m.SetAside)
	}
	return nil
}

func (m *Manifest) baseFault(byID map[string]*Layer) error {
	if m.Base == "" {
		if m.BlankSize <= 0 {
			return fmt.Errorf("a blank disk of %d bytes", m.BlankSize)
		}
		for _, l := range m.Layers {
			if l.Foreign {
				return fmt.Errorf("layer %s is foreign, but there is no base", l.ID)
			}
		}
		return nil
	}
	base := byID[m.Base]
	switch {
	case base == nil:
		return fmt.Errorf("the base %q is not there", m.Base)
	case !base.Foreign:
		return fmt.Errorf("the base %s is not foreign", m.Base)
	case base.Parent != "":
		return fmt.Errorf("the base %s stands on layer %s", m.Base, base.Parent)
	case base.Name != BaseName:
		return fmt.Errorf("the base %s has the name %q", m.Base, base.Name)
	case m.BlankSize != 0:
		return fmt.Errorf("a size of a blank disk, %d, but also a base", m.BlankSize)
	}
	return nil
}

func (m *Manifest) layerFault(l *Layer, byID map[string]*Layer) error {
	if l.Name != "" && l.ID != m.Base {
		if err := CheckName(l.Name); err != nil {
			return err
		}
	}
	if l.Format != qcow2.FormatRaw && l.Format != qcow2.FormatQcow2 {
		return fmt.Errorf("unknown format %q", l.Format)
	}
	if l.Size < 0 {
		return fmt.Errorf("a size of %d bytes", l.Size)
	}
	if l.Format == qcow2.FormatRaw && l.Parent != "" {
		return fmt.Errorf("a raw file cannot stand on layer %s", l.Parent)
	}
	if l.Held && (l.Name == "" || l.ID == m.Base) {
		return fmt.Errorf("a layer without a snapshot's name is held")
	}
	if l.Foreign {
		if parent := byID[l.Parent]; parent != nil && !parent.Foreign {
			return fmt.Errorf("a foreign file stands on the disk's own layer %s", l.Parent)
		}
		if l.Parent == "" && l.ID != m.Base {
			return fmt.Errorf("a foreign bottom that is not the base %s", m.Base)
		}
		if l.Writing {
			return fmt.Errorf("a foreign file is marked as being written")
		}
		if !filepath.IsAbs(l.File) {
			return fmt.Errorf("the foreign file %q has no absolute path", l.File)
		}
		if err := CheckPath(l.File); err != nil {
			return err
		}
	} else {
		number, ok := LayerFileNumber(l.File)
		if !ok {
			return fmt.Errorf("the file %q is not one of layers/NNNNNN.qcow2", l.File)
		}
		if number >= m.Next {
			return fmt.Errorf("the file %s is not below the next number, %d", l.File, m.Next)
		}
		if l.Format != qcow2.FormatQcow2 {
			return fmt.Errorf("the file %s has the format %s", l.File, l.Format)
		}
	}
	if l.ID != m.Leaf && l.Fingerprint == nil && !l.Writing {
		return fmt.Errorf("a frozen layer without a fingerprint")
	}
	if l.Fingerprint != nil {
		return l.Fingerprint.fault()
	}
	return nil
}

func (m *Manifest) clonesFault(byID map[string]*Layer) error {
	for _, c := range m.Clones {
		if c == nil {
			return fmt.Errorf("a clone is null")
		}
		l := byID[c.Layer]
		if l == nil || l.Foreign || l.Name == "" {
			return fmt.Errorf("the clone %q stands on layer %q, which is no snapshot of this disk", c.Disk, c.Layer)
		}
		if !filepath.IsAbs(c.Disk) {
			return fmt.Errorf("the clone %q has no absolute path", c.Disk)
		}
		if err := CheckPath(c.Disk); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manifest) jobFault(byID map[string]*Layer) error {
	j := m.Job
	if j == nil {
		return nil
	}
	if j.ID == "" {
		return fmt.Errorf("a job without an id")
	}
	if !j.Kind.known() {
		return fmt.Errorf("job %s has the unknown kind %q", j.ID, j.Kind)
	}
	if !j.Direction.known() {
		return fmt.Errorf("job %s has the unknown direction %q", j.ID, j.Direction)
	}
	if byID[j.Layer] == nil {
		return fmt.Errorf("job %s is about layer %q, which is not there", j.ID, j.Layer)
	}
	if j.Into != "" {
		switch into := byID[j.Into]; {
		case into == nil:
			return fmt.Errorf("job %s writes layer %q, which is not there", j.ID, j.Into)
		case into.Foreign:
			return fmt.Errorf("job %s writes the foreign layer %s", j.ID, j.Into)
		}
	}
	return nil
}

// CheckPath says whether a path can stand in a header and in a line of text.
func CheckPath(path string) error {
	switch {
	case len(path) > maxNameLength:
		return refusal.Invalidf("the path %.60q… has %d bytes; a qcow2 header holds %d", path, len(path), maxNameLength)
	case !utf8.ValidString(path):
		return refusal.Invalidf("the path %q is not UTF-8", path)
	case strings.ContainsAny(path, "\n\r\x00"):
		return refusal.Invalidf("the path %q has a line break or a NUL", path)
	}
	return nil
}
