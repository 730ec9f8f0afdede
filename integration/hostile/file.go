package hostile

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"varve/overlay/hostfs"
)

// BytesFile is a read-only File in memory, for fuzzing.
type BytesFile struct {
	hostfs.File // what is not used is nil and would panic
	Data        []byte
}

func (f *BytesFile) Name() string { return "memory" }
func (f *BytesFile) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(f.Data).ReadAt(p, off)
}
func (f *BytesFile) Stat() (hostfs.Info, error)        { return hostfs.Info{Size: int64(len(f.Data))}, nil }
func (f *BytesFile) SeekData(off int64) (int64, error) { return off, f.end(off) }
func (f *BytesFile) SeekHole(off int64) (int64, error) { return int64(len(f.Data)), f.end(off) }
func (f *BytesFile) Close() error                      { return nil }
func (f *BytesFile) end(off int64) error {
	if off >= int64(len(f.Data)) {
		return io.EOF
	}
	return nil
}

// SpotFile is a file with places that cannot be read.
type SpotFile struct {
	hostfs.File
	mu  sync.Mutex
	Bad [][2]int64
}

func (f *SpotFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.Bad {
		if off < r[1] && off+int64(len(p)) > r[0] {
			return 0, fmt.Errorf("read %s: %w", f.Name(), unix.EIO)
		}
	}
	return f.File.ReadAt(p, off)
}

func (f *SpotFile) Set(bad ...[2]int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Bad = bad
}
