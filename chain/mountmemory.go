package chain

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"varve/chain/diskdir"
	"varve/chain/manifest"
	"varve/overlay/hostfs"
)

// MountMemory is what chain.json keeps of the last writable mount.
type MountMemory struct {
	// Mountpoint is where it was, absolute; "" on a disk that was last mounted by a varve
	// that kept nothing.
	Mountpoint string
	// Options are the words that RememberMount was told; this package does not read them.
	Options string
	// Known is false where nothing was kept.
	Known bool
	// Owners are the users who can have written all this: those of the disk directory
	// and of its chain.json, each once.
	Owners []int
}

// LastMount reads what a disk directory remembers of its last mount. It takes no lock,
// so a mount that begins meanwhile may be missed. Errors are those of reading chain.json.
func LastMount(dir string) (MountMemory, error) {
	fs, leave, err := enter(hostfs.OS(), dir)
	if err != nil {
		return MountMemory{}, err
	}
	defer func() { _ = leave() }() // only read
	m, err := manifest.Load(fs, dir)
	if err != nil || m.MountOptions == nil {
		return MountMemory{}, err
	}
	last := MountMemory{Mountpoint: m.Mountpoint, Options: *m.MountOptions, Known: true}
	last.Owners, err = ownersOf(fs, dir)
	return last, err
}

// ownersOf are the users who can have written the chain.json of a directory that was
// entered, each once.
func ownersOf(fs hostfs.FS, dir string) ([]int, error) {
	d, ok := fs.(*diskdir.Dir)
	if !ok {
		return nil, nil
	}
	owners := []int{d.Owner()}
	path := filepath.Join(dir, manifest.FileName)
	f, err := d.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("look who can have changed the options of the last mount: %w", err)
	}
	defer f.Close() // only read
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("look who can have changed the options of the last mount: %w", &os.PathError{Op: "stat", Path: path, Err: err})
	}
	if owner := int(st.Uid); owner != d.Owner() {
		owners = append(owners, owner)
	}
	return owners, nil
}

// RememberMount makes where the disk is mounted, and with which options, durable for
// LastMount to give to the next mount. What chain.json has already costs nothing.
// ErrReadOnly on a read-only disk. Safe for concurrent use.
func (d *Disk) RememberMount(mountpoint, options string) error {
	if err := d.begin(); err != nil {
		return err
	}
	defer d.opMu.Unlock()
	if had := d.manifest.MountOptions; had != nil && *had == options && d.manifest.Mountpoint == mountpoint {
		return nil
	}
	m := d.edit()
	m.MountOptions, m.Mountpoint = &options, mountpoint // never changed in place
	if err := d.commit(m); err != nil {
		return err
	}
	d.install(m, nil)
	return nil
}
