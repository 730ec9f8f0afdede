package mounts

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// Elsewhere gives the places of varve mounts that other mount namespaces have, each
// with a process there, and those of this one that lie outside of this process's root
// directory. A namespace without a process is not seen, and one that only processes of
// other users have is seen as far as /proc shows them.
func Elsewhere() ([]Mount, error) {
	own, err := Read()
	if err != nil {
		return nil, err
	}
	return elsewhere("/proc", own), nil
}

// elsewhere is Elsewhere with another /proc, and the table of this process.
func elsewhere(proc string, own Table) []Mount {
	seen := map[int]bool{} // by ID
	for _, m := range own.places() {
		seen[m.ID] = true
	}
	here, err := view(proc, "self")
	known := map[string]bool{}
	if err == nil {
		known[here.namespace+here.root] = true
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil
	}
	var list []Mount
	// A command that enters a namespace is simpler where a process has all of it.
	for _, rooted := range []bool{false, true} {
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || pid == os.Getpid() {
				continue
			}
			v, err := view(proc, e.Name())
			if v.rooted() != rooted || err == nil && known[v.namespace+v.root] {
				continue
			}
			known[v.namespace+v.root] = err == nil
			t, err := readFile(filepath.Join(proc, e.Name(), "mountinfo"))
			if err != nil {
				continue // it has ended, or has no namespace any more
			}
			for _, m := range t.places() {
				if !seen[m.ID] {
					seen[m.ID] = true
					m.PID, m.Rooted = pid, rooted
					list = append(list, m)
				}
			}
		}
	}
	return list
}

// outlook is what decides which mounts a process sees, and by which paths.
type outlook struct{ namespace, root string }

// rooted says that it has a root directory of its own.
func (v outlook) rooted() bool { return v.root != "" && v.root != "/" }

// view tells a process's outlook; the error says that it is another user's.
func view(proc, pid string) (v outlook, err error) {
	if v.namespace, err = os.Readlink(filepath.Join(proc, pid, "ns", "mnt")); err != nil {
		return v, fmt.Errorf("look at the mount namespace of %s: %w", pid, err)
	}
	if v.root, err = os.Readlink(filepath.Join(proc, pid, "root")); err != nil {
		return v, fmt.Errorf("look at the root directory of %s: %w", pid, err)
	}
	return v, nil
}
