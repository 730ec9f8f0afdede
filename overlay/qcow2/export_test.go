package qcow2

import "varve/overlay/hostfs"

// ReadCompressed reads compressed clusters of an image of a format.
func ReadCompressed(f hostfs.File, format *EntryFormat, compression uint8) func(p []byte, descriptor uint64, within int64) error {
	return (&compressedReader{file: f, format: format, compression: compression}).read
}
