package partition

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math"

	"github.com/diskfs/go-diskfs/backend"
)

// reader is a disk as go-diskfs takes it. It keeps the first error of the disk, to
// tell that from a table's.
type reader struct {
	disk   Disk
	size   int64 // bytes
	failed error
	pos    int64
}

var (
	_ backend.File = (*gptFile)(nil)
	_ backend.File = memory(nil)
)

func (r *reader) fill(p []byte, off int64) error {
	if err := r.disk.ReadAt(p, off); err != nil {
		r.failed = errors.Join(r.failed, err)
		return err
	}
	return nil
}

// ReadAt gives zeros for what lies outside the disk: where a header at the front
// points there, the one at the end is still to be looked at.
func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > math.MaxInt64-int64(len(p)) || off+int64(len(p)) > r.size {
		clear(p)
		return len(p), nil
	}
	if err := r.fill(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Seek tells the size.
func (r *reader) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += r.pos
	case io.SeekEnd:
		off += r.size
	}
	r.pos = off
	return off, nil
}

// What follows is never called for a table.

func (r *reader) Stat() (fs.FileInfo, error) { return nil, errors.ErrUnsupported }
func (r *reader) Read([]byte) (int, error)   { return 0, errors.ErrUnsupported }
func (r *reader) Close() error               { return nil }

// memory is a sector that was read.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }
func (m memory) Seek(int64, int) (int64, error)          { return 0, errors.ErrUnsupported }
func (m memory) Stat() (fs.FileInfo, error)              { return nil, errors.ErrUnsupported }
func (m memory) Read([]byte) (int, error)                { return 0, errors.ErrUnsupported }
func (m memory) Close() error                            { return nil }
