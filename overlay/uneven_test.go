package overlay

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// setUneven gives a layer a size that is no whole number of sectors, as earlier versions
// did: the field "size" of the header (qcow2 specification, "Header").
func setUneven(f hostfs.File, size int64) error {
	_, err := f.WriteAt(binary.BigEndian.AppendUint64(nil, uint64(size)), 24)
	return err
}

// No header of ours has a size that QEMU would round (M2). A layer of an earlier version
// keeps each byte when it grows to whole sectors, and qemu-img, which left the last ones
// out, sees them.
func TestUnevenLayerGrows(t *testing.T) {
	t.Parallel()
	const size = 2<<20 + 4096 + 700
	for name, test := range map[string]struct {
		base  int64
		write bool
	}{
		"the end is written":      {size, true},
		"nothing is below":        {0, true},
		"the end is below":        {size, false},
		"what is below is longer": {3 << 20, false},
		"both":                    {3 << 20, true},
	} {
		t.Run(name, func(t *testing.T) {
			m := newOverlayModel(t, 1, size, test.base, 0)
			m.must(setUneven(m.o.File(), size))
			m.must(m.o.Close())
			m.open(false)
			if m.want = m.want[:size]; m.o.Size() != size {
				t.Fatalf("the layer has %d bytes", m.o.Size())
			}
			if test.write {
				m.must(m.write(3, size-300, 300))
			}
			if err := m.o.SetBacking("other.raw", "raw"); !errors.Is(err, qcow2.ErrUnsupported) {
				t.Errorf("a header with an uneven size: %v", err)
			}
			m.must(m.o.Close()) // that was its last
			m.open(true)
			m.must(m.o.Grow(extent.WholeSectors(size), m.backing()))
			m.want = append(m.want, make([]byte, extent.WholeSectors(size)-size)...)
			m.compare()
			m.judge()
		})
	}
}

// Whatever size is asked for, the header has whole sectors.
func TestHeadersHaveWholeSectors(t *testing.T) {
	m := newOverlayModel(t, 1, 100, 0, 0)
	written := func(what string, want int64) {
		t.Helper()
		var p [8]byte
		if _, err := m.o.File().ReadAt(p[:], 24); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if got := int64(binary.BigEndian.Uint64(p[:])); got != want || m.o.Size() != want {
			t.Errorf("%s: the header has %d bytes, the layer %d, want %d", what, got, m.o.Size(), want)
		}
	}
	written("made with 100", 512)
	m.must(m.o.Grow(1000, nil))
	written("grown to 1000", 1024)
	m.must(m.o.Grow(1001, nil))
	written("grown to 1001", 1024)
	m.must(m.o.Shrink(513, nil))
	written("shrunk to 513", 1024)
	m.must(m.o.Shrink(1, nil))
	written("shrunk to 1", 512)
	for size, want := range map[int64]int64{0: 0, 1: 512, 512: 512, 1<<63 - 1: 1<<63 - 512} {
		if got := extent.WholeSectors(size); got != want {
			t.Errorf("%d bytes are %d in whole sectors, want %d", size, got, want)
		}
	}
}

// viewSource is a view in memory.
type viewSource struct{ memory }

func (s viewSource) Map(dst []extent.Extent, off, length int64) ([]extent.Extent, error) {
	return append(dst, extent.Extent{Start: off, Length: length, Kind: extent.Data}), nil
}

// An export of a view that ends within a sector has whole sectors, and all its bytes for
// qemu-img.
func TestExportHasWholeSectors(t *testing.T) {
	t.Parallel()
	const size = 3<<16 + 700
	content := make(memory, size)
	for i := range content {
		content[i] = byte(i>>4) | 1
	}
	dir := t.TempDir()
	raw := filepath.Join(dir, "want.raw")
	if err := os.WriteFile(raw, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, compress := range map[string]bool{"plain.qcow2": false, "compressed.qcow2": true} {
		path := filepath.Join(dir, name)
		f, err := hostfs.OS().Open(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(Export{Source: viewSource{content}, Size: size}.Qcow2(t.Context(), f, compress), f.Close()); err != nil {
			t.Fatal(err)
		}
		h, err := qcow2.ReadHeader(hostfs.OS(), path)
		if err != nil || h.Size != extent.WholeSectors(size) {
			t.Errorf("%s: the header has %d bytes, %v", name, h.Size, err)
		}
		qemuCheck(t, path, false)
		run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", path, raw)
	}
}
