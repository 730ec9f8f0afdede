package chain

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/dirlock"
	"varve/chain/diskdir"
	"varve/chain/manifest"
	"varve/chain/view"
	"varve/overlay"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
)

// dirSuffix is what a disk directory's name has behind its image's.
const dirSuffix = ".varve"

const readmeName = "README"

// readme stands in every disk directory, for whoever finds it without varve.
const readme = `This directory is a virtual disk of varve, a tool that mounts a disk's layers.

It holds the ONLY COPY of everything that was written to the disk since it was
made here. The image that the disk was made from (its base), if there is one,
stands elsewhere and is not changed by varve.

  chain.json          the tree of layers: which file stands on which, their names,
                      and which is the leaf, the one that is written
  layers/NNNNNN.qcow2 the layers themselves, standard qcow2
  lock                held while the disk is mounted or worked on; says by whom

With varve:     varve mount THIS-DIRECTORY MOUNTPOINT, then use MOUNTPOINT/disk.raw
Without varve, while the disk is not mounted: find "leaf" in chain.json and the
file of the layer with that id, then
    qemu-img info --backing-chain layers/NNNNNN.qcow2
    qemu-img convert -O raw layers/NNNNNN.qcow2 OUT.raw

Never open the base, or any layer but the leaf, for writing, and never delete or
move one of these files: every layer that stands on it would silently show
something else, or nothing.
`

// CreateOptions are the options of Create.
type CreateOptions struct {
	FS     hostfs.FS
	Size   int64  // guest bytes of a blank disk; with Base: 0, or a size at least the base's; rounded up to whole sectors
	Base   string // path of a foreign image; "" for a blank disk
	Format string // raw, qcow2 or "" (raw unless Base ends in .qcow2)

	Witness Witness // of Base and what it stands on; nil for none

	// Context ends the making when it ends; the error is its own, and nothing is left. nil:
	// nothing ends it.
	Context context.Context
}

// stopped says that the making was ended.
func (o CreateOptions) stopped() error {
	if o.Context == nil {
		return nil
	}
	return o.Context.Err()
}

// Created says what Create made and which foreign files the disk reads.
type Created struct {
	Dir   string
	Files []ForeignFile // top first
	Size  int64         // guest bytes
	Given int64         // what Size was rounded up from: what was asked for, or what the image has
	Notes []string      // what to know of these files, a line each
}

// ForeignFile is a file that an adopted disk reads.
type ForeignFile struct {
	Layer, Path, Format string
	About               string // what the layer is the state of, in words; "" where there is nothing to say
}

// DirFor is the disk directory that belongs to an image by default: beside
// the image's resolved path, its name plus ".varve". ErrInvalid for what is no
// regular file (of a block device the directory would not outlive a reboot), and
// where it would stand on tmpfs, devtmpfs or ramfs.
func DirFor(image string) (string, error) {
	given, err := absolutePath(image)
	if err != nil {
		return "", err
	}
	path, err := filepath.EvalSymlinks(given)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	switch {
	case info.IsDir():
		return "", invalidf("%s is a directory", image)
	case info.Mode()&os.ModeDevice != 0:
		return "", invalidf("beside the device %s no disk directory can stand; say where it shall be: --disk DIR", image)
	case !info.Mode().IsRegular():
		return "", invalidf("%s is neither a file nor a block device", image)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(path), &fs); err != nil {
		return "", &os.PathError{Op: "statfs", Path: filepath.Dir(path), Err: err}
	}
	// devtmpfs has the number of tmpfs.
	if fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
		return "", invalidf("%s is in memory (tmpfs), where a disk directory would be lost; say where it shall be: --disk DIR", filepath.Dir(path))
	}
	return path + dirSuffix, nil
}

// Create makes a disk directory: a blank disk of a size, or one on a foreign
// image with all that it stands on. It is built under another name beside dir
// and gets its name when all of it is durable (D12), so nothing of it is left when
// Create fails; what a crash left is removed by the next Create of that dir.
// Foreign files are only read. The error wraps ErrExist when dir is there,
// ErrInvalid for what cannot be a disk, ErrInUse while another varve creates
// it, hostfs.ErrLocked when an image is open for writing elsewhere, and
// qcow2.ErrUnsupported or ErrCorrupt for its content.
func Create(dir string, o CreateOptions) (Created, error) {
	fs := o.FS
	if fs == nil {
		fs = hostfs.OS()
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Created{}, err
	}
	if err := manifest.CheckPath(dir); err != nil {
		return Created{}, err
	}
	return create(fs, dir, o)
}

func create(fs hostfs.FS, dir string, o CreateOptions) (Created, error) {
	if err := checkFree(fs, dir); err != nil {
		return Created{}, err
	}
	var images []*foreignImage
	if o.Base != "" {
		var err error
		if images, err = adoptImages(fs, o.Base, o.Format, o.Witness, false); err != nil {
			return Created{}, err
		}
		// They were only read: a failing close loses nothing.
		defer func() { _ = closeImages(images) }()
	}
	return createOn(fs, dir, images, o)
}

// checkFree says whether a disk directory can be made at a path.
func checkFree(fs hostfs.FS, dir string) error {
	if _, err := fs.Stat(dir); err == nil {
		return fmt.Errorf("%s %w", dir, ErrExist)
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	_, err := fs.Stat(filepath.Dir(dir))
	return err
}

// createOn makes a disk directory on images that are open and locked, top first; on
// none a blank disk.
func createOn(fs hostfs.FS, dir string, images []*foreignImage, o CreateOptions) (Created, error) {
	plan, err := planDisk(images, o, true)
	if err != nil {
		return Created{}, err
	}

	temp := tempFor(dir)
	lock, inside, err := claimTemp(fs, temp)
	if err != nil {
		return Created{}, err
	}
	// The lock goes whatever unlock says, and the disk is made.
	defer func() { _ = lock.Unlock() }()
	at := temp
	err = func() error {
		if err := plan.write(inside, temp); err != nil {
			return err
		}
		if err := o.stopped(); err != nil {
			return err
		}
		if err := fs.Rename(temp, dir); err != nil {
			if errors.Is(err, os.ErrExist) {
				return fmt.Errorf("%s %w", dir, ErrExist)
			}
			return err
		}
		at = dir
		return fs.SyncDir(filepath.Dir(dir))
	}()
	if err != nil {
		return Created{}, errors.Join(err, removeDisk(fs, at))
	}
	made := Created{Dir: dir, Files: plan.files, Size: plan.own[len(plan.own)-1].Size, Given: plan.given, Notes: slices.Concat(plan.notes, plan.naming)}
	return made, nil
}

// tempFor is where a disk directory is written until it is whole. It is the same for
// all who would make it, so that they meet there. A name that leaves no room for the
// ending (NAME_MAX) is cut, with a digest of the whole of it instead.
func tempFor(dir string) string {
	const ending = ".creating"
	name := filepath.Base(dir)
	if most := unix.NAME_MAX - len(".") - len(ending); len(name) > most {
		digest := fmt.Sprintf("-%x", sha256.Sum256([]byte(name)))[:17]
		name = strings.ToValidUTF8(name[:most-len(digest)], "") + digest
	}
	return filepath.Join(filepath.Dir(dir), "."+name+ending)
}

// diskPlan is a disk that is to be made.
type diskPlan struct {
	manifest *manifest.Manifest
	own      []ownLayer    // the leaf last
	files    []ForeignFile // top first
	notes    []string      // on formats, for the user, a line each
	naming   []string      // the same on names
	given    int64         // bytes that the leaf's size was rounded up from
}

// ownLayer is a layer of the disk's own that is to be made, without data.
type ownLayer struct {
	id string
	overlay.CreateOptions
	below *view.Node // the view that it stands on; nil for none
}

// planDisk numbers and names the layers, bottom first, and puts a leaf on top. With
// snapshots, what others know as a snapshot and is the base becomes one, too.
func planDisk(images []*foreignImage, o CreateOptions, snapshots bool) (*diskPlan, error) {
	now := time.Now().UTC()
	m := &manifest.Manifest{Version: manifest.CurrentVersion, Next: 1, NextJob: 1, Modified: now}
	plan := &diskPlan{manifest: m, files: make([]ForeignFile, len(images))}
	var names []adoptedLayer
	names, plan.naming = nameAdopted(images, witnessOr(o.Witness))
	top := ""
	for i := len(images) - 1; i >= 0; i-- {
		image := images[i]
		taken, err := manifest.TakeFingerprint(image.image.File(), image.format)
		if err != nil {
			return nil, err
		}
		frozen := now
		if taken.ModTime != 0 {
			frozen = image.info.ModTime.UTC()
		}
		if !image.frozen.IsZero() {
			frozen = image.frozen
		}
		l := &manifest.Layer{
			ID: manifest.LayerID(m.NewNumber()), Name: names[i].name, Parent: top, Format: image.format,
			File: image.path, Foreign: true, Created: frozen, Frozen: frozen,
			Size: manifest.ViewSize(image.format, image.image.Size()), Fingerprint: taken,
		}
		if top == "" {
			m.Base = l.ID
		}
		m.Add(l)
		m.Modified, top = frozen, l.ID
		plan.files[i] = ForeignFile{Layer: l.Name, Path: l.File, Format: l.Format, About: names[i].about}
	}
	for _, image := range images {
		if image.note != "" {
			plan.notes = append(plan.notes, image.note)
		}
	}
	if bottom := len(images) - 1; bottom >= 0 && names[bottom].also != "" && snapshots {
		plan.emptySnapshot(images[bottom:], names[bottom].also)
		plan.files[bottom].About = "as " + names[bottom].also + ", " + names[bottom].about
	}

	size := o.Size
	switch {
	case size < 0 || size > maxDiskBytes:
		return nil, invalidf("a size of %d bytes", size)
	case len(images) == 0 && o.Format != "":
		return nil, invalidf("the format %s is a base's; a blank disk has none", o.Format)
	case len(images) == 0 && size == 0:
		return nil, invalidf("a blank disk needs a size")
	case len(images) == 0:
		m.BlankSize = extent.WholeSectors(size)
	default:
		base := images[0]
		if size == 0 {
			size = base.image.Size()
		}
		if size == 0 {
			return nil, invalidf("%s is a disk of 0 bytes", base.path)
		}
		if extent.WholeSectors(size) < extent.WholeSectors(base.image.Size()) {
			return nil, invalidf("a size of %d bytes is less than the %d of %s", size, base.image.Size(), base.path)
		}
	}
	plan.given = size
	m.Leaf = plan.add(images, &manifest.Layer{Parent: top, Created: now}, extent.WholeSectors(size))
	return plan, nil
}

// add plans a layer of the disk's own of some guest bytes on images, top first, which
// has the record's parent. It gives the layer's id.
func (p *diskPlan) add(images []*foreignImage, rec *manifest.Layer, size int64) string {
	number := p.manifest.NewNumber()
	rec.ID, rec.Format, rec.File = manifest.LayerID(number), formatQcow2, manifest.LayerFile(number)
	p.manifest.Add(rec)
	l := ownLayer{id: rec.ID, CreateOptions: overlay.CreateOptions{Size: size}, below: viewOfImages(images)}
	if len(images) > 0 {
		l.Backing, l.BackingFormat = images[0].path, images[0].format
	}
	p.own = append(p.own, l)
	return rec.ID
}

// emptySnapshot plans a snapshot that shows what the base does.
func (p *diskPlan) emptySnapshot(base []*foreignImage, name string) {
	of := p.manifest.Layer(p.manifest.Base)
	size := extent.WholeSectors(of.Size)
	p.add(base, &manifest.Layer{Name: name, Parent: of.ID, Created: of.Created, Frozen: of.Frozen, Size: size}, size)
}

// write fills an empty disk directory. chain.json comes last, after all that it
// names is durable (M15).
func (p *diskPlan) write(fs hostfs.FS, dir string) error {
	layers := filepath.Join(dir, manifest.LayersDir)
	if err := makeDir(fs, layers); err != nil {
		return err
	}
	for _, l := range p.own {
		record := p.manifest.Layer(l.id)
		path := filepath.Join(dir, record.File)
		if err := overlay.Create(fs, path, l.CreateOptions); err != nil {
			return err
		}
		if err := diskdir.SetMode(fs, path, 0o600); err != nil {
			return err
		}
		if err := l.keepTail(fs, path); err != nil {
			return err
		}
		if l.id != p.manifest.Leaf {
			// A power cut may take the time of the last write, by which it is judged.
			if err := syncFile(fs, path); err != nil {
				return err
			}
		}
		var err error
		if record.Fingerprint, err = manifest.FingerprintFile(fs, path, record.Format); err != nil {
			return err
		}
	}
	if err := fs.SyncDir(layers); err != nil {
		return err
	}
	if err := diskdir.WriteNew(fs, filepath.Join(dir, readmeName), []byte(readme)); err != nil {
		return err
	}
	return p.manifest.Commit(fs, dir)
}

// syncFile makes a file durable with its times.
func syncFile(fs hostfs.FS, path string) error {
	f, err := fs.Open(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func makeDir(fs hostfs.FS, path string) error {
	if err := fs.Mkdir(path, 0o700); err != nil {
		return err
	}
	return diskdir.SetMode(fs, path, 0o700)
}

// claimTemp makes the directory in which a disk is built and locks it, so that
// what a crash left there is told from what another process is building.
//
// inside is the file system for what is in it.
func claimTemp(fs hostfs.FS, temp string) (lock *dirlock.Lock, inside hostfs.FS, err error) {
	for attempt := 0; ; attempt++ {
		err := makeDir(fs, temp)
		stale := errors.Is(err, os.ErrExist)
		if err != nil && !stale {
			return nil, nil, err
		}
		inside, leave, err := enter(fs, temp)
		if err == nil {
			if err = ownedByCaller(inside); err != nil {
				return nil, nil, errors.Join(err, leave())
			}
			lock, err = lockInPlace(inside, temp)
			if err != nil {
				err = errors.Join(err, leave())
			}
		}
		if (errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrChanged)) && attempt < 10 {
			continue // whoever had it is done, and it has its name now
		}
		if err != nil {
			return nil, nil, fmt.Errorf("another varve command is making this disk at the moment: %w", err)
		}
		lock.Leave = leave
		if !stale {
			return lock, inside, nil
		}
		if err := removeContent(inside, temp); err != nil {
			return nil, nil, errors.Join(err, lock.Unlock())
		}
		return lock, inside, nil
	}
}

// lockInPlace locks a directory that was entered by a path, if the path still leads to it:
// ErrChanged otherwise. Whoever had it locked before may have given it the disk's name, and it
// is a disk then, which may even be in use already.
func lockInPlace(inside hostfs.FS, path string) (*dirlock.Lock, error) {
	lock, err := lockDir(inside, path, true, "", 0)
	if err != nil {
		return nil, err
	}
	if err := inPlace(inside); err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	return lock, nil
}

// ownedByCaller refuses a directory in which somebody else would have the last word.
func ownedByCaller(fs hostfs.FS) error {
	d, ok := fs.(*diskdir.Dir)
	if !ok {
		return nil
	}
	// Files become those of the file system's user id, which -1 asks for and leaves.
	if caller, err := unix.SetfsuidRetUid(-1); err == nil && d.Owner() != caller {
		return fmt.Errorf("%s belongs to uid %d, who did not make a disk there: %w; remove it", d.Path(), d.Owner(), ErrInvalid)
	}
	return nil
}

// removeDisk removes a disk directory that was just made.
func removeDisk(fs hostfs.FS, dir string) error {
	if err := removeContent(fs, dir); err != nil {
		return err
	}
	if err := removeIfThere(fs, filepath.Join(dir, dirlock.Name)); err != nil {
		return err
	}
	return removeIfThere(fs, dir)
}

// removeContent removes what Create puts into a disk directory, and nothing
// else, except the lock.
func removeContent(fs hostfs.FS, dir string) error {
	layers := filepath.Join(dir, manifest.LayersDir)
	names, err := fs.ReadDir(layers)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, name := range names {
		if _, ours := manifest.LayerFileNumber(manifest.LayersDir + "/" + name); ours {
			if err := removeIfThere(fs, filepath.Join(layers, name)); err != nil {
				return err
			}
		}
	}
	for _, name := range []string{manifest.LayersDir, manifest.TempName, manifest.FileName, readmeName} {
		if err := removeIfThere(fs, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func removeIfThere(fs hostfs.FS, path string) error {
	if err := fs.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
