package hostfs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"varve/integration/imagetest"
)

func newFile(t *testing.T, name string, flag int) File {
	t.Helper()
	f, err := OS().Open(filepath.Join(t.TempDir(), name), flag|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestHostFileHoles(t *testing.T) {
	f := newFile(t, "holes", os.O_RDWR)
	block := bytes.Repeat([]byte{1}, 64<<10)
	for _, at := range []int64{64 << 10, 256 << 10} {
		_, err := f.WriteAt(block, at)
		must(t, err)
	}
	must(t, f.Truncate(1<<20+1))
	must(t, f.Datasync())
	type seek struct {
		off        int64
		data, hole int64 // -1 for io.EOF
	}
	for _, s := range []seek{
		{0, 64 << 10, 0},
		{70 << 10, 70 << 10, 128 << 10},
		{128 << 10, 256 << 10, 128 << 10},
		{320 << 10, -1, 320 << 10},
		{1<<20 + 1, -1, -1},
		{1 << 30, -1, -1},
	} {
		for what, got := range map[string]func(int64) (int64, error){"data": f.SeekData, "hole": f.SeekHole} {
			want := map[string]int64{"data": s.data, "hole": s.hole}[what]
			pos, err := got(s.off)
			if want < 0 && err != io.EOF || want >= 0 && (err != nil || pos != want) {
				t.Errorf("seek %s from %d: %d, %v, want %d", what, s.off, pos, err, want)
			}
		}
	}
	info, err := f.Stat()
	must(t, err)
	if info.Size != 1<<20+1 || info.Blocks != 128<<10 || info.BlockSize != 4096 || !info.Mode.IsRegular() || info.Inode == 0 || info.Device == 0 || info.ModTime.IsZero() {
		t.Errorf("stat: %+v", info)
	}
	if same, err := OS().Stat(f.Name()); err != nil || same != info {
		t.Errorf("stat of the path: %+v, %v, of the file %+v", same, err, info)
	}

	must(t, f.PunchHole(64<<10, 64<<10))
	must(t, f.Allocate(2<<20, 64<<10)) // extends the file
	must(t, f.Datasync())
	must(t, f.DropCache())
	info, err = f.Stat()
	must(t, err)
	if info.Size != 2<<20+64<<10 || info.Blocks != 128<<10 {
		t.Errorf("after punching and allocating: %+v", info)
	}
	got := make([]byte, info.Size)
	_, err = f.ReadAt(got, 0)
	must(t, err)
	want := make([]byte, info.Size)
	copy(want[256<<10:], block)
	if !bytes.Equal(got, want) {
		t.Error("the content is not what was written and not punched")
	}
	if n, err := f.ReadAt(make([]byte, 100), info.Size-10); n != 10 || err != io.EOF {
		t.Errorf("read over the end: %d, %v", n, err)
	}
}

func TestHostFileUnsupported(t *testing.T) {
	f, err := OS().Open("/dev/null", os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	for what, err := range map[string]error{"punch": f.PunchHole(0, 4096), "allocate": f.Allocate(0, 4096)} {
		var path *os.PathError
		if !errors.Is(err, errors.ErrUnsupported) || !errors.As(err, &path) || path.Path != "/dev/null" {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestHostFileClosed: no call may reach a descriptor number that may belong to
// another file by now.
func TestHostFileClosed(t *testing.T) {
	f := newFile(t, "closed", os.O_RDWR)
	must(t, f.Lock(LockFrozen))
	must(t, f.Close())
	_, readErr := f.ReadAt(make([]byte, 1), 0)
	_, writeErr := f.WriteAt(make([]byte, 1), 0)
	_, statErr := f.Stat()
	_, dataErr := f.SeekData(0)
	for what, err := range map[string]error{
		"read": readErr, "write": writeErr, "stat": statErr, "seek": dataErr, "punch": f.PunchHole(0, 1), "allocate": f.Allocate(0, 1),
		"sync": f.Datasync(), "drop": f.DropCache(), "truncate": f.Truncate(0), "lock": f.Lock(LockWritable), "close": f.Close(),
	} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
}

func TestHostFS(t *testing.T) {
	fs, dir := OS(), t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	must(t, fs.Mkdir(path("sub"), 0o700))
	f, err := fs.Open(path("b"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	must(t, err)
	must(t, f.Close())
	_, err = fs.Open(path("b"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	imagetest.JudgeError(t, err, os.ErrExist, path("b"))
	must(t, fs.Link(path("b"), path("a")))
	must(t, fs.Rename(path("b"), path("c")))
	must(t, fs.SyncDir(dir))
	names, err := fs.ReadDir(dir)
	must(t, err)
	if want := []string{"a", "c", "sub"}; !slices.Equal(names, want) {
		t.Errorf("names %q, want %q", names, want)
	}
	must(t, fs.Remove(path("a")))
	must(t, fs.Remove(path("sub")))
	imagetest.JudgeError(t, fs.Remove(path("a")), os.ErrNotExist, path("a"))
	_, err = fs.Stat(path("a"))
	imagetest.JudgeError(t, err, os.ErrNotExist, path("a"))
	imagetest.JudgeError(t, fs.SyncDir(path("gone")), os.ErrNotExist, path("gone"))
}
