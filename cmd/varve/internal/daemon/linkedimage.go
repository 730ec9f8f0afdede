package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"varve/chain"
	"varve/cmd/varve/internal/where"
)

// An image may be named by a symbolic link, such as current.qcow2. Its disk directory
// stands beside the file that the link leads to. When the link is made to lead to another
// file, the same command would make a new disk, which has nothing of what the VM wrote to
// the old one. So a new disk is made for the file itself, or with --new.

// links gives the symbolic links that a path leads through by its last element, each as an
// absolute path whose directory is resolved. Those of its directories are not told.
func links(path string) []string {
	var list []string
	path, err := filepath.Abs(path)
	for err == nil && len(list) < maxImageLinks {
		var dir, target string
		if dir, err = filepath.EvalSymlinks(filepath.Dir(path)); err != nil {
			break
		}
		path = filepath.Join(dir, filepath.Base(path))
		if target, err = os.Readlink(path); err != nil {
			break // no link
		}
		list = append(list, path)
		if path = target; !filepath.IsAbs(target) {
			path = filepath.Join(dir, target)
		}
	}
	return list
}

// maxImageLinks is how many links Linux follows (path_resolution(7)).
const maxImageLinks = 40

// refuseLinked refuses to make a new disk for an image that is named by a symbolic link.
func (p plan) refuseLinked(flags *Flags, source string) error {
	through := links(source)
	if !p.create || flags.newDisk || flags.disk != "" || len(through) == 0 {
		return nil
	}
	words := fmt.Sprintf("it is a symbolic link to %s, which has no disk yet", p.image)
	way := "to make a new one, name that file or say --new"
	switch old := p.formerDisks(through); {
	case len(old) == 1:
		way = fmt.Sprintf("if the VM's disk is %s, mount that directory; %s", old[0], way)
	case len(old) > 1:
		way = fmt.Sprintf("if the VM's disk is one of %s, mount that directory; %s", strings.Join(old, ", "), way)
	default:
		way += "; a disk that was made while the link led to another file stands beside that file"
	}
	return errors.New(words + ": " + way)
}

// formerDisks gives the disk directories that may be those of former targets of links:
// those named after a link, and those beside the links or the image that were last mounted
// at the plan's mountpoint.
func (p plan) formerDisks(through []string) []string {
	var dirs, found []string
	for _, path := range append(slices.Clone(through), p.image) {
		if dir := filepath.Dir(path); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	for _, link := range through {
		if dir := link + ".varve"; where.IsDiskDirectory(dir) {
			found = append(found, dir)
		}
	}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // what may not be read may not be named
		}
		for _, e := range entries {
			disk := filepath.Join(dir, e.Name())
			if slices.Contains(found, disk) || !e.IsDir() || !where.IsDiskDirectory(disk) {
				continue
			}
			if last, err := chain.LastMount(disk); err == nil && last.Mountpoint == p.mountpoint {
				found = append(found, disk)
			}
		}
	}
	return found
}
