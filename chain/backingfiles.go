package chain

import (
	"iter"
	"path/filepath"
	"strings"

	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// BackingFiles gives what an image stands on, from the top down: absolute paths, as the
// headers name them, symbolic links unresolved. A file is opened only after its path was
// given and taken, without a lock and for its header alone. The list ends where a file
// is no qcow2, cannot be read, or names what is no path.
func BackingFiles(image string) iter.Seq[string] {
	return func(yield func(string) bool) {
		at := image
		for range maxAdopted {
			if magic, err := qcow2.Is(hostfs.OS(), at); err != nil || !magic {
				return
			}
			h, err := qcow2.ReadHeader(hostfs.OS(), at)
			if err != nil || h.BackingName == "" {
				return
			}
			name := strings.TrimPrefix(h.BackingName, "file:")
			if before, _, found := strings.Cut(name, ":"); found && !strings.Contains(before, "/") {
				return // json:{…}, nbd:…
			}
			if !filepath.IsAbs(name) {
				name = filepath.Join(filepath.Dir(at), name)
			}
			if at = name; !yield(at) {
				return
			}
		}
	}
}
