package overlay

import (
	"bytes"
	"testing"

	"varve/integration/interleave"
	"varve/overlay/extent"
)

// What two operations on one layer do to each other: the first is stopped at an
// exact call to the host, or in the layer below, when the second comes.

// gatedBelow is what shows through, with stops at its reads.
type gatedBelow struct {
	interleave.Host
	memory
}

func (g *gatedBelow) ReadAt(p []byte, off int64) error {
	g.Do(interleave.Call{Op: "read", Path: "below", Off: off, Length: int64(len(p))})
	return g.memory.ReadAt(p, off)
}

// Map makes it a Source that holds everything.
func (g *gatedBelow) Map(dst []extent.Extent, off, length int64) ([]extent.Extent, error) {
	return append(dst, extent.Extent{Start: off, Length: length, Kind: extent.Data}), nil
}

// at matches calls of one kind.
func at(op string) func(interleave.Call) bool {
	return func(c interleave.Call) bool { return c.Op == op && !c.Done }
}

// expect compares a range of the layer with one value.
func (c *crashTest) expect(value byte, off, n int64, below Backing) {
	c.t.Helper()
	if got := readLayer(c.t, c.o, below, off, n); !bytes.Equal(got, bytes.Repeat([]byte{value}, int(n))) {
		c.t.Errorf("at %d is %x …, want %d bytes of %02x", off, got[:8], n, value)
	}
}

// writing starts a write of bytes that are all equal.
func (c *crashTest) writing(value byte, off, n int64, below Backing) *interleave.Op {
	return interleave.Start(c.t, func() error { return c.o.WriteAt(bytes.Repeat([]byte{value}, int(n)), off, below) })
}

// punches counts the holes that an operation punches.
func (c *crashTest) punches(op func() error) (n int) {
	c.t.Helper()
	c.f.Watch(func(call interleave.Call) {
		if call.Op == "punch" && !call.Done {
			n++
		}
	})
	defer c.f.Watch(nil)
	c.must(op())
	return n
}

const oneCluster = 1 << crashClusterBits

// Whatever comes to a place whose hole is being punched waits for it (M6): the
// hole never takes what was written. What comes elsewhere does not wait.
func TestPunchInFlight(t *testing.T) {
	for _, x := range []struct {
		name string
		do   func(c *crashTest) error
		want byte // at 1024
	}{
		{"a write", func(c *crashTest) error { return c.o.WriteAt(bytes.Repeat([]byte{9}, 2048), 512, c.below) }, 9},
		{"a write of part of a subcluster", func(c *crashTest) error { return c.o.WriteAt(bytes.Repeat([]byte{9}, 100), 1000, c.below) }, 9},
		{"a write to a neighbour in the cluster", func(c *crashTest) error { return c.o.WriteAt(bytes.Repeat([]byte{9}, 512), 8192, c.below) }, 0},
		{"a discard of part", func(c *crashTest) error { return c.o.Discard(8192, 100, c.below) }, 0},
		{"a reservation", func(c *crashTest) error { return c.o.Reserve(0, 4096) }, 0},
		{"a move of it to the layer below", func(c *crashTest) error { return c.o.Unmap(8192, 512) }, 0},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := newCrashTest(t)
			c.write(1, 0, 3*oneCluster)
			c.flush()
			c.discard(0, 4096)
			c.discard(6144, 1024)
			c.flush()
			stop := c.f.StopAt(t, func(call interleave.Call) bool { return call.Op == "punch" && !call.Done })
			punch := interleave.Start(t, c.o.Punch)
			stop.Reached()
			other := interleave.Start(t, func() error { return x.do(c) })
			other.Waits()
			c.must(c.o.WriteAt([]byte{7}, 2*oneCluster, c.below)) // another cluster
			stop.Go()
			punch.Must()
			other.Must()
			c.expect(x.want, 1024, 8, c.below)
			c.expect(0, 2600, 512, c.below)
			if x.want == 9 {
				c.must(c.o.Flush())
				c.must(c.o.Punch())
				c.expect(9, 1024, 8, c.below)
			}
		})
	}
}

// A punch waits for a write that is under way at its place, and leaves what it
// wrote (M6).
func TestPunchMeetsAWrite(t *testing.T) {
	c := newCrashTest(t)
	c.write(1, 0, oneCluster)
	c.discard(0, oneCluster)
	c.flush()
	stop := c.f.StopAt(t, at("write"))
	w := c.writing(9, 512, 1024, c.below)
	stop.Reached()
	punch := interleave.Start(t, c.o.Punch)
	punch.Waits()
	stop.Go()
	w.Must()
	punch.Must()
	c.expect(9, 512, 1024, c.below)
	c.expect(0, 2048, 1024, c.below)
}

// Clusters that are neighbours in the file go in one call, however they stand in
// the guest; what was written since stays.
func TestPunchesAreJoined(t *testing.T) {
	c := newCrashTest(t)
	order := []int64{3, 1, 6, 0, 2, 5, 4, 7}
	for _, cluster := range order {
		c.write(1, cluster*oneCluster, oneCluster)
	}
	c.discard(0, 8*oneCluster)
	c.must(c.o.Flush())
	c.write(2, 2*oneCluster, 512) // the fifth of eight in the file
	if n := c.punches(c.o.Punch); n != 2 {
		t.Errorf("%d holes for eight clusters with one piece in use, want 2", n)
	}
	c.expect(2, 2*oneCluster, 512, c.below)
	for _, cluster := range order {
		c.expect(0, cluster*oneCluster+512, oneCluster-512, c.below)
	}
	c.discard(0, 8*oneCluster)
	c.must(c.o.Flush())
	if n := c.punches(c.o.Punch); n != 1 {
		t.Errorf("%d holes for the piece that is left, want 1", n)
	}
}

// A write to any of the clusters of a hole waits for it.
func TestJoinedPunchInFlight(t *testing.T) {
	for cluster := range int64(3) {
		c := newCrashTest(t)
		c.write(1, 0, 3*oneCluster)
		c.discard(0, 3*oneCluster)
		c.must(c.o.Flush())
		stop := c.f.StopAt(t, func(call interleave.Call) bool { return call.Op == "punch" && !call.Done })
		punch := interleave.Start(t, c.o.Punch)
		stop.Reached()
		write := c.writing(9, cluster*oneCluster, 512, c.below)
		write.Waits()
		stop.Go()
		punch.Must()
		write.Must()
		c.expect(9, cluster*oneCluster, 512, c.below)
	}
}

// A write that is under way in one cluster of a hole keeps writes to the others
// waiting no longer than their own part takes.
func TestJoinedPunchMeetsAWrite(t *testing.T) {
	c := newCrashTest(t)
	c.write(1, 0, 3*oneCluster)
	c.discard(0, 3*oneCluster)
	c.must(c.o.Flush())
	stop := c.f.StopAt(t, at("write"))
	slow := c.writing(9, oneCluster, 512, c.below)
	stop.Reached()
	punch := interleave.Start(t, c.o.Punch)
	punch.Waits() // for the second cluster
	c.must(c.o.WriteAt([]byte{7}, 0, c.below))
	stop.Go()
	slow.Must()
	punch.Must()
	c.expect(7, 0, 1, c.below)
	c.expect(9, oneCluster, 512, c.below)
	c.expect(0, oneCluster+512, 2*oneCluster-512, c.below)
}

// A hole has a bound: writers wait for it.
func TestPunchesAreBounded(t *testing.T) {
	c := newCrashTest(t)
	c.write(1, 0, 3<<20)
	c.discard(0, 3<<20)
	c.must(c.o.Flush())
	if n := c.punches(c.o.Punch); n != 3 {
		t.Errorf("%d holes for 3 MiB in a row, want 3", n)
	}
}

// What is discarded while a flush is under way is not in that flush: its hole
// waits for the next one (M6). So does what was discarded again after its entry
// was durable, and all of its cluster.
func TestDiscardDuringFlush(t *testing.T) {
	c := newCrashTest(t)
	c.write(1, 0, 2*oneCluster)
	c.flush()
	c.write(2, 4*oneCluster, 512) // something to flush
	stop := c.f.StopAt(t, at("sync"))
	flush := interleave.Start(t, c.o.Flush)
	stop.Reached()
	c.discard(0, oneCluster)
	stop.Go()
	flush.Must()
	if n := c.punches(c.o.Punch); n > 0 {
		t.Errorf("%d holes were punched whose entries are not durable", n)
	}
	c.cut("after a flush and a punch")
	stop = c.f.StopAt(t, at("sync"))
	flush = interleave.Start(t, c.o.Flush)
	stop.Reached()
	if n := c.punches(c.o.Punch); n > 0 {
		t.Errorf("%d holes were punched whose flush is under way", n)
	}
	stop.Go()
	flush.Must()
	c.sure()
	c.flush()
	c.write(3, 1024, 512) // due, rewritten, discarded again
	c.discard(1024, 512)
	if n := c.punches(c.o.Punch); n > 0 {
		t.Errorf("%d holes were punched beside one that is not due", n)
	}
	c.cut("after the second discard")
	c.flush()
	if n := c.punches(c.o.Punch); n == 0 {
		t.Error("nothing was punched after all")
	}
	c.cut("after the punch")
}

// A write in place, of which no entry tells, that reaches the file only after a
// flush has synced it is covered by the next flush (M4).
func TestWriteInPlaceMeetsAFlush(t *testing.T) {
	c := newCrashTest(t)
	c.write(1, 0, oneCluster)
	c.flush()
	stop := c.f.StopAt(t, at("write"))
	w := c.writing(9, 512, 512, c.below)
	stop.Reached()
	c.must(c.o.Flush())
	stop.Go()
	w.Must()
	c.set(9, 512, 512)
	c.flush()
}

// An entry is not published before the data that it names (M4): a flush comes
// while the data of a fresh cluster, and of a fresh subcluster, is on its way.
func TestEntryComesAfterData(t *testing.T) {
	for _, off := range []int64{8 * oneCluster, 4096} {
		c := newCrashTest(t)
		c.write(1, 0, 512) // the cluster is there, the subcluster at 4096 is not
		c.flush()
		stop := c.f.StopAt(t, func(call interleave.Call) bool { return call.Op == "write" && !call.Done && call.Length == 512 })
		w := c.writing(9, off, 512, c.below)
		stop.Reached()
		c.cut("while the data is on its way")
		c.must(c.o.Flush())
		c.cut("after a flush meanwhile")
		stop.Go()
		c.set(9, off, 512)
		w.Must()
		c.cut("after the write")
		c.flush()
	}
}

// Two writers of parts of one subcluster: the first is stopped while it reads
// what is below, the second waits for it, and both are there afterwards (M8).
func TestTwoWritersOfOneSubcluster(t *testing.T) {
	c := newCrashTest(t)
	below := &gatedBelow{memory: c.below}
	for _, n := range []int64{0, 1} { // a fresh cluster, then a fresh subcluster of it
		off := n * 2048
		stop := below.StopAt(t, at("read"))
		first := c.writing(5, off+10, 20, below)
		stop.Reached()
		second := c.writing(6, off+100, 30, below)
		second.Waits()
		stop.Go()
		first.Must()
		second.Must()
		c.expect(5, off+10, 20, below)
		c.expect(6, off+100, 30, below)
		c.expect(below.memory[off], off, 10, below)
		c.expect(below.memory[off], off+130, 512-130, below)
	}
}

// A discard of part of a subcluster and a write to another part of it, in both
// orders (M8).
func TestDiscardMeetsAWrite(t *testing.T) {
	for _, discardFirst := range []bool{true, false} {
		c := newCrashTest(t)
		below := &gatedBelow{memory: c.below}
		discard := func() error { return c.o.Discard(0, 100, below) }
		stop := below.StopAt(t, at("read"))
		var first, second *interleave.Op
		if discardFirst {
			first = interleave.Start(t, discard)
			stop.Reached()
			second = c.writing(6, 200, 50, below)
		} else {
			first = c.writing(6, 200, 50, below)
			stop.Reached()
			second = interleave.Start(t, discard)
		}
		second.Waits()
		stop.Go()
		first.Must()
		second.Must()
		c.expect(0, 0, 100, below)
		c.expect(6, 200, 50, below)
		c.expect(below.memory[0], 100, 100, below)
	}
}

// A discard of a whole subcluster waits for a write to it that is under way, and
// zeros are what is there then (M8).
func TestDiscardWaitsForAWrite(t *testing.T) {
	c := newCrashTest(t)
	stop := c.f.StopAt(t, func(call interleave.Call) bool { return call.Op == "write" && !call.Done && call.Length == 512 })
	w := c.writing(9, 1024, 512, c.below)
	stop.Reached()
	d := interleave.Start(t, func() error { return c.o.Discard(1024, 512, c.below) })
	d.Waits()
	stop.Go()
	w.Must()
	d.Must()
	c.expect(0, 1024, 512, c.below)
	c.must(c.o.Settle())
	c.expect(0, 1024, 512, c.below)
}

// A copy from below and the guest's write to the same subcluster, in both
// orders: the guest's wins, over the part that it covers and no more (M8).
func TestCopyMeetsAWrite(t *testing.T) {
	for _, part := range []int64{512, 100} { // a whole subcluster, part of one
		t.Run("the copy comes first", func(t *testing.T) {
			c := newCrashTest(t)
			source := &gatedBelow{memory: c.below}
			stop := source.StopAt(t, at("read"))
			fill := interleave.Start(t, func() error { _, err := c.o.Fill(source, 0, oneCluster, source); return err })
			stop.Reached()
			w := c.writing(9, 1024, part, c.below)
			w.Waits()
			stop.Go()
			fill.Must()
			w.Must()
			c.expect(9, 1024, part, nil)
			c.expect(source.memory[2048], 2048, 512, nil)
		})
		t.Run("the write comes first", func(t *testing.T) {
			c := newCrashTest(t)
			source := &gatedBelow{memory: c.below}
			stop := c.f.StopAt(t, func(call interleave.Call) bool { return call.Op == "write" && !call.Done && call.Length == 512 })
			w := c.writing(9, 1024, part, c.below)
			stop.Reached()
			fill := interleave.Start(t, func() error { _, err := c.o.Fill(source, 0, oneCluster, source); return err })
			fill.Waits()
			stop.Go()
			w.Must()
			fill.Must()
			c.expect(9, 1024, part, nil)
			c.expect(source.memory[2048], 2048, 512, nil)
			if part < 512 {
				c.expect(source.memory[1024], 1024+part, 512-part, nil)
			}
		})
	}
}

// A discard, and with it the punch that follows, waits for a write in place (M6).
func TestDiscardMeetsAWriteInPlace(t *testing.T) {
	c := newCrashTest(t)
	c.write(1, 0, oneCluster)
	c.flush()
	stop := c.f.StopAt(t, at("write"))
	w := c.writing(9, 512, 512, c.below)
	stop.Reached()
	discard := interleave.Start(t, func() error { return c.o.Discard(0, oneCluster, c.below) })
	discard.Waits()
	stop.Go()
	w.Must()
	discard.Must()
	c.flushAndPunch()
	c.expect(0, 0, oneCluster, c.below)
}

// flushAndPunch flushes and punches without looking at crash states.
func (c *crashTest) flushAndPunch() {
	c.t.Helper()
	c.must(c.o.Flush())
	c.must(c.o.Punch())
}
