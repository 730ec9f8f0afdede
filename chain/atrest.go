package chain

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"
	"strings"
	"time"

	"varve/chain/view"
	"varve/overlay"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// ViewFiles tells which files of the host a view is made of.
type ViewFiles struct {
	File   string // the top one's path
	Format string // of that
	// Digest is over device, inode and format of all of them, top first.
	Digest string
}

// String is what ParseViewFiles reads.
func (v ViewFiles) String() string { return v.Digest + " " + v.Format + " " + v.File }

// ParseViewFiles reads String; ErrInvalid for anything else.
func ParseViewFiles(s string) (ViewFiles, error) {
	words := strings.SplitN(s, " ", 3)
	if len(words) != 3 || words[2] == "" {
		return ViewFiles{}, invalidf("%q does not tell a view's files", s)
	}
	return ViewFiles{Digest: words[0], Format: words[1], File: words[2]}, nil
}

// filesDigest makes the digest of ViewFiles.
type filesDigest struct{ hash.Hash }

func newFilesDigest() filesDigest { return filesDigest{sha256.New()} }

func (d filesDigest) add(info hostfs.Info, format string) {
	_, _ = fmt.Fprintln(d, info.Device, info.Inode, format) // a hash takes everything
}

func (d filesDigest) String() string { return hex.EncodeToString(d.Sum(nil)) }

// ViewFiles tells which files a layer's view is read from at the moment, by its id.
// ErrNotExist when there is no such layer.
func (d *Disk) ViewFiles(id string) (v ViewFiles, err error) {
	section := d.readers.Enter() // the files stay open
	defer d.readers.Exit(section)
	_, nodes := d.tree()
	n := nodes[id]
	if n == nil {
		return v, fmt.Errorf("layer %s: %w", id, ErrNotExist)
	}
	digest := newFilesDigest()
	for n != nil {
		at := n.Link()
		n = at.Parent
		if at.Layer == nil {
			continue
		}
		info, err := at.Layer.File.Stat()
		if err != nil {
			return v, err
		}
		format := formatRaw
		if at.Layer.Header() != nil {
			format = formatQcow2
		}
		if v.File == "" {
			v.File, v.Format = at.Layer.Path, format
		}
		digest.add(info, format)
	}
	v.Digest = digest.String()
	return v, nil
}

// AtRest is a view that another process shows, open here beside it: each of its files
// is locked as a frozen one. Whoever writes one of them holds a lock that excludes
// this (M18), so until Close no job writes, punches or moves anything in it.
type AtRest struct {
	images []*qcow2.Image // top first
	top    *view.Node
	digest string
}

// OpenAtRest opens an image with all its backing files, from the top down: each is
// locked before its header is read, and its header before what that names. Whether
// the files are those of a view is to be asked afterwards, by Digest. Errors:
// hostfs.ErrLocked while one of them is written, os.ErrDeadlineExceeded, and what
// opening files gives.
func OpenAtRest(fs hostfs.FS, path, format string, deadline time.Time) (*AtRest, error) {
	a := &AtRest{}
	if err := a.open(fs, path, format, deadline); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

func (a *AtRest) open(fs hostfs.FS, top, format string, deadline time.Time) error {
	digest := newFilesDigest()
	var layers []*view.Layer
	for path := top; path != ""; {
		if len(layers) == maxAdopted {
			return invalidf("%s has more than %d backing files", top, maxAdopted)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("open the backing files of %s: %w", top, os.ErrDeadlineExceeded)
		}
		if err := checkFile(fs, path); err != nil {
			return err
		}
		image, err := qcow2.OpenImage(fs, path, format, hostfs.LockFrozen)
		if err != nil {
			return err
		}
		a.images = append(a.images, image)
		info, err := image.File().Stat()
		if err != nil {
			return err
		}
		digest.add(info, format)
		layers = append(layers, view.NewFrozen(path, image))
		if path, format, err = backingOf(path, image.Header()); err != nil {
			return err
		}
	}
	for i := range len(layers) - 1 {
		hideTail(layers[i], layers[i+1])
	}
	cache := view.NewCache(defaultCacheBytes)
	for i := len(layers) - 1; i >= 0; i-- {
		a.top = view.NewNode("", layers[i], a.top, cache)
	}
	a.digest = digest.String()
	return nil
}

// Digest is the one of ViewFiles.
func (a *AtRest) Digest() string { return a.digest }

// Source is the view; its places hold until Close.
func (a *AtRest) Source() overlay.Placed { return a.top }

// Size is the view's size in bytes.
func (a *AtRest) Size() int64 { return a.top.Size() }

// Close closes the files, and lets their locks go.
func (a *AtRest) Close() error {
	var err error
	for _, image := range a.images {
		err = errors.Join(err, image.Close())
	}
	return err
}
