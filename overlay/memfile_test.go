package overlay

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"varve/integration/interleave"
	"varve/overlay/hostfs"
)

// memFile is an image file in memory that stops callers where a test wants it,
// and knows which of its changes a power cut may still take away: all that came
// after the last fdatasync, each by itself.
type memFile struct {
	interleave.Host
	mu      sync.Mutex
	now     memContent
	durable memContent
	pending []memChange

	clones bool // CloneRange works, from other such files

	// fail gives a call's error; nil for none. A failed fdatasync leaves what
	// it was to write in the cache, clean, and off the disk, as Linux does.
	fail func(c interleave.Call) error
}

const memPage = 4096

// memContent has pages that are replaced and never changed.
type memContent struct {
	size  int64
	pages map[int64]*[memPage]byte
}

// memChange is a write (data), a hole (length), or a new size.
type memChange struct {
	data        []byte
	off, length int64
	size        int64 // -1 for a write or a hole
	what        string
}

func (c memContent) clone() memContent { return memContent{c.size, maps.Clone(c.pages)} }

func (c *memContent) apply(ch memChange) {
	switch {
	case ch.size >= 0:
		if ch.size < c.size {
			c.zero(ch.size, c.size-ch.size)
		}
		c.size = ch.size
	case ch.data == nil:
		c.zero(ch.off, min(ch.length, c.size-ch.off))
	default:
		c.write(ch.data, ch.off)
	}
}

func (c *memContent) write(p []byte, off int64) {
	for len(p) > 0 {
		page, in := off/memPage, off%memPage
		fresh := new([memPage]byte)
		if old := c.pages[page]; old != nil {
			*fresh = *old
		}
		n := copy(fresh[in:], p)
		c.pages[page] = fresh
		p, off = p[n:], off+int64(n)
		c.size = max(c.size, off)
	}
}

func (c *memContent) zero(off, length int64) {
	for length > 0 {
		in := off % memPage
		n := min(length, memPage-in)
		if c.pages[off/memPage] != nil {
			if n == memPage {
				delete(c.pages, off/memPage)
			} else {
				c.write(make([]byte, n), off)
			}
		}
		off, length = off+n, length-n
	}
}

func (c memContent) read(p []byte, off int64) (int, error) {
	total := int(max(0, min(int64(len(p)), c.size-off)))
	for n := 0; n < total; {
		in := off % memPage
		part := p[n:min(total, n+int(memPage-in))]
		if page := c.pages[off/memPage]; page != nil {
			copy(part, page[in:])
		} else {
			clear(part)
		}
		n, off = n+len(part), off+int64(len(part))
	}
	if total < len(p) {
		return total, io.EOF
	}
	return total, nil
}

func (f *memFile) do(op string, off, length int64, change func() error) error {
	c := interleave.Call{Op: op, Path: "memory", Off: off, Length: length}
	f.Do(c)
	err := func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.fail != nil {
			if err := f.fail(c); err != nil {
				if op == "sync" {
					f.pending = nil
				}
				return &os.PathError{Op: op, Path: c.Path, Err: err}
			}
		}
		return change()
	}()
	c.Done = true
	f.Do(c)
	return err
}

func (f *memFile) change(ch memChange) error {
	f.now.apply(ch)
	f.pending = append(f.pending, ch)
	return nil
}

func (f *memFile) Name() string { return "memory" }
func (f *memFile) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.do("read", off, int64(len(p)), func() error { n, err = f.now.read(p, off); return err })
	return n, err
}
func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	ch := memChange{data: slices.Clone(p), off: off, size: -1, what: fmt.Sprintf("write 0x%x+%d", off, len(p))}
	if err := f.do("write", off, int64(len(p)), func() error { return f.change(ch) }); err != nil {
		return 0, err
	}
	return len(p), nil
}
func (f *memFile) Truncate(size int64) error {
	return f.do("truncate", size, 0, func() error {
		return f.change(memChange{size: size, what: fmt.Sprintf("truncate to 0x%x", size)})
	})
}
func (f *memFile) Allocate(off, length int64) error {
	return f.do("allocate", off, length, func() error {
		if off+length <= f.now.size {
			return nil
		}
		return f.change(memChange{size: off + length, what: fmt.Sprintf("allocate to 0x%x", off+length)})
	})
}
func (f *memFile) PunchHole(off, length int64) error {
	return f.do("punch", off, length, func() error {
		return f.change(memChange{off: off, length: length, size: -1, what: fmt.Sprintf("punch 0x%x+%d", off, length)})
	})
}

// CloneRange is a write that reads its source while it is made.
func (f *memFile) CloneRange(src hostfs.File, srcOff, off, length int64) error {
	s, ok := src.(*memFile)
	if !ok || (srcOff|off|length)%memPage != 0 || !f.clones {
		return errors.ErrUnsupported
	}
	p := make([]byte, length)
	if _, err := s.now.read(p, srcOff); err != nil {
		return errors.ErrUnsupported
	}
	ch := memChange{data: p, off: off, size: -1, what: fmt.Sprintf("clone 0x%x+%d", off, length)}
	return f.do("clone", off, length, func() error { return f.change(ch) })
}
func (f *memFile) WriteBack(int64, int64) error { return nil }
func (f *memFile) WillNeed(int64, int64) error  { return nil }
func (f *memFile) DropRange(off, length int64) error {
	return f.do("drop range", off, length, func() error { return nil })
}

// Cached says that nothing is, so that jobs drop what they can.
func (f *memFile) Cached(int64, int64) (int64, error) { return 0, nil }
func (f *memFile) Datasync() error {
	return f.do("sync", 0, 0, func() error {
		for _, ch := range f.pending {
			f.durable.apply(ch)
		}
		f.pending = nil
		return nil
	})
}
func (f *memFile) Sync() error { return f.Datasync() }
func (f *memFile) DropCache() error {
	return f.do("drop", 0, 0, func() error {
		f.now = f.durable.clone()
		for _, ch := range f.pending {
			f.now.apply(ch)
		}
		return nil
	})
}
func (f *memFile) Stat() (hostfs.Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return hostfs.Info{Size: f.now.size, Blocks: int64(len(f.now.pages)) * memPage, BlockSize: memPage, ModTime: time.Unix(0, 0)}, nil
}
func (f *memFile) SeekData(int64) (int64, error) { return 0, errors.ErrUnsupported }
func (f *memFile) SeekHole(int64) (int64, error) { return 0, errors.ErrUnsupported }
func (f *memFile) Lock(hostfs.LockMode) error    { return nil }
func (f *memFile) Fd() int                       { return -1 }
func (f *memFile) Close() error                  { return nil }

// memFS creates and opens one memFile.
type memFS struct {
	hostfs.FS
	f *memFile
}

func (s memFS) Open(string, int, os.FileMode) (hostfs.File, error) { return s.f, nil }
func (s memFS) Remove(string) error                                { return nil }

// crashState is a content that a power cut may leave.
type crashState struct {
	content memContent
	what    string
}

// crashStates are contents that a power cut at this moment may leave: of the
// changes since the last fdatasync none, all, those up to each one, each one
// alone, and all but each one.
func (f *memFile) crashStates() []crashState {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.pending)
	state := func(what string, keep func(i int) bool) crashState {
		c := f.durable.clone()
		for i, ch := range f.pending {
			if keep(i) {
				c.apply(ch)
			}
		}
		return crashState{c, what}
	}
	states := []crashState{state("nothing", func(int) bool { return false })}
	for i, ch := range f.pending {
		states = append(states, state("only "+ch.what, func(k int) bool { return k == i }))
	}
	for i, ch := range f.pending {
		states = append(states, state("all but "+ch.what, func(k int) bool { return k != i }))
	}
	for i := range f.pending {
		states = append(states, state(fmt.Sprintf("the first %d of %d changes", i+1, n), func(k int) bool { return k <= i }))
	}
	return states
}

// save writes a content to a file of the host.
func (c memContent) save(tb testing.TB, path string) {
	tb.Helper()
	file, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer file.Close()
	for page, data := range c.pages {
		if _, err := file.WriteAt(data[:], page*memPage); err != nil {
			tb.Fatal(err)
		}
	}
	if err := file.Truncate(c.size); err != nil {
		tb.Fatal(err)
	}
}

// checkWithQemu lets qemu-img check a content, without what is below it: leaks
// are what a crash may leave.
func (c memContent) checkWithQemu(tb testing.TB) error {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "state.qcow2")
	c.save(tb, path)
	defer os.Remove(path)
	out, err := exec.Command("qemu-img", "check", "--image-opts", "driver=qcow2,backing=,file.driver=file,file.filename="+path).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && asExit(err, &exit) && exit.ExitCode() == 3 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("qemu-img check: %w\n%s", err, out)
	}
	return nil
}
