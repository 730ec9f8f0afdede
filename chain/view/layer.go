package view

import (
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"varve/overlay"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// Layer is an open layer file. A frozen one is read through an
// qcow2.Image, the leaf and what a job writes through an overlay.Overlay;
// the file, and with it every host offset, stays the same when that changes.
type Layer struct {
	Path  string
	File  hostfs.File
	state atomic.Pointer[layerState]
	damages
}

type layerState struct {
	overlay.Layer
	over *overlay.Overlay // nil for a frozen layer
}

// NewFrozen is a layer that nobody writes; its file stays the image's until close.
func NewFrozen(path string, image *qcow2.Image) *Layer {
	l := &Layer{Path: path, File: image.File()}
	l.state.Store(&layerState{Layer: image})
	return l
}

// NewWritable takes over a file that is locked (hostfs.LockWritable), and closes it
// when it fails.
func NewWritable(path string, f hostfs.File, o overlay.OverlayOptions) (*Layer, error) {
	over, err := overlay.NewOverlay(f, o)
	if err != nil {
		f.Close()
		return nil, err
	}
	l := &Layer{Path: path, File: f}
	l.state.Store(&layerState{Layer: over, over: over})
	return l, nil
}

// Over is the writable side, nil for a frozen layer.
func (l *Layer) Over() *overlay.Overlay { return l.state.Load().over }

// Thaw makes a frozen layer of ours writable. Who has it as an image may still look at it:
// that takes the file as it was when it was frozen. The layer's record is marked as being
// written, durably, before (M16).
func (l *Layer) Thaw(options overlay.OverlayOptions) (*overlay.Overlay, error) {
	if o := l.Over(); o != nil {
		return o, nil
	}
	if err := l.File.Lock(hostfs.LockWritable); err != nil {
		return nil, err
	}
	o, err := overlay.NewOverlay(l.File, options)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s for writing: %w", l.Path, err), l.File.Lock(hostfs.LockFrozen))
	}
	l.state.Store(&layerState{Layer: o, over: o})
	return o, nil
}

// Claim keeps everybody else away from a frozen layer whose blocks a merge
// gives back: who still reads the file, or has it below a file of their own,
// would find zeros (M18). Until Settle.
func (l *Layer) Claim() error { return l.File.Lock(hostfs.LockWritable) }

// Settle makes a writable or claimed layer frozen: everything durable, refcounts
// exact.
func (l *Layer) Settle() error {
	o := l.Over()
	if o == nil {
		return l.File.Lock(hostfs.LockFrozen)
	}
	if err := o.Settle(); err != nil {
		return err
	}
	image, err := qcow2.NewImage(l.File, qcow2.FormatQcow2)
	if err != nil {
		return err
	}
	if err := l.File.Lock(hostfs.LockFrozen); err != nil {
		return err
	}
	l.state.Store(&layerState{Layer: image})
	return nil
}

// Size is the size of what is seen of the layer, in bytes: whole sectors, but for a raw
// file, of which each byte and no more is shown (M2).
func (l *Layer) Size() int64 {
	state := l.state.Load()
	size := state.Size()
	if image, ok := state.Layer.(*qcow2.Image); ok && image.Format() == qcow2.FormatRaw {
		return size
	}
	return extent.WholeSectors(size)
}

// OwnBytes is how many guest bytes the layer itself maps.
func (l *Layer) OwnBytes() (int64, error) {
	switch i := l.state.Load().Layer.(type) {
	case interface{ OwnBytes() (int64, error) }:
		return i.OwnBytes()
	default:
		return 0, fmt.Errorf("%s: cannot count", l.Path)
	}
}

// Header is the layer's qcow2 header, nil for a raw image.
func (l *Layer) Header() *qcow2.Header {
	switch i := l.state.Load().Layer.(type) {
	case *overlay.Overlay:
		h := i.Header()
		return &h
	case *qcow2.Image:
		return i.Header()
	}
	return nil
}

// Image is a frozen layer's file as it is read; nil for a layer that is being written.
func (l *Layer) Image() *qcow2.Image {
	image, _ := l.state.Load().Layer.(*qcow2.Image)
	return image
}

// Raw says whether the layer is a raw image.
func (l *Layer) Raw() bool { return l.Over() == nil && l.Header() == nil }

// FileSize is the size that the layer's header names, or a raw image's length, in bytes.
func (l *Layer) FileSize() int64 { return l.state.Load().Size() }

// Touched says in which regions of the 1 GiB from off on the layer's tables map
// something, bit 0 being the first; all of them where that would have to be looked up.
func (l *Layer) Touched(off int64) (uint64, error) {
	if t, ok := l.state.Load().Layer.(interface{ Touched(int64) (uint64, error) }); ok {
		return t.Touched(off)
	}
	return ^uint64(0), nil
}

// LogTo has damage that is found logged; before anybody else uses the layer.
func (l *Layer) LogTo(log *slog.Logger) { l.log = log }

func (l *Layer) Close() error { return l.File.Close() }
