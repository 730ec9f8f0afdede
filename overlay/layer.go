package overlay

import (
	"varve/overlay/extent"
	"varve/overlay/qcow2"
)

// Layer is one image file opened for reading: an Image, or an Overlay. All methods are safe for
// concurrent use.
type Layer interface {
	// Size is the guest size in bytes.
	Size() int64
	// Map appends to dst the extents that cover [off, off+length) without
	// gaps and in order, neighbours of one kind merged where their host
	// offsets follow each other. What lies at or past Size is Zero (M2). It
	// reads metadata only. What a damaged entry maps is Damaged, and no error.
	Map(dst []extent.Extent, off, length int64) ([]extent.Extent, error)
	// Next is where, at off or behind it, the layer may hold something: what lies before
	// is Unallocated, or of a raw image a hole. It is Size when nothing follows. It costs
	// the same however far that is. Errors are those of the host.
	Next(off int64) (int64, error)
	// ReadExtent reads the guest bytes [off, off+len(p)), which must lie
	// within e, an extent of kind Data, Compressed or Damaged that Map returned. Bytes
	// past the end of the file read as zeros. Of a Damaged one it gives the reason as
	// an error, or ErrReadable when there is none any more.
	ReadExtent(p []byte, e extent.Extent, off int64) error
	// Close releases the file and its locks.
	Close() error
}

var (
	_ Layer = (*qcow2.Image)(nil)
	_ Layer = (*Overlay)(nil)
)
