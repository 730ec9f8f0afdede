package chain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/diskdir"
	"varve/chain/manifest"
	"varve/chain/mounts"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// maxAdopted is how many files an adopted chain may have. QEMU itself gets slow
// long before; a header that names ever new files must end somewhere.
const maxAdopted = 2000

// foreignImage is an image of the user's own, open and locked, on its way into
// a chain.
type foreignImage struct {
	path, format string    // as they go into chain.json
	name         string    // of the layer; "" for one by its place
	note         string    // what its user should know of it; "" for nothing
	frozen       time.Time // zero: when the file was last written
	image        *qcow2.Image
	info         hostfs.Info
}

// adoptImages opens an image and all its backing files, top first. It follows
// only backing names that a header gives together with a format. Layers of a varve
// disk are refused unless layersToo is set. Every error names the file. The caller closes what it gets; on an error nothing is open.
func adoptImages(fs hostfs.FS, path, format string, witness Witness, layersToo bool) (images []*foreignImage, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closeImages(images))
			images = nil
		}
	}()
	path, err = absolutePath(path)
	if err != nil {
		return nil, err
	}
	format, note, err := topFormat(fs, path, format, witnessOr(witness))
	if err != nil {
		return nil, err
	}
	for namedBy := ""; path != ""; {
		if len(images) == maxAdopted {
			return images, invalidf("%s has more than %d backing files", images[0].path, maxAdopted)
		}
		next, err := openForeign(fs, path, format, namedBy, layersToo)
		if err != nil {
			return images, err
		}
		for _, seen := range images {
			if seen.info.Device == next.info.Device && seen.info.Inode == next.info.Inode {
				return append(images, next), invalidf("a loop of backing files: %s is below itself, named by %s", next.path, namedBy)
			}
		}
		images = append(images, next)
		if namedBy != "" && format == formatRaw {
			if note, err = backingNote(next.image.File(), namedBy); err != nil {
				return images, err
			}
		}
		next.note, note = note, ""
		namedBy = path
		path, format, err = backingOf(path, next.image.Header())
		if err != nil {
			return images, err
		}
	}
	for i := range len(images) - 1 {
		if !isOwnFile(images[i].path) {
			images[i].image.HideTail(images[i+1].image)
		}
	}
	bottom := images[len(images)-1]
	if bottom.image.Size() == 0 {
		return images, invalidf("the base %s is empty", bottom.path)
	}
	// A resolved path goes on to name the same file when a link is turned to
	// another one. But QEMU looks for a relative backing name beside the path
	// as it was given, so there the given one stays.
	if top := images[0]; !hasRelativeBacking(top.image.Header()) && diskdir.OnHost(fs) {
		if top.path, err = filepath.EvalSymlinks(top.path); err != nil {
			return images, err
		}
		if err := manifest.CheckPath(top.path); err != nil {
			return images, err
		}
	}
	return images, nil
}

func closeImages(images []*foreignImage) error {
	var err error
	for _, image := range images {
		err = errors.Join(err, image.image.Close())
	}
	return err
}

// checkFile refuses what cannot be a layer before it is opened: opening a fifo
// alone would wait for ever.
func checkFile(fs hostfs.FS, path string) error {
	if err := manifest.CheckPath(path); err != nil {
		return err
	}
	info, err := fs.Stat(path)
	if err != nil {
		return err
	}
	switch {
	case info.Mode.IsDir():
		if _, err := fs.Stat(filepath.Join(path, manifest.FileName)); err == nil {
			return invalidf("%s is a disk directory, not an image", path)
		}
		return invalidf("%s is a directory", path)
	case info.Mode.IsRegular():
	case info.Mode&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice:
	default:
		return invalidf("%s is neither a file nor a block device", path)
	}
	return nil
}

// openForeign opens and locks one image. namedBy is the image whose header
// names it, "" for the one that the user named.
func openForeign(fs hostfs.FS, path, format, namedBy string, layersToo bool) (*foreignImage, error) {
	if err := checkFile(fs, path); err != nil {
		if namedBy != "" && errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("the backing file of %s is missing: %w", namedBy, err)
		}
		return nil, err
	}
	if err := refuseVarve(fs, path, layersToo); err != nil {
		return nil, err
	}
	image, err := qcow2.OpenImage(fs, path, format, hostfs.LockFrozen)
	if err != nil {
		return nil, err
	}
	info, err := image.File().Stat()
	if err != nil {
		return nil, errors.Join(err, image.Close())
	}
	return &foreignImage{path: path, format: format, image: image, info: info}, nil
}

// backingOf is the path and format of the image that a header names; "" when
// it names none.
func backingOf(path string, header *qcow2.Header) (backing, format string, err error) {
	if header == nil || header.BackingName == "" {
		return "", "", nil
	}
	name := header.BackingName
	if err := manifest.CheckPath(name); err != nil {
		return "", "", fmt.Errorf("the backing file of %s: %w", path, err)
	}
	if isProtocol(name) {
		return "", "", invalidf("%s names the backing file %q; names with a protocol and json: are not followed", path, name)
	}
	if !header.HasBackingFormat {
		return "", "", fmt.Errorf("%w: %s names the backing file %q without its format; say which with: %s",
			ErrInvalid, path, name, rebaseWords(path, name, ""))
	}
	if header.BackingFormat != formatRaw && header.BackingFormat != formatQcow2 {
		return "", "", fmt.Errorf("%w: %s names the backing file %q with the format %q; only raw and qcow2 are read",
			ErrInvalid, path, name, header.BackingFormat)
	}
	if !filepath.IsAbs(name) {
		// Beside the path as it is given, links not resolved: as QEMU does.
		name = path[:strings.LastIndexByte(path, '/')+1] + name
	}
	return tidyPath(name), header.BackingFormat, nil
}

// isProtocol says whether QEMU takes a name for something other than a path:
// it does when a colon comes before the first slash.
func isProtocol(name string) bool {
	i := strings.IndexAny(name, ":/")
	return i >= 0 && name[i] == ':'
}

func hasRelativeBacking(header *qcow2.Header) bool {
	return header != nil && header.BackingName != "" && !filepath.IsAbs(header.BackingName)
}

// absolutePath makes a path absolute without resolving links.
func absolutePath(path string) (string, error) {
	if path == "" {
		return "", invalidf("the path is empty")
	}
	if !filepath.IsAbs(path) {
		wd, err := os.Getwd()
		if err != nil {
			return "", err
		}
		path = wd + "/" + path
	}
	return tidyPath(path), nil
}

// tidyPath removes what means nothing. A ".." means something behind a link,
// so with one the path stays as it is.
func tidyPath(path string) string {
	if slices.Contains(strings.Split(path, "/"), "..") {
		return path
	}
	return filepath.Clean(path)
}

// LayerError says that an image is a layer of a varve disk, so that no other disk can be
// made on it. It is an ErrInvalid.
type LayerError struct {
	File  string // as it was named
	Disk  string // the disk's directory
	Label string // of the layer, for a message
	Name  string // by which commands know its view: a snapshot's, or leaf; "" of a layer without one
}

func (e *LayerError) Error() string {
	return fmt.Sprintf("%s is %s of the varve disk %s; mount that disk instead, or make another one on its snapshots with \"varve clone\"", e.File, e.Label, e.Disk)
}

// Unwrap gives ErrInvalid.
func (e *LayerError) Unwrap() error { return ErrInvalid }

// refuseVarve refuses a file that varve itself writes or shows: a layer of a
// disk changes under the new disk, and a file in a mount would make one varve
// wait for another.
func refuseVarve(fs hostfs.FS, path string, layersToo bool) error {
	if !diskdir.OnHost(fs) {
		return nil
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	if err := refuseMounted(resolved); err != nil || layersToo {
		return err
	}
	info, err := fs.Stat(resolved)
	if err != nil {
		return err
	}
	beside := filepath.Dir(resolved)
	for _, dir := range []string{beside, filepath.Dir(beside)} {
		m, err := manifest.Load(fs, dir)
		if err != nil {
			relative, _ := strings.CutPrefix(resolved, dir+"/")
			if _, ours := manifest.LayerFileNumber(relative); ours && !errors.Is(err, os.ErrNotExist) {
				return invalidf("%s looks like a layer of the varve disk %s: %w", path, dir, err)
			}
			continue
		}
		for _, l := range m.Layers {
			if l.Foreign {
				continue // several disks may share a base
			}
			own, err := fs.Stat(l.Path(dir))
			if err == nil && own.Device == info.Device && own.Inode == info.Inode {
				name := l.Name
				if l.ID == m.Leaf {
					name = manifest.LeafName
				}
				return &LayerError{File: path, Disk: dir, Label: l.Label(), Name: name}
			}
		}
	}
	return nil
}

// refuseMounted refuses a file in a varve mount.
func refuseMounted(path string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	if fs.Type != unix.FUSE_SUPER_MAGIC {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	table, err := mounts.Read()
	if err != nil {
		return fmt.Errorf("look whether %s is in a varve mount: %w", path, err)
	}
	m, ok := table.Main(st.Dev)
	for _, part := range table.Loose() {
		if !ok && part.Device == st.Dev {
			m, ok = part, true
		}
	}
	if ok {
		return fmt.Errorf("%w: %s is a file in the varve mount %s of %s; it cannot be the base of another disk",
			ErrInvalid, path, m.Mountpoint, m.Source)
	}
	return nil
}
