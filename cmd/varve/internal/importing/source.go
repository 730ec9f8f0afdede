package importing

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"varve/chain"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/client"
	"varve/cmd/varve/internal/libvirt"
	"varve/cmd/varve/internal/mountfile"
	"varve/cmd/varve/internal/progress"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/waiting"
	"varve/cmd/varve/internal/where"
	"varve/overlay"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
	"varve/overlay/sniff"
)

// importPiece is how much an import reads at a time, in bytes.
const importPiece = 256 << 10

// piece is a part of what is imported, in bytes from the start of the disk.
type piece struct {
	off, n int64
	data   []byte // n bytes; nil for zeros
}

// importSource is what an import copies from.
type importSource struct {
	name string // as the user wrote it
	size int64  // bytes, -1 where only the end tells
	// read gives all of it in order, without gaps, until give fails. buffer lends it
	// importPiece bytes for a piece.
	read func(buffer func() []byte, give func(piece) error) error
	// unchanged fails when the file is not as it was when it was opened.
	unchanged func() error
	close     func() error
}

// openImport opens FILE, or standard input for "-".
func openImport(t where.Target, file string, o Options) (*importSource, error) {
	if file == Stdin {
		return openStream(o)
	}
	path, err := mounts.Resolve(file) // in a varve mount it leaves links, which openInMount refuses
	if err != nil {
		return nil, err
	}
	if err := refuseOwn(t, file, path); err != nil {
		return nil, err
	}
	before, err := os.Lstat(path) // it has no link, unless in a mount, where that is refused
	if err != nil {
		return nil, err
	}
	if before.Mode()&os.ModeNamedPipe != 0 {
		return nil, fmt.Errorf("%s is a pipe; name \"-\" instead, for a raw image from standard input", file)
	}
	if before.Mode().IsRegular() && before.Size() == 0 {
		return nil, fmt.Errorf("%s is empty", file)
	}
	s, err := openImportFile(path, o)
	if err != nil {
		return nil, explainLayer(t, err)
	}
	s.name = file
	s.unchanged = func() error {
		after, err := os.Lstat(path)
		if err == nil && (after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime())) {
			err = fmt.Errorf("%s was written while it was read", file)
		}
		return err
	}
	return s, nil
}

// refuseOwn refuses a file of the disk itself, or of its mount: what it holds is there
// without a copy.
func refuseOwn(t where.Target, file, path string) error {
	if t.Mountpoint != "" && t.Mount.Here() && mounts.Within(path, t.Mountpoint) {
		if filepath.Dir(path) == filepath.Join(t.Mountpoint, "layers") && filepath.Ext(path) == ".raw" {
			return refuseLayer(t, file, filepath.Base(path[:len(path)-len(".raw")]))
		}
		return fmt.Errorf("%s is a file of the disk's own mount", file)
	}
	layers, err := client.Layers(t)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	for _, l := range layers {
		own, err := os.Stat(l.File)
		switch {
		case err != nil || !os.SameFile(own, info):
		case l.Name != "":
			return refuseLayer(t, file, l.Name)
		default:
			return fmt.Errorf("%s is a file of this disk (%s)", file, client.Titles(layers)[l.ID])
		}
	}
	return nil
}

func refuseLayer(t where.Target, file, name string) error {
	return fmt.Errorf("%s is %s of this disk; \"varve revert %s %s\" goes back to it without a copy",
		file, name, chain.ShellWord(t.Arg), name)
}

// explainLayer says how the view of another disk's layer is imported, of which the file
// has a part only.
func explainLayer(t where.Target, err error) error {
	layer := (*chain.LayerError)(nil)
	if !errors.As(err, &layer) {
		return err
	}
	name := layer.Name
	if name == "" {
		name = "NAME"
	}
	return fmt.Errorf("%s is %s of the varve disk %s and needs the layers below it; import what they show together: \"varve export %s %s - | varve import - %s\"",
		layer.File, layer.Label, layer.Disk, chain.ShellWord(layer.Disk), name, chain.ShellWord(t.Arg))
}

// openImportFile opens an image. One in the mount of another disk is raw, and is read
// as it is.
func openImportFile(path string, o Options) (*importSource, error) {
	m, inMount, err := mounts.Around(path)
	if err != nil {
		return nil, err
	}
	if inMount {
		image, err := openInMount(m, path)
		if err != nil {
			return nil, err
		}
		view := client.FileView(image)
		return newImageSource(view.Source, view.Size, image.File().SeekData, view.Close), nil
	}
	defer waiting.For(where.PathWait(path))()
	d, err := chain.OpenImage(path, o.Format, chain.OpenOptions{Log: tell.Warnings(o.Stderr), Witness: libvirt.ThisHost()})
	if err != nil {
		return nil, err
	}
	tell.Notes(o.Stderr, d.Adopted().Notes)
	view, size, err := d.ExportSource("leaf")
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return newImageSource(view, size, d.SeekData, d.Close), nil
}

// openInMount opens a file in a mount as an image of a VM that nobody may write meanwhile.
func openInMount(m mounts.Mount, path string) (*qcow2.Image, error) {
	var elements []string
	if inside, err := filepath.Rel(m.Mountpoint, path); err != nil {
		return nil, err
	} else if inside != "." {
		elements = strings.Split(inside, "/")
	}
	opened, err := mountfile.At(m).Open(os.O_RDONLY, elements...)
	if err != nil {
		return nil, err
	}
	f, err := hostfs.FileOf(opened)
	if err != nil {
		return nil, err
	}
	if err := f.Lock(hostfs.LockFrozen); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	image, err := qcow2.NewImage(f, "raw")
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return image, nil
}

func newImageSource(view overlay.Source, size int64, seekData func(int64) (int64, error), closeView func() error) *importSource {
	s := imageSourceReader{view: view, size: size, seekData: seekData}
	return &importSource{size: size, read: s.read, close: closeView}
}

// imageSourceReader reads a view that does not change.
type imageSourceReader struct {
	view     overlay.Source
	size     int64
	seekData func(off int64) (int64, error)
}

func (s imageSourceReader) read(buffer func() []byte, give func(piece) error) error {
	var extents []extent.Extent
	for off := int64(0); off < s.size; {
		// A hole is asked about once, however long it is.
		data, err := s.seekData(off)
		if errors.Is(err, io.EOF) {
			data, err = s.size, nil
		}
		if err != nil {
			return err
		}
		if data = min(data, s.size); data > off {
			if err := give(piece{off: off, n: data - off}); err != nil {
				return err
			}
			off = data
			continue
		}
		n := min(s.size-off, importPiece-off%importPiece)
		if extents, err = s.view.Map(extents[:0], off, n); err != nil {
			return err
		}
		for _, x := range extents {
			p := piece{off: x.Start, n: x.Length}
			if x.Kind != extent.Zero && x.Kind != extent.Unallocated {
				p.data = buffer()[:x.Length]
				if err := s.view.ReadAt(p.data, x.Start); err != nil {
					return fmt.Errorf("read %d bytes at offset %d: %w", x.Length, x.Start, err)
				}
			}
			if err := give(p); err != nil {
				return err
			}
		}
		off += n
	}
	return nil
}

// openStream takes a raw image from standard input. Its first bytes are read at once:
// what wrote nothing must not cost the disk its content.
func openStream(o Options) (*importSource, error) {
	in := o.Input
	if f, ok := in.(*os.File); ok && progress.IsTerminal(f) {
		return nil, errors.New("standard input is a terminal; send the image through a pipe")
	}
	first := make([]byte, importPiece)
	n, err := io.ReadFull(in, first)
	if first = first[:n]; n == 0 {
		if err == nil || errors.Is(err, io.EOF) {
			err = errors.New("there is nothing on standard input")
		}
		return nil, err
	}
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("read standard input: %w", err)
	}
	found, known := sniff.Front(first)
	switch {
	case o.Format != "" || !known || found.Raw:
	case !found.Qcow2:
		return nil, fmt.Errorf("what comes on standard input is %s, not a raw disk; make a raw image of it first, or say --format raw if a guest wrote that", found.Name)
	default:
		return nil, errors.New("what comes on standard input begins like a qcow2, and only a raw image can be read from there; name the file, or say --format raw if a guest wrote that")
	}
	return &importSource{name: "standard input", size: -1, read: streamReader{in, first}.read, close: func() error { return nil }, unchanged: func() error { return nil }}, nil
}

type streamReader struct {
	in    io.Reader
	first []byte
}

func (s streamReader) read(buffer func() []byte, give func(piece) error) error {
	p := piece{n: int64(len(s.first)), data: s.first}
	for {
		if err := give(p); err != nil {
			return err
		}
		p = piece{off: p.off + p.n, data: buffer()}
		n, err := io.ReadFull(s.in, p.data)
		p.n, p.data = int64(n), p.data[:n]
		switch {
		case n > 0 && (err == nil || errors.Is(err, io.ErrUnexpectedEOF)):
		case errors.Is(err, io.EOF):
			return nil
		default:
			return fmt.Errorf("read standard input at offset %d: %w", p.off, err)
		}
	}
}

// aheadPieces is how many pieces are read before they are written: reading and
// writing then go on beside each other.
const aheadPieces = 8

// each reads ahead in a goroutine of its own, and calls f for each piece until ctx
// ends. What blocks in a read is left behind then; the process is about to end.
func (s *importSource) each(ctx context.Context, f func(piece) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	pieces := make(chan piece, aheadPieces)
	free := make(chan []byte, aheadPieces)
	buffer := func() []byte {
		select {
		case b := <-free:
			return b
		default:
			return make([]byte, importPiece)
		}
	}
	done := make(chan error, 1)
	go func() {
		done <- s.read(buffer, func(p piece) error {
			select {
			case pieces <- p:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
		close(pieces)
	}()
	err := func() error {
		for {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case p, more := <-pieces:
				if !more {
					return nil
				}
				if err := f(p); err != nil {
					return err
				}
				if cap(p.data) == importPiece {
					select {
					case free <- p.data[:importPiece]:
					default:
					}
				}
			}
		}
	}()
	stop(err)
	select {
	case readErr := <-done:
		if err == nil {
			err = readErr
		}
	case <-time.After(leaveAfter):
	}
	return err
}

// leaveAfter is how long a read of the source is waited for when the import has ended:
// the source is about to be closed. Standard input may never answer.
const leaveAfter = time.Second
