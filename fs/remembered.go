package fs

import (
	"slices"
	"strings"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// rememberedPrefix begins the names of the attributes in which libvirt remembers whom a
// file belonged to before it gave it to a VM's user (its src/util/virfile.c and
// src/security/security_util.c). The kernel lets only privileged processes at trusted.*.
const rememberedPrefix = "trusted.libvirt."

// Bounds of what disk.raw remembers.
const (
	mostRemembered      = 32   // attributes
	mostRememberedBytes = 1024 // of a value; libvirt's are labels and numbers
)

// remembered are the attributes that libvirt has set on disk.raw. Like the owner that
// they tell of, which diskOwner has, they are there for the life of the mount. Without
// them libvirt would give disk.raw to root when a VM stops, and lock out the mount's own
// user.
type remembered struct {
	mu     sync.Mutex // guards values; held for no call
	values map[string][]byte
}

// isRemembered says whether an attribute of a node is one of them. On a read-only mount
// there are none: the kernel would refuse to set them, and libvirt then to start a VM.
func (f *fileSystem) isRemembered(node uint64, name string) bool {
	return node == nodeDisk && strings.HasPrefix(name, rememberedPrefix) && !f.disk.ReadOnly()
}

func (r *remembered) get(name string) (string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	value, ok := r.values[name]
	return string(value), ok
}

// set follows the flags of setxattr(2).
func (r *remembered) set(name string, value []byte, flags uint32) fuse.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, there := r.values[name]
	switch {
	case there && flags&unix.XATTR_CREATE != 0:
		return fuse.Status(unix.EEXIST)
	case !there && flags&unix.XATTR_REPLACE != 0:
		return fuse.ENODATA
	case len(value) > mostRememberedBytes, !there && len(r.values) >= mostRemembered:
		return fuse.Status(unix.ENOSPC)
	}
	if r.values == nil {
		r.values = make(map[string][]byte)
	}
	r.values[name] = slices.Clone(value) // the buffer is used again
	return fuse.OK
}

func (r *remembered) remove(name string) fuse.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, there := r.values[name]; !there {
		return fuse.ENODATA
	}
	delete(r.values, name)
	return fuse.OK
}
