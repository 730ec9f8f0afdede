// Package mounts finds varve's mounts in the kernel's mount table.
//
// It reads /proc/self/mountinfo and never touches a mounted file system, so it
// neither waits for a daemon nor fails on a mount whose daemon is gone.
package mounts

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// FSType is the type of varve's mounts in the mount table.
const FSType = "fuse.varve"

// Mount is one varve mount of this host, as this mount namespace sees it.
type Mount struct {
	Mountpoint string
	Source     string // the disk directory, or the image of a read-only mount without one
	ReadOnly   bool
	UID        int // the mounting user's, -1 where the kernel does not tell
	AllowOther bool
	Context    bool   // all files have a type for SELinux that the mount gave them
	Device     uint64 // of its files
}

// List gives the varve mounts in the order in which they were mounted.
func List() ([]Mount, error) {
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return i.FSType != FSType, false
	})
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	list := make([]Mount, 0, len(infos))
	for _, i := range infos {
		list = append(list, fromInfo(i))
	}
	return list, nil
}

// Visible is List without what another mount, of any kind, at the same mountpoint
// hides.
func Visible() ([]Mount, error) {
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	top := make(map[string]*mountinfo.Info, len(infos))
	for _, i := range infos {
		top[i.Mountpoint] = i
	}
	var list []Mount
	for _, i := range infos {
		if i.FSType == FSType && top[i.Mountpoint] == i {
			list = append(list, fromInfo(i))
		}
	}
	return list, nil
}

func fromInfo(i *mountinfo.Info) Mount {
	m := Mount{Mountpoint: i.Mountpoint, Source: i.Source, UID: -1, Device: unix.Mkdev(uint32(i.Major), uint32(i.Minor))}
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

// At gives the topmost varve mount whose mountpoint is path, which must be
// absolute with its symbolic links resolved (Resolve).
func At(path string) (Mount, bool, error) {
	list, err := List()
	if err != nil {
		return Mount{}, false, err
	}
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].Mountpoint == path {
			return list[i], true, nil
		}
	}
	return Mount{}, false, nil
}

// Top gives the type and the source of the topmost mount of any kind whose
// mountpoint is path, which must be absolute and resolved; ok is false when none is.
func Top(path string) (fsType, source string, ok bool, err error) {
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return i.Mountpoint != path, false })
	if err != nil {
		return "", "", false, fmt.Errorf("read the mount table: %w", err)
	}
	if len(infos) == 0 {
		return "", "", false, nil
	}
	top := infos[len(infos)-1]
	return top.FSType, top.Source, true, nil
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

// Around gives the varve mount that path lies in, path being absolute and
// resolved.
func Around(path string) (Mount, bool, error) {
	list, err := List()
	if err != nil {
		return Mount{}, false, err
	}
	var found Mount
	ok := false
	for _, m := range list {
		if Within(path, m.Mountpoint) && len(m.Mountpoint) >= len(found.Mountpoint) {
			found, ok = m, true
		}
	}
	return found, ok, nil
}

// Remote lists the mountpoints of file systems that are served by a program or
// another host, which may not answer. The root is none of them: without it nothing
// works at all.
func Remote() ([]string, error) {
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		kind, _, _ := strings.Cut(i.FSType, ".")
		switch kind {
		case "fuse", "fuseblk", "virtiofs", "nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "autofs",
			"lustre", "afs", "coda", "gfs2", "ocfs2", "gpfs", "beegfs", "beegfs_nodev", "glusterfs", "orangefs", "pvfs2", "vboxsf", "prl_fs", "vmhgfs":
			return false, false
		}
		return true, false
	})
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	var list []string
	for _, i := range infos {
		if i.Mountpoint != "/" {
			list = append(list, i.Mountpoint)
		}
	}
	return list, nil
}

// Below lists the mountpoints of any type that lie inside dir.
func Below(dir string) ([]string, error) {
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return i.Mountpoint == dir || !Within(i.Mountpoint, dir), false
	})
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	var list []string
	for _, i := range infos {
		list = append(list, i.Mountpoint)
	}
	return list, nil
}

// Within says whether path is dir or lies inside it. Both are clean, absolute
// and resolved.
func Within(path, dir string) bool {
	if path == dir || dir == "/" {
		return true
	}
	return strings.HasPrefix(path, dir+"/")
}

// Resolve makes a path absolute and resolves its symbolic links as far as they
// can be: the last elements need not exist or be accessible, as with a
// directory that is yet to be made, and with a mountpoint whose daemon is gone
// or belongs to somebody else.
func Resolve(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	rest := ""
	for dir := abs; ; dir = filepath.Dir(dir) {
		resolved, err := filepath.EvalSymlinks(dir)
		if err == nil {
			return filepath.Join(resolved, rest), nil
		}
		if dir == filepath.Dir(dir) {
			return abs, nil
		}
		rest = filepath.Join(filepath.Base(dir), rest)
	}
}

// maxLinks is how many symbolic links a path may lead through.
const maxLinks = 40

// ResolveUpTo resolves the symbolic links of an absolute path, as far as that asks
// none of some mountpoints, which may not answer (Remote); what is behind stays as it
// is.
func ResolveUpTo(path string, slowMounts []string) string {
	slow := map[string]bool{}
	for _, dir := range slowMounts {
		slow[dir] = true
	}
	done, rest, links := "/", strings.Split(path, "/"), 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		next := filepath.Join(done, name)
		if next == done || name == ".." {
			done = next
			continue
		}
		if slow[next] {
			return filepath.Join(append([]string{next}, rest...)...)
		}
		target, err := os.Readlink(next)
		switch {
		case err != nil: // no link
			done = next
		case links == maxLinks:
			return filepath.Clean(path)
		default:
			if links++; filepath.IsAbs(target) {
				done = "/"
			}
			rest = append(strings.Split(target, "/"), rest...)
		}
	}
	return done
}

// OthersAllowed says whether an ordinary user may use allow_other (fuse.conf, mount.fuse3(8)).
func OthersAllowed(conf string) bool {
	text, err := os.ReadFile(conf)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if strings.TrimSpace(line) == "user_allow_other" {
			return true
		}
	}
	return false
}
