package mounts

import (
	"os"
	"path/filepath"
	"strings"
)

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
// directory that is yet to be made. No varve mount is asked: its daemon may hang, be gone
// or belong to somebody else, and there are no links in it.
func Resolve(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	list, err := List()
	if err != nil {
		return "", err
	}
	var at []string
	for _, m := range list {
		at = append(at, m.Mountpoint)
	}
	return ResolveUpTo(abs, at), nil
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
