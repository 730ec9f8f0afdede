// Package mounts finds varve's mounts, and every other place at which they can be
// seen, in the kernel's mount tables. It is the only reader of these tables.
//
// It reads /proc/PID/mountinfo (proc_pid_mountinfo(5)) and never touches a mounted
// file system, so it neither waits for a daemon nor fails on a mount whose daemon is
// gone.
//
// One connection of a daemon to the kernel, which has a device number of its own, can
// be seen at many places: where it was mounted, at bind mounts of all of it or of a
// part (such as disk.raw), and in mount namespaces that copied any of these. The mount
// is the first place at which all of it is seen; the others are its binds.
package mounts

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// FSType is the type of varve's mounts in the mount table.
const FSType = "fuse.varve"

// Mount is one place at which a varve mount, or a part of it, can be seen.
type Mount struct {
	Mountpoint string
	// Root is what is seen there: "/" for the whole mount, else the path of a file or
	// directory in it, such as "/disk.raw".
	Root       string
	Source     string // the disk directory, or the image of a read-only mount without one
	ReadOnly   bool
	UID        int // the mounting user's, -1 where the kernel does not tell
	AllowOther bool
	Context    bool   // all files have a type for SELinux that the mount gave them
	Device     uint64 // of its files, the same at all places
	ID         int    // no two places of this host have the same at the same time

	// Over says what hides the place, as in "tmpfs (tmpfs)", and OverAt where that is
	// mounted: at the mountpoint or above it. Both are "" where nothing does.
	Over, OverAt string

	// Binds are the other places at which the mount or a part of it can be seen in
	// this mount namespace. Only List, Of and Main tell them.
	Binds []Mount

	// PID is a process in the mount namespace of the place, 0 for this process's
	// own; Rooted says that this process has a root directory of its own there, from
	// which Mountpoint counts. Elsewhere tells them.
	PID    int
	Rooted bool

	through string // after Reach: the path of fd
	fd      int
}

// Whole says whether the whole mount is seen at this place.
func (m Mount) Whole() bool { return m.Root == "/" || m.Root == "" }

// Part is what is seen of the mount, as a path in it: "disk.raw"; "" for all of it.
func (m Mount) Part() string { return strings.TrimPrefix(m.Root, "/") }

// String is the place in words: "disk.raw at /srv/vm1.raw".
func (m Mount) String() string {
	what := "all of it"
	if !m.Whole() {
		what = m.Part()
	}
	if m.PID != 0 {
		return fmt.Sprintf("%s at %s in the mount namespace of pid %d", what, m.Mountpoint, m.PID)
	}
	return what + " at " + m.Mountpoint
}

// Reachable says whether nothing hides the place.
func (m Mount) Reachable() bool { return m.Over == "" }

func fromInfo(i *mountinfo.Info) Mount {
	m := Mount{
		Mountpoint: i.Mountpoint, Source: i.Source, UID: -1, ID: i.ID,
		Root:   strings.TrimSuffix(i.Root, "//deleted"), // as the kernel marks what has no name any more
		Device: unix.Mkdev(uint32(i.Major), uint32(i.Minor)),
	}
	for _, o := range strings.Split(i.Options+","+i.VFSOptions, ",") {
		switch {
		case o == "ro":
			m.ReadOnly = true
		case o == "allow_other":
			m.AllowOther = true
		case strings.HasPrefix(o, "context="):
			m.Context = true
		}
		if v, ok := strings.CutPrefix(o, "user_id="); ok {
			if n, err := strconv.Atoi(v); err == nil {
				m.UID = n
			}
		}
	}
	return m
}

// Inside is the path in the mount, as in "disk.raw" ("." for its root), of what is seen
// at path, which is absolute and resolved: below the place or below one of its binds.
func (m Mount) Inside(path string) (inside string, ok bool) {
	for _, one := range append([]Mount{m}, m.Binds...) {
		if !Within(path, one.Mountpoint) {
			continue
		}
		below, err := filepath.Rel(one.Mountpoint, path)
		if err != nil {
			continue
		}
		return filepath.Join(one.Part(), below), true
	}
	return "", false
}

// List gives the varve mounts in the order in which they were mounted, each once
// however often it can be seen. It leaves out those of which this mount namespace
// has no more than parts (Loose).
func List() ([]Mount, error) {
	t, err := Read()
	if err != nil {
		return nil, err
	}
	return t.List(), nil
}

// At gives the topmost place of a varve mount, or of a part of one, whose mountpoint
// is path, which must be absolute with its symbolic links resolved (Resolve).
func At(path string) (Mount, bool, error) {
	t, err := Read()
	if err != nil {
		return Mount{}, false, err
	}
	m, ok := t.At(path)
	return m, ok, nil
}

// Of gives the first varve mount whose source is dir.
func Of(dir string) (Mount, bool, error) {
	list, err := List()
	if err != nil {
		return Mount{}, false, err
	}
	for _, m := range list {
		if m.Source == dir {
			return m, true, nil
		}
	}
	return Mount{}, false, nil
}

// Main gives the varve mount that has a device; ok is false when this mount
// namespace has at most parts of it.
func Main(device uint64) (m Mount, ok bool, err error) {
	t, err := Read()
	if err != nil {
		return Mount{}, false, err
	}
	m, ok = t.Main(device)
	return m, ok, nil
}

// Around gives the place of a varve mount, or of a part of one, that path lies in,
// path being absolute and resolved.
func Around(path string) (Mount, bool, error) {
	t, err := Read()
	if err != nil {
		return Mount{}, false, err
	}
	var found Mount
	ok := false
	for _, m := range t.places() {
		if Within(path, m.Mountpoint) && len(m.Mountpoint) >= len(found.Mountpoint) {
			found, ok = m, true
		}
	}
	return found, ok, nil
}

// Top gives the type and the source of the topmost mount of any kind whose
// mountpoint is path, which must be absolute and resolved; ok is false when none is.
func Top(path string) (fsType, source string, ok bool, err error) {
	t, err := Read()
	if err != nil {
		return "", "", false, err
	}
	for _, i := range t {
		if i.Mountpoint == path {
			fsType, source, ok = i.FSType, i.Source, true
		}
	}
	return fsType, source, ok, nil
}

// Remote lists the mountpoints of file systems that are served by a program or
// another host, which may not answer. The root is none of them: without it nothing
// works at all.
func Remote() ([]string, error) {
	t, err := Read()
	if err != nil {
		return nil, err
	}
	var list []string
	for _, i := range t {
		if i.Mountpoint != "/" && remote(i.FSType) {
			list = append(list, i.Mountpoint)
		}
	}
	return list, nil
}

func remote(fsType string) bool {
	kind, _, _ := strings.Cut(fsType, ".")
	switch kind {
	case "fuse", "fuseblk", "virtiofs", "nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "autofs",
		"lustre", "afs", "coda", "gfs2", "ocfs2", "gpfs", "beegfs", "beegfs_nodev", "glusterfs", "orangefs", "pvfs2", "vboxsf", "prl_fs", "vmhgfs":
		return true
	}
	return false
}

// Below lists the mountpoints of any type that lie inside dir.
func Below(dir string) ([]string, error) {
	t, err := Read()
	if err != nil {
		return nil, err
	}
	var list []string
	for _, i := range t {
		if i.Mountpoint != dir && Within(i.Mountpoint, dir) {
			list = append(list, i.Mountpoint)
		}
	}
	return list, nil
}
