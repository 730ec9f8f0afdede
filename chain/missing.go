package chain

import (
	"errors"
	"os"
	"path/filepath"

	"varve/chain/manifest"
	"varve/overlay/hostfs"
)

// Missing lists, by their paths, those files of a disk directory that a disk cannot be
// mounted without and that are not there: chain.json, and the files of the disk's own
// layers. It takes no lock, so it can be asked of a mounted disk: somebody may have
// removed files that the daemon still has open. Foreign files are left out.
func Missing(dir string) ([]string, error) {
	fs := hostfs.OS()
	var missing []string
	var reader manifest.Reader
	// A file that a job has done with may go between the two looks of one round.
	for look := range maxLooks {
		before, err := reader.Load(fs, dir)
		if errors.Is(err, os.ErrNotExist) {
			return []string{filepath.Join(dir, manifest.FileName)}, nil
		}
		if err != nil {
			return nil, err
		}
		missing = missing[:0]
		for _, l := range before.Layers {
			if l.Foreign {
				continue
			}
			if _, err := fs.Stat(l.Path(dir)); errors.Is(err, os.ErrNotExist) {
				missing = append(missing, l.Path(dir))
			}
		}
		if len(missing) == 0 {
			break
		}
		if after, err := reader.Load(fs, dir); look > 0 && err == nil && after == before {
			break
		}
	}
	return missing, nil
}
