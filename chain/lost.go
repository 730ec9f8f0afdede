package chain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"varve/chain/diskdir"
	"varve/chain/manifest"
	"varve/chain/refusal"
	"varve/chain/view"
)

// A disk goes on when somebody removes the file of a layer, or puts another file in its
// place: the disk has the file open, and everything in it. With the disk's close that is lost.
// So until then nothing is built on such a layer (D33), a merge goes into the file that is still
// there, and Flatten copies out what the disk needs.

// How a layer's file was lost, in words for the middle of a sentence.
const (
	fileRemoved  = "was removed"
	fileReplaced = "was replaced by another file"
)

// lost says how the file of a layer was lost, "" for one that is where it was opened. What
// cannot be told counts as being there. The file must stay open meanwhile.
func (d *Disk) lost(rec *manifest.Layer, l *view.Layer) string {
	if _, entered := d.fs.(*diskdir.Dir); !entered || l == nil {
		return "" // a simulated host
	}
	open, err := l.File.Stat()
	if err != nil || !open.Mode.IsRegular() {
		return ""
	}
	gone := open.Links == 0 // or of a file system that counts no links
	if rec.Foreign && !gone {
		return "" // it may have been moved
	}
	// The record may name another file already, when a merge is about to end.
	there, err := d.fs.Stat(l.Path)
	switch {
	case err == nil && there.Inode == open.Inode && there.Device == open.Device:
		return ""
	case errors.Is(err, os.ErrNotExist):
		return fileRemoved
	case err == nil || errors.Is(err, unix.ELOOP) || errors.Is(err, diskdir.ErrForeign):
		return fileReplaced
	case gone && !rec.Foreign:
		return fileRemoved
	}
	return ""
}

// LostFiles are the paths of those layers' files that were removed or replaced while the disk
// is open. What is in them is lost when the disk is closed.
func (d *Disk) LostFiles() (paths []string) {
	m, nodes := d.tree()
	for _, rec := range m.Layers {
		if n := nodes[rec.ID]; n != nil && d.isLost(rec, n) {
			paths = append(paths, n.Layer().Path)
		}
	}
	return paths
}

// isLost is lost, for who has no hold on the layer.
func (d *Disk) isLost(rec *manifest.Layer, n *view.Node) bool {
	section := d.readers.Enter() // the file stays open
	defer d.readers.Exit(section)
	return d.lost(rec, n.Layer()) != ""
}

// lostError is the refusal of something for a layer whose file was lost.
func (d *Disk) lostError(m *manifest.Manifest, rec *manifest.Layer, how, wayOut string) error {
	what := rec.Label()
	if rec.ID == m.Leaf {
		what = "the leaf"
	}
	return refusal.Changedf("the file of %s, %s, %s while the disk was mounted; this mount alone still has what was in it, until the unmount: %s",
		what, d.path(rec), how, wayOut)
}

// keepsChain refuses to build on a layer whose chain has a file that was lost. Called with
// opMu held.
func (d *Disk) keepsChain(m *manifest.Manifest, top *manifest.Layer) error {
	if top == nil {
		return nil
	}
	for _, rec := range m.Chain(top.ID) {
		how := d.lost(rec, d.nodes[rec.ID].Layer())
		switch {
		case how == "":
		case top.ID == m.Leaf:
			return d.lostError(m, rec, how, fmt.Sprintf("\"varve flatten %s leaf\" copies what disk.raw needs into a new file", ShellWord(d.dir)))
		case rec.ID != top.ID:
			return d.lostError(m, rec, how, fmt.Sprintf("\"varve flatten %s %s\" copies what %s needs into its own file", ShellWord(d.dir), top.Argument(), top.Label()))
		default:
			return d.lostError(m, rec, how, d.exportWords(rec))
		}
	}
	return nil
}

// exportWords say how the view of a layer is copied out of the mount.
func (d *Disk) exportWords(rec *manifest.Layer) string {
	if rec.Name == "" {
		return "it cannot be used any more"
	}
	return fmt.Sprintf("\"varve export %s %s OUT\" copies it into an image", ShellWord(d.dir), rec.Name)
}

// coverLost begins the flatten of a leaf whose file was lost: it becomes a frozen layer
// without a name, and the guest goes on in a new leaf, whose file is there. What the flatten
// copies into that is safe. Called with opMu held; m and rec are those to go on with.
func (d *Disk) coverLost(m *manifest.Manifest, rec *manifest.Layer) (*manifest.Manifest, *manifest.Layer, error) {
	how := d.lost(rec, d.nodes[rec.ID].Layer())
	if how == "" {
		return m, rec, nil
	}
	if rec.ID != m.Leaf {
		return nil, nil, d.lostError(m, rec, how, d.exportWords(rec))
	}
	d.log.Warn("the leaf's file was lost; it is kept as long as it is open, and a new leaf goes on top", "file", d.path(rec), "how", how)
	if err := d.freezeLeaf(""); err != nil {
		return nil, nil, err
	}
	m = d.edit()
	return m, m.Layer(m.Leaf), nil
}

// awayFromLost is the direction in which a merge of x with c, which stands on x, ends in a
// file that still exists: "" where both exist and either will do. Called with opMu held.
func (d *Disk) awayFromLost(m *manifest.Manifest, x, c *manifest.Layer) (manifest.Direction, error) {
	lostX, lostC := d.lost(x, d.nodes[x.ID].Layer()), d.lost(c, d.nodes[c.ID].Layer())
	switch {
	case lostC == "" && lostX == "":
		return "", nil
	case lostC == "":
		return manifest.Up, nil
	case lostX == "" && !x.Foreign && plain(d.nodes[x.ID].Layer()) == nil:
		return manifest.Down, nil
	case c.ID == m.Leaf:
		return "", d.keepsChain(m, c)
	}
	return "", d.lostError(m, c, lostC, d.exportWords(c))
}

// replacedFile says whether another file stands in the place of a layer's file, named as
// chain.json names it: perhaps a backup that somebody has put back, which is not varve's to
// remove. Called with opMu held.
func (d *Disk) replacedFile(file string) bool {
	path := filepath.Join(d.dir, file)
	for _, n := range d.nodes {
		if l := n.Layer(); l != nil && l.Path == path {
			return d.lost(&manifest.Layer{File: file}, l) == fileReplaced
		}
	}
	return false
}

// keepsTarget refuses to give back what a merge has copied when the file into which it goes
// was lost meanwhile: the copy would be lost with the disk's close. The views stay as they
// are, and the merge that is begun next takes the other direction.
func (d *Disk) keepsTarget(into *view.Node) error {
	m, _ := d.tree()
	rec := m.Layer(into.ID)
	if rec == nil {
		return nil
	}
	how := d.lost(rec, into.Layer())
	if how == "" {
		return nil
	}
	return d.lostError(m, rec, how, fmt.Sprintf("nothing more is merged into it, and \"varve delete %s --unnamed\" merges it the other way", ShellWord(d.dir)))
}

// lostAtClose says what goes with the close of the disk.
func (d *Disk) lostAtClose(m *manifest.Manifest) error {
	var first error
	more := 0
	for _, rec := range m.Layers {
		how := d.lost(rec, d.nodes[rec.ID].Layer())
		switch {
		case how == "":
		case first != nil:
			more++
		default:
			first = fmt.Errorf("the file of %s, %s, %s while the disk was mounted, and what was in it is lost", rec.Label(), d.path(rec), how)
		}
	}
	if more > 0 {
		return fmt.Errorf("%w (and %d more)", first, more)
	}
	return first
}
