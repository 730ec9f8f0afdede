package chain

import (
	"fmt"
	"path/filepath"

	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// headerChain is an image with all that its header, and those below it, name:
// what QEMU opens, with no look at chain.json (M15).
type headerChain struct {
	image *qcow2.Image
	below *headerChain
}

func openHeaderChain(fs hostfs.FS, path, format string, depth int) (*headerChain, error) {
	if depth > 100 {
		return nil, fmt.Errorf("%s: a loop of backing files", path)
	}
	image, err := qcow2.OpenImage(fs, path, format, hostfs.LockNone)
	if err != nil {
		return nil, err
	}
	c := &headerChain{image: image}
	if h := image.Header(); h != nil && h.BackingName != "" {
		name := h.BackingName
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(path), name)
		}
		if c.below, err = openHeaderChain(fs, name, h.BackingFormat, depth+1); err != nil {
			c.close()
			return nil, fmt.Errorf("named by %s: %w", path, err)
		}
	}
	return c, nil
}

func (c *headerChain) close() {
	for ; c != nil; c = c.below {
		c.image.Close() // read only
	}
}

// ReadAt reads the view; past the end of an image are zeros.
func (c *headerChain) ReadAt(p []byte, off int64) error {
	if c == nil {
		clear(p)
		return nil
	}
	extents, err := c.image.Map(nil, off, int64(len(p)))
	if err != nil {
		return err
	}
	for _, e := range extents {
		part := p[:e.Length]
		p = p[e.Length:]
		switch e.Kind {
		case extent.Zero:
			clear(part)
		case extent.Unallocated:
			err = c.below.ReadAt(part, e.Start)
		default:
			err = c.image.ReadExtent(part, e, e.Start)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
