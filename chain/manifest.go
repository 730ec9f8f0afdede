package chain

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// ErrCorrupt says that a disk's chain.json contradicts itself or cannot be
// read as one.
var ErrCorrupt = errors.New("chain.json is corrupt")

// ErrNewer says that a chain.json was written by a newer varve.
var ErrNewer = errors.New("made by a newer varve")

const (
	// manifestVersion is the version of chain.json that this varve writes and
	// the highest that it reads.
	manifestVersion = 1
	// layersDir is the directory of a disk directory that holds its own layers.
	layersDir = "layers"
	// baseName is the name of the base's view, leafName what names the leaf in
	// commands. No snapshot has either.
	baseName = "base"
	leafName = "leaf"
)

// manifest is chain.json: the tree of a disk's layers. It is edited as a
// clone, which is committed and only then put in the place of the one in
// memory. Not safe for concurrent use.
type manifest struct {
	Version   int
	Next      int       // number of the next file and layer; none is used twice (M15)
	Leaf      string    // id of the writable layer
	SetAside  string    // id of the unnamed layer that a revert left; "" for none
	BlankSize int64     // guest bytes of a blank disk at its creation; 0 when there is a base
	Base      string    // id of the base; "" on a blank disk
	Modified  time.Time // last write of disk.raw
	Layers    []*layerRecord
	Job       *jobRecord     // nil for none
	NextJob   int            // number of the next job
	Clones    []*cloneRecord // never changed in place
	// MountOptions and Mountpoint are those of the last writable mount, as RememberMount
	// was told them; nil and "" where it was not.
	MountOptions *string
	Mountpoint   string
	// Removing are files of layers that are gone, as in layerRecord.File: they
	// are unlinked after the commit that took the layers out, and by the next
	// Open when a crash came between.
	Removing []string

	extra extraFields
}

// layerRecord is one layer in chain.json.
type layerRecord struct {
	ID          string // "%06d" of its number
	Name        string // "" for an unnamed layer and for the leaf
	Parent      string // id of the backing layer; "" for none
	Format      string // raw or qcow2, decided when the layer entered
	File        string // relative to the disk directory; absolute for a foreign one
	Foreign     bool
	Created     time.Time
	Frozen      time.Time     // zero for the leaf
	Size        int64         // guest bytes; 0 for the leaf, whose header decides
	Held        bool          // cannot be deleted until it is released
	Writing     bool          // being written; not judged (M16)
	Fingerprint *fingerprint  // of the leaf: as it was when it was last closed
	Counts      *storedCounts // of a frozen layer; nil when not counted. Never changed in place

	extra extraFields
}

// Kinds and directions of a job.
const (
	jobDelete  = "delete"
	jobFlatten = "flatten"
	jobMerge   = "merge"

	directionUp   = "up"
	directionDown = "down"
)

// jobRecord is the job under way in chain.json. How far it is stands nowhere:
// a job that goes on looks at the tables again (M13).
type jobRecord struct {
	ID        string
	Kind      string // jobDelete, jobFlatten or jobMerge
	Layer     string // id of the layer that the job is about
	Into      string // id of the layer that is written; "" where that is not known yet
	Direction string // directionUp, directionDown or ""

	extra extraFields
}

// cloneRecord is another disk that was made on a snapshot of this one and reads its
// files, and those of all layers below it: none of them is written, moved or removed
// while it stands (pinned).
type cloneRecord struct {
	Layer string // id of the snapshot's layer, one of our own
	Disk  string // absolute path of the other disk directory

	extra extraFields
}

// layerID is the id of the layer with a number.
func layerID(number int) string { return fmt.Sprintf("%06d", number) }

// layerFile is the name, relative to the disk directory, of the file with a
// number.
func layerFile(number int) string { return layersDir + "/" + layerID(number) + ".qcow2" }

// layerFileNumber is the number in a name that layerFile gives; ok is false
// for every other name.
func layerFileNumber(name string) (number int, ok bool) {
	digits, found := strings.CutPrefix(name, layersDir+"/")
	if !found {
		return 0, false
	}
	if digits, found = strings.CutSuffix(digits, ".qcow2"); !found {
		return 0, false
	}
	return layerNumber(digits)
}

// layerNumber is the number of a layer id; ok is false for what layerID gives
// for no positive number.
func layerNumber(id string) (number int, ok bool) {
	if len(id) < 6 || len(id) > 9 {
		return 0, false
	}
	for _, c := range []byte(id) {
		if c < '0' || c > '9' {
			return 0, false
		}
		number = number*10 + int(c-'0')
	}
	return number, number > 0 && layerID(number) == id
}

// path is the layer's file as an absolute path.
func (l *layerRecord) path(dir string) string {
	if l.Foreign {
		return l.File
	}
	return filepath.Join(dir, l.File)
}

// label names the layer for people: by its name where it has one.
func (l *layerRecord) label() string {
	if l.Name != "" {
		return l.Name
	}
	return "layer " + l.ID
}

// clone copies the manifest so deeply that no change of the copy is seen in
// the original.
func (m *manifest) clone() *manifest {
	c := *m
	c.extra = m.extra.clone()
	c.Removing = slices.Clone(m.Removing)
	c.Layers = make([]*layerRecord, len(m.Layers))
	for i, l := range m.Layers {
		c.Layers[i] = l.clone()
	}
	if m.Job != nil {
		job := *m.Job
		job.extra = m.Job.extra.clone()
		c.Job = &job
	}
	c.Clones = slices.Clone(m.Clones) // never changed in place
	return &c
}

func (l *layerRecord) clone() *layerRecord {
	c := *l
	c.extra = l.extra.clone()
	c.Fingerprint = l.Fingerprint.clone()
	return &c
}

// layer is the layer with an id, or nil.
func (m *manifest) layer(id string) *layerRecord {
	for _, l := range m.Layers {
		if l.ID == id {
			return l
		}
	}
	return nil
}

// byName is the layer with a name, or nil; "" names none.
func (m *manifest) byName(name string) *layerRecord {
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

// children are the layers whose backing is the layer with an id, in the order
// of the manifest. children("") are the bottom ones.
func (m *manifest) children(id string) []*layerRecord {
	var found []*layerRecord
	for _, l := range m.Layers {
		if l.Parent == id {
			found = append(found, l)
		}
	}
	return found
}

// chainOf is the layer with an id and all its backing layers, top first; nil
// when there is no such layer. It ends at a missing parent or a loop, both of
// which validate refuses.
func (m *manifest) chainOf(id string) []*layerRecord {
	byID := make(map[string]*layerRecord, len(m.Layers))
	for _, l := range m.Layers {
		byID[l.ID] = l
	}
	var chain []*layerRecord
	for l := byID[id]; l != nil && len(chain) < len(m.Layers); l = byID[l.Parent] {
		chain = append(chain, l)
	}
	return chain
}

// above are all layers that have the layer with an id in their chain, itself
// not among them, in the order of the manifest.
func (m *manifest) above(id string) []*layerRecord {
	byParent := make(map[string][]*layerRecord, len(m.Layers))
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
	var found []*layerRecord
	for _, l := range m.Layers {
		if l.ID != id && reached[l.ID] {
			found = append(found, l)
		}
	}
	return found
}

// add puts a layer at the end of the list.
func (m *manifest) add(l *layerRecord) { m.Layers = append(m.Layers, l) }

// remove takes the layer with an id out of the list.
func (m *manifest) remove(id string) {
	kept := make([]*layerRecord, 0, len(m.Layers))
	for _, l := range m.Layers {
		if l.ID != id {
			kept = append(kept, l)
		}
	}
	m.Layers = kept
}

// newNumber takes the next number.
func (m *manifest) newNumber() int {
	number := m.Next
	m.Next++
	return number
}

// extraFields are fields of a JSON object that this varve does not know. They
// are kept when the object is rewritten.
type extraFields map[string]json.RawMessage

func (e extraFields) clone() extraFields {
	if e == nil {
		return nil
	}
	c := make(extraFields, len(e))
	for name, value := range e {
		c[name] = value // never changed in place
	}
	return c
}
