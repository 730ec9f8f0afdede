package chain

import (
	"fmt"

	"varve/chain/diskdir"
	"varve/overlay/hostfs"
)

// enter gives the file system with which a disk directory is used: the host's, from a
// descriptor of the directory that is held until leave, also where fs has entered another
// one. A simulated one is used as it is.
func enter(fs hostfs.FS, dir string) (entered hostfs.FS, leave func() error, err error) {
	if !isHost(fs) {
		return fs, func() error { return nil }, nil
	}
	d, err := diskdir.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	return d, d.Close, nil
}

// isHost says whether a file system is the host's own, with processes, locks and owners.
func isHost(fs hostfs.FS) bool {
	_, entered := fs.(*diskdir.Dir)
	return entered || fs == hostfs.OS()
}

// inPlace fails where the path of a disk directory leads to another one by now: what is
// asked for is meant for the disk at the path. What has begun goes on in the directory that
// was opened.
func inPlace(fs hostfs.FS) error {
	if d, ok := fs.(*diskdir.Dir); ok {
		if err := d.Moved(); err != nil {
			return fmt.Errorf("%w: %w", ErrChanged, err)
		}
	}
	return nil
}
