package overlay

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/integration/imagetest"
	"varve/overlay/hostfs"
)

// What the cluster size of our layers costs and gains; docs/cluster-size.md has
// the figures and the choice. For interleaved runs, on the file system that
// counts:
//
//	go test -c -o /tmp/overlay.test ./overlay
//	for i in 1 2 3 4 5; do TMPDIR=/var/tmp /tmp/overlay.test \
//		-test.run '^$' -test.bench ClusterSize -test.benchtime 1x; done
//
// Every figure is a metric of its own: calls without their flush in µs/call,
// the flush that makes them durable in flush-ms, and sizes on the host in
// bytes. The file of the layer and the full raw file below it are real files.

const benchBase = 512 << 20 // bytes of the full raw file below the layer

// benchLayer is a fresh layer over a raw file.
type benchLayer struct {
	*Overlay
	b     *testing.B
	below *fileBacking
	rnd   *rand.Rand
}

// fileBacking is a raw file as what shows through.
type fileBacking struct{ hostfs.File }

func (f *fileBacking) ReadAt(p []byte, off int64) error { return hostfs.ReadPadded(f.File, p, off) }
func (f *fileBacking) IsZero(off, length int64) (bool, error) {
	at, err := f.SeekData(off)
	return err != nil || at >= off+length, nil
}

// baseFile makes the file below: of size bytes, full up to written.
func baseFile(b *testing.B, written, size int64) *fileBacking {
	b.Helper()
	f, err := hostfs.OS().Open(filepath.Join(b.TempDir(), "base.raw"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	p := make([]byte, 1<<20)
	for i := range p {
		p[i] = byte(i*7 + i>>8)
	}
	for off := int64(0); off < written; off += int64(len(p)) {
		if err := hostfs.WriteWhole(f, p, off); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		b.Fatal(err)
	}
	if err := f.Datasync(); err != nil {
		b.Fatal(err)
	}
	return &fileBacking{f}
}

func newBenchLayer(b *testing.B, below *fileBacking, clusterBits uint32, size int64) *benchLayer {
	b.Helper()
	path := filepath.Join(b.TempDir(), "layer.qcow2")
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		b.Fatal(err)
	}
	err := Create(hostfs.OS(), path, CreateOptions{Size: size, Backing: below.Name(), BackingFormat: "raw", ClusterBits: clusterBits})
	if err != nil {
		b.Fatal(err)
	}
	o, err := OpenOverlay(hostfs.OS(), path, OverlayOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = o.Close() })
	return &benchLayer{Overlay: o, b: b, below: below, rnd: rand.New(rand.NewPCG(1, 2))}
}

// cached makes sure that the file below is in the page cache, or that it is not.
func (f *fileBacking) cached(b *testing.B, want bool) {
	b.Helper()
	if !want {
		if err := f.DropCache(); err != nil {
			b.Fatal(err)
		}
		return
	}
	p := make([]byte, 1<<20)
	for off := int64(0); off < benchBase; off += int64(len(p)) {
		if err := f.ReadAt(p, off); err != nil {
			b.Fatal(err)
		}
	}
}

func (l *benchLayer) must(err error) {
	l.b.Helper()
	if err != nil {
		l.b.Fatal(err)
	}
}

// writeAll writes length bytes at each offset and reports what a call took.
func (l *benchLayer) writeAll(offsets []int64, length int64) {
	l.b.Helper()
	p := make([]byte, length)
	for i := range p {
		p[i] = byte(l.rnd.Uint32())
	}
	begun := time.Now()
	for _, off := range offsets {
		l.must(l.WriteAt(p, off, l.below))
	}
	l.b.ReportMetric(float64(time.Since(begun).Microseconds())/float64(len(offsets)), "µs/call")
}

// flush reports what a flush takes and how much of the tables it writes.
func (l *benchLayer) flush() {
	l.b.Helper()
	l.b.ReportMetric(float64(l.DirtyBytes()), "tablebytes")
	begun := time.Now()
	l.must(l.Flush())
	l.b.ReportMetric(float64(time.Since(begun).Microseconds())/1000, "flush-ms")
}

// size reports the layer's file on the host.
func (l *benchLayer) size() {
	l.b.Helper()
	info, err := l.file.Stat()
	l.must(err)
	l.b.ReportMetric(float64(info.Size), "filebytes")
	l.b.ReportMetric(float64(info.Blocks), "hostbytes")
}

// extents reports in how many pieces the host keeps the file.
func (l *benchLayer) extents() {
	l.b.Helper()
	out := imagetest.Tool(l.b, "filefrag", l.file.Name())
	var n int
	_, err := fmt.Sscanf(out[strings.LastIndex(out, ": ")+2:], "%d extent", &n)
	l.must(err)
	l.b.ReportMetric(float64(n), "hostextents")
}

// places are n different multiples of step below size, in random order.
func places(n int, step, size int64) []int64 {
	rnd := rand.New(rand.NewPCG(3, 4))
	seen := make(map[int64]bool, n)
	offsets := make([]int64, 0, n)
	for len(offsets) < n {
		if at := rnd.Int64N(size/step) * step; !seen[at] {
			seen[at] = true
			offsets = append(offsets, at)
		}
	}
	return offsets
}

// inOrder are all multiples of step below size.
func inOrder(step, size int64) []int64 {
	var offsets []int64
	for off := int64(0); off < size; off += step {
		offsets = append(offsets, off)
	}
	return offsets
}

func BenchmarkClusterSize(b *testing.B) {
	const sparse = 64 << 30 // bytes of a disk whose tables are many
	full := baseFile(b, benchBase, benchBase)
	hollow := baseFile(b, 0, sparse)
	firstTouch := func(length int64, cold bool) func(*benchLayer) {
		return func(l *benchLayer) {
			full.cached(l.b, !cold)
			l.writeAll(places(8192, max(length, 4096), benchBase), length)
			l.flush()
			l.size()
		}
	}
	for _, c := range []struct {
		name  string
		below *fileBacking
		size  int64
		run   func(*benchLayer)
	}{
		{"empty", full, benchBase, (*benchLayer).size},
		{"one write of 4k", full, benchBase, func(l *benchLayer) {
			l.must(l.WriteAt(make([]byte, 4096), 1<<20, l.below))
			l.must(l.Flush())
			l.size()
		}},
		{"first touch, random 4k", full, benchBase, firstTouch(4096, false)},
		{"first touch, random 4k, base not cached", full, benchBase, firstTouch(4096, true)},
		{"first touch, random 2k", full, benchBase, firstTouch(2048, false)},
		{"first touch, random 512", full, benchBase, firstTouch(512, false)},
		{"first touch, random 512, base not cached", full, benchBase, firstTouch(512, true)},
		{"first touch, 1M in order", full, benchBase, func(l *benchLayer) {
			l.writeAll(inOrder(1<<20, 256<<20), 1<<20)
			l.flush()
			l.size()
			l.extents()
		}},
		{"first touch, all of 128M in random order", full, benchBase, func(l *benchLayer) {
			l.writeAll(places(128<<20/4096, 4096, 128<<20), 4096)
			l.flush()
			l.size()
			l.extents()
		}},
		{"in place, random 4k", full, benchBase, inPlace(true)},
		{"in place, random 4k, not cached", full, benchBase, inPlace(false)},
		{"flush, 4096 random 4k on 64G", hollow, sparse, func(l *benchLayer) {
			l.writeAll(places(4096, 4096, sparse), 4096)
			l.flush()
			l.size()
		}},
		{"flush after each of 100 random 4k", full, benchBase, func(l *benchLayer) {
			p := make([]byte, 4096)
			begun := time.Now()
			for _, off := range places(100, 4096, benchBase) {
				l.must(l.WriteAt(p, off, l.below))
				l.must(l.Flush())
			}
			l.b.ReportMetric(float64(time.Since(begun).Microseconds())/100, "µs/call")
		}},
		{"look-up", full, benchBase, func(l *benchLayer) { lookups(l, benchBase, 1) }},
		{"look-up, 64G of tables", hollow, sparse, func(l *benchLayer) { lookups(l, sparse, 16) }},
		{"discard 64k", full, benchBase, discards(64<<10, 1)},
		{"discard 8k", full, benchBase, discards(8<<10, 1)},
		{"discard 4k", full, benchBase, discards(4<<10, 1)},
		{"discard 2k", full, benchBase, discards(2<<10, 1)},
		{"discard 2k, then the other half", full, benchBase, discards(2<<10, 2)},
	} {
		for _, bits := range []uint32{14, 15, 16, 17, 18} {
			b.Run(fmt.Sprintf("%s/%dk", c.name, 1<<bits>>10), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					l := newBenchLayer(b, c.below, bits, c.size)
					b.StartTimer()
					c.run(l)
				}
			})
		}
	}
}

// inPlace writes to places of 128 MiB that were written in order before, and
// that are in the page cache since or not.
func inPlace(cached bool) func(*benchLayer) {
	return func(l *benchLayer) {
		const length = 128 << 20
		l.writeAll(inOrder(1<<20, length), 1<<20)
		l.must(l.Flush())
		if !cached {
			l.must(l.file.DropCache())
		}
		l.writeAll(places(8192, 4096, length), 4096)
		l.flush()
	}
}

// lookups reports what a random look-up takes on a layer that says something
// in every perMiB'th MiB of size bytes, opened afresh with the default cache.
func lookups(l *benchLayer, size, perMiB int64) {
	l.writeAll(inOrder(perMiB<<20, size), 4096)
	l.must(l.Settle())
	l.must(l.Close())
	var err error
	if l.Overlay, err = OpenOverlay(hostfs.OS(), l.file.Name(), OverlayOptions{}); err != nil {
		l.b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for _, off := range inOrder(4<<20, size) { // every slice, of whatever size
		_, err := l.Lookup(off, 4096)
		l.must(err)
	}
	const n = 200_000
	rnd := rand.New(rand.NewPCG(5, 6))
	begun := time.Now()
	for range n {
		off := rnd.Int64N(size) &^ 4095
		_, err := l.Lookup(off, 4096)
		l.must(err)
	}
	l.b.ReportMetric(float64(time.Since(begun).Nanoseconds())/n, "ns/look-up")
}

// discards writes 64 MiB in order and discards pieces of it with a gap of their
// size between them; in a second pass those in the gaps. It reports how much of
// what was discarded the host has back after Flush and Punch of each pass.
func discards(piece int64, passes int64) func(*benchLayer) {
	return func(l *benchLayer) {
		const length = 64 << 20
		p := make([]byte, 1<<20)
		for i := range p {
			p[i] = byte(i)
		}
		for _, off := range inOrder(1<<20, length) {
			l.must(l.WriteAt(p, off, l.below))
		}
		l.must(l.Flush())
		before, err := l.file.Stat()
		l.must(err)
		var discarding, punching time.Duration
		for pass := range passes {
			begun := time.Now()
			for _, off := range inOrder(2*piece, length) {
				l.must(l.Discard(off+pass*piece, piece, l.below))
			}
			discarding += time.Since(begun)
			l.flush()
			begun = time.Now()
			l.must(l.Punch())
			punching += time.Since(begun)
		}
		after, err := l.file.Stat()
		l.must(err)
		calls := passes * length / (2 * piece)
		l.b.ReportMetric(float64(discarding.Microseconds())/float64(calls), "µs/call")
		l.b.ReportMetric(float64(punching.Microseconds())/1000, "punch-ms")
		l.b.ReportMetric(100*float64(before.Blocks-after.Blocks)/float64(passes*length/2), "%freed")
	}
}
