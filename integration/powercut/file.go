package powercut

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"varve/overlay/hostfs"
)

// file is an open file of a Host. It stays the node's when that is renamed or
// removed.
type file struct {
	host   *Host
	node   *node
	path   string
	closed bool
}

var _ hostfs.File = (*file)(nil)

func (f *file) Name() string { return f.path }
func (f *file) Fd() int      { return -1 }

// Lock does nothing: nobody else has a simulated file.
func (f *file) Lock(hostfs.LockMode) error { return nil }

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.host.mu.Lock()
	defer f.host.mu.Unlock()
	if f.closed {
		return 0, os.ErrClosed
	}
	op := Op{Kind: Read, Path: f.path, Off: off, N: int64(len(p))}
	if err := f.host.ask(op); err != nil {
		return 0, fail(op, err)
	}
	return f.node.now.read(p, off)
}

func (f *file) change(op Op) error {
	f.host.mu.Lock()
	defer f.host.mu.Unlock()
	if f.closed {
		return os.ErrClosed
	}
	op.Path, op.node = f.path, f.node.id
	return f.host.change(op)
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	op := Op{Kind: Write, Off: off, N: int64(len(p)), Data: slices.Clone(p)}
	err := f.change(op)
	var partly Partly
	var full noRoom
	switch {
	case errors.As(err, &full):
		return int(full.fits), err
	case errors.As(err, &partly):
		return int(op.half()), err
	case err != nil:
		return 0, err
	}
	return len(p), nil
}

func (f *file) Truncate(size int64) error { return f.change(Op{Kind: Truncate, N: size}) }

func (f *file) Allocate(off, n int64) error {
	return f.change(Op{Kind: Allocate, Off: off, N: n})
}

func (f *file) PunchHole(off, n int64) error { return f.change(Op{Kind: Punch, Off: off, N: n}) }

// CloneRange is a write of what the source holds at this moment: a power cut
// takes it, or parts of it, as it takes a write. So do hosts that share blocks:
// the new mapping is theirs to lose until a sync. Ranges must be whole pages
// within the source.
func (f *file) CloneRange(src hostfs.File, srcOff, off, n int64) error {
	s, ok := src.(*file)
	if !ok || s.host != f.host || (srcOff|off|n)%pageSize != 0 {
		return fmt.Errorf("clone into %s: %w", f.path, errors.ErrUnsupported)
	}
	p := make([]byte, n)
	f.host.mu.Lock()
	closed := s.closed
	got, _ := s.node.now.read(p, srcOff)
	f.host.mu.Unlock()
	switch {
	case closed:
		return os.ErrClosed
	case int64(got) < n:
		return fmt.Errorf("clone into %s: %w", f.path, errors.ErrUnsupported)
	}
	return f.change(Op{Kind: Write, Off: off, N: n, Data: p})
}

// WriteBack and DropRange are hints; this host does nothing of itself before a
// sync, and what it has in its cache after one is what it has on the disk.
func (f *file) WriteBack(int64, int64) error { return nil }
func (f *file) DropRange(int64, int64) error { return nil }
func (f *file) WillNeed(int64, int64) error  { return nil }

// Cached says that nothing is, so that jobs drop what they can.
func (f *file) Cached(int64, int64) (int64, error) { return 0, nil }

func (f *file) Datasync() error  { return f.change(Op{Kind: Datasync}) }
func (f *file) Sync() error      { return f.change(Op{Kind: Sync}) }
func (f *file) DropCache() error { return f.change(Op{Kind: DropCache}) }

func (f *file) Stat() (hostfs.Info, error) {
	f.host.mu.Lock()
	defer f.host.mu.Unlock()
	if f.closed {
		return hostfs.Info{}, os.ErrClosed
	}
	op := Op{Kind: Stat, Path: f.path}
	if err := f.host.ask(op); err != nil {
		return hostfs.Info{}, fail(op, err)
	}
	return f.node.info(), nil
}

func (f *file) SeekData(off int64) (int64, error) { return f.seek(off, true) }
func (f *file) SeekHole(off int64) (int64, error) { return f.seek(off, false) }

func (f *file) seek(off int64, data bool) (int64, error) {
	f.host.mu.Lock()
	defer f.host.mu.Unlock()
	if f.closed {
		return 0, os.ErrClosed
	}
	return f.node.now.seek(off, data)
}

func (f *file) Close() error {
	f.host.mu.Lock()
	defer f.host.mu.Unlock()
	if f.closed {
		return os.ErrClosed
	}
	f.closed = true
	f.node.opens--
	return nil
}
