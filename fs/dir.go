package fs

import (
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Lookup finds a name in a directory.
func (f *fileSystem) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	var node uint64
	var ok bool
	keep := fixedNames
	if part, kept, mine := f.findPart(in.NodeId, name); mine {
		node, ok, keep = part, part != 0, kept
	} else if in.NodeId == nodeLayers {
		keep = alwaysAsked
		l, found := f.layerByName(name)
		if found {
			n, err := layerNode(l.ID)
			node, ok = n, err == nil
		}
	} else {
		node, ok = f.find(in.NodeId, name)
	}
	if !ok {
		return fuse.ENOENT
	}
	valid, err := f.attr(node, &out.Attr)
	if err != nil {
		return f.status("lookup", err)
	}
	out.NodeId = node
	out.Generation = generation
	out.SetEntryTimeout(keep)
	out.SetAttrTimeout(valid)
	return fuse.OK
}

// directory is an open directory. Its listing is taken when it is opened and
// when it is rewound, so that offsets stay true while names change.
type directory struct {
	node uint64

	mu      sync.Mutex // guards entries; held while the chain lists its layers
	entries []fuse.DirEntry
}

func (o *directory) close() {}

// OpenDir opens a directory.
func (f *fileSystem) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if !isDir(in.NodeId) {
		return fuse.ENOTDIR
	}
	var status fuse.Status
	out.Fh, status = f.open.add(&directory{node: in.NodeId})
	return status
}

// ReadDir lists a directory from an offset on; an entry's offset is the next
// one's place in the listing.
func (f *fileSystem) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	o, ok := f.open.get(in.Fh).(*directory)
	if !ok {
		return fuse.EBADF
	}
	entries := f.listing(o, in.Offset == 0)
	for i := in.Offset; i < uint64(len(entries)); i++ {
		if !out.AddDirEntry(entries[i]) {
			break
		}
	}
	return fuse.OK
}

// listing is a directory's entries, taken anew at its start.
func (f *fileSystem) listing(o *directory, start bool) []fuse.DirEntry {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !start && o.entries != nil {
		return o.entries
	}
	list := []fuse.DirEntry{
		{Name: ".", Mode: unix.S_IFDIR, Ino: o.node},
		{Name: "..", Mode: unix.S_IFDIR, Ino: parentOf(o.node)},
	}
	for _, e := range f.entries(o.node) {
		mode := uint32(unix.S_IFREG)
		if isDir(e.node) {
			mode = unix.S_IFDIR
		}
		list = append(list, fuse.DirEntry{Name: e.name, Mode: mode, Ino: e.node})
	}
	for i := range list {
		list[i].Off = uint64(i + 1)
	}
	o.entries = list
	return list
}

// ReadDirPlus is switched off at mount: counting the blocks of every layer
// would make a plain ls slow.
func (f *fileSystem) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fuse.Status(unix.EOPNOTSUPP)
}

// FsyncDir: names are durable before the operation that makes them returns.
func (f *fileSystem) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return fuse.OK
}

// Rename renames a snapshot. Nothing else in the mount can be renamed.
func (f *fileSystem) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	if f.disk.ReadOnly() {
		return fuse.EROFS
	}
	if in.Flags&^uint32(unix.RENAME_NOREPLACE) != 0 {
		return fuse.EINVAL
	}
	if in.NodeId != nodeLayers || in.Newdir != nodeLayers {
		return fuse.EPERM
	}
	// The kernel let in whoever may write to layers/, with --uid or --umask
	// another than the mounting user; commands are the mounting user's, as
	// control/ is.
	if in.Uid != f.daemon && in.Uid != 0 {
		return fuse.EPERM
	}
	from, isLayer := strings.CutSuffix(oldName, layerSuffix)
	if !isLayer {
		if strings.HasSuffix(oldName, partsSuffix) { // its layer is what can be renamed
			return fuse.EPERM
		}
		return fuse.ENOENT
	}
	// A name that no snapshot can have is EPERM here: for EINVAL mv(1) says that
	// the file is moved into itself.
	to, isLayer := strings.CutSuffix(newName, layerSuffix)
	if !isLayer {
		return fuse.EPERM
	}
	err := f.disk.Rename(from, to)
	if err == nil {
		f.layersChanged.Store(time.Now().UnixNano())
	}
	f.log.Info("rename in layers/", "old", from, "new", to, "pid", in.Pid, "error", err)
	if status := f.status("rename", err); status != fuse.EINVAL {
		return status
	}
	return fuse.EPERM
}

// What follows is refused, so that rm -r on the mount loses nothing.

// Unlink removes nothing: a snapshot goes by control/delete.
func (f *fileSystem) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return fuse.EPERM
}

// Rmdir removes nothing.
func (f *fileSystem) Rmdir(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return fuse.EPERM
}

// Create makes nothing: a snapshot comes by control/snapshot.
func (f *fileSystem) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	return fuse.EPERM
}

// Tmpfile makes nothing.
func (f *fileSystem) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	return fuse.EPERM
}

// Mknod makes nothing.
func (f *fileSystem) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Mkdir makes nothing.
func (f *fileSystem) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Link makes nothing.
func (f *fileSystem) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Symlink makes nothing.
func (f *fileSystem) Symlink(cancel <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Readlink: there are no symbolic links here.
func (f *fileSystem) Readlink(cancel <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	return nil, fuse.EINVAL
}
