package chain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"varve/chain/manifest"
	"varve/chain/shellword"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
	"varve/overlay/sniff"
)

// examinedImage is a file of a chain that is followed by its headers.
type examinedImage struct {
	path, format string
	info         hostfs.Info
	size         int64 // guest bytes; 0 where they cannot be told
}

// ExamineImage looks for the usual troubles of an image that is no varve disk's, and
// of all that it stands on. It takes no lock, writes nothing and reads headers only.
// Where a header does not say the format of its backing file, that is guessed for
// going on. The image's own format is decided as at a first mount, with what the witness
// claims; nil for none. fs is nil for the host's. The error is that of looking at the image
// itself.
func ExamineImage(ctx context.Context, path string, witness Witness, fs hostfs.FS) (Examination, error) {
	path, err := absolutePath(path)
	if err != nil {
		return Examination{}, err
	}
	if fs == nil {
		fs = hostfs.OS()
	}
	e := &examiner{ctx: ctx, fs: fs}
	if err := checkFile(fs, path); err != nil {
		return Examination{}, err
	}
	format, err := e.named(path, witnessOr(witness))
	if err != nil {
		return Examination{}, err
	}
	e.follow(path, format)
	return e.found, ctx.Err()
}

// named decides the format of the image that the user named, as topFormat does.
func (e *examiner) named(path string, witness Witness) (format string, err error) {
	found, known, err := sniff.Recognise(e.fs, path)
	if err != nil {
		return "", err
	}
	if known && !found.Raw {
		format, note, err := claimed(path, found, witness.Formats(path))
		switch {
		case err != nil:
			e.warn(examineHeader, path, "mount it with --format", "%w", err)
			return formatRaw, nil // what its header names is not looked at
		case note != "":
			e.note(examineHeader, path, "nothing has to be done", "%s", note)
			return format, nil
		case format != "":
			return format, nil
		}
	}
	named := namedQcow2(path)
	switch {
	case found.Qcow2 && !named:
		e.warn(examineHeader, path, "mount it with --format qcow2, or with --format raw if a guest wrote that",
			"it begins like a qcow2 but is not named .qcow2, and no libvirt domain says what it is")
		return formatQcow2, nil
	case found.Qcow2:
		return formatQcow2, nil
	case known && !found.Raw:
		e.problem(examineHeader, path, wayOut(e.fs, path, found)+"; or mount it with --format raw if a guest wrote that into its disk",
			"it is %s, not a raw disk", found.Name)
	case named:
		e.problem(examineHeader, path, "if it is a raw image, name it so, or mount it with --format raw; else put it back from a backup",
			"it is named .qcow2 but does not begin like one")
	case known:
		e.note(examineHeader, path, "nothing has to be done", "it is %s: whoever uses disk.raw has to decrypt it", found.Name)
	}
	return formatRaw, nil
}

// rawBacking looks whether a backing file that a header calls raw looks like another
// thing.
func (e *examiner) rawBacking(image examinedImage, path string) {
	found, known, err := sniff.Recognise(e.fs, path)
	if err != nil || !known || found.Raw {
		return // what cannot be read is told where it is opened
	}
	e.warn(examineFormat, image.path, "if it is no raw disk, what stands on it was made on wrong bytes; else nothing has to be done",
		"its header says that %s is raw, and that looks like another thing: %s", path, found.Name)
}

// follow looks at an image and at what its header names, and so on.
func (e *examiner) follow(path, format string) {
	var above []examinedImage
	for e.ctx.Err() == nil {
		if len(above) == maxAdopted {
			e.problem(examineBacking, above[0].path, "have qemu-img convert make one image of it", "it has more than %d backing files", maxAdopted)
			return
		}
		next := examinedImage{path: path, format: format}
		e.found.Layers = append(e.found.Layers, ExaminedLayer{Format: format, File: path, Foreign: true})
		h, ok := e.foreign(&next)
		if len(above) == 0 {
			e.found.Size = next.size
		} else if ok {
			e.below(above[len(above)-1], next)
		}
		if !ok || h == nil || h.BackingName == "" {
			return
		}
		above = append(above, next)
		if path, format, ok = e.backingFile(next, h, above); !ok {
			return
		}
	}
}

// foreign looks at one image by itself. h is nil for a raw one.
func (e *examiner) foreign(image *examinedImage) (h *qcow2.Header, ok bool) {
	var err error
	if image.info, err = e.fs.Stat(image.path); err != nil {
		e.problem(examineBacking, image.path, "make it readable", "%w", err)
		return nil, false
	}
	if image.format == formatRaw {
		image.size = image.info.Size
		return nil, true
	}
	h, err = qcow2.ReadHeader(e.fs, image.path)
	switch {
	case errors.Is(err, os.ErrPermission):
		e.unseen(image.path)
		return nil, false
	case err != nil:
		e.problem(examineHeader, image.path, headerWayOut(err, true), "%w", err)
		return nil, false
	}
	image.size = manifest.ViewSize(image.format, h.Size)
	e.dirty(image.path, h, nil)
	e.sectors(&manifest.Layer{Foreign: true}, image.path, h)
	e.whole(image.path, false)
	return h, true
}

// below compares an image with the one that stands on it.
func (e *examiner) below(over, image examinedImage) {
	if image.info.ModTime.After(over.info.ModTime) && image.info.Mode&os.ModeDevice == 0 {
		harmless := "copied or touched"
		if image.format == formatQcow2 {
			harmless += ", or given another header (qemu-img rebase -u)"
		}
		wayOut := "if it was only " + harmless + ", nothing is wrong: \"qemu-img compare\" with a backup tells; else what stands on it may be torn: put it back from the backup, and never open a base for writing"
		e.warn(examineChanged, image.path, wayOut,
			"it was written (%s) after the last write of %s (%s), which stands on it",
			image.info.ModTime.UTC().Format(time.DateTime), over.path, over.info.ModTime.UTC().Format(time.DateTime))
	}
	if over.size > 0 && image.size > over.size {
		e.warn(examineSize, over.path, fmt.Sprintf("if that was not meant: qemu-img resize %s %d", shellword.Quote(over.path), image.size),
			"it is a disk of %d bytes on one of %d bytes (%s): what lies behind is not seen", over.size, image.size, image.path)
	}
}

// backingFile finds the file that a header names, with its format, and says what is
// wrong with how it does that.
func (e *examiner) backingFile(image examinedImage, h *qcow2.Header, above []examinedImage) (path, format string, ok bool) {
	name := h.BackingName
	path, format, err := backingOf(image.path, h)
	if err != nil {
		e.backing(image.path, h, err)
		if isProtocol(name) || manifest.CheckPath(name) != nil || h.HasBackingFormat {
			return "", "", false
		}
		known := *h
		known.HasBackingFormat, known.BackingFormat = true, formatRaw
		if path, format, err = backingOf(image.path, &known); err != nil {
			return "", "", false
		}
		if magic, err := qcow2.Is(e.fs, path); err == nil && magic {
			format = formatQcow2
		}
	}
	err = checkFile(e.fs, path)
	switch {
	case errors.Is(err, os.ErrPermission):
		e.unseen(path)
		return "", "", false
	case errors.Is(err, os.ErrNotExist):
		if !h.HasBackingFormat {
			format = ""
		}
		e.missing(image.path, name, path, format)
		return "", "", false
	case err != nil:
		e.problem(examineBacking, image.path, rebaseWords(image.path, "PATH", ""), "its backing file: %w", err)
		return "", "", false
	}
	info, err := e.fs.Stat(path)
	if err == nil && slices.ContainsFunc(above, func(a examinedImage) bool { return a.info.Device == info.Device && a.info.Inode == info.Inode }) {
		e.problem(examineBacking, image.path, "say what it really stands on: "+rebaseWords(image.path, "PATH", ""),
			"a loop of backing files: %s is below itself", path)
		return "", "", false
	}
	if format == formatRaw && h.HasBackingFormat {
		e.rawBacking(image, path)
	}
	return path, format, true
}

// backing tells what is wrong with the backing file that a header names; err is
// backingOf's or sameBacking's.
func (e *examiner) backing(path string, h *qcow2.Header, err error) {
	name := h.BackingName
	switch {
	case name == "" || manifest.CheckPath(name) != nil || isProtocol(name):
		e.problem(examineBacking, path, "have qemu-img convert make a copy of it without a backing file", "%w", err)
	case !h.HasBackingFormat:
		e.problem(examineFormat, path, "say which it is: "+rebaseWords(path, name, ""),
			"its header names the backing file %q without a format; a guest could choose it, so QEMU warns and varve refuses", name)
	case h.BackingFormat != formatRaw && h.BackingFormat != formatQcow2:
		e.problem(examineFormat, path, "have qemu-img convert make a qcow2 of the backing file, and then "+rebaseWords(path, "PATH", formatQcow2),
			"its header names the backing file %q with the format %q; varve reads raw and qcow2", name, h.BackingFormat)
	default:
		e.problem(examineBacking, path, "put the header back with qemu-img rebase -u", "%w", err)
	}
}

// missing tells of a backing file that is not there, and of one with its name beside
// the image.
func (e *examiner) missing(image, name, path, format string) {
	wayOut := "put it back, or say where it is now: " + rebaseWords(image, "PATH", format)
	beside := filepath.Join(filepath.Dir(image), filepath.Base(name))
	if beside != path && checkFile(e.fs, beside) == nil {
		wayOut = "there is one of that name beside it; if that is it: " + rebaseWords(image, filepath.Base(name), format)
	}
	where := ""
	if !filepath.IsAbs(name) {
		where = fmt.Sprintf("; a relative name is looked for beside the image: %s", path)
	}
	e.problem(examineBacking, image, wayOut, "its backing file %q is not there%s", name, where)
}

// rebaseWords is the command that gives an image another backing file's name. format
// is "" where the user has to say which it is.
func rebaseWords(image, name, format string) string {
	if format == "" {
		return fmt.Sprintf("qemu-img rebase -u -b %s %s (with -F raw or -F qcow2, whichever it is)", shellword.Quote(name), shellword.Quote(image))
	}
	return fmt.Sprintf("qemu-img rebase -u -b %s -F %s %s", shellword.Quote(name), format, shellword.Quote(image))
}
