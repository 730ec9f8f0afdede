package overlay

import (
	"bytes"
	"io"

	"varve/overlay/hostfs"
)

// bytesFile is a read-only File in memory, for fuzzing.
type bytesFile struct {
	hostfs.File // what is not used is nil and would panic
	data        []byte
}

func (f *bytesFile) Name() string { return "memory" }
func (f *bytesFile) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(f.data).ReadAt(p, off)
}
func (f *bytesFile) Stat() (hostfs.Info, error)        { return hostfs.Info{Size: int64(len(f.data))}, nil }
func (f *bytesFile) SeekData(off int64) (int64, error) { return off, f.end(off) }
func (f *bytesFile) SeekHole(off int64) (int64, error) { return int64(len(f.data)), f.end(off) }
func (f *bytesFile) Close() error                      { return nil }
func (f *bytesFile) end(off int64) error {
	if off >= int64(len(f.data)) {
		return io.EOF
	}
	return nil
}
