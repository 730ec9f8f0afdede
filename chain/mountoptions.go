package chain

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"varve/overlay"
)

// RememberedOptions are the options with which a disk was last mounted for writing.
type RememberedOptions struct {
	// Words are what OpenOptions.MountOptions gave; this package does not read them.
	Words string
	// Known is false on a disk that was last mounted by a varve that kept none.
	Known bool
	// Owners are the users who can have written Words: those of the disk directory and
	// of its chain.json, each once.
	Owners []int
}

// MountOptions reads the options of the last mount from a disk directory. It takes no
// lock, so a mount that begins meanwhile may be missed. Errors are those of reading
// chain.json.
func MountOptions(dir string) (RememberedOptions, error) {
	var chainFile manifestReader
	m, err := chainFile.load(overlay.HostFS(), dir)
	if err != nil || m.MountOptions == nil {
		return RememberedOptions{}, err
	}
	r := RememberedOptions{Words: *m.MountOptions, Known: true}
	for _, path := range []string{dir, filepath.Join(dir, manifestName)} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return RememberedOptions{}, fmt.Errorf("look whose the options of the last mount are: %w", &os.PathError{Op: "stat", Path: path, Err: err})
		}
		if owner := int(st.Uid); !slices.Contains(r.Owners, owner) {
			r.Owners = append(r.Owners, owner)
		}
	}
	return r, nil
}

// RememberMount makes the words with which the disk is mounted durable, for MountOptions
// to give to the next mount. Words that chain.json has already cost nothing. ErrReadOnly
// on a read-only disk. Safe for concurrent use.
func (d *Disk) RememberMount(words string) error {
	if err := d.begin(); err != nil {
		return err
	}
	defer d.opMu.Unlock()
	if had := d.manifest.MountOptions; had != nil && *had == words {
		return nil
	}
	m := d.edit()
	m.MountOptions = &words // never changed in place
	if err := d.commit(m); err != nil {
		return err
	}
	d.install(m, nil)
	return nil
}
