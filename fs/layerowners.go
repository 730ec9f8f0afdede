package fs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// layerOwners are what chmod and chown changed of files in layers/, for the life of the
// mount: libvirt gives a layer to its VM's user when one is plugged in. Safe for
// concurrent use.
type layerOwners struct {
	mu    sync.Mutex // guards files; held for no call
	files map[uint64]fileOwner
}

// fileOwner is who a file belongs to, and its permission bits.
type fileOwner struct {
	mode, uid, gid uint32
}

// viewModes are the permission bits that a layer can have: nobody writes or executes it.
const viewModes = 0o444

// of gives the owner of a layer's file; unchanged where nothing was set.
func (o *layerOwners) of(node uint64, unchanged fileOwner) fileOwner {
	o.mu.Lock()
	defer o.mu.Unlock()
	if set, ok := o.files[node]; ok {
		return set
	}
	return unchanged
}

// set takes what a SETATTR changes of a layer's owner; unchanged is the owner of one of
// which nothing was set before.
func (o *layerOwners) set(node uint64, in *fuse.SetAttrInCommon, unchanged fileOwner) {
	o.mu.Lock()
	defer o.mu.Unlock()
	owner, ok := o.files[node]
	if !ok {
		owner = unchanged
	}
	if mode, ok := in.GetMode(); ok {
		owner.mode = mode & viewModes
	}
	if uid, ok := in.GetUID(); ok {
		owner.uid = uid
	}
	if gid, ok := in.GetGID(); ok {
		owner.gid = gid
	}
	if o.files == nil {
		o.files = make(map[uint64]fileOwner)
	}
	o.files[node] = owner
}

// keep forgets the files for which stays is false: a layer's number is never used again.
func (o *layerOwners) keep(stays func(node uint64) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for node := range o.files {
		if !stays(node) {
			delete(o.files, node)
		}
	}
}
