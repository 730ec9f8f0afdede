package overlay

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"testing"

	"varve/integration/interleave"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
)

// crashTest is a layer on a memFile and what it may hold after a power cut:
// each byte is as in one of the contents that were there since the last
// flush. At every call to the host the power is cut, in every way that
// crashStates knows.
type crashTest struct {
	t     *testing.T
	f     *memFile
	o     *Overlay
	below memory
	now   []byte   // the hot ranges as they were written last
	may   [][]byte // what a cut may leave of them
	first int64    // the size that it was made with
	sizes []int64  // that the disk may have
	names []string // of the backing file that the header may have

	seed    maphash.Seed
	seen    map[uint64]bool // states that were judged
	judging bool
	states  int
	// vast says that the file is too long, of holes, for qemu-img and for a
	// recovery of every state: the refcounts in use are looked at instead (M7).
	vast bool
}

const (
	crashClusterBits = 14 // clusters of 16 KiB, subclusters of 512 bytes
	crashSize        = 20<<20 + 1024
	hotBytes         = 256 << 10
)

// hotPlaces are guest offsets of the ranges in use: under the first L2 table,
// under the second, and at the end.
var hotPlaces = []int64{0, 16 << 20, crashSize - hotBytes}

func newCrashTest(t *testing.T) *crashTest {
	t.Helper()
	return newCrashTestOf(t, crashSize)
}

// newCrashTestOf is newCrashTest for a size that need not be whole sectors.
func newCrashTestOf(t *testing.T, size int64) *crashTest {
	t.Helper()
	c := &crashTest{
		t: t, first: size, f: &memFile{now: memContent{pages: map[int64]*[memPage]byte{}}, durable: memContent{pages: map[int64]*[memPage]byte{}}},
		below: make(memory, crashSize+2<<20), sizes: []int64{size}, names: []string{"base.raw"},
		seed: maphash.MakeSeed(), seen: map[uint64]bool{},
	}
	for i := range c.below {
		c.below[i] = byte(0x80 | i>>9)
	}
	err := Create(memFS{f: c.f}, "memory", CreateOptions{Size: size, ClusterBits: crashClusterBits, Backing: "base.raw", BackingFormat: "raw"})
	c.must(err)
	c.must(setUneven(c.f, size))
	c.must(c.f.Sync())
	c.o, err = NewOverlay(c.f, OverlayOptions{})
	c.must(err)
	c.now = c.read(c.o, c.below)
	c.sure()
	return c
}

func (c *crashTest) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// hot is where a guest offset stands in the contents; -1 where nobody looks.
func hot(off int64) int64 {
	for i, at := range hotPlaces {
		if off >= at && off < at+hotBytes {
			return int64(i)*hotBytes + off - at
		}
	}
	return -1
}

// read reads the hot ranges as the guest sees them.
func (c *crashTest) read(o *Overlay, below Backing) []byte {
	c.t.Helper()
	got := make([]byte, 0, len(hotPlaces)*hotBytes)
	for _, at := range hotPlaces {
		got = append(got, readLayer(c.t, o, below, at, hotBytes)...)
	}
	return got
}

// readLayer reads a range of a layer over another; zeros past its end.
func readLayer(tb testing.TB, o *Overlay, below Backing, off, length int64) []byte {
	tb.Helper()
	got := make([]byte, length)
	extents, err := o.Map(nil, off, length)
	if err != nil {
		tb.Fatal(err)
	}
	for _, e := range extents {
		p := got[e.Start-off : e.End()-off]
		switch {
		case e.Kind == extent.Data:
			err = o.ReadExtent(p, e, e.Start)
		case e.Kind == extent.Unallocated && below != nil:
			err = below.ReadAt(p, e.Start)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	return got
}

// set notes what the guest is about to write, byte by byte equal.
func (c *crashTest) set(value byte, off, n int64) {
	c.now = slices.Clone(c.now)
	for i := off; i < off+n; i++ {
		if h := hot(i); h >= 0 {
			c.now[h] = value
		}
	}
	c.may = append(c.may, c.now)
}

func (c *crashTest) write(value byte, off, n int64) {
	c.t.Helper()
	c.set(value, off, n)
	c.must(c.o.WriteAt(bytes.Repeat([]byte{value}, int(n)), off, c.below))
}

func (c *crashTest) discard(off, n int64) {
	c.t.Helper()
	c.set(0, off, n)
	c.must(c.o.Discard(off, n, c.below))
}

// sure notes that what was written last is durable.
func (c *crashTest) sure() { c.may = [][]byte{c.now} }

// flush flushes, with the power cut at every call of it.
func (c *crashTest) flush() {
	c.t.Helper()
	c.during("flush", c.o.Flush)
	c.sure()
	c.cut("after the flush")
}

// during cuts the power at every call that an operation makes.
func (c *crashTest) during(what string, op func() error) {
	c.t.Helper()
	c.f.Watch(func(call interleave.Call) {
		if call.Op != "read" && !call.Done && !c.judging {
			c.cut(fmt.Sprintf("%s, before %v", what, call))
		}
	})
	defer c.f.Watch(nil)
	c.must(op())
	c.f.Watch(nil)
	c.cut("after " + what)
}

// cut judges every state that is possible now.
func (c *crashTest) cut(where string) {
	c.t.Helper()
	c.judging = true
	defer func() { c.judging = false }()
	for _, s := range c.f.crashStates() {
		if err := c.judge(s.content); err != nil {
			c.t.Fatalf("%s, with %s on disk: %v", where, s.what, err)
		}
	}
}

func (c *crashTest) judge(content memContent) error {
	var h maphash.Hash
	h.SetSeed(c.seed)
	pages := make([]int64, 0, len(content.pages))
	for p := range content.pages {
		pages = append(pages, p)
	}
	slices.Sort(pages)
	maphash.WriteComparable(&h, content.size)
	for _, p := range pages {
		maphash.WriteComparable(&h, p)
		h.Write(content.pages[p][:])
	}
	known := c.seen[h.Sum64()]
	c.seen[h.Sum64()] = true
	if !known {
		c.states++
		check := content.checkWithQemu
		if c.vast {
			check = content.checkRefcounts
		}
		if err := check(c.t); err != nil {
			return err
		}
	}
	f := &memFile{now: content.clone(), durable: content.clone()}
	o, err := NewOverlay(f, OverlayOptions{Unclean: !c.vast, unrecovered: c.vast})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	if !slices.Contains(c.sizes, o.Size()) {
		return fmt.Errorf("the disk has %d bytes, may have %d", o.Size(), c.sizes)
	}
	name := o.Header().BackingName
	if !slices.Contains(c.names, name) {
		return fmt.Errorf("the header names %q, may name %q", name, c.names)
	}
	below := c.below
	if name == "" {
		below = nil
	}
	got := c.read(o, below)
	for at, b := range got {
		if b != c.now[at] && !slices.ContainsFunc(c.may, func(m []byte) bool { return m[at] == b }) {
			return fmt.Errorf("byte %d of the hot ones is %02x, was written last as %02x, and before as none of %d others", at, b, c.now[at], len(c.may)-1)
		}
	}
	// Past a size that the disk had not yet nothing shows through (M2).
	if more := o.Size() - c.first; more > 0 {
		if p := readLayer(c.t, o, c.below, c.first, min(more, 3<<20)); len(bytes.Trim(p, "\x00")) > 0 {
			return fmt.Errorf("what is new of %d bytes is not zeros", o.Size())
		}
	}
	return nil
}

// checkRefcounts fails where a cluster that a table names has the refcount 0.
func (c memContent) checkRefcounts(testing.TB) error {
	f := &memFile{now: c, durable: c}
	h, size, err := readOwnHeader(f)
	if err != nil {
		return err
	}
	table, err := readRefcountTable(f, h, size)
	if err != nil {
		return err
	}
	u := usedClusters{file: f, h: h, limit: (size + h.ClusterSize() - 1) / h.ClusterSize()}
	u.blocks = table
	if err := u.collect(); err != nil {
		return err
	}
	perBlock := h.ClusterSize() / 2
	for cluster := u.set.Next(0); cluster < u.set.High; cluster = u.set.Next(cluster + 1) {
		var count [2]byte
		if table[cluster/perBlock] != 0 {
			if err := hostfs.ReadPadded(f, count[:], table[cluster/perBlock]+2*(cluster%perBlock)); err != nil {
				return err
			}
		}
		if count != [2]byte{0, 1} {
			return fmt.Errorf("cluster %d is in use and has the refcount %x", cluster, count)
		}
	}
	return nil
}

// scribble changes entries of every kind: in place, in part, fresh clusters, a
// fresh table, a discard, a rewrite of what was discarded.
func (c *crashTest) scribble(value byte) {
	c.write(value, 1000, 3000)                   // parts of subclusters
	c.write(value+1, 40<<10+100, 20<<10)         // over a cluster's edge
	c.discard(100<<10, 30<<10)                   // whole clusters and parts
	c.write(value+2, 110<<10+10, 700)            // in what was discarded
	c.write(value+3, 16<<20+200, 5000)           // under another table
	c.write(value+4, c.first-1200, 1200)         // the end
	c.write(value+5, 64<<10, int64(16<<10+5000)) // a cluster and more
}

// Data first (M4), refcounts first (M7): at every call of a flush a power cut
// leaves old or new data, never a third kind, and no error for qemu-img; after
// the flush it leaves the new.
func TestCrashDuringFlush(t *testing.T) {
	t.Parallel()
	c := newCrashTest(t)
	c.scribble(1)
	c.flush()
	c.scribble(11)
	c.flush()
	c.during("punch", c.o.Punch) // M6: what is punched nobody looks for
	c.during("settle", c.o.Settle)
	c.scribble(21)
	c.flush()
	t.Logf("%d states", c.states)
}

// A write in the middle of a flush is not in it (M4): the flush publishes what
// it captured, and not the live table, whose data it did not sync. The write
// comes before each call of the flush in turn: between the capture and the
// first fdatasync, between that and the tables, between L2 and L1, before the
// last fdatasync.
func TestWriteDuringFlush(t *testing.T) {
	t.Parallel()
	step := 1
	if testing.Short() {
		step = 2
	}
	var last *crashTest
	for at := 1; ; at += step {
		c := newCrashTest(t)
		if last != nil { // up to the write the states are those of the last time
			c.seed, c.seen = last.seed, last.seen
		}
		last = c
		c.write(1, 0, 50<<10)
		c.flush()
		c.scribble(11)
		first := c.now
		calls, place := 0, ""
		var writes []interleave.Call
		c.f.Watch(func(call interleave.Call) {
			if call.Op == "read" || call.Done || c.judging {
				return
			}
			if calls++; calls == at {
				place = call.String()
				c.judging = true // its own calls are none of the flush's
				c.write(31, 2000, 100)
				c.write(32, 100<<10, 1500)
				c.write(33, 200<<10+5, 1000)
				c.write(34, 16<<20+100<<10, 1000) // its slice comes later
				c.discard(40<<10+4096, 8192)
				c.judging = false
			}
			if call.Op == "write" {
				writes = append(writes, call)
			}
			c.cut(fmt.Sprintf("the write came before %s, the cut before %v", place, call))
		})
		c.must(c.o.Flush())
		c.f.Watch(nil)
		if place == "" {
			if at < 7 {
				t.Fatalf("a flush has only %d calls", at-1)
			}
			return
		}
		// What was written before the flush is durable, what came within it may be.
		c.may = [][]byte{first}
		for _, m := range []func(){
			func() { c.set(31, 2000, 100) }, func() { c.set(32, 100<<10, 1500) },
			func() { c.set(33, 200<<10+5, 1000) }, func() { c.set(34, 16<<20+100<<10, 1000) }, func() { c.set(0, 40<<10+4096, 8192) },
		} {
			m()
		}
		c.cut("after the flush that was under way")
		c.flush()
		inL1 := func(w interleave.Call) bool { return w.Touches(c.o.header.L1Offset, 1<<crashClusterBits) }
		if first := slices.IndexFunc(writes, inL1); first < 0 || slices.ContainsFunc(writes[first:], func(w interleave.Call) bool { return !inL1(w) }) {
			t.Fatalf("the L1 table was not written last: %v", writes)
		}
	}
}

// A refcount block is durable before the refcount table names it, and the table
// does before a cluster that the block counts is in use (M7).
func TestCrashDuringRefcountGrowth(t *testing.T) {
	t.Parallel()
	c := newCrashTest(t)
	c.write(1, 0, 5000)
	c.flush()
	// The file is sparse: the last clusters that the first block counts.
	c.o.alloc.next, c.o.alloc.end = 1<<13-2, 1<<13-2
	c.scribble(11)
	c.flush()
	if c.o.alloc.table[1] == 0 {
		t.Fatal("no second refcount block was made")
	}
	// The last ones that the table of one cluster has room for.
	full := int64(c.o.header.RefcountTableClusters) << crashClusterBits / 8 << 13
	c.o.alloc.next, c.o.alloc.end = full-2, full-2
	c.vast = true
	c.write(41, 130<<10, 40<<10)
	old := c.o.header.RefcountTableOffset
	c.flush()
	if c.o.header.RefcountTableOffset == old {
		t.Fatal("the refcount table did not move")
	}
	t.Logf("%d states", c.states)
}

// A larger size is durable after the zeros that hide a longer base (M2), and a
// larger L1 table before the header that names it (M15).
func TestCrashDuringGrowth(t *testing.T) {
	t.Parallel()
	const uneven = crashSize - 24 // of an earlier version: it grows to whole sectors first
	c := newCrashTestOf(t, uneven)
	c.scribble(1)
	c.flush()
	for _, size := range []int64{uneven + 1, crashSize + 1<<20, 64 << 30} {
		size = extent.WholeSectors(size)
		c.sizes = append(c.sizes, size)
		if size > 1<<30 {
			c.below = c.below[:crashSize] // what lies far behind has to be zeros anyway
		}
		c.during(fmt.Sprintf("growth to %d", size), func() error { return c.o.Grow(size, c.below) })
		if c.sizes = []int64{size}; size > 1<<30 {
			break
		}
		c.cut("after the growth")
	}
	t.Logf("%d states", c.states)
}

// A backing name is written beside the one in use and durable before one sector
// write switches over (M15).
func TestCrashDuringSetBacking(t *testing.T) {
	t.Parallel()
	c := newCrashTest(t)
	c.scribble(1)
	last := "base.raw"
	for i, name := range []string{strings.Repeat("x", 700), "short", strings.Repeat("yz", 400), ""} {
		if i == 3 { // as a flatten does: the copy is durable before the name goes
			for _, at := range hotPlaces {
				_, err := c.o.Fill(&gatedBelow{memory: c.below}, at, hotBytes, nil)
				c.must(err)
			}
		}
		c.names = []string{last, name}
		c.during("change of the backing name", func() error { return c.o.SetBacking(name, "raw") })
		c.names = []string{name}
		c.cut("after the change")
		last = name
	}
	t.Logf("%d states", c.states)
}
