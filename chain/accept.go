package chain

import (
	"errors"
	"fmt"
	"path/filepath"

	"varve/chain/manifest"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// Accept takes the present state of a changed layer's file as right: its
// fingerprint and its guest size. The layer is named by its name or id. All
// views that stand on it show what they show now. The error wraps ErrNotExist
// when there is no such layer, ErrInvalid for the leaf and for a file that
// cannot be the layer any more, ErrBusy while the layer is being written, ErrInUse
// while the disk is mounted (so while a job runs; one that is only recorded is no
// hindrance, or a disk whose base changed meanwhile could be opened no more), hostfs.ErrLocked while the file is open for
// writing elsewhere.
func Accept(dir, layer string, o OpenOptions) (err error) {
	fs := o.FS
	if fs == nil {
		fs = hostfs.OS()
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return err
	}
	if o.ReadOnly {
		return fmt.Errorf("accept %s of %s: %w", layer, dir, ErrReadOnly)
	}
	fs, leave, err := enter(fs, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leave()) }()
	// Before the lock, which would make a lock file in any directory.
	if _, err := manifest.Load(fs, dir); err != nil {
		return err
	}
	lock, err := lockDir(fs, dir, true, o.Mountpoint, o.LockWait)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	m, err := manifest.Load(fs, dir)
	if err != nil {
		return err
	}
	return accept(fs, dir, m, layer)
}

func accept(fs hostfs.FS, dir string, m *manifest.Manifest, name string) (err error) {
	l := m.ByName(name)
	if l == nil {
		l = m.Layer(name)
	}
	switch {
	case name == manifest.LeafName || l != nil && l.ID == m.Leaf:
		return invalidf("the leaf changes with every write, so there is nothing to accept")
	case l == nil:
		return fmt.Errorf("layer %q %w", name, ErrNotExist)
	case l.Writing:
		return fmt.Errorf("%w: the layer was not yet written to its end; mount and unmount the disk once", ErrBusy)
	}
	path := l.Path(dir)
	if err := checkFile(fs, path); err != nil {
		return err
	}
	image, err := qcow2.OpenImage(fs, path, l.Format, hostfs.LockFrozen)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	if image.Size() == 0 {
		return invalidf("%s is empty now", path)
	}
	if l.Foreign {
		if err := sameBacking(m, l, image.Header()); err != nil {
			return err
		}
	}
	now, err := manifest.TakeFingerprint(image.File(), l.Format)
	if err != nil {
		return err
	}
	edited := m.Copy()
	record := edited.Layer(l.ID)
	now.KeepUnknown(l.Fingerprint)
	record.Fingerprint, record.Size = now, image.Size()
	return edited.Commit(fs, dir)
}

// sameBacking checks that a foreign image's header still names what chain.json
// has below it. (The header of one of our own follows chain.json by itself.)
func sameBacking(m *manifest.Manifest, l *manifest.Layer, header *qcow2.Header) error {
	backing, format, err := backingOf(l.File, header)
	if err != nil {
		return err
	}
	wanted, wantedFormat := "", ""
	if parent := m.Layer(l.Parent); parent != nil {
		wanted, wantedFormat = parent.File, parent.Format
	}
	if backing != wanted || format != wantedFormat {
		return fmt.Errorf("%w: %s now stands on %q (%s), the disk's chain has %q (%s) there; put the header back with qemu-img rebase -u",
			ErrInvalid, l.File, backing, format, wanted, wantedFormat)
	}
	return nil
}
