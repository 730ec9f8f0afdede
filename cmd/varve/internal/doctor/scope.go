package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"varve/chain"
	"varve/chain/mounts"
)

// Scope is one thing that is looked at: a disk with its mounts, an image that is
// no disk's, or the host.
type Scope struct {
	Subject   string         // what findings are about that name nothing else
	Host      bool           // the host itself
	Directory string         // the disk directory, absolute and resolved; "" without one
	Image     string         // the image that was named, absolute; "" for a disk
	Mounts    []mounts.Mount // of the disk, in the order in which they were mounted

	// Claimed is a mount of another user's that says of itself that it is of a disk, and is
	// not believed; nil for none. Then there is nothing else in the scope.
	Claimed *mounts.Mount

	// OutOfSight says why the disk's mount cannot be seen in this mount namespace, in a
	// few words; "" where it can be, or there is none. Mounts has it where it can be reached.
	OutOfSight string

	// Unreachable is that the file system of its files does not answer: who looks at
	// them may wait for ever. Run finds it out too.
	Unreachable bool

	// Run finds these out before the first check.
	Size   int64   // guest bytes; 0 where they cannot be told
	Layers []Layer // of the disk or the image's chain, as far as they can be told

	machine    *machine // the same for all
	neighbours growth   // of the other disks that are looked at, on the same file system
	unseen     []string
	examined   []chain.Trouble
	answers    []mountAnswer // of Mounts, in their order
}

// Layer is a file of a disk's tree or of an image's chain.
type Layer chain.ExaminedLayer

// Label is what a layer is called in a message.
func (l Layer) Label() string {
	switch {
	case l.State == chain.StateLeaf:
		return "the leaf"
	case l.Name != "":
		return l.Name
	case l.ID != "":
		return "the unnamed layer " + l.ID
	}
	return l.File
}

// nameOf is what a command is given for the disk of a mount.
func (s *Scope) nameOf(m mounts.Mount) string {
	if m.Here() {
		return m.Mountpoint
	}
	return s.Directory
}

// Unseen notes what a check could not look at, in a few words such as "open files
// of other users". All of it becomes one note.
func (s *Scope) Unseen(format string, args ...any) {
	if what := fmt.Sprintf(format, args...); !slices.Contains(s.unseen, what) {
		s.unseen = append(s.unseen, what)
	}
}

// has says whether a scope is of one of some kinds.
func (s *Scope) has(k kind) bool {
	return k&ofDisk != 0 && s.Directory != "" ||
		k&ofMount != 0 && len(s.Mounts) > 0 ||
		k&ofImage != 0 && s.Image != "" ||
		k&ofHost != 0 && s.Host ||
		k&ofClaim != 0 && s.Claimed != nil
}

// notSeen is the note about what was not looked at.
func (s *Scope) notSeen() []Finding {
	if s.Image != "" && len(s.Layers) > 0 {
		// Whether that is a disk directory cannot be told.
		if dir, err := chain.DirFor(s.Image); err == nil {
			if _, err := os.Stat(filepath.Join(dir, "chain.json")); errors.Is(err, os.ErrPermission) {
				s.Unseen("%s", dir)
			}
		}
	}
	if len(s.unseen) == 0 {
		return nil
	}
	return []Finding{{Note, notSeen, s.Subject, "not looked at, for want of rights: " + strings.Join(s.unseen, "; "), "ask again as root, of a user's mount as that user (runuser -u USER -- varve doctor ...)", ""}}
}
