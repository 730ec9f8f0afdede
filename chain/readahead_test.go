package chain

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"varve/overlay/hostfs"
)

// aheadFS is a host of which a test says what its page cache holds, and which notes
// what it is to read ahead.
type aheadFS struct {
	hostfs.FS
	mu     sync.Mutex
	cached bool
	asked  []string
}

type aheadFile struct {
	hostfs.File
	fs *aheadFS
}

func (f *aheadFS) Open(path string, flag int, perm os.FileMode) (hostfs.File, error) {
	file, err := f.FS.Open(path, flag, perm)
	if err != nil {
		return nil, err
	}
	return &aheadFile{file, f}, nil
}

func (f *aheadFile) Cached(_, length int64) (int64, error) {
	if f.fs.cached {
		return length, nil
	}
	return 0, nil
}

func (f *aheadFile) WillNeed(off, length int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	f.fs.asked = append(f.fs.asked, fmt.Sprintf("%s %d+%d", filepath.Base(f.Name()), off, length))
	return nil
}

// A read whose pieces are in several files asks the host for all of them before it
// waits for the first, unless that is in its page cache.
func TestPiecesAreReadAhead(t *testing.T) {
	const piece = 64 << 10
	plain, _ := testDisk(t, 8<<20)
	var want []string
	for i := range int64(3) {
		put(t, plain, byte(i+1), 4<<20+i*piece, piece)
		name := fmt.Sprintf("s%d", i)
		must(t, plain.Snapshot(name))
		if i > 0 { // the first one is read at once
			m, nodes := plain.tree()
			n := nodes[m.ByName(name).ID]
			_, host, _, err := n.Place(4<<20+i*piece, piece)
			must(t, err)
			want = append(want, fmt.Sprintf("%s %d+%d", filepath.Base(n.Layer().Path), host, piece))
		}
	}
	must(t, plain.Close())
	fs := &aheadFS{FS: hostfs.OS()}
	d, err := Open(plain.Dir(), OpenOptions{FS: fs})
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	for _, c := range []struct {
		what   string
		cached bool
		off, n int64
		want   []string
	}{
		{"three pieces", false, 4 << 20, 3 * piece, want},
		{"three pieces, in the cache", true, 4 << 20, 3 * piece, nil},
		{"within one piece", false, 4 << 20, piece, nil},
		{"a few bytes of two", false, 4<<20 + piece - 4096, 8192, nil},
	} {
		fs.cached, fs.asked = c.cached, nil
		p := make([]byte, c.n)
		must(t, d.ReadAt(p, c.off))
		for i := range p {
			if got, want := p[i], byte((c.off+int64(i)-4<<20)/piece+1); got != want {
				t.Fatalf("%s: got %d at %d, want %d", c.what, got, i, want)
			}
		}
		if !slices.Equal(fs.asked, c.want) {
			t.Errorf("%s: read ahead %q, want %q", c.what, fs.asked, c.want)
		}
	}
}
