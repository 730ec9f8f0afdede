package chain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

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
		unlinked, open := filesOfHolder(dir)
		for _, l := range before.Layers {
			path := l.Path(dir)
			info, err := fs.Stat(path)
			replaced := err == nil && !l.Foreign && len(open) > 0 && !open[inode{info.Device, info.Inode}]
			if errors.Is(err, os.ErrNotExist) && !l.Foreign || unlinked[path] || replaced {
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

// inode is which file something is.
type inode struct{ device, number uint64 }

// filesOfHolder are the files that the holder of a disk directory has open: those that have no
// name any more, by the paths that they had, and which files all are; none where this user may
// not see them. A daemon has the files of all layers open, and closes one before it removes it.
func filesOfHolder(dir string) (unlinked map[string]bool, open map[inode]bool) {
	pid, _, held, err := dirlock.Holder(dir)
	if err != nil || !held || pid <= 0 {
		return nil, nil
	}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return nil, nil
	}
	unlinked, open = make(map[string]bool), make(map[inode]bool)
	for _, link := range links {
		// The kernel marks a file without a name (d_path in fs/d_path.c).
		if to, err := os.Readlink(link); err == nil && strings.HasSuffix(to, unlinkedMark) {
			unlinked[strings.TrimSuffix(to, unlinkedMark)] = true
		}
		var st unix.Stat_t
		if err := unix.Stat(link, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			open[inode{st.Dev, st.Ino}] = true
		}
	}
	return unlinked, open
}

// unlinkedMark stands behind the former path of a file in /proc/PID/fd.
const unlinkedMark = " (deleted)"
