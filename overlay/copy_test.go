package overlay

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"varve/integration/interleave"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// placedBelow is what shows through, standing in a file that shares blocks, 4 KiB
// further behind, except for a range that is compressed, as it were.
type placedBelow struct {
	gatedBelow
	f          *memFile
	compressed span
}

func newPlacedBelow(m memory) *placedBelow {
	f := &memFile{now: memContent{pages: map[int64]*[memPage]byte{}}, clones: true}
	f.now.write(m, memPage)
	return &placedBelow{gatedBelow: gatedBelow{memory: m}, f: f, compressed: span{100 << 10, 5000}}
}

func (b *placedBelow) Place(off, length int64) (hostfs.File, int64, int64, error) {
	c := b.compressed
	switch {
	case off < c.off:
		length = min(length, c.off-off)
	case off < c.off+c.length:
		return nil, 0, min(length, c.off+c.length-off), nil
	}
	return b.f, off + memPage, length, nil
}

// A copy of several clusters keeps no writer out, and what the guest did
// meanwhile wins: a write to part of a cluster, a discard, zeros of a whole one
// (M8). What the copy has of the rest is there.
func TestCopyAheadMeetsAWrite(t *testing.T) {
	for _, discard := range []bool{true, false} {
		c := newCrashTest(t)
		source := &gatedBelow{memory: c.below}
		stop := source.StopAt(t, at("read"))
		fill := interleave.Start(t, func() error { _, err := c.o.Fill(source, 0, 5*oneCluster, source); return err })
		stop.Reached()
		c.must(c.o.WriteAt(bytes.Repeat([]byte{9}, 512), oneCluster+1024, source.memory))
		c.must(c.o.WriteAt(bytes.Repeat([]byte{8}, oneCluster), 3*oneCluster, source.memory))
		if discard {
			c.must(c.o.Discard(2*oneCluster+2048, 512, source.memory))
			c.must(c.o.Discard(4*oneCluster, oneCluster, source.memory))
		}
		stop.Go()
		fill.Must()
		want := bytes.Clone(c.below[:5*oneCluster])
		for i := range int64(oneCluster) {
			if i < 512 {
				want[oneCluster+1024+i] = 9
			}
			want[3*oneCluster+i] = 8
			if discard {
				want[4*oneCluster+i] = 0
				if i < 512 {
					want[2*oneCluster+2048+i] = 0
				}
			}
		}
		if got := readLayer(t, c.o, nil, 0, 5*oneCluster); !bytes.Equal(got, want) {
			t.Error("the layer does not hold what the guest did last over what was copied")
		}
		c.must(c.o.Settle())
		c.must(c.f.now.checkWithQemu(t))
		// What was copied for nothing is given back.
		next, _, freed, _ := c.o.alloc.unused()
		if used := next << crashClusterBits; used > c.f.now.size || len(freed) != 0 {
			t.Errorf("%d bytes of %d are in use, %d clusters freed", used, c.f.now.size, len(freed))
		}
	}
}

// The power may be cut at any call of a copy, up and down, whether the host
// shares the blocks or reads and writes them (M4, M7, M14). No byte of the view
// changes, and afterwards the layer needs none from below.
func TestCrashDuringCopy(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{true, false} {
		for _, down := range []bool{true, false} {
			c := newCrashTest(t)
			c.f.clones = shared
			if down {
				// Overwriting with what is seen anyway changes nothing.
				c.flush()
			} else {
				c.write(3, 3<<14+700, 2000)
				c.discard(5<<14, 4096)
				c.flush()
			}
			source := newPlacedBelow(c.below)
			clones, reads := 0, 0
			c.during("copy", func() error {
				var err error
				if down {
					_, err = c.o.Overwrite(source, 0, hotBytes, c.below)
				} else {
					_, err = c.o.Fill(source, 0, hotBytes, c.below)
				}
				return err
			})
			forget := c.o.Copied()
			c.during("flush", c.o.Flush)
			forget()
			c.cut("after the copy")
			c.f.Watch(func(call interleave.Call) {
				switch {
				case call.Done:
				case call.Op == "clone":
					clones++
				case call.Op == "write" && call.Length >= oneCluster/4:
					reads++
				}
			})
			_, err := c.o.Overwrite(source, 0, hotBytes, c.below)
			c.must(err)
			c.f.Watch(nil)
			if c.o.Shares() != shared {
				t.Errorf("shared %v: it says %v", shared, c.o.Shares())
			}
			if (clones > 0) != shared || reads == 0 { // some of it is compressed
				t.Errorf("shared %v: %d calls share, %d write", shared, clones, reads)
			}
			e, err := c.o.Map(nil, 0, hotBytes)
			c.must(err)
			for _, e := range e {
				if e.Kind == extent.Unallocated {
					t.Errorf("down %v: %v is left", down, e)
				}
			}
			t.Logf("%d states", c.states)
		}
	}
}

// The host's own files, whatever it can: sharing gives what the source has, or
// says that it cannot and leaves the file as it was.
func TestCloneRange(t *testing.T) {
	dir := t.TempDir()
	content := bytes.Repeat([]byte("0123456789abcdef"), 8192)
	if err := os.WriteFile(filepath.Join(dir, "from"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	from, err := hostfs.OS().Open(filepath.Join(dir, "from"), os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := hostfs.OS().Open(filepath.Join(dir, "to"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if err := to.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ src, dst, n int64 }{{0, 64 << 10, 64 << 10}, {4096, 0, 8192}, {1, 0, 4096}, {64 << 10, 0, 1 << 20}} {
		want := make([]byte, c.n)
		switch err := to.CloneRange(from, c.src, c.dst, c.n); {
		case err == nil:
			copy(want, content[c.src:])
		case !errors.Is(err, errors.ErrUnsupported):
			t.Fatal(err)
		}
		got := make([]byte, c.n)
		if err := hostfs.ReadPadded(to, got, c.dst); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%+v: %v", c, err)
		}
		if err := to.PunchHole(0, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	if cached, err := from.Cached(0, int64(len(content))); err == nil && cached < int64(len(content))/2 {
		t.Errorf("%d bytes are cached of a file that was just written", cached)
	}
}

// fileSource is a raw image on the host as what a copy comes from.
type fileSource struct{ *qcow2.Image }

func (s fileSource) ReadAt(p []byte, off int64) error {
	return s.ReadExtent(p, extent.Extent{Start: off, Length: int64(len(p)), Host: off, Kind: extent.Data}, off)
}

func (s fileSource) Place(off, length int64) (hostfs.File, int64, int64, error) {
	return s.File(), off, length, nil
}

// sharesBlocks says whether the host of a directory lets files share blocks.
func sharesBlocks(t *testing.T, dir string, from hostfs.File) bool {
	t.Helper()
	path := filepath.Join(dir, "probe")
	f, err := hostfs.OS().Open(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	must(t, err)
	err = f.CloneRange(from, 0, 0, 4096)
	must(t, errors.Join(f.Close(), os.Remove(path)))
	return err == nil
}

// A copy leaves the page cache as it found it: of a source that nobody had in it
// neither the source nor the target stay, of one that was in it both do.
func TestCopyLeavesThePageCache(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "varve-overlay-") // a tmpfs is all cache
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	const size = 48 << 20
	path := filepath.Join(dir, "base.raw")
	if err := os.WriteFile(path, bytes.Repeat([]byte("varve"), size/5+1)[:size], 0o600); err != nil {
		t.Fatal(err)
	}
	for _, warm := range []bool{false, true} {
		image, err := qcow2.OpenImage(hostfs.OS(), path, "raw", hostfs.LockFrozen)
		if err != nil {
			t.Fatal(err)
		}
		source := fileSource{image}
		f := source.File()
		if err := errors.Join(f.Sync(), f.DropRange(0, size)); err != nil {
			t.Fatal(err)
		}
		if cached, err := f.Cached(0, size); err != nil || cached != 0 {
			t.Skipf("this host does not tell what is cached, or drops nothing: %d bytes, %v", cached, err)
		}
		if warm {
			if err := source.ReadAt(make([]byte, size), 0); err != nil {
				t.Fatal(err)
			}
		}
		target := filepath.Join(dir, "layer.qcow2")
		if err := Create(hostfs.OS(), target, CreateOptions{Size: size}); err != nil {
			t.Fatal(err)
		}
		o, err := OpenOverlay(hostfs.OS(), target, OverlayOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if n, err := o.Fill(source, 0, size, nil); err != nil || n != size {
			t.Fatal(n, err)
		}
		forget := o.Copied()
		if err := o.Flush(); err != nil {
			t.Fatal(err)
		}
		forget()
		from, _ := f.Cached(0, size)
		to, _ := o.file.Cached(0, 2*size)
		// A host that is short of memory takes pages back at any time, so that not
		// every page of a warm file can be asked for.
		if sharesBlocks(t, dir, f) {
			t.Logf("the host shares blocks: %d and %d bytes are cached", from, to)
		} else if warm && (from < size*7/8 || to < size*7/8) || !warm && (from > size/8 || to > size/8) {
			t.Errorf("warm %v: %d and %d bytes are cached of %d", warm, from, to, size)
		}
		if err := errors.Join(o.Close(), os.Remove(target), source.Close()); err != nil {
			t.Fatal(err)
		}
	}
}
