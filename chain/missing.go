package chain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"varve/chain/dirlock"
	"varve/chain/manifest"
	"varve/overlay/hostfs"
)

// Missing lists, by their paths, those files that a disk cannot be mounted without and that
// are not there: chain.json, and the files of the disk's own layers. It takes no lock, so it
// can be asked of a mounted disk: somebody may have removed files that the daemon still has
// open. Of such a disk also those are listed, foreign ones too, in whose place there is
// another file by now, as far as the caller may see what the daemon has open.
func Missing(dir string) ([]string, error) {
	fs := hostfs.OS()
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
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
		unlinked := unlinkedFiles(dir)
		for _, l := range before.Layers {
			path := l.Path(dir)
			_, err := fs.Stat(path)
			if errors.Is(err, os.ErrNotExist) && !l.Foreign || unlinked[path] {
				missing = append(missing, path)
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

// unlinkedFiles are the files that the holder of a disk directory has open and that have no
// name any more, by the paths that they had. A daemon closes a layer's file before it removes it.
func unlinkedFiles(dir string) map[string]bool {
	pid, _, held, err := dirlock.Holder(dir)
	if err != nil || !held || pid <= 0 {
		return nil
	}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return nil
	}
	files := make(map[string]bool)
	for _, link := range links {
		// The kernel marks a file without a name (d_path in fs/d_path.c).
		if to, err := os.Readlink(link); err == nil && strings.HasSuffix(to, unlinkedMark) {
			files[strings.TrimSuffix(to, unlinkedMark)] = true
		}
	}
	return files
}

// unlinkedMark stands behind the former path of a file in /proc/PID/fd.
const unlinkedMark = " (deleted)"
