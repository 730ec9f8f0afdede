package qcow2

import (
	"errors"

	"varve/overlay/hostfs"
)

// Errors that callers tell apart with errors.Is. Every error of this package
// names the file and, where one is known, the offset.
var (
	// ErrCorrupt says that an image breaks a rule of its format.
	ErrCorrupt = errors.New("image is corrupt")
	// ErrUnsupported says that an image uses a feature that varve does not
	// read: encryption, an external data file, an unknown incompatible bit.
	ErrUnsupported = errors.New("image uses an unsupported feature")
	// ErrReadable says that a Damaged extent can be read by now: the host could not read
	// a piece of a table, and can again. Whoever remembers extents asks Map anew.
	ErrReadable = errors.New("it can be read again")
)

// IsDamage says whether an error of a read comes from what stands in the file, or in
// a sector of the host, so that other places of the same image can still be read.
func IsDamage(err error) bool {
	return errors.Is(err, ErrCorrupt) || errors.Is(err, hostfs.ErrUnreadable)
}
