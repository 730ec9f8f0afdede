package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"varve/overlay/extent"
	"varve/overlay/qcow2"
)

// ErrCorrupt says that a disk's chain.json contradicts itself or cannot be
// read as one.
var ErrCorrupt = errors.New("chain.json is corrupt")

// ErrNewer says that a chain.json was written by a newer varve.
var ErrNewer = errors.New("made by a newer varve")

const (
	// CurrentVersion is the version of chain.json that this varve writes and
	// the highest that it reads.
	CurrentVersion = 1
	// LayersDir is the directory of a disk directory that holds its own layers.
	LayersDir = "layers"
	// BaseName is the name of the base's view, LeafName what names the leaf in
	// commands. No snapshot has either.
	BaseName = "base"
	LeafName = "leaf"
)

// Manifest is chain.json: the tree of a disk's layers. It is edited as a
// copy, which is committed and only then put in the place of the one in
// memory. Not safe for concurrent use.
type Manifest struct {
	Version   int
	Next      int       // number of the next file and layer; none is used twice (M15)
	Leaf      string    // id of the writable layer
	SetAside  string    // id of the unnamed layer that a revert left; "" for none
	BlankSize int64     // guest bytes of a blank disk at its creation; 0 when there is a base
	Base      string    // id of the base; "" on a blank disk
	Modified  time.Time // last write of disk.raw
	Layers    []*Layer
	Job       *Job     // nil for none
	NextJob   int      // number of the next job
	Clones    []*Clone // never changed in place
	// MountOptions and Mountpoint are those of the last writable mount, as RememberMount
	// was told them; nil and "" where it was not.
	MountOptions *string
	Mountpoint   string
	// Removing are files of layers that are gone, as in Layer.File: they
	// are unlinked after the commit that took the layers out, and by the next
	// Open when a crash came between.
	Removing []string

	extra extraFields
}

// Layer is one layer in chain.json.
type Layer struct {
	ID          string // "%06d" of its number
	Name        string // "" for an unnamed layer and for the leaf
	Parent      string // id of the backing layer; "" for none
	Format      string // raw or qcow2, decided when the layer entered
	File        string // relative to the disk directory; absolute for a foreign one
	Foreign     bool
	Created     time.Time
	Frozen      time.Time    // zero for the leaf
	Size        int64        // guest bytes; 0 for the leaf, whose header decides
	Held        bool         // cannot be deleted until it is released
	Writing     bool         // being written; not judged (M16)
	Fingerprint *Fingerprint // of the leaf: as it was when it was last closed
	Counts      *Counts      // of a frozen layer; nil when not counted. Never changed in place

	extra extraFields
}

// Job is the job under way in chain.json. How far it is stands nowhere:
// a job that goes on looks at the tables again (M13).
type Job struct {
	ID        string
	Kind      JobKind
	Layer     string // id of the layer that the job is about
	Into      string // id of the layer that is written; "" where that is not known yet
	Direction Direction

	extra extraFields
}

// Clone is another disk that was made on a snapshot of this one and reads its
// files, and those of all layers below it: none of them is written, moved or removed
// while it stands (Pinned).
type Clone struct {
	Layer string // id of the snapshot's layer, one of our own
	Disk  string // absolute path of the other disk directory

	extra extraFields
}

// LayerID is the id of the layer with a number.
func LayerID(number int) string { return fmt.Sprintf("%06d", number) }

// LayerFile is the name, relative to the disk directory, of the file with a
// number.
func LayerFile(number int) string { return LayersDir + "/" + LayerID(number) + ".qcow2" }

// LayerFileNumber is the number in a name that LayerFile gives; ok is false
// for every other name.
func LayerFileNumber(name string) (number int, ok bool) {
	digits, found := strings.CutPrefix(name, LayersDir+"/")
	if !found {
		return 0, false
	}
	if digits, found = strings.CutSuffix(digits, ".qcow2"); !found {
		return 0, false
	}
	return layerNumber(digits)
}

// layerNumber is the number of a layer id; ok is false for what LayerID gives
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
	return number, number > 0 && LayerID(number) == id
}

// Path is the layer's file as an absolute path.
func (l *Layer) Path(dir string) string {
	if l.Foreign {
		return l.File
	}
	return filepath.Join(dir, l.File)
}

// Label names the layer for people: by its name where it has one.
func (l *Layer) Label() string {
	if l.Name != "" {
		return l.Name
	}
	return "layer " + l.ID
}

// BackingName is how the header of a layer in layers/ names l as its backing file; both are ""
// for nil.
func (l *Layer) BackingName() (name, format string) {
	switch {
	case l == nil:
		return "", ""
	case l.Foreign:
		return l.File, l.Format
	default:
		return filepath.Base(l.File), l.Format
	}
}

// wholeSectors rounds the sizes in a manifest as those of views are. An earlier version
// noted others.
func (m *Manifest) wholeSectors() {
	m.BlankSize = extent.WholeSectors(m.BlankSize)
	for _, l := range m.Layers {
		l.Size = ViewSize(l.Format, l.Size)
	}
}

// ViewSize is how large the view of an image is.
func ViewSize(format string, size int64) int64 {
	if format == qcow2.FormatRaw {
		return size
	}
	return extent.WholeSectors(size)
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
