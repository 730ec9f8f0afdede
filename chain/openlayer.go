package chain

import (
	"os"

	"varve/chain/view"
	"varve/overlay"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// openFrozen opens a layer for reading, with the lock of a backing file (M18); a
// foreign one in no way that could write it (D18).
// Layers of ours are opened read-write when the disk is: a job may write them
// later, and a second open of the same file would conflict with our own lock.
func openFrozen(fs hostfs.FS, path, format string, foreign, readOnly bool) (*view.Layer, error) {
	if foreign || readOnly {
		image, err := qcow2.OpenImage(fs, path, format, hostfs.LockFrozen)
		if err != nil {
			return nil, err
		}
		return view.NewFrozen(path, image), nil
	}
	f, err := openLocked(fs, path, hostfs.LockFrozen)
	if err != nil {
		return nil, err
	}
	image, err := qcow2.NewImage(f, format)
	if err != nil {
		f.Close()
		return nil, err
	}
	return view.NewFrozen(path, image), nil
}

// openWritable opens a layer of ours for writing.
func openWritable(fs hostfs.FS, path string, o overlay.OverlayOptions) (*view.Layer, error) {
	f, err := openLocked(fs, path, hostfs.LockWritable)
	if err != nil {
		return nil, err
	}
	return view.NewWritable(path, f, o)
}

func openLocked(fs hostfs.FS, path string, mode hostfs.LockMode) (hostfs.File, error) {
	if err := checkFile(fs, path); err != nil {
		return nil, err
	}
	f, err := fs.Open(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := f.Lock(mode); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
