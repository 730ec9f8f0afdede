package overlay

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"varve/integration/hostile"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// memoryFile is a File in memory that can be written, up to a size. It tells
// every change to watch before it happens.
type memoryFile struct {
	hostile.WatchedFile
	watch func(off, length int64)
}

const maxMemoryFile = 32 << 20

func (f *memoryFile) grow(size int64) error {
	if size > maxMemoryFile {
		return unix.ENOSPC
	}
	if n := size - int64(len(f.Data)); n > 0 {
		f.Data = append(f.Data, make([]byte, n)...)
	}
	return nil
}

func (f *memoryFile) told(off, length int64) {
	if off < 0 || length < 0 {
		f.T.Fatalf("a change of %d bytes at 0x%x", length, off)
	}
	if f.watch != nil {
		f.watch(off, length)
	}
}

// ReadAt: a layer that is open for writing reads past its end on purpose.
func (f *memoryFile) ReadAt(p []byte, off int64) (int, error) {
	if off > int64(len(f.Data)) {
		return 0, io.EOF
	}
	return f.WatchedFile.ReadAt(p, off)
}

func (f *memoryFile) WriteAt(p []byte, off int64) (int, error) {
	f.told(off, int64(len(p)))
	if err := f.grow(off + int64(len(p))); err != nil {
		return 0, err
	}
	return copy(f.Data[off:], p), nil
}

func (f *memoryFile) Truncate(size int64) error {
	if size < int64(len(f.Data)) {
		f.told(size, int64(len(f.Data))-size)
		f.Data = f.Data[:size:size]
		return nil
	}
	return f.grow(size)
}

func (f *memoryFile) Allocate(off, length int64) error { return f.grow(off + length) }

func (f *memoryFile) PunchHole(off, length int64) error {
	f.told(off, length)
	if off < int64(len(f.Data)) {
		clear(f.Data[off:min(off+length, int64(len(f.Data)))])
	}
	return nil
}

func (f *memoryFile) CloneRange(hostfs.File, int64, int64, int64) error { return errors.ErrUnsupported }
func (f *memoryFile) WriteBack(int64, int64) error                      { return nil }
func (f *memoryFile) Cached(int64, int64) (int64, error)                { return 0, errors.ErrUnsupported }
func (f *memoryFile) DropRange(int64, int64) error                      { return nil }
func (f *memoryFile) WillNeed(int64, int64) error                       { return nil }

func (f *memoryFile) Datasync() error            { return nil }
func (f *memoryFile) Sync() error                { return nil }
func (f *memoryFile) DropCache() error           { return nil }
func (f *memoryFile) Lock(hostfs.LockMode) error { return nil }

// span is a part of a file or a disk, in bytes.
type span struct{ off, length int64 }

func (s span) meets(off, length int64) bool {
	return off < s.off+s.length && s.off < off+length
}

// tablesOf are the parts of a layer of ours that hold no guest data, as its own
// header and tables say.
func tablesOf(o *Overlay) []span {
	h, cs := o.Header(), o.clusterSize()
	spans := []span{
		{0, cs}, {h.L1Offset, int64(h.L1Entries) * 8},
		{h.RefcountTableOffset, int64(h.RefcountTableClusters) * cs},
	}
	for _, block := range o.alloc.table {
		if block != 0 {
			spans = append(spans, span{block, cs})
		}
	}
	tables := *o.tables.Load()
	for i := range tables {
		if t := tables[i].Load(); t != nil {
			spans = append(spans, span{t.host, cs})
		}
	}
	return spans
}

// guestPlaces are what the targets look at of a guest's disk: it would take too
// long to compare all of it.
var guestPlaces = []span{{0, 256 << 10}, {16 << 20, 64 << 10}, {20 << 20, 128 << 10}, {40<<20 - 64<<10, 64<<10 + 512}}

// guest reads what the guest sees at guestPlaces; nil where that is an error.
func guest(t *testing.T, o *Overlay, below Backing) [][]byte {
	t.Helper()
	var views [][]byte
	for _, place := range guestPlaces {
		p := make([]byte, max(0, min(place.length, o.Size()-place.off)))
		extents, err := o.Map(nil, place.off, int64(len(p)))
		if err != nil {
			if !errors.Is(err, qcow2.ErrCorrupt) && !errors.Is(err, ErrNotPlain) {
				t.Fatalf("map: %v", err)
			}
			views = append(views, nil)
			continue
		}
		for _, e := range extents {
			part := p[e.Start-place.off : e.End()-place.off]
			switch e.Kind {
			case extent.Data:
				err = o.ReadExtent(part, e, e.Start)
			case extent.Unallocated:
				if below != nil {
					err = below.ReadAt(part, e.Start)
				}
			case extent.Damaged:
				if err := o.ReadExtent(part, e, e.Start); !errors.Is(err, qcow2.ErrCorrupt) && !errors.Is(err, ErrNotPlain) {
					t.Fatalf("read %+v: %v", e, err)
				}
				p = nil
			}
			if err != nil {
				t.Fatalf("read %+v: %v", e, err)
			}
			if p == nil {
				break
			}
		}
		views = append(views, p)
	}
	return views
}

// FuzzOpenOverlay opens damaged layers of ours for writing, recovers them when
// they are not settled, writes, and closes. A layer that is refused stays as it
// was, byte for byte. In one that is taken guest writes land in no table, and in
// one that was looked through they change nothing else that the guest sees.
func FuzzOpenOverlay(f *testing.F) {
	seeds := ownSeeds(f)
	for i := range seeds {
		for kind := range byte(16) {
			for _, unclean := range []bool{false, true} {
				f.Add(byte(i), []byte{kind, 0, 2, 9, 0, 0, 0, 0, 0, 0, 0, 3}, unclean, []byte{0, 0, 4, 1, 1, 40, 2, 2, 7})
			}
		}
	}
	f.Fuzz(func(t *testing.T, which byte, script []byte, unclean bool, steps []byte) {
		if len(script) > 32*hostile.ChangeBytes || len(steps) > 3*64 {
			return
		}
		hostile.WatchForHang(t)
		s := seeds[int(which)%len(seeds)]
		tryOverlay(t, s, hostile.Mutate(s.Data, script), unclean, steps)
	})
}

// tryOverlay gives the layer's file as it is in the end, settled, and whether all
// of it was looked through and is right.
func tryOverlay(t *testing.T, s hostile.Seed, data []byte, unclean bool, steps []byte) (after []byte, right bool) {
	t.Helper()
	var below Backing
	if s.Backing != nil {
		below = memory(s.Backing)
	}
	file := &memoryFile{WatchedFile: hostile.WatchedFile{BytesFile: hostile.BytesFile{Data: bytes.Clone(data)}, T: t}}
	var o *Overlay
	var err error
	hostile.MayAllocate(t, "opening a layer", (1<<20)+64*len(data), func() {
		o, err = NewOverlay(file, OverlayOptions{Unclean: unclean, MaxSlices: 4})
	})
	if err != nil {
		if !errors.Is(err, qcow2.ErrCorrupt) && !errors.Is(err, qcow2.ErrUnsupported) && !errors.Is(err, ErrNotPlain) {
			t.Fatalf("open: %v is none of those", err)
		}
		if !bytes.Equal(file.Data, data) {
			t.Fatalf("the layer was refused (%v) and yet changed", err)
		}
		return nil, false
	}
	want := guest(t, o, below)
	if unclean {
		for i, view := range want {
			if view == nil {
				t.Fatalf("the layer was looked through, and yet %+v cannot be read", guestPlaces[i])
			}
		}
	}
	failed := false
	for ; len(steps) >= 3 && !failed; steps = steps[3:] {
		place := guestPlaces[int(steps[0])%len(guestPlaces)]
		off := place.off + int64(steps[1])<<9%place.length
		n := min(int64(steps[2]%64+1)*1000, place.off+place.length-off, o.Size()-off)
		if n <= 0 {
			continue
		}
		tables := tablesOf(o)
		next := o.alloc.next << o.clusterBits
		file.watch = func(at, length int64) {
			for _, table := range tables {
				if at < next && table.meets(at, length) && !refcountBlock(o, table, at, length) {
					t.Fatalf("a guest's write changes %d bytes at 0x%x, in the tables at 0x%x", length, at, table.off)
				}
			}
		}
		switch steps[0] >> 4 % 4 {
		case 0:
			err = o.Discard(off, n, below)
		default:
			err = o.WriteAt(bytes.Repeat([]byte{steps[2]}, int(n)), off, below)
		}
		file.watch = nil
		if err != nil {
			if !errors.Is(err, qcow2.ErrCorrupt) && !errors.Is(err, ErrNotPlain) && !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("write: %v is none of those", err)
			}
			failed = true
			continue
		}
		for i, view := range want {
			from, to := max(off, guestPlaces[i].off), min(off+n, guestPlaces[i].off+int64(len(view)))
			for at := from; at < to; at++ {
				view[at-guestPlaces[i].off] = steps[2] * min(1, steps[0]>>4%4)
			}
		}
		if steps[2]&64 != 0 {
			err = o.Flush()
			if err == nil {
				err = o.Punch()
			}
		}
		if err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("flush: %v", err)
		}
	}
	if err := o.Settle(); err != nil {
		if !errors.Is(err, qcow2.ErrCorrupt) && !errors.Is(err, ErrNotPlain) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, ErrFailed) {
			t.Fatalf("settle: %v", err)
		}
		return nil, false
	}
	if !unclean || failed {
		return nil, false // two clusters may share a place, which nobody has looked for
	}
	compare := func(o *Overlay) {
		t.Helper()
		for i, got := range guest(t, o, below) {
			if !bytes.Equal(got, want[i]) {
				t.Fatalf("%+v has another content than was written", guestPlaces[i])
			}
		}
	}
	compare(o)
	again, err := NewOverlay(file, OverlayOptions{Unclean: true, MaxSlices: 4})
	if err != nil {
		t.Fatalf("what varve wrote it cannot open: %v", err)
	}
	compare(again)
	return file.Data, true
}

// refcountBlock says whether a change is one of refcounts: allocating writes
// them ahead.
func refcountBlock(o *Overlay, table span, at, length int64) bool {
	for _, block := range o.alloc.table {
		if block == table.off && block != 0 && at >= block && at+length <= block+o.clusterSize() {
			return table.off != 0 && table.length == o.clusterSize()
		}
	}
	return false
}
