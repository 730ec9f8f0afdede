package chain

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/overlay/hostfs"
)

// limitedFS opens so many layer files and no more.
type limitedFS struct {
	hostfs.FS
	left int
	err  error
}

func (f *limitedFS) Open(path string, flag int, perm os.FileMode) (hostfs.File, error) {
	if strings.HasSuffix(path, ".qcow2") {
		if f.left--; f.left < 0 {
			return nil, &os.PathError{Op: "open", Path: path, Err: f.err}
		}
	}
	return f.FS.Open(path, flag, perm)
}

// Too few descriptors for a chain is one line with the limit, the layers and the
// way out, and nothing of the disk stays open.
func TestTooManyLayersForTheLimit(t *testing.T) {
	d, _ := testDisk(t, 1<<20)
	dir := d.Dir()
	must(t, d.Snapshot("one"))
	must(t, d.Snapshot("two"))
	must(t, d.Close())
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	layers := fmt.Sprintf("%d layers", len(readManifest(t, dir).Layers))
	for reason, words := range map[error][]string{
		unix.EMFILE: {layers, fmt.Sprint(limit.Cur), "ulimit -Hn", "LimitNOFILE="},
		unix.ENFILE: {layers, "fs.file-max"},
	} {
		_, err := Open(dir, OpenOptions{FS: &limitedFS{FS: hostfs.OS(), left: 2, err: reason}})
		if !errors.Is(err, reason) {
			t.Fatalf("%v, not %v", err, reason)
		}
		for _, word := range append(words, "000004.qcow2") {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%q says nothing of %q", err, word)
			}
		}
	}
	d = openDisk(t, dir)
	must(t, d.Close())
}
