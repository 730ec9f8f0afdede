package chain

import (
	"errors"
	"fmt"
	"path/filepath"

	"varve/chain/manifest"
	"varve/chain/refusal"
	"varve/overlay/hostfs"
)

// RebaseOptions are the options of Rebase.
type RebaseOptions struct {
	OpenOptions
	// AcceptTime takes files that were written at another time than those they replace,
	// as a copy is that was made without its times, when size and content are the same.
	AcceptTime bool
}

// Rebase has a disk read its foreign files somewhere else: those at path, the base or
// the top of the adopted chain, and what its headers name below. They must be the same
// files: ErrChanged for others, with the first difference. ErrInvalid where the disk has
// no base or path is no such chain, ErrBusy where other disks were cloned from this one,
// ErrInUse while it is mounted. It returns the files that the disk reads now, top first.
func Rebase(dir, path string, o RebaseOptions) (files []ForeignFile, err error) {
	options := o.OpenOptions.withDefaults()
	options.HoldJob = true
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	fs, leave, err := enter(options.FS, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, leave()) }()
	options.FS = fs
	// Before the lock, which would make a lock file in any directory.
	if _, err := manifest.Load(fs, dir); err != nil {
		return nil, err
	}
	lock, err := lockDir(fs, dir, true, options.Mountpoint, options.LockWait)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	m, err := manifest.Load(fs, dir)
	if err != nil {
		return nil, err
	}
	closed := !m.Layer(m.Leaf).Writing
	edited := m.Copy()
	if files, err = rebase(fs, edited, path, o.AcceptTime); err != nil {
		return nil, err
	}
	if err := edited.Commit(fs, dir); err != nil {
		return nil, err
	}
	// Opening makes the headers of the layers above follow, and a crash on the way
	// leaves that to the next mount (M15).
	d, err := openUnderLock(dir, options, nil, new(manifest.Reader))
	if err != nil {
		return nil, fmt.Errorf("chain.json names the new files, but the disk cannot be opened: %w", err)
	}
	if closed { // nobody wrote to the disk
		d.SetModTime(m.Modified)
	}
	return files, d.Close()
}

// rebase puts the places of the images at path into m.
func rebase(fs hostfs.FS, m *manifest.Manifest, path string, acceptTime bool) ([]ForeignFile, error) {
	if len(m.Clones) > 0 {
		return nil, fmt.Errorf("%w: the disk %s was cloned from this one and reads the header of a layer that would change; remove that disk first, and release the snapshot", ErrBusy, m.Clones[0].Disk)
	}
	foreign := m.Chain(topForeign(m)) // top first
	if len(foreign) == 0 {
		return nil, invalidf("the disk has no base: nothing of it lies outside of the disk directory")
	}
	images, err := adoptImages(fs, path, foreign[0].Format, nil, isLayerPath(foreign[0].File))
	if err == nil && len(images) < len(foreign) {
		err = errors.Join(invalidf("%s has %d files below it, but the disk reads %d in all", path, len(images)-1, len(foreign)), closeImages(images))
	}
	switch top := foreign[0]; {
	case err != nil && len(foreign) > 1:
		return nil, fmt.Errorf("%w; name the new place of %s (%s), whose header says where the others are", err, top.Label(), top.File)
	case err != nil:
		return nil, err
	}
	defer func() { _ = closeImages(images) }() // only read
	images = images[len(images)-len(foreign):] // what stood above may have been merged
	files := make([]ForeignFile, len(images))
	for i, image := range images {
		rec := foreign[i]
		if image.format != rec.Format {
			return nil, invalidf("%s is %s, and %s was %s", image.path, image.format, rec.Label(), rec.Format)
		}
		taken, err := manifest.TakeFingerprint(image.image.File(), image.format)
		if err != nil {
			return nil, err
		}
		switch was := rec.Fingerprint; {
		case taken.Size != was.Size || taken.Digest != was.Digest:
			return nil, refusal.Changedf("%s is not the file that %s was: its size or its content differs; nothing was done", image.path, rec.Label())
		case taken.ModTime != was.ModTime && taken.ModTime != 0 && was.ModTime != 0 && !acceptTime:
			return nil, refusal.Changedf("%s looks like %s (%s) but was written at another time; if it is a copy that nobody has changed, say --accept", image.path, rec.Label(), rec.File)
		}
		taken.KeepUnknown(rec.Fingerprint)
		rec.File, rec.Fingerprint = image.path, taken
		files[i] = ForeignFile{Layer: rec.Label(), Path: image.path, Format: image.format}
	}
	return files, nil
}

// topForeign is the id of the topmost of the foreign layers, which stand on each other;
// "" where there is none.
func topForeign(m *manifest.Manifest) string {
	top := ""
	for at := m.Layer(m.Base); at != nil; {
		top = at.ID
		var above *manifest.Layer
		for _, c := range m.Children(at.ID) {
			if c.Foreign {
				above = c
			}
		}
		at = above
	}
	return top
}

// isLayerPath says whether a path looks like a layer of a disk directory: a clone's
// files are those of another disk.
func isLayerPath(path string) bool {
	_, ok := manifest.LayerFileNumber(filepath.Base(filepath.Dir(path)) + "/" + filepath.Base(path))
	return ok
}
