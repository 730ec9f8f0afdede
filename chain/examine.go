package chain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/go-units"

	"varve/chain/dirlock"
	"varve/chain/diskdir"
	"varve/chain/manifest"
	"varve/chain/shellword"
	"varve/overlay/check"
	"varve/overlay/hostfs"
)

// Trouble is one thing that Examine or ExamineImage noticed.
type Trouble struct {
	Check    string // which of Examinations
	Severity TroubleSeverity
	File     string // absolute path of what it is about
	Text     string
	WayOut   string // "" where there is nothing to do
}

// What is examined, by the ids that a Trouble has.
const (
	examineManifest  = "chain-json"
	examineFile      = "layer-file"
	examineFormat    = "backing-format"
	examineBacking   = "backing-file"
	examineChanged   = "changed-layer"
	examineHeader    = "image-header"
	examineCutOff    = "cut-off"
	examineSize      = "image-size"
	examineUnowned   = "unowned-file"
	examineUnclean   = "unclean"
	examineJob       = "waiting-job"
	examineSetAside  = "set-aside"
	examineLostClone = "lost-clone"
)

// Examinations are the ids of all that Examine and ExamineImage look for, with what
// each one is.
func Examinations() [][2]string {
	return [][2]string{
		{examineManifest, "chain.json cannot be read, or was made by a newer varve"},
		{examineFile, "the file of a layer is missing, unreadable, or no file"},
		{examineFormat, "a header names its backing file without a format, or with one that varve does not read"},
		{examineBacking, "a backing file is missing, below itself, out of reach, or not the one that chain.json names"},
		{examineChanged, "a base or another layer is newer than what stands on it, or was changed by another program"},
		{examineHeader, "a header is no qcow2's, marked dirty or corrupt, or asks for what varve does not read; an image of another format"},
		{examineCutOff, "a file ends before its tables or its data do"},
		{examineSize, "an overlay is smaller than what it stands on, a layer not as large as chain.json says, or a size is no whole number of sectors"},
		{examineUnowned, "a file in layers/ belongs to no layer"},
		{examineUnclean, "the disk was not unmounted in order"},
		{examineJob, "a job waits for the next mount"},
		{examineSetAside, "the leaf that a revert set aside still takes room"},
		{examineLostClone, "a snapshot is kept for a clone that is gone"},
	}
}

// Examination is what Examine or ExamineImage found.
type Examination struct {
	Size     int64           // guest bytes of the leaf or the image; 0 where that cannot be told
	Layers   []ExaminedLayer // in the order of their ids; of an image's chain from the top down
	Troubles []Trouble
	Unseen   []string // paths that could not be looked at for want of rights
}

// ExaminedLayer is a file of a disk's tree or of an image's chain.
type ExaminedLayer struct {
	ID, Name string // as LayerStatus has them; "" in an image's chain
	State    State  // the same
	Format   string
	File     string // absolute path
	Foreign  bool
}

// examiner is one run of Examine or ExamineImage.
type examiner struct {
	ctx   context.Context
	fs    hostfs.FS
	dir   string // of the disk; "" for an image's chain
	found Examination
	// unlinked are files that a daemon has open and that have no name any more.
	unlinked map[string]bool
}

// Examine looks for the usual troubles of a disk directory, also of one that is
// mounted: it takes no lock and writes nothing. It reads chain.json, the headers and
// what a fingerprint samples, no content and no tables; Check goes deeper. fs is nil
// for the host's. os.ErrNotExist for what is no disk directory, os.ErrPermission for
// one that may not be read.
func Examine(ctx context.Context, dir string, fs hostfs.FS) (Examination, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Examination{}, err
	}
	if fs == nil {
		fs = hostfs.OS()
	}
	// A disk that is in use may change under a look: what is there only for a moment is
	// not there at the next one.
	var found Examination
	var reader manifest.Reader
	for look := range maxLooks {
		e := &examiner{ctx: ctx, fs: fs, dir: dir}
		before, held, err := e.begin(&reader)
		if err != nil {
			return Examination{}, err
		}
		if before != nil {
			if err := e.look(before, held); err != nil {
				return Examination{}, err
			}
		}
		if look > 0 {
			e.found.Troubles = slices.DeleteFunc(e.found.Troubles, func(t Trouble) bool { return !slices.Contains(found.Troubles, t) })
		}
		found = e.found
		if len(found.Troubles) == 0 {
			break
		}
		after, err := reader.Load(fs, dir)
		if now := e.held(); after == before && now == held || err != nil && before == nil {
			break
		}
	}
	return found, nil
}

// maxLooks bounds how often Examine looks at a disk that goes on changing.
const maxLooks = 4

// begin reads chain.json and whether somebody has the disk. m is nil, and that a
// trouble, where chain.json cannot be used.
func (e *examiner) begin(reader *manifest.Reader) (m *manifest.Manifest, held bool, err error) {
	path := filepath.Join(e.dir, manifest.FileName)
	m, err = reader.Load(e.fs, e.dir)
	switch {
	case errors.Is(err, manifest.ErrNewer):
		e.problem(examineManifest, path, "use that version of varve", "%w", err)
		return nil, false, nil
	case errors.Is(err, manifest.ErrCorrupt):
		e.problem(examineManifest, path,
			manifest.RestoreWords, "%w", err)
		return nil, false, nil
	}
	return m, e.held(), err
}

// held says whether a varve has the disk.
func (e *examiner) held() bool {
	if !diskdir.OnHost(e.fs) {
		return false
	}
	_, _, held, err := dirlock.Holder(e.dir)
	if err != nil {
		e.unseen(filepath.Join(e.dir, dirlock.Name))
	}
	return held
}

// look looks once at everything. The error is the context's.
func (e *examiner) look(m *manifest.Manifest, held bool) error {
	for _, l := range m.Layers {
		e.found.Layers = append(e.found.Layers, ExaminedLayer{l.ID, l.Name, m.State(l), l.Format, l.Path(e.dir), l.Foreign})
	}
	slices.SortFunc(e.found.Layers, func(a, b ExaminedLayer) int { return strings.Compare(a.ID, b.ID) })
	if held && diskdir.OnHost(e.fs) {
		e.unlinked, _ = filesOfHolder(e.dir)
	}
	if err := e.layers(m, held); err != nil {
		return err
	}
	e.directory(m, held)
	if !held {
		e.notHeld(m)
	}
	e.kept(m)
	return nil
}

func (e *examiner) add(check string, severity TroubleSeverity, file, wayOut, format string, args ...any) {
	e.found.Troubles = append(e.found.Troubles, Trouble{check, severity, file, withoutPath(fmt.Errorf(format, args...), file), wayOut})
}

func (e *examiner) problem(check, file, wayOut, format string, args ...any) {
	e.add(check, TroubleProblem, file, wayOut, format, args...)
}

func (e *examiner) warn(check, file, wayOut, format string, args ...any) {
	e.add(check, TroubleWarning, file, wayOut, format, args...)
}

func (e *examiner) note(check, file, wayOut, format string, args ...any) {
	e.add(check, TroubleNote, file, wayOut, format, args...)
}

func (e *examiner) unseen(path string) {
	if !slices.Contains(e.found.Unseen, path) {
		e.found.Unseen = append(e.found.Unseen, path)
	}
}

const unknownWayOut = "put the newest chain.json back from a backup, or move the file elsewhere if nothing in it is missed; no mount goes on before"

// directory looks for files in layers/ that no layer owns.
func (e *examiner) directory(m *manifest.Manifest, held bool) {
	layers := filepath.Join(e.dir, manifest.LayersDir)
	files, err := e.fs.ReadDir(layers)
	switch {
	case errors.Is(err, os.ErrPermission):
		e.unseen(layers)
		return
	case err != nil:
		e.problem(examineFile, layers, "put it back from a backup", "the directory of the layers cannot be read: %w", err)
		return
	}
	for _, name := range files {
		file := manifest.LayersDir + "/" + name
		number, ours := manifest.LayerFileNumber(file)
		path := filepath.Join(layers, name)
		switch {
		case slices.ContainsFunc(m.Layers, func(l *manifest.Layer) bool { return !l.Foreign && l.File == file }):
		case !ours:
			e.warn(examineUnowned, path, "move it elsewhere", "it is no file of varve's")
		case slices.Contains(m.Removing, file), number >= m.Next && held:
			// What a crash or a snapshot under way left; the next mount removes it.
		case number >= m.Next:
			switch data, err := check.HasData(e.fs, path); {
			case errors.Is(err, os.ErrPermission):
				e.unseen(path)
			case err != nil:
				e.problem(examineUnowned, path, "make it readable, or move it elsewhere", "chain.json does not know it, and it cannot be read: %w", err)
			case data:
				e.problem(examineUnowned, path, unknownWayOut, "it holds data, and chain.json, which is older, does not know it")
			}
		default:
			e.warn(examineUnowned, path, "if nothing in it is missed, remove it", "no layer owns this file; varve leaves it alone%s", e.takes(path))
		}
	}
}

// takes is how much room a file has on the host, for the end of a sentence.
func (e *examiner) takes(path string) string {
	info, err := e.fs.Stat(path)
	if err != nil {
		return ""
	}
	return units.CustomSize(" (%.4g %s on the host)", float64(info.Blocks), 1024, []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"})
}

// notHeld looks for what waits for the next mount of a disk that nobody holds.
func (e *examiner) notHeld(m *manifest.Manifest) {
	file := filepath.Join(e.dir, manifest.FileName)
	inOrder := true
	if diskdir.OnHost(e.fs) {
		// What cannot be told is the lock's trouble, which was noticed before.
		if closed, err := dirlock.ClosedInOrder(e.dir); err == nil {
			inOrder = closed
		}
	}
	if leaf := m.Layer(m.Leaf); leaf.Writing || !inOrder {
		e.note(examineUnclean, e.dir, "the next mount puts it in order; \"varve check\" shows what it will do",
			"it was not unmounted in order: varve was killed, or the host went down")
	}
	if j := m.Job; j != nil && m.JobHasWork() {
		e.note(examineJob, file, "mount the disk and it goes on; \"varve cancel\" stops it for good",
			"job %s (%s of %s) is not finished", j.ID, j.Kind, m.Layer(j.Layer).Label())
	}
}

// kept looks for what is kept that may not be wanted any more.
func (e *examiner) kept(m *manifest.Manifest) {
	if l := m.Layer(m.SetAside); l != nil {
		path := l.Path(e.dir)
		e.note(examineSetAside, path, "\"varve undo\" puts it back, \"varve undo --forget\" gives its room back",
			"it is the leaf that the last revert set aside, and is still there%s", e.takes(path))
	}
	for _, c := range m.Clones {
		l := m.Layer(c.Layer)
		if _, err := e.fs.Stat(filepath.Join(c.Disk, manifest.FileName)); err == nil || l == nil {
			continue
		} else if !errors.Is(err, os.ErrNotExist) {
			e.unseen(c.Disk)
			continue
		}
		e.warn(examineLostClone, l.Path(e.dir), fmt.Sprintf("if it is gone for good: varve release %s %s", shellword.Quote(e.dir), shellword.Quote(l.Argument())),
			"%s is kept for a clone, %s, that is not there", l.Label(), c.Disk)
	}
}
