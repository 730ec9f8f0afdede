package overlay

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"varve/overlay/hostfs"
)

// faultyFile fails calls as a test says.
type faultyFile struct {
	hostfs.File
	write func(off int64) error
	sync  func() error
	most  int64 // the largest size that the host allows the file; 0 for any
}

func (f *faultyFile) Truncate(size int64) error {
	if f.most > 0 && size > f.most {
		return unix.EFBIG
	}
	return f.File.Truncate(size)
}

func (f *faultyFile) WriteAt(p []byte, off int64) (int, error) {
	if f.write != nil {
		if err := f.write(off); err != nil {
			return 0, err
		}
	}
	return f.File.WriteAt(p, off)
}

func (f *faultyFile) Datasync() error {
	if f.sync != nil {
		if err := f.sync(); err != nil {
			return err
		}
	}
	return f.File.Datasync()
}

// faulty opens the model's layer again over a faultyFile.
func (m *overlayModel) faulty() *faultyFile {
	m.t.Helper()
	m.must(m.o.Close())
	f, err := hostfs.OS().Open(m.path, os.O_RDWR, 0)
	m.must(err)
	m.must(f.Lock(hostfs.LockWritable))
	faulty := &faultyFile{File: f}
	m.o, err = NewOverlay(faulty, OverlayOptions{})
	m.must(err)
	return faulty
}

func (m *overlayModel) write(value byte, off, n int64) error {
	p := bytes.Repeat([]byte{value}, int(n))
	err := m.o.WriteAt(p, off, m.backing())
	if err == nil {
		copy(m.want[off:], p)
	}
	return err
}

// A full host file system at a flush is no end: once there is room the same
// flush succeeds, with everything in it.
func TestFlushWithoutRoom(t *testing.T) {
	m := newOverlayModel(t, 1, 8<<20, 8<<20, 0)
	f := m.faulty()
	m.must(m.write(1, 0, 4096))
	m.must(m.write(2, 5<<20, 4096))
	f.write = func(int64) error { return unix.ENOSPC }
	if err := m.o.Flush(); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("flush: %v", err)
	}
	if err := m.o.Failed(); err != nil {
		t.Fatalf("the layer failed for good: %v", err)
	}
	f.write = nil
	m.must(m.write(3, 6<<20, 4096))
	m.must(m.o.Flush())
	m.must(m.o.Close())
	m.open(true) // as after a crash: only what was flushed
	m.compare()
	m.judge()
}

// Where the host allows a file no more than some size (RLIMIT_FSIZE, 16 TiB on ext4) all
// of that is used, a write that needs more fails and nothing else, and a flush then is no
// end either.
func TestLargestFile(t *testing.T) {
	m := newOverlayModel(t, 1, 16<<20, 0, 0)
	f := m.faulty()
	info, err := f.Stat()
	m.must(err)
	f.most = info.Size + 1<<20
	var refused error
	written := int64(0)
	for off := int64(0); off < 8<<20 && refused == nil; off += 64 << 10 {
		if refused = m.write(1, off, 64<<10); refused == nil {
			written += 64 << 10
		}
	}
	if !errors.Is(refused, unix.EFBIG) || written < 1<<19 {
		t.Fatalf("%d bytes could be written, then: %v", written, refused)
	}
	f.write = func(int64) error { return unix.EFBIG }
	if err := m.o.Flush(); !errors.Is(err, unix.EFBIG) {
		t.Fatalf("flush: %v", err)
	}
	if err := m.o.Failed(); err != nil {
		t.Fatalf("the layer failed for good: %v", err)
	}
	f.write = nil
	m.must(m.o.Flush())
	f.most = 0
	m.must(m.write(2, 12<<20, 1<<20))
	m.must(m.o.Flush())
	m.must(m.o.Close())
	m.open(true)
	m.compare()
	m.judge()
}

// A failed fdatasync is never followed by a flush that claims success (M10),
// and no write is taken any more; what was flushed before is there.
func TestFailedSyncIsSticky(t *testing.T) {
	for fail := 1; fail <= 2; fail++ {
		m := newOverlayModel(t, 1, 8<<20, 8<<20, 0)
		f := m.faulty()
		m.must(m.write(1, 0, 4096))
		m.must(m.o.Flush())
		m.must(m.o.WriteAt([]byte{9}, 4<<20, m.backing()))
		calls := 0
		f.sync = func() error {
			if calls++; calls == fail {
				return unix.EIO
			}
			return nil
		}
		for range 3 {
			if err := m.o.Flush(); !errors.Is(err, unix.EIO) || !errors.Is(err, ErrFailed) {
				t.Fatalf("flush: %v", err)
			}
		}
		if err := m.o.WriteAt([]byte{1}, 0, m.backing()); !errors.Is(err, ErrFailed) {
			t.Fatalf("write: %v", err)
		}
		if err := m.o.Settle(); !errors.Is(err, ErrFailed) {
			t.Fatalf("settle: %v", err)
		}
		m.must(m.o.Close())
		m.open(true)
		// The byte that was not acknowledged may be there or not.
		if got := m.read(); got[4<<20] == 9 {
			m.want[4<<20] = 9
		}
		m.compare()
		m.judge()
	}
}

// A panic in a flush, which the mount turns into EIO, is not followed by a flush
// that claims what the first one had taken and never wrote.
func TestPanicInAFlush(t *testing.T) {
	m := newOverlayModel(t, 1, 8<<20, 8<<20, 0)
	f := m.faulty()
	m.must(m.write(1, 0, 4096))
	f.sync = func() error { panic("a bug") }
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		_ = m.o.Flush()
	}()
	f.sync = nil
	if err := m.o.Flush(); !errors.Is(err, ErrFailed) {
		t.Errorf("the next flush: %v", err)
	}
}
