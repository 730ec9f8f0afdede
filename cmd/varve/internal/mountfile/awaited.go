package mountfile

import (
	"varve/cmd/varve/internal/waiting"
	"varve/overlay/hostfs"
)

// awaited is what Awaited gives.
type awaited struct {
	hostfs.File
	what waiting.Subject
}

// Awaited makes a wait (package waiting) of each call on an open file of a mount that the
// mount's daemon answers.
func Awaited(f hostfs.File, what waiting.Subject) hostfs.File { return awaited{f, what} }

func (f awaited) ReadAt(p []byte, off int64) (n int, err error) {
	defer waiting.For(f.what)()
	return f.File.ReadAt(p, off)
}

func (f awaited) WriteAt(p []byte, off int64) (n int, err error) {
	defer waiting.For(f.what)()
	return f.File.WriteAt(p, off)
}

func (f awaited) SeekData(off int64) (int64, error) {
	defer waiting.For(f.what)()
	return f.File.SeekData(off)
}

func (f awaited) SeekHole(off int64) (int64, error) {
	defer waiting.For(f.what)()
	return f.File.SeekHole(off)
}

func (f awaited) PunchHole(off, length int64) error {
	defer waiting.For(f.what)()
	return f.File.PunchHole(off, length)
}

func (f awaited) Sync() error {
	defer waiting.For(f.what)()
	return f.File.Sync()
}

func (f awaited) Stat() (hostfs.Info, error) {
	defer waiting.For(f.what)()
	return f.File.Stat()
}

func (f awaited) Close() error {
	defer waiting.For(f.what)()
	return f.File.Close()
}
