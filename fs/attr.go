package fs

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/chain"
)

// How long the kernel may answer without asking. What a control file, a write
// or another process can change is asked for every time; the names outside
// layers/ never change.
const (
	fixedNames  = time.Hour
	fixedAttrs  = time.Minute
	notCounted  = time.Second // of a layer whose st_blocks is not final yet
	alwaysAsked = 0
)

// attrBlock is the unit of st_blocks. imageBlock is what st_blksize recommends
// for disk images, in bytes: cmp and stdio read in pieces of that size, and
// each piece of disk.raw is a request (cmp of 2 GiB: 29 s with 4 KiB, 1.6 s
// with 128 KiB). textBlock is the same for everything else.
const (
	attrBlock  = 512
	imageBlock = 128 << 10
	textBlock  = 4096
)

func errStale() error { return refuse(unix.ESTALE, "the layer is gone") }

// attr fills in a node's attributes and says how long they hold.
func (f *fileSystem) attr(node uint64, a *fuse.Attr) (valid time.Duration, err error) {
	// go-fuse computes st_blocks itself where Blksize is 0.
	*a = fuse.Attr{Ino: node, Nlink: 1, Blksize: textBlock, Owner: fuse.Owner{Uid: f.uid, Gid: f.gid}}
	switch {
	case node == nodeDisk:
		return alwaysAsked, f.diskAttr(a)
	case isLayer(node):
		l, ok := f.layerByNode(node)
		if !ok {
			return 0, errStale()
		}
		// A view does not change, and its name is looked up every time. If
		// its attributes were asked for every time too, so they would be
		// before each read from the page cache.
		return f.layerAttr(node, l, a)
	case isText(node):
		a.Mode = unix.S_IFREG | 0o444&^f.umask
		a.Size = uint64(f.textSize[node-nodeStatus].Load())
		setBlocks(a, int64(a.Size))
		setTime(a, time.Now())
		return alwaysAsked, nil
	case isPart(node), isPartsDir(node):
		return f.partAttr(node, a)
	case isDir(node):
		f.dirAttr(node, a)
		if node == nodeLayers {
			return alwaysAsked, nil
		}
		return fixedAttrs, nil
	}
	if _, ok := commandOf(node); ok {
		// Size 0, as in /proc: what a read gives is made at open, and an
		// appending shell must start at 0.
		a.Mode = unix.S_IFREG | 0o600
		a.Owner = fuse.Owner{Uid: f.daemon, Gid: f.daemonG}
		setTime(a, f.mounted)
		return alwaysAsked, nil
	}
	return 0, errStale()
}

func (f *fileSystem) dirAttr(dir uint64, a *fuse.Attr) {
	a.Mode = unix.S_IFDIR | 0o777&^f.umask
	setTime(a, f.mounted)
	switch dir {
	case nodeRoot: // 1 link: the subdirectories are not counted, as they come and go
	case nodeControl:
		a.Nlink = 2
		a.Mode = unix.S_IFDIR | 0o700
		a.Owner = fuse.Owner{Uid: f.daemon, Gid: f.daemonG}
	case nodeLayers:
		setTime(a, time.Unix(0, f.layersChanged.Load()))
	}
}

func (f *fileSystem) diskAttr(a *fuse.Attr) error {
	mode, uid, gid, atime := f.owner.get()
	a.Mode = unix.S_IFREG | mode
	a.Blksize = imageBlock
	a.Owner = fuse.Owner{Uid: uid, Gid: gid}
	a.Size = uint64(f.disk.Size())
	setTime(a, f.disk.ModTime())
	if !atime.IsZero() {
		a.Atime, a.Atimensec = uint64(atime.Unix()), uint32(atime.Nanosecond())
	}
	n, counted, err := f.disk.AllocatedBytes() // asked again every time
	if err != nil {
		return err
	}
	setImageBlocks(a, n, counted)
	return nil
}

func (f *fileSystem) layerAttr(node uint64, l chain.LayerStatus, a *fuse.Attr) (valid time.Duration, err error) {
	owner := f.layers.of(node, f.layerOwner())
	a.Mode = unix.S_IFREG | owner.mode
	a.Owner = fuse.Owner{Uid: owner.uid, Gid: owner.gid}
	a.Blksize = imageBlock
	a.Size = uint64(l.Size)
	setTime(a, l.Since())
	n, counted, err := f.disk.LayerAllocatedBytes(l.ID)
	if err != nil {
		return 0, err
	}
	setImageBlocks(a, n, counted)
	if !counted {
		return notCounted, nil
	}
	return fixedAttrs, nil
}

// layerOwner is whom a layer's file belongs to until chown or chmod says otherwise.
func (f *fileSystem) layerOwner() fileOwner {
	return fileOwner{mode: viewModes &^ f.umask, uid: f.uid, gid: f.gid}
}

// setImageBlocks tells st_blocks of an image. 0 says that nothing in it is data:
// "tar --sparse" then does not read it at all. So that is told only when it is known.
func setImageBlocks(a *fuse.Attr, bytes int64, counted bool) {
	if !counted {
		bytes = max(bytes, min(int64(a.Size), attrBlock))
	}
	setBlocks(a, bytes)
}

func setBlocks(a *fuse.Attr, bytes int64) { a.Blocks = uint64((bytes + attrBlock - 1) / attrBlock) }

func setTime(a *fuse.Attr, t time.Time) {
	if t.IsZero() {
		t = time.Unix(0, 0)
	}
	a.SetTimes(&t, &t, &t)
}

// born is when a node came to be; ok is false where nothing tells.
func (f *fileSystem) born(node uint64) (t time.Time, ok bool) {
	if part, _, ok := partOf(node); ok && part != 0 {
		node = nodeLayer + part
	}
	if isLayer(node) {
		l, found := f.layerByNode(node)
		return l.Created, found && !l.Created.IsZero()
	}
	if node != nodeDisk {
		return f.mounted, true
	}
	for _, l := range f.disk.Layers() {
		if !l.Created.IsZero() && (t.IsZero() || l.Created.Before(t)) {
			t = l.Created
		}
	}
	return t, !t.IsZero()
}

// GetAttr is stat(2).
func (f *fileSystem) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return f.getAttr(in.NodeId, out)
}

func (f *fileSystem) getAttr(node uint64, out *fuse.AttrOut) fuse.Status {
	valid, err := f.attr(node, &out.Attr)
	if err != nil {
		return f.status("stat", err)
	}
	out.SetTimeout(valid)
	return fuse.OK
}

// Statx is statx(2), which the kernel sends where a birth time is asked for.
func (f *fileSystem) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	var a fuse.Attr
	valid, err := f.attr(in.NodeId, &a)
	if err != nil {
		return f.status("statx", err)
	}
	out.SetTimeout(valid)
	out.Statx = fuse.Statx{
		Mask:    unix.STATX_BASIC_STATS,
		Blksize: a.Blksize,
		Nlink:   a.Nlink,
		Uid:     a.Uid,
		Gid:     a.Gid,
		Mode:    uint16(a.Mode),
		Ino:     a.Ino,
		Size:    a.Size,
		Blocks:  a.Blocks,
		Atime:   fuse.SxTime{Sec: a.Atime, Nsec: a.Atimensec},
		Mtime:   fuse.SxTime{Sec: a.Mtime, Nsec: a.Mtimensec},
		Ctime:   fuse.SxTime{Sec: a.Ctime, Nsec: a.Ctimensec},
	}
	if t, ok := f.born(in.NodeId); ok {
		out.Mask |= unix.STATX_BTIME
		out.Btime = fuse.SxTime{Sec: uint64(t.Unix()), Nsec: uint32(t.Nanosecond())}
	}
	return fuse.OK
}

// Access is never sent: with default_permissions the kernel judges the mode
// bits itself (M19).
func (f *fileSystem) Access(cancel <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	return fuse.ENOSYS
}

// changes of mode or owner that a SETATTR asks for.
const ownership = fuse.FATTR_MODE | fuse.FATTR_UID | fuse.FATTR_GID

// SetAttr is truncate, chmod, chown and utimensat.
func (f *fileSystem) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if f.disk.ReadOnly() {
		return fuse.EROFS
	}
	_, resize := in.GetSize()
	_, isCommand := commandOf(in.NodeId)
	switch {
	case in.NodeId == nodeDisk:
		if err := f.setDiskAttr(&in.SetAttrInCommon); err != nil {
			return f.status("change disk.raw", err)
		}
	case isCommand && in.Valid&ownership == 0 && (!resize || in.Size == 0):
		// A shell's ">" truncates before it writes, and touch is harmless.
	case (isLayer(in.NodeId) || isPart(in.NodeId)) && resize:
		return fuse.EACCES
	case isLayer(in.NodeId) && in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) == 0 && in.Valid&ownership != 0:
		if _, ok := f.layerByNode(in.NodeId); !ok {
			return fuse.Status(unix.ESTALE)
		}
		f.layers.set(in.NodeId, &in.SetAttrInCommon, f.layerOwner())
	default:
		return fuse.EPERM
	}
	return f.getAttr(in.NodeId, out)
}

func (f *fileSystem) setDiskAttr(in *fuse.SetAttrInCommon) error {
	if size, ok := in.GetSize(); ok {
		if err := f.truncateDisk(size, &in.InHeader); err != nil {
			return err
		}
	}
	f.owner.set(in)
	// With a size the time is the resize's own, which the chain keeps.
	if t, ok := in.GetMTime(); ok && in.Valid&fuse.FATTR_SIZE == 0 {
		f.disk.SetModTime(t)
	}
	return nil
}

func (o *diskOwner) set(in *fuse.SetAttrInCommon) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if mode, ok := in.GetMode(); ok {
		o.mode = mode & 0o777 // the mount is nosuid: the other bits mean nothing
	}
	if uid, ok := in.GetUID(); ok {
		o.uid = uid
	}
	if gid, ok := in.GetGID(); ok {
		o.gid = gid
	}
	if t, ok := in.GetATime(); ok {
		o.atime = t
	}
}
