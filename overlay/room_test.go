package overlay

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"varve/integration/interleave"
)

// ENOSPC is met at write time (M10): the write that needs a table gives it its
// blocks on the host, and fails, cleanly, when there are none; L1 tables have
// theirs from the beginning.
func TestTablesAreReserved(t *testing.T) {
	c := newCrashTest(t)
	var reserved []interleave.Call
	watch := func(call interleave.Call) {
		if call.Op == "allocate" && !call.Done {
			reserved = append(reserved, call)
		}
	}
	covered := func(off, n int64) bool {
		for _, r := range reserved {
			if r.Off <= off && off+n <= r.Off+r.Length {
				return true
			}
		}
		return false
	}
	// Creation and growth.
	f := &memFile{now: memContent{pages: map[int64]*[memPage]byte{}}, durable: memContent{pages: map[int64]*[memPage]byte{}}}
	f.Watch(watch)
	c.must(Create(memFS{f: f}, "memory", CreateOptions{Size: crashSize, ClusterBits: crashClusterBits}))
	o, err := NewOverlay(f, OverlayOptions{})
	c.must(err)
	if h := o.Header(); !covered(h.L1Offset, int64(h.L1Entries)*8) {
		t.Error("Create reserves no L1 table")
	}
	for _, size := range []int64{100 << 20, 64 << 30} { // in place, moved
		reserved = nil
		c.must(o.Grow(size, nil))
		if h := o.Header(); !covered(h.L1Offset, int64(h.L1Entries)*8) {
			t.Errorf("growth to %d reserves no L1 table", size)
		}
	}

	c.f.Watch(watch)
	reserved = nil
	c.f.fail = func(call interleave.Call) error {
		if call.Op == "allocate" {
			return unix.ENOSPC
		}
		return nil
	}
	if err := c.o.WriteAt([]byte{1}, 0, c.below); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a write whose table has no room: %v", err)
	}
	c.f.fail = nil
	c.must(c.o.WriteAt([]byte{1}, 0, c.below))
	if table := c.o.findTable(0); !covered(table.host, oneCluster) {
		t.Errorf("the L2 table at 0x%x has no blocks: %v", table.host, reserved)
	}
	c.f.Watch(nil)
	c.now = c.read(c.o, c.below)
	c.may = append(c.may, c.now)
	c.flush()
	c.during("settle", c.o.Settle)
	if err := c.f.now.checkRefcounts(t); err != nil {
		t.Error(err)
	}
}

// fdatasync that fails for want of room has lost what it was to write back like
// any other that fails: no later one may claim success (M10).
func TestSyncWithoutRoom(t *testing.T) {
	c := newCrashTest(t)
	c.write(1, 0, 4096)
	c.f.fail = func(call interleave.Call) error {
		if call.Op == "sync" {
			return unix.ENOSPC
		}
		return nil
	}
	if err := c.o.Flush(); !errors.Is(err, unix.ENOSPC) || !errors.Is(err, ErrFailed) {
		t.Errorf("flush: %v", err)
	}
	c.f.fail = nil
	if err := c.o.Flush(); !errors.Is(err, ErrFailed) {
		t.Errorf("the next flush: %v", err)
	}
	for name, op := range map[string]func() error{
		"discard": func() error { return c.o.Discard(0, 4096, c.below) },
		"reserve": func() error { return c.o.Reserve(0, 4096) },
		"unmap":   func() error { return c.o.Unmap(0, 4096) },
		"grow":    func() error { return c.o.Grow(crashSize+4096, c.below) },
		"rename":  func() error { return c.o.SetBacking("x", "raw") },
		"settle":  c.o.Settle,
	} {
		if err := op(); !errors.Is(err, ErrFailed) {
			t.Errorf("%s after a failed fdatasync: %v", name, err)
		}
	}
	if n := c.punches(c.o.Punch); n > 0 {
		t.Errorf("%d holes were punched after a failed fdatasync", n)
	}
}

// After a failed fdatasync the cache holds pages that are clean, newer than the
// disk, and never written. The recovery looks at the disk (M10): a power cut
// after it takes nothing away that it has shown.
func TestRecoveryDropsTheCache(t *testing.T) {
	for fail := 1; fail <= 2; fail++ { // the data is lost, the tables are lost
		c := newCrashTest(t)
		c.write(1, 0, oneCluster)
		c.flush()
		c.write(2, 0, 512)
		c.write(3, 4*oneCluster, 512)
		calls := 0
		c.f.fail = func(call interleave.Call) error {
			if call.Op == "sync" {
				if calls++; calls == fail {
					return unix.EIO
				}
			}
			return nil
		}
		if err := c.o.Flush(); !errors.Is(err, ErrFailed) {
			t.Fatalf("flush: %v", err)
		}
		c.f.fail = nil
		var err error
		c.o, err = NewOverlay(c.f, OverlayOptions{Unclean: true})
		c.must(err)
		shown := c.read(c.o, c.below)
		for i, b := range shown {
			if b != c.now[i] && b != c.may[0][i] {
				t.Fatalf("sync %d failed: byte %d is %02x, neither old nor new", fail, i, b)
			}
		}
		c.now = bytes.Clone(shown)
		c.sure()
		c.flush()
	}
}
