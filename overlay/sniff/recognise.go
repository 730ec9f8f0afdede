package sniff

import (
	"fmt"

	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// Recognise says what a file is recognised as by its first and last bytes; ok is false
// for what may be a raw disk. It takes no lock. A guest can write any of these bytes into
// a raw disk: they may make an opening fail, never choose a format.
func Recognise(fs hostfs.FS, path string) (f Format, ok bool, err error) {
	file, err := qcow2.OpenFile(fs, path)
	if err != nil {
		return Format{}, false, err
	}
	defer file.Close()
	return RecogniseFile(file)
}

// RecogniseFile is Recognise for an open file.
func RecogniseFile(file hostfs.File) (f Format, ok bool, err error) {
	info, err := file.Stat()
	if err == nil {
		f, ok, err = File(file, info.Size)
	}
	if err != nil {
		return Format{}, false, fmt.Errorf("read the ends of %s: %w", file.Name(), err)
	}
	return f, ok, nil
}
