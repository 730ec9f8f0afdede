package overlay

import "errors"

// Errors that callers tell apart with errors.Is. Every error of this package
// names the file and, where one is known, the offset.
var (
	// ErrCorrupt says that an image breaks a rule of its format.
	ErrCorrupt = errors.New("image is corrupt")
	// ErrUnsupported says that an image uses a feature that varve does not
	// read: encryption, an external data file, an unknown incompatible bit.
	ErrUnsupported = errors.New("image uses an unsupported feature")
	// ErrFailed says that an earlier write-back failed, so that the file's
	// content on the host is unknown until it is opened again (M10).
	ErrFailed = errors.New("an earlier flush failed")
)

// Kind says what a layer holds at an extent.
type Kind uint8

const (
	// Unallocated: the layer says nothing; the backing layer answers.
	Unallocated Kind = iota
	// Zero: the layer says that the bytes read as zeros.
	Zero
	// Data: the bytes stand in the layer's file from Extent.Host on.
	Data
	// Compressed: the bytes are part of a compressed cluster; Extent.Host is
	// the cluster's descriptor (qcow2 specification, "Compressed Clusters
	// Descriptor"), read with Layer.ReadExtent.
	Compressed
	// Damaged: the entry that says it breaks a rule, or cannot be read. Nobody knows
	// what the bytes are, nor whether the backing layer answers; Layer.ReadExtent says
	// what is wrong.
	Damaged
)

// Extent is a run of guest bytes for which a layer has one answer.
type Extent struct {
	Start  int64 // guest offset in bytes
	Length int64 // bytes
	Host   int64 // Data: offset in the file; Compressed: descriptor
	Kind   Kind
}

// End is the guest offset behind the extent.
func (e Extent) End() int64 { return e.Start + e.Length }

// Layer is one image file opened for reading. All methods are safe for
// concurrent use.
type Layer interface {
	// Size is the guest size in bytes.
	Size() int64
	// Map appends to dst the extents that cover [off, off+length) without
	// gaps and in order, neighbours of one kind merged where their host
	// offsets follow each other. What lies at or past Size is Zero (M2). It
	// reads metadata only. What a damaged entry maps is Damaged, and no error.
	Map(dst []Extent, off, length int64) ([]Extent, error)
	// Next is where, at off or behind it, the layer may hold something: what lies before
	// is Unallocated, or of a raw image a hole. It is Size when nothing follows. It costs
	// the same however far that is. Errors are those of the host.
	Next(off int64) (int64, error)
	// ReadExtent reads the guest bytes [off, off+len(p)), which must lie
	// within e, an extent of kind Data, Compressed or Damaged that Map returned. Bytes
	// past the end of the file read as zeros. Of a Damaged one it gives the reason as
	// an error, or ErrReadable when there is none any more.
	ReadExtent(p []byte, e Extent, off int64) error
	// Close releases the file and its locks.
	Close() error
}
