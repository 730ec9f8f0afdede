package chain

import (
	"fmt"
	"path/filepath"

	"varve/chain/manifest"
)

// What adopted layers are called (M20).
//
// A file of a chain holds what was written after the snapshot that it is named after:
// virsh's snapshot s1 makes the file vm.s1, and the state of s1 is what the file below
// shows. A layer with the file's name would be taken for that snapshot, and is the state
// of the next one. So a layer has the name of the snapshot whose state it is, where a
// witness knows it, and otherwise one that says nothing: "adopted" at the top, "layer-N"
// below it. The base is "base" in every disk; the snapshot whose state it is becomes a
// layer of our own that holds nothing.
const (
	adoptedName = "adopted"
	plainName   = "layer-%d" // counted from the file above the base
)

// adoptedLayer is what an adopted file is called, and how that is told.
type adoptedLayer struct {
	name  string
	about string // in words; "" for nothing to say
	also  string // of the base: the snapshot whose state it is; "" for none
}

// nameAdopted names the layers of adopted images, both top first. Notes are for the user,
// a line each.
func nameAdopted(images []*foreignImage, witness Witness) (layers []adoptedLayer, notes []string) {
	layers = make([]adoptedLayer, len(images))
	states := make([]SnapshotState, len(images))
	bottom := len(images) - 1
	if bottom > 0 && images[0].name == "" {
		files := make([]string, len(images))
		for i, image := range images {
			files[i] = image.path
		}
		states, notes = witness.States(files)
	}
	taken := map[string]bool{}
	// Names that somebody has given come first.
	known := false
	for i := bottom; i >= 0; i-- {
		given := images[i].name
		if s := states[i]; s.Name != "" {
			given, layers[i].about, known = s.Name, s.By, true
		}
		if given == "" || i == bottom && states[i].Name == "" {
			continue
		}
		name := manifest.LegalName(given, taken)
		taken[name] = true
		if states[i].Name != "" && name != given {
			notes = append(notes, fmt.Sprintf("%s is %s here, since no layer can be called %q", states[i].By, name, given))
		}
		if i == bottom {
			layers[i].also = name
		} else {
			layers[i].name = name
		}
	}
	for i := range layers {
		l := &layers[i]
		switch {
		case i == bottom:
			l.name = manifest.BaseName
		case l.name != "":
		case i == 0:
			l.name, l.about = manifest.LegalName(adoptedName, taken), "the disk as it was last written"
		default:
			l.name = manifest.LegalName(fmt.Sprintf(plainName, bottom-i), taken)
		}
		taken[l.name] = true
		if i > 0 && l.about == "" {
			l.about = "what " + filepath.Base(images[i-1].path) + " stands on"
		}
	}
	if bottom > 0 && images[0].name == "" && !known {
		notes = append(notes, "a file of a chain holds what was written after the snapshot that it may be named after, so no layer is called after its file; \"varve rename\" gives other names")
	}
	return layers, notes
}
