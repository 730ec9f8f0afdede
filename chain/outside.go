package chain

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/diskdir"
	"varve/chain/manifest"
	"varve/chain/refusal"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// ErrUnfinished is of a clone that an Outside was to make, and of which it is not known
// whether it was made.
var ErrUnfinished = errors.New("it is not known whether the clone was made; its snapshot counts as cloned until \"varve release\"")

// Outside does for a Disk what its process may not: a daemon that has confined itself
// reaches no file but those of its disk. The methods do what the functions of their names
// do, as if this process had called them. Safe for concurrent use.
type Outside interface {
	ReadOtherChain(disk DirectoryID, other string) ([]byte, error)
	MakeClone(o CloneOrder) (Created, error)
	// LockHolder is hostfs.LockHolder, asked by this process.
	LockHolder(file string, at int64, fd int) string
}

// SetOutside has another process do what this one may not do any more. It is to be called
// once.
func (d *Disk) SetOutside(o Outside) {
	d.outside.Store(&o)
	if dir, entered := d.fs.(*diskdir.Dir); entered {
		dir.NameLockHolders(o.LockHolder)
	}
}

// DirectoryID names a disk directory for another process, which may find another one at the
// path by then.
type DirectoryID struct {
	Path          string
	Device, Inode uint64
}

// DirectoryID is that of this disk's directory; ok is false for an image alone.
func (d *Disk) DirectoryID() (id DirectoryID, ok bool) {
	fd, ok := d.Descriptor()
	if !ok {
		return DirectoryID{}, false
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return DirectoryID{}, false
	}
	return DirectoryID{d.dir, uint64(st.Dev), st.Ino}, true
}

// enter is the function enter for this directory. Whose rights are used is decided by the
// owner of the directory, so another one at the path is ErrChanged.
func (id DirectoryID) enter() (fs *diskdir.Dir, leave func() error, err error) {
	d, err := diskdir.Open(id.Path)
	if err != nil {
		return nil, nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(d.Descriptor(), &st); err == nil && (uint64(st.Dev) != id.Device || st.Ino != id.Inode) {
		err = refusal.Changedf("%s is not the disk's directory any more", id.Path)
	}
	if err != nil {
		return nil, nil, errors.Join(err, d.Close())
	}
	return d, d.Close, nil
}

// Descriptor is that of the disk directory, with which everything in it is reached; ok is
// false where there is none, of an image alone. It is the disk's until Close.
func (d *Disk) Descriptor() (fd int, ok bool) {
	if dir, entered := d.fs.(*diskdir.Dir); entered {
		return dir.Descriptor(), true
	}
	return -1, false
}

// Owner is the user id whose the disk directory is, and -1 where there is none.
func (d *Disk) Owner() int {
	if dir, entered := d.fs.(*diskdir.Dir); entered {
		return dir.Owner()
	}
	return -1
}

// outsider is who does what this process may not; ok is false where it may do all.
func (d *Disk) outsider() (o Outside, ok bool) {
	if p := d.outside.Load(); p != nil {
		return *p, true
	}
	return nil, false
}

// CloneOrder is a clone that is to be made: the chain of files below its leaf, and where.
type CloneOrder struct {
	Disk  DirectoryID // of the disk that is cloned
	Dir   string      // of the clone
	Files []CloneFile
}

// CloneFile is a file that a clone reads.
type CloneFile struct {
	Path, Format string
	Name         string    // of the layer that it becomes
	Frozen       time.Time // zero: when it was last written
	Device       uint64    // of the file that is meant
	Inode        uint64
}

// MakeClone makes the disk directory of a clone. It reads the files with the rights by
// which the disk is used. ErrChanged where a path leads to another file, ErrExist where the
// directory is there, and what Create gives.
func MakeClone(o CloneOrder) (Created, error) {
	fs, leave, err := o.Disk.enter()
	if err != nil {
		return Created{}, err
	}
	defer func() { _ = leave() }() // only read
	return o.make(fs)
}

// make makes the clone of a disk that is used by fs.
func (o CloneOrder) make(fs hostfs.FS) (Created, error) {
	if len(o.Files) == 0 {
		return Created{}, invalidf("a clone stands on a file at least")
	}
	var images []*foreignImage
	// They were only read: a failing close loses nothing.
	defer func() { _ = closeImages(images) }()
	for _, file := range o.Files {
		image, err := qcow2.OpenImage(fs, file.Path, file.Format, hostfs.LockFrozen)
		if err != nil {
			return Created{}, err
		}
		info, err := image.File().Stat()
		if err == nil && (info.Device != file.Device || info.Inode != file.Inode) {
			err = refusal.Changedf("%s is not the file that the disk reads", file.Path)
		}
		if err != nil {
			return Created{}, errors.Join(err, image.Close())
		}
		images = append(images, &foreignImage{path: file.Path, format: file.Format, name: file.Name, frozen: file.Frozen, image: image, info: info})
	}
	return createOn(fs, o.Dir, images, CreateOptions{Base: o.Files[0].Path, Format: o.Files[0].Format})
}

// ReadOtherChain reads the chain.json of another disk directory, with the rights by which
// the disk in the directory disk is used; a link in its place is refused, which could lead to
// any file. os.ErrNotExist where there is none, ErrChanged where disk is another directory.
func ReadOtherChain(disk DirectoryID, other string) ([]byte, error) {
	fs, leave, err := disk.enter()
	if err != nil {
		return nil, err
	}
	defer func() { _ = leave() }() // only read
	if fs.ActsForOwner() {
		return manifest.Text(fs, other)
	}
	return ManifestText(other)
}

// otherChain is the chain of another disk.
func (d *Disk) otherChain(dir string) (*manifest.Manifest, error) {
	o, ok := d.outsider()
	if !ok {
		return manifest.Load(d.fs, dir)
	}
	id, _ := d.DirectoryID()
	data, err := o.ReadOtherChain(id, dir)
	if err != nil {
		return nil, err
	}
	return manifest.Parse(data)
}

// orderClone is the order of a clone of a layer. ErrBusy while a layer has not settled.
func (d *Disk) orderClone(m *manifest.Manifest, top *manifest.Layer, dir string) (CloneOrder, error) {
	id, _ := d.DirectoryID()
	order := CloneOrder{Disk: id, Dir: dir}
	for _, rec := range m.Chain(top.ID) {
		if rec.Writing {
			return order, fmt.Errorf("%w: %s was not written to its end yet; unmount and mount the disk, and clone it then", ErrBusy, rec.Label())
		}
		n := d.nodes[rec.ID]
		if n == nil || n.Layer() == nil {
			return order, fmt.Errorf("layer %s: %w", rec.ID, os.ErrNotExist)
		}
		info, err := n.Layer().File.Stat()
		if err != nil {
			return order, err
		}
		name := rec.Name
		if name == "" || name == manifest.BaseName {
			name = "layer-" + rec.ID
		}
		order.Files = append(order.Files, CloneFile{d.path(rec), rec.Format, name, rec.Frozen, info.Device, info.Inode})
	}
	return order, nil
}

// makeClone creates a disk on the files of a layer's chain.
func (d *Disk) makeClone(m *manifest.Manifest, top *manifest.Layer, dir string) (Created, error) {
	order, err := d.orderClone(m, top, dir)
	if err != nil {
		return Created{}, err
	}
	if o, ok := d.outsider(); ok {
		return o.MakeClone(order)
	}
	return order.make(d.fs)
}
