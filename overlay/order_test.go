package overlay

import (
	"bytes"
	"testing"

	"varve/integration/interleave"
)

// Blocks go only when the entries that make them dead are durable (M6): what
// was moved to the layer below, and taken out of the table in memory, is still
// there for whoever reads the table on disk.
func TestPunchWaitsForTheFlush(t *testing.T) {
	m := newOverlayModel(t, 1, 4<<20, 4<<20, 0)
	m.must(m.write(7, 1<<20, 256<<10))
	m.must(m.o.Flush())
	m.must(m.o.Unmap(1<<20, 256<<10))
	m.must(m.o.Punch())
	m.must(m.o.Close()) // killed before the next flush
	m.open(true)
	m.compare()
	m.must(m.o.Unmap(1<<20, 256<<10))
	m.must(m.o.Flush())
	before, err := m.o.File().Stat()
	m.must(err)
	m.must(m.o.Punch())
	after, err := m.o.File().Stat()
	m.must(err)
	if freed := before.Blocks - after.Blocks; freed < 256<<10 {
		t.Errorf("%d bytes came free, want %d", freed, 256<<10)
	}
	copy(m.want[1<<20:], m.below[1<<20:1<<20+256<<10])
	m.compare()
	m.judge()
}

// What a merge took out behind the window that it settles has readers still; what the
// guest discarded there has none (M1).
func TestPunchBefore(t *testing.T) {
	m := newOverlayModel(t, 1, 4<<20, 4<<20, 0)
	const part = 128 << 10
	m.must(m.write(7, 1<<20, 4*part))
	m.must(m.o.Unmap(1<<20, part))
	m.must(m.o.Unmap(1<<20+part, part))
	m.must(m.o.Discard(1<<20+2*part, part, m.backing()))
	m.must(m.o.Flush())
	freed := func(punch func() error) int64 {
		before, err := m.o.File().Stat()
		m.must(err)
		m.must(punch())
		after, err := m.o.File().Stat()
		m.must(err)
		return before.Blocks - after.Blocks
	}
	if n := freed(func() error { return m.o.PunchBefore(1<<20 + part) }); n != 2*part {
		t.Errorf("%d bytes came free, want the window and the discard, %d", n, 2*part)
	}
	if n := freed(m.o.Punch); n != part {
		t.Errorf("%d bytes came free afterwards, want %d", n, part)
	}
	copy(m.want[1<<20:], m.below[1<<20:1<<20+2*part])
	clear(m.want[1<<20+2*part : 1<<20+3*part])
	m.compare()
}

// A discard in the next window that is due makes PunchBefore list its cluster. A merge
// that takes the rest of that cluster out before its turn comes, and a flush, must not
// let that rest go with the window that is settled: it has readers still (M1).
func TestPunchBeforeMeetsAMove(t *testing.T) {
	c := newCrashTest(t)
	c.must(c.o.WriteAt(bytes.Repeat([]byte{1}, 3*oneCluster), 0, c.below))
	c.must(c.o.Unmap(0, oneCluster)) // the window that is settled
	const next = 2 * oneCluster      // in the next one
	c.must(c.o.Discard(next, 1024, c.below))
	c.must(c.o.Flush())
	place, err := c.o.Lookup(next+4096, 512) // a reader has looked it up
	c.must(err)
	stop := c.f.StopAt(t, at("punch"))
	punch := interleave.Start(t, func() error { return c.o.PunchBefore(oneCluster) })
	stop.Reached() // the first hole
	c.must(c.o.Unmap(next, oneCluster))
	c.must(c.o.Flush())
	stop.Go()
	punch.Must()
	p := make([]byte, 512)
	c.must(c.o.ReadHost(p, place.Host))
	if p[0] != 1 {
		t.Errorf("a block of the next window was given back with this one: its reader gets %d, want 1", p[0])
	}
	c.must(c.o.PunchBefore(next + oneCluster))
	c.must(c.o.ReadHost(p, place.Host))
	if p[0] != 0 {
		t.Error("it is not given back with its own")
	}
}

// A write to a place whose hole is queued takes it off the queue (M6).
func TestWriteCancelsThePunch(t *testing.T) {
	m := newOverlayModel(t, 1, 4<<20, 4<<20, 0)
	m.must(m.write(7, 1<<20, 256<<10))
	m.must(m.o.Discard(1<<20, 256<<10, m.backing()))
	clear(m.want[1<<20 : 1<<20+256<<10])
	m.must(m.o.Flush()) // the hole is due
	m.must(m.write(8, 1<<20+8192, 4096))
	m.must(m.write(9, 1<<20+100000, 10))
	m.must(m.o.Punch())
	m.compare()
	m.must(m.o.Flush())
	m.must(m.o.Close())
	m.open(true)
	m.compare()
	m.judge()
}

// A cluster once given out stays its guest cluster's (M3): discarding and
// writing the same place again and again does not make the file grow.
func TestRewritesStayInPlace(t *testing.T) {
	m := newOverlayModel(t, 1, 4<<20, 4<<20, 0)
	length := func() int64 {
		info, err := m.o.File().Stat()
		m.must(err)
		return info.Size
	}
	var first int64
	for i := range 20 {
		m.must(m.write(byte(i), 0, 4<<20))
		m.must(m.o.Flush())
		if i == 0 {
			first = length()
		}
		m.must(m.o.Discard(0, 4<<20, m.backing()))
		m.must(m.o.Flush())
		m.must(m.o.Punch())
	}
	if got := length(); got != first {
		t.Errorf("the file has %d bytes, had %d after the first round", got, first)
	}
	clear(m.want)
	m.compare()
	m.judge()
}
