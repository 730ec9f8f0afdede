package qcow2_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/integration/imagetest"
	"varve/overlay/extent"
	"varve/overlay/qcow2"
)

// readThrough reads a range of an image that has no backing file.
func readThrough(im *qcow2.Image, p []byte, off int64) error {
	extents, err := im.Map(nil, off, int64(len(p)))
	if err != nil {
		return err
	}
	for _, e := range extents {
		part := p[e.Start-off : e.End()-off]
		if e.Kind == extent.Unallocated || e.Kind == extent.Zero {
			clear(part)
		} else if err := im.ReadExtent(part, e, e.Start); err != nil {
			return err
		}
	}
	return nil
}

// mapped is an entry of qemu-img map's JSON.
type mapped struct {
	Start, Length int64
	Present       bool
	Zero, Data    bool
	Depth         int // 0: the image itself
	Offset        *int64
}

// judgeMap compares what Map says with qemu-img map, byte range by byte range.
// QEMU asks the host too whether a data cluster is a hole: such data is "zero"
// to it, with the same offset.
func judgeMap(t *testing.T, im *qcow2.Image, path string) {
	t.Helper()
	var want []mapped
	if err := json.Unmarshal([]byte(imagetest.QemuImg(t, "map", "-f", "qcow2", "--output=json", path)), &want); err != nil {
		t.Fatal(err)
	}
	extents, err := im.Map(nil, 0, im.Size())
	if err != nil {
		t.Fatal(err)
	}
	judgeCover(t, extents, 0, im.Size())
	for _, e := range extents {
		for pos := e.Start; pos < e.End(); {
			for len(want) > 0 && want[0].Start+want[0].Length <= pos {
				want = want[1:]
			}
			if len(want) == 0 {
				t.Fatalf("qemu-img map ends before %d", pos)
			}
			w := want[0]
			ok := false
			switch e.Kind {
			case extent.Unallocated:
				ok = !w.Present || w.Depth > 0
			case extent.Zero:
				ok = w.Present && w.Depth == 0 && w.Zero && !w.Data
			case extent.Data:
				ok = w.Present && w.Depth == 0 && w.Offset != nil && *w.Offset-w.Start == e.Host-e.Start
			case extent.Compressed:
				ok = w.Present && w.Depth == 0 && w.Data && w.Offset == nil
			}
			if !ok {
				t.Fatalf("at %d: %+v, qemu-img map says %+v", pos, e, w)
			}
			pos = w.Start + w.Length
		}
	}
}

// judgeCover checks the promises of Map about any list of extents.
func judgeCover(t testing.TB, extents []extent.Extent, off, length int64) {
	t.Helper()
	pos := off
	for i, e := range extents {
		if e.Start != pos || e.Length <= 0 {
			t.Fatalf("extent %+v after %d", e, pos)
		}
		if i > 0 {
			last := extents[i-1]
			if last.Kind == e.Kind && e.Kind != extent.Compressed && (e.Kind != extent.Data || last.Host+last.Length == e.Host) {
				t.Fatalf("%+v and %+v are not merged", last, e)
			}
		}
		pos = e.End()
	}
	if pos != off+length {
		t.Fatalf("extents end at %d, want %d", pos, off+length)
	}
}

// judgeContent compares whole and random ranges with the truth.
func judgeContent(t *testing.T, im *qcow2.Image, want []byte) {
	t.Helper()
	// qemu-img rounds odd sizes up to sectors.
	if len(want) < int(im.Size()) || len(want) >= int(im.Size())+512 {
		t.Fatalf("size %d, truth has %d", im.Size(), len(want))
	}
	size := int(im.Size())
	got := make([]byte, size)
	if err := readThrough(im, got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want[:size]) {
		at := 0
		for got[at] == want[at] {
			at++
		}
		t.Fatalf("content differs at %d: %#x, want %#x", at, got[at], want[at])
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		off := random.IntN(size)
		n := random.IntN(min(size-off, 1<<uint(random.IntN(21)+1))) + 1
		part := got[:n]
		if err := readThrough(im, part, int64(off)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(part, want[off:off+n]) {
			t.Fatalf("%d bytes at %d differ", n, off)
		}
	}
}

// fill writes data, zeros of both kinds and discards of several alignments
// into an image of at least 4 MiB, sparing places between them.
var fill = []string{
	"write -P 1 0 200k",
	"write -P 2 300k 1k",
	"write -P 3 1023k 2k",
	"write -P 4 1500k 700k",
	"write -z 100k 64k",       // becomes zero clusters where whole ones are covered
	"write -z -u 1600k 256k",  // and gives their space back
	"write -z 2500k 512k",     // where nothing was
	"write -P 5 2600k 3k",     // data into zeros
	"discard 1900k 128k",      //
	"write -P 6 1930k 5k",     //
	"write -P 7 3333k 333333", // an odd end
}

func TestImageAgainstQEMU(t *testing.T) {
	type image struct{ name, options, size string }
	images := []image{
		{"v2", "compat=0.10", "4M"},
		{"v2 preallocated", "compat=0.10,preallocation=metadata", "4M"},
		{"v2 512", "compat=0.10,cluster_size=512", "4M"},
		{"lazy refcounts", "lazy_refcounts=on", "4M"},
	}
	for _, cluster := range []string{"512", "4k", "64k", "2M"} {
		images = append(images, image{"clusters of " + cluster, "cluster_size=" + cluster, "4M"})
	}
	for _, cluster := range []string{"16k", "64k", "128k", "2M"} {
		images = append(images, image{"subclusters, clusters of " + cluster, "extended_l2=on,cluster_size=" + cluster, "4M"})
	}
	for _, bits := range []string{"1", "2", "4", "8", "32", "64"} {
		images = append(images, image{"refcounts of " + bits, "refcount_bits=" + bits, "4M"})
	}
	for _, how := range []string{"off", "metadata", "falloc", "full"} {
		images = append(images,
			image{"preallocation " + how, "preallocation=" + how, "4M"},
			image{"subclusters, preallocation " + how, "extended_l2=on,preallocation=" + how, "4M"})
	}
	for _, size := range []string{"4194816", "5000192", "4M", "4202496"} { // multiples of 512, not of a cluster
		images = append(images,
			image{"size " + size, "", size},
			image{"size " + size + " subclusters", "extended_l2=on", size})
	}
	for _, c := range images {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := imagetest.New(t, c.options, c.size)
			if !strings.Contains(c.options, "preallocation") {
				t.Run("empty", func(t *testing.T) {
					im := openImage(t, path, "qcow2")
					judgeMap(t, im, path)
					if own, err := im.OwnBytes(); own != 0 || err != nil {
						t.Errorf("own bytes of an empty image: %d, %v", own, err)
					}
				})
			}
			imagetest.QemuIO(t, path, fill...)
			im := openImage(t, path, "qcow2")
			judgeContent(t, im, imagetest.Truth(t, path))
			judgeMap(t, im, path)
			judgeOwnBytes(t, im)
		})
	}
}

func judgeOwnBytes(t *testing.T, im *qcow2.Image) {
	t.Helper()
	extents, err := im.Map(nil, 0, im.Size())
	if err != nil {
		t.Fatal(err)
	}
	want := int64(0)
	for _, e := range extents {
		if e.Kind != extent.Unallocated {
			want += e.Length
		}
	}
	if got, err := im.OwnBytes(); err != nil || got != want {
		t.Errorf("own bytes %d, %v, want %d", got, err, want)
	}
}

// mixedContent is a raw file of data that compresses well, badly and not at
// all, and of holes.
func mixedContent(t *testing.T, size int) string {
	t.Helper()
	random := rand.New(rand.NewPCG(3, 4))
	content := make([]byte, size)
	for at := 0; at < size; {
		n := min(random.IntN(150<<10)+1, size-at)
		switch random.IntN(4) {
		case 0: // a hole
		case 1:
			for i := range n {
				content[at+i] = byte(random.Uint32())
			}
		case 2:
			for i := range n {
				content[at+i] = byte(i >> 8)
			}
		case 3:
			for i := range n {
				content[at+i] = "in strata, one by one\n"[random.IntN(22)]
			}
		}
		at += n
	}
	path := filepath.Join(t.TempDir(), "mixed.raw")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCompressedAgainstQEMU(t *testing.T) {
	for _, kind := range []string{"zlib", "zstd"} {
		for _, cluster := range []string{"512", "4k", "64k", "2M", "16k,extended_l2=on", "128k,extended_l2=on"} {
			t.Run(kind+" "+cluster, func(t *testing.T) {
				t.Parallel()
				raw := mixedContent(t, 5<<20+1536)
				path := filepath.Join(t.TempDir(), "image.qcow2")
				imagetest.QemuImg(t, "convert", "-c", "-f", "raw", "-O", "qcow2",
					"-o", "compression_type="+kind+",cluster_size="+cluster, raw, path)
				im := openImage(t, path, "qcow2")
				judgeContent(t, im, imagetest.Truth(t, path))
				judgeMap(t, im, path)
				judgeKinds(t, im, extent.Compressed)
				judgeOwnBytes(t, im)
				readAtOnce(t, im)
				// Writing into a compressed image leaves all kinds side by side.
				again := filepath.Join(t.TempDir(), "again.qcow2")
				imagetest.Tool(t, "cp", path, again)
				imagetest.QemuIO(t, again, fill...)
				im = openImage(t, again, "qcow2")
				judgeContent(t, im, imagetest.Truth(t, again))
				judgeMap(t, im, again)
			})
		}
	}
}

// judgeKinds says that an image has the kinds that a test is about.
func judgeKinds(t *testing.T, im *qcow2.Image, kinds ...extent.Kind) {
	t.Helper()
	extents, err := im.Map(nil, 0, im.Size())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[extent.Kind]bool{}
	for _, e := range extents {
		seen[e.Kind] = true
	}
	for _, k := range kinds {
		if !seen[k] {
			t.Errorf("the image has no extent of kind %d", k)
		}
	}
}

// readAtOnce reads from several goroutines: cache and decoders are shared.
func readAtOnce(t *testing.T, im *qcow2.Image) {
	t.Helper()
	want := make([]byte, im.Size())
	if err := readThrough(im, want, 0); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	const readers = 8
	for i := range readers {
		go func() {
			random := rand.New(rand.NewPCG(5, uint64(i)))
			p := make([]byte, 70<<10)
			for range 50 {
				off := random.Int64N(im.Size() - int64(len(p)))
				if err := readThrough(im, p, off); err != nil {
					done <- err
					return
				}
				if !bytes.Equal(p, want[off:off+int64(len(p))]) {
					done <- fmt.Errorf("content at %d differs", off)
					return
				}
			}
			done <- nil
		}()
	}
	for range readers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestInternalSnapshot: the active state is read, whatever snapshots hold.
func TestInternalSnapshot(t *testing.T) {
	for _, options := range []string{"compat=0.10", "", "extended_l2=on"} {
		t.Run(options, func(t *testing.T) {
			path := imagetest.New(t, options, "4M")
			imagetest.QemuIO(t, path, fill...)
			imagetest.QemuImg(t, "snapshot", "-c", "one", path)
			imagetest.QemuIO(t, path, "write -P 20 0 3M", "write -z 150k 64k")
			imagetest.QemuImg(t, "snapshot", "-c", "two", path)
			imagetest.QemuIO(t, path, "write -P 21 1M 64k")
			im := openImage(t, path, "qcow2")
			if im.Header().Snapshots != 2 {
				t.Errorf("the header has %d snapshots", im.Header().Snapshots)
			}
			judgeContent(t, im, imagetest.Truth(t, path))
			judgeMap(t, im, path)
		})
	}
}

// TestUnallocatedIsNotZero: over a backing file, zeros of an overlay must hide
// it and places that say nothing must not.
func TestUnallocatedIsNotZero(t *testing.T) {
	for _, options := range []string{"compat=0.10", "", "extended_l2=on"} {
		t.Run(options, func(t *testing.T) {
			dir := t.TempDir()
			base, path := filepath.Join(dir, "base.raw"), filepath.Join(dir, "overlay.qcow2")
			content := bytes.Repeat([]byte{9}, 4<<20)
			if err := os.WriteFile(base, content, 0o600); err != nil {
				t.Fatal(err)
			}
			args := []string{"create", "-q", "-f", "qcow2", "-b", base, "-F", "raw"}
			if options != "" {
				args = append(args, "-o", options)
			}
			imagetest.QemuImg(t, append(args, path)...)
			imagetest.QemuIO(t, path, "write -P 1 0 64k", "write -z 128k 64k", "write -P 2 260k 4k", "write -z 300k 4k", "write -z 1M 1M", "discard 1M 64k")
			im := openImage(t, path, "qcow2")
			extents, err := im.Map(nil, 0, im.Size())
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range extents {
				part := content[e.Start:e.End()]
				switch e.Kind {
				case extent.Unallocated: // the base's
				case extent.Zero:
					clear(part)
				default:
					if err := im.ReadExtent(part, e, e.Start); err != nil {
						t.Fatal(err)
					}
				}
			}
			if !bytes.Equal(content, imagetest.Truth(t, path)) {
				t.Error("the overlay over its base differs from what qemu-img reads")
			}
			if h := im.Header(); h.BackingName != base || h.BackingFormat != "raw" || !h.HasBackingFormat {
				t.Errorf("backing %q, format %q %v", h.BackingName, h.BackingFormat, h.HasBackingFormat)
			}
		})
	}
}

func TestMapClips(t *testing.T) {
	path := imagetest.New(t, "extended_l2=on", "1000448")
	imagetest.QemuIO(t, path, "write -P 1 0 977k", "write -z 128k 2k")
	im := openImage(t, path, "qcow2")
	all, err := im.Map(nil, 0, 2<<20)
	if err != nil {
		t.Fatal(err)
	}
	judgeCover(t, all, 0, 2<<20)
	if last := all[len(all)-1]; last.Kind != extent.Zero || last.Start != 1000448 {
		t.Errorf("behind the disk's end: %+v", last)
	}
	random := rand.New(rand.NewPCG(7, 8))
	for range 1000 {
		off := random.Int64N(2 << 20)
		length := random.Int64N(2<<20 - off + 1)
		got, err := im.Map(all[:1:1], off, length) // what is in dst stays
		if err != nil {
			t.Fatal(err)
		}
		if got[0] != all[0] {
			t.Fatalf("Map changed what dst held: %+v", got[0])
		}
		judgeCover(t, got[1:], off, length)
		for _, e := range got[1:] {
			ok := false
			for _, w := range all {
				if w.Start <= e.Start && e.End() <= w.End() && w.Kind == e.Kind && (e.Kind != extent.Data || e.Host-e.Start == w.Host-w.Start) {
					ok = true
				}
			}
			if !ok {
				t.Fatalf("map %d bytes at %d: %+v is in none of %+v", length, off, e, all)
			}
		}
	}
	for _, bad := range [][2]int64{{-1, 1}, {0, -1}, {1 << 62, 1 << 62}} {
		if _, err := im.Map(nil, bad[0], bad[1]); !errors.Is(err, os.ErrInvalid) {
			t.Errorf("map %d bytes at %d: %v", bad[1], bad[0], err)
		}
	}
	e := extent.Extent{Start: 10, Length: 10, Kind: extent.Data}
	for _, bad := range []struct{ off, length int64 }{{9, 2}, {19, 2}, {21, 0}, {10, 11}} {
		if err := im.ReadExtent(make([]byte, bad.length), e, bad.off); !errors.Is(err, os.ErrInvalid) {
			t.Errorf("read %d bytes at %d of %+v: %v", bad.length, bad.off, e, err)
		}
	}
	for _, kind := range []extent.Kind{extent.Zero, extent.Unallocated} {
		if err := im.ReadExtent(make([]byte, 1), extent.Extent{Length: 1, Kind: kind}, 0); !errors.Is(err, os.ErrInvalid) {
			t.Errorf("read of kind %d: %v", kind, err)
		}
	}
}

// TestNoAllocations: the hot paths give the collector no work.
func TestNoAllocations(t *testing.T) {
	path := imagetest.New(t, "extended_l2=on,cluster_size=128k", "1T")
	imagetest.QemuIO(t, path, "write -P 1 0 64k", "write -P 1 8M 64k")
	im := openImage(t, path, "qcow2")
	dst, p := make([]extent.Extent, 0, 16), make([]byte, 4096)
	data, err := im.Map(nil, 0, 4096)
	if err != nil || data[0].Kind != extent.Data {
		t.Fatal(data, err)
	}
	for _, c := range []struct {
		name string
		run  func() error
	}{
		{"map where no L2 table is", func() error { _, err := im.Map(dst, 512<<30, 16<<20); return err }},
		{"map through an L2 table", func() error { _, err := im.Map(dst, 0, 16<<20); return err }},
		{"read data", func() error { return im.ReadExtent(p, data[0], 0) }},
	} {
		var failed error
		// A buffer pool may be emptied by the collector in between: hence < 1.
		if n := testing.AllocsPerRun(1000, func() {
			if err := c.run(); err != nil {
				failed = err
			}
		}); n >= 1 || failed != nil {
			t.Errorf("%s: %v allocations, error %v", c.name, n, failed)
		}
	}
}

// TestLargeImage: over 4 TiB, and the largest L1 table that is needed.
func TestLargeImage(t *testing.T) {
	for _, c := range []struct{ options, size, at string }{
		{"", "5T", "5497558073344"}, // 64 KiB and a sector before the end
		{"extended_l2=on,cluster_size=128k", "63T", "69269232001024"},
		{"cluster_size=512", "8G", "8589934080"},
	} {
		t.Run(c.options+c.size, func(t *testing.T) {
			path := imagetest.New(t, c.options, c.size)
			imagetest.QemuIO(t, path, "write -P 7 "+c.at+" 512")
			im := openImage(t, path, "qcow2")
			judgeMap(t, im, path)
			var at int64
			if _, err := fmt.Sscan(c.at, &at); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 512)
			if err := readThrough(im, p, at); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{7}, 512)) {
				t.Errorf("content %x, %v", p[:8], err)
			}
		})
	}
}
