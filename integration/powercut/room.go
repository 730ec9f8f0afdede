package powercut

import (
	"errors"
	"fmt"
	"syscall"

	"varve/overlay/hostfs"
)

// room is how much a Host can hold. Names take nothing.
type room struct {
	pages int
	cow   bool
}

// Limit leaves the host some bytes of free room, in whole pages, from now on. What
// does not fit fails with ENOSPC as it does on Linux: a write or an allocation has
// done its first part. With cow a page that is replaced needs room for the new one
// first, as on file systems that never write in place. Open files and all that has
// a name take room.
func (h *Host) Limit(free int64, cow bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.room = &room{h.used() + int(free/pageSize), cow}
}

// Unlimit takes the limit away.
func (h *Host) Unlimit() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.room = nil
}

// used is how many pages are in use; mu is held.
func (h *Host) used() (pages int) {
	seen := map[*node]bool{}
	var walk func(n *node)
	walk = func(n *node) {
		if seen[n] {
			return
		}
		seen[n] = true
		if !n.isDir {
			pages += len(n.now.pages)
		}
		for _, child := range n.names {
			walk(child)
		}
	}
	walk(h.root)
	for _, n := range h.byID {
		if n.opens > 0 {
			walk(n)
		}
	}
	return pages
}

// Free implements hostfs.FS: what a limit leaves, errors.ErrUnsupported without one.
func (h *Host) Free(path string) (int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.room == nil {
		return 0, fmt.Errorf("free room of %s: %w", path, errors.ErrUnsupported)
	}
	return int64(max(0, h.room.pages-h.used())) * pageSize, nil
}

var _ hostfs.FS = (*Host)(nil)

// noRoom is ENOSPC of a call of which the first bytes fit.
type noRoom struct{ fits int64 }

func (e noRoom) Error() string { return syscall.ENOSPC.Error() }
func (e noRoom) Unwrap() error { return syscall.ENOSPC }

// fit cuts a call to what there is room for; mu is held.
func (h *Host) fit(op Op) (Op, error) {
	if h.room == nil || op.Kind != Write && op.Kind != Allocate {
		return op, nil
	}
	left := h.room.pages - h.used()
	have := h.byID[op.node].now.pages
	for page := op.Off / pageSize; page*pageSize < op.Off+op.N; page++ {
		if have[page] != nil && (op.Kind == Allocate || !h.room.cow) {
			continue
		}
		if left--; left >= 0 {
			continue
		}
		op.N = max(0, page*pageSize-op.Off)
		if op.Kind == Write {
			op.Data = op.Data[:op.N]
		}
		return op, noRoom{op.N}
	}
	return op, nil
}
