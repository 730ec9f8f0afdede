package chain

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"varve/overlay"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// layer is an open layer file. A frozen one is read through an
// qcow2.Image, the leaf and what a job writes through an overlay.Overlay;
// the file, and with it every host offset, stays the same when that changes.
type layer struct {
	path  string
	file  hostfs.File
	state atomic.Pointer[layerState]
	damages
}

type layerState struct {
	overlay.Layer
	over *overlay.Overlay // nil for a frozen layer
}

// openFrozen opens a layer for reading, with the lock of a backing file (M18); a
// foreign one in no way that could write it (D18).
// Layers of ours are opened read-write when the disk is: a job may write them
// later, and a second open of the same file would conflict with our own lock.
func openFrozen(fs hostfs.FS, path, format string, foreign, readOnly bool) (*layer, error) {
	if foreign || readOnly {
		image, err := qcow2.OpenImage(fs, path, format, hostfs.LockFrozen)
		if err != nil {
			return nil, err
		}
		return newLayer(path, image.File(), &layerState{Layer: image}), nil
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
	return newLayer(path, f, &layerState{Layer: image}), nil
}

// openWritable opens a layer of ours for writing.
func openWritable(fs hostfs.FS, path string, o overlay.OverlayOptions) (*layer, error) {
	f, err := openLocked(fs, path, hostfs.LockWritable)
	if err != nil {
		return nil, err
	}
	return newWritable(path, f, o)
}

// newWritable takes over a file that is locked, and closes it when it fails.
func newWritable(path string, f hostfs.File, o overlay.OverlayOptions) (*layer, error) {
	over, err := overlay.NewOverlay(f, o)
	if err != nil {
		f.Close()
		return nil, err
	}
	return newLayer(path, f, &layerState{Layer: over, over: over}), nil
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

func newLayer(path string, f hostfs.File, s *layerState) *layer {
	l := &layer{path: path, file: f}
	l.state.Store(s)
	return l
}

// over is the writable side, nil for a frozen layer.
func (l *layer) over() *overlay.Overlay { return l.state.Load().over }

// thaw makes a frozen layer of ours writable. Who has it as an image may still look at it:
// that takes the file as it was when it was frozen. The layer's record is marked as being
// written, durably, before (M16).
func (l *layer) thaw(options overlay.OverlayOptions) (*overlay.Overlay, error) {
	if o := l.over(); o != nil {
		return o, nil
	}
	if err := l.file.Lock(hostfs.LockWritable); err != nil {
		return nil, err
	}
	o, err := overlay.NewOverlay(l.file, options)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s for writing: %w", l.path, err), l.file.Lock(hostfs.LockFrozen))
	}
	l.state.Store(&layerState{Layer: o, over: o})
	return o, nil
}

// claim keeps everybody else away from a frozen layer whose blocks a merge
// gives back: who still reads the file, or has it below a file of their own,
// would find zeros (M18). Until it is settled.
func (l *layer) claim() error { return l.file.Lock(hostfs.LockWritable) }

// settle makes a writable or claimed layer frozen: everything durable, refcounts
// exact.
func (l *layer) settle() error {
	o := l.over()
	if o == nil {
		return l.file.Lock(hostfs.LockFrozen)
	}
	if err := o.Settle(); err != nil {
		return err
	}
	image, err := qcow2.NewImage(l.file, formatQcow2)
	if err != nil {
		return err
	}
	if err := l.file.Lock(hostfs.LockFrozen); err != nil {
		return err
	}
	l.state.Store(&layerState{Layer: image})
	return nil
}

// size is the size of what is seen of the layer, in bytes: whole sectors, but for a raw
// file, of which each byte and no more is shown (M2).
func (l *layer) size() int64 {
	state := l.state.Load()
	size := state.Size()
	if image, ok := state.Layer.(*qcow2.Image); ok && image.Format() == formatRaw {
		return size
	}
	return extent.WholeSectors(size)
}

// ownBytes is how many guest bytes the layer itself maps.
func (l *layer) ownBytes() (int64, error) {
	switch i := l.state.Load().Layer.(type) {
	case interface{ OwnBytes() (int64, error) }:
		return i.OwnBytes()
	default:
		return 0, fmt.Errorf("%s: cannot count", l.path)
	}
}

// header is the layer's qcow2 header, nil for a raw image.
func (l *layer) header() *qcow2.Header {
	switch i := l.state.Load().Layer.(type) {
	case *overlay.Overlay:
		h := i.Header()
		return &h
	case *qcow2.Image:
		return i.Header()
	}
	return nil
}

func (l *layer) close() error { return l.file.Close() }
