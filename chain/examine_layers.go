package chain

import (
	"errors"
	"os"
	"strings"

	"varve/chain/manifest"
	"varve/chain/shellword"
	"varve/overlay"
	"varve/overlay/check"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// layers looks at the file of each layer. held says that another varve has the disk.
// The error is the context's.
func (e *examiner) layers(m *manifest.Manifest, held bool) error {
	for _, l := range m.Layers {
		if err := e.ctx.Err(); err != nil {
			return err
		}
		path := l.Path(e.dir)
		if !e.readable(l, path, held) {
			continue
		}
		// What is being written is not judged (M16): neither the leaf of a mount nor
		// what its job works on.
		busy := held && (l.ID == m.Leaf || l.Writing)
		size, ok := e.image(l, path, l.ID == m.Leaf, busy)
		if l.ID == m.Leaf {
			e.found.Size = size
		}
		if ok && !l.Writing && !busy && !e.changed(m, l, path) {
			e.agrees(m, l, path, size)
		}
	}
	return nil
}

// readable says whether a layer's file can be opened.
func (e *examiner) readable(l *manifest.Layer, path string, held bool) bool {
	if held && e.unlinked[path] {
		e.problem(examineFile, path, removedWayOut, "the file of %s was removed or replaced while the disk is mounted", l.Label())
		return false
	}
	err := checkFile(e.fs, path)
	if err == nil {
		var f hostfs.File
		if f, err = e.fs.Open(path, os.O_RDONLY, 0); err == nil {
			f.Close() // nothing was written
			return true
		}
	}
	switch {
	case errors.Is(err, os.ErrPermission):
		e.unseen(path)
	case errors.Is(err, os.ErrNotExist) && l.Foreign:
		e.problem(examineFile, path, "put it back, or say where it is now: varve rebase "+shellword.Quote(e.dir)+" --base PATH", "the file of %s is not there", l.Label())
	case errors.Is(err, os.ErrNotExist) && held:
		e.problem(examineFile, path, removedWayOut, "the file of %s was removed while the disk is mounted", l.Label())
	case errors.Is(err, os.ErrNotExist):
		e.problem(examineFile, path, "put it back from a backup", "the file of %s is not there", l.Label())
	default:
		e.problem(examineFile, path, "make the file readable again, or put it back from a backup", "%w", err)
	}
	return false
}

// removedWayOut is what to do about a file that a daemon alone still has.
const removedWayOut = "do not unmount the disk: its daemon still has the file open. Put the file back if it was moved. " +
	"\"varve flatten DISK leaf\" copies what disk.raw needs into a new file, \"varve export DISK NAME OUT\" copies a snapshot out of the mount"

// image looks at the header of a layer's file and whether the file is whole. It gives
// the guest size, and whether the header can be read.
func (e *examiner) image(l *manifest.Layer, path string, leaf, busy bool) (size int64, ok bool) {
	if l.Format == formatRaw {
		info, err := e.fs.Stat(path)
		return info.Size, err == nil
	}
	h, err := qcow2.ReadHeader(e.fs, path)
	if err != nil {
		wayOut := headerWayOut(err, l.Foreign)
		if errors.Is(err, qcow2.ErrMarkedCorrupt) && l.Foreign {
			wayOut = "put the file back from a backup; or, with the disk unmounted and a copy of the file made: " + foreignRepair(e.dir, l)
		}
		e.problem(examineHeader, path, wayOut, "%w", err)
		return 0, false
	}
	if busy || l.Writing {
		return manifest.ViewSize(l.Format, h.Size), true
	}
	e.dirty(path, h, l)
	e.sectors(l, path, h)
	if plain := overlay.Plain(h); plain != nil && leaf {
		e.note(examineHeader, path, "the next mount keeps it as a frozen layer and puts a new leaf on top", "another program worked on the leaf: %w", plain)
	}
	e.whole(path, !l.Foreign)
	return manifest.ViewSize(l.Format, h.Size), true
}

// sectors looks whether a header's size is a whole number of sectors (M2).
func (e *examiner) sectors(l *manifest.Layer, path string, h *qcow2.Header) {
	switch {
	case !extent.Uneven(h.Size):
	case l.Foreign || overlay.Plain(h) != nil:
		e.note(examineSize, path, "nothing has to be done for varve, which shows them; to give it whole sectors have qemu-img convert make a copy", "%s", unevenWords(h.Size))
	default:
		e.problem(examineSize, path, "the next mount, or \"varve check --repair\", rounds it up, unless a clone reads the file", "%s; an earlier version made it so", unevenWords(h.Size))
	}
}

// dirty looks at the mark of a program that was killed while it wrote an image.
// l is nil for an image that is no disk's.
func (e *examiner) dirty(path string, h *qcow2.Header, l *manifest.Layer) {
	if h.Incompatible&qcow2.IncompatibleDirty == 0 {
		return
	}
	wayOut := "with nobody using it: qemu-img check -r all " + shellword.Quote(path)
	if l != nil && l.Foreign {
		wayOut = "with the disk unmounted: " + foreignRepair(e.dir, l)
	}
	e.warn(examineHeader, path, wayOut, "%s", dirtyWords)
}

// whole looks whether a qcow2 file ends too early.
func (e *examiner) whole(path string, ours bool) {
	missing, err := check.CutOff(e.fs, path)
	switch {
	case errors.Is(err, os.ErrPermission):
		e.unseen(path)
	case err != nil:
		e.problem(examineHeader, path, headerWayOut(err, !ours), "%w", err)
	case missing.Counted && !ours:
		e.warn(examineCutOff, path, "\"qemu-img check\" tells: with errors it was cut off, and is to be put back from where it was copied; without, nothing is wrong",
			"its refcounts reach behind its end, to 0x%x: it was cut off, or QEMU was killed, or is at work", missing.At)
	case missing.What != "":
		wayOut := "put the whole file back from where it was copied; \"qemu-img check\" says what is missing"
		if ours {
			wayOut = "put the whole file back from a backup; \"varve check\" says what is missing"
		}
		e.problem(examineCutOff, path, wayOut, "the file was cut off: %s should be at 0x%x, behind its end", missing.What, missing.At)
	}
}

// headerWayOut is what to do about a header that cannot be used.
func headerWayOut(err error, foreign bool) string {
	switch {
	case errors.Is(err, qcow2.ErrUnsupported):
		return "have qemu-img convert make a copy of it without that, and use the copy"
	case foreign:
		return "put the file back from a backup, or try qemu-img check -r all on a copy"
	}
	return "put the file back from a backup, or try qemu-img check -r all on a copy of the disk directory"
}

// changed looks whether a layer's file is the one that it was, and says so of one that
// is not.
func (e *examiner) changed(m *manifest.Manifest, l *manifest.Layer, path string) bool {
	if l.Fingerprint == nil {
		return false
	}
	now, err := manifest.FingerprintFile(e.fs, path, l.Format)
	if err != nil {
		e.problem(examineFile, path, "put it back from a backup", "it cannot be read: %w", err)
		return true
	}
	changes, _ := l.Fingerprint.Compare(now)
	switch {
	case len(changes) == 0:
		return false
	case l.ID == m.Leaf:
		e.note(examineChanged, path, "the next mount looks through its tables", "the leaf was changed by another program since it was closed")
		return false
	}
	e.problem(examineChanged, path, l.AcceptWords(e.dir), "%s was changed since it was frozen: %s; affected: %s",
		l.Label(), strings.Join(changes, ", "), m.FalsifiedBy(l))
	return true
}

// agrees compares a layer's header with chain.json.
func (e *examiner) agrees(m *manifest.Manifest, l *manifest.Layer, path string, size int64) {
	if l.ID != m.Leaf && l.Name != "" && size != l.Size {
		e.problem(examineSize, path, l.AcceptWords(e.dir), "the file is a disk of %d bytes, chain.json says %d", size, l.Size)
	}
	// A crash or a job may come between the header and chain.json, and both give the
	// same view (M15).
	if l.Format == formatRaw || m.Job != nil || m.Layer(m.Leaf).Writing {
		return
	}
	h, err := qcow2.ReadHeader(e.fs, path)
	if err != nil {
		return // told of before
	}
	if l.Foreign {
		if err := sameBacking(m, l, h); err != nil {
			e.backing(path, h, err)
		}
		return
	}
	if name, format := m.Layer(l.Parent).BackingName(); h.BackingName != name || h.BackingFormat != format {
		e.problem(examineBacking, path, "the next mount, or \"varve check --repair\", puts it in order",
			"its header names the backing file %q (%s), chain.json %q (%s)", h.BackingName, h.BackingFormat, name, format)
	}
}
