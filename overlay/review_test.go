package overlay

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// A growth that finds no room for a larger L1 table leaves no cluster behind.
func TestGrowWithoutRoom(t *testing.T) {
	m := newOverlayModel(t, 1, 8<<20, 8<<20, 14)
	f := m.faulty()
	m.must(m.write(1, 0, 4096))
	m.must(m.o.Flush())
	table := m.o.alloc.next << 14
	f.write = func(off int64) error {
		if off >= table {
			return unix.ENOSPC
		}
		return nil
	}
	if err := m.o.Grow(64<<30, m.backing()); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("grow: %v", err)
	}
	f.write = nil
	m.must(m.o.Settle())
	m.compare()
	m.judge()
}
