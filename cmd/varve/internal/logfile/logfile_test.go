package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// openAt is Open in the directory that the path leads to.
func openAt(t *testing.T, path string, max int64) (*File, error) {
	t.Helper()
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	return Open(int(dir.Fd()), path, max)
}

func TestCapAndOneOldFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "varve.log")
	if err := os.WriteFile(path, []byte("from before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := openAt(t, path, 100)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			if _, err := fmt.Fprintf(f, "entry %02d\n", i); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	// 12 bytes, then 40 entries of 9: the last full hundred bytes are kept
	// beside what came after them, in whole entries.
	total := 0
	for _, name := range []string{path, path + ".old"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 100 {
			t.Errorf("%s has %d bytes", name, len(b))
		}
		for _, line := range bytes.SplitAfter(b, []byte("\n")) {
			if len(line) != 0 && (len(line) != 9 || !bytes.HasPrefix(line, []byte("entry "))) {
				t.Errorf("%s holds a broken entry %q", name, line)
			}
		}
		total += len(b) / 9
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
		}
	}
	if total < 12 {
		t.Errorf("only %d entries are left", total)
	}
}

// An entry beyond the bound is written whole: losing it would be worse.
func TestLargeEntry(t *testing.T) {
	path := filepath.Join(t.TempDir(), "varve.log")
	f, err := openAt(t, path, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	entry := bytes.Repeat([]byte("x"), 50)
	if n, err := f.Write(entry); n != 50 || err != nil {
		t.Fatalf("wrote %d, %v", n, err)
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, entry) {
		t.Errorf("read %q, %v", b, err)
	}
}

// What stands in the place of the log and is no file is not written, and not waited for.
func TestLogIsAFile(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte("somebody's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(other, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(filepath.Join(dir, "fifo"), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for _, name := range []string{"link", "fifo"} {
		if f, err := openAt(t, filepath.Join(dir, name), 100); err == nil {
			t.Errorf("%s: opened", name)
			f.Write([]byte("an entry"))
			f.Close()
		}
	}
	if got, err := os.ReadFile(other); string(got) != "somebody's" {
		t.Errorf("the other file has %q (%v)", got, err)
	}
}

// TestInAnothersDirectory: a log that root makes is the directory's owner's. A file of
// root's that was given the log's name stays root's, and what takes the directory's place is
// not touched.
func TestInAnothersDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root; make test runs it so")
	}
	const member = 61001
	dir := filepath.Join(t.TempDir(), "vm.varve")
	path := filepath.Join(dir, "varve.log")
	owner := func(path string) uint32 {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Uid
	}
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(path, []byte("root's own\n"), 0o600), os.Chown(dir, member, member)); err != nil {
		t.Fatal(err)
	}
	f, err := openAt(t, path, 100)
	if err != nil {
		t.Fatal(err)
	}
	if uid := owner(path); uid != 0 {
		t.Errorf("a file of root's is uid %d's now", uid)
	}
	moved, other := dir+".moved", filepath.Join(t.TempDir(), "other")
	if err := errors.Join(os.Rename(dir, moved), os.Mkdir(other, 0o700), os.WriteFile(filepath.Join(other, "varve.log"), nil, 0o600), os.Symlink(other, dir)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second puts the log aside
		if _, err := f.Write(bytes.Repeat([]byte("x"), 80)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if names, err := os.ReadDir(other); err != nil || len(names) != 1 {
		t.Errorf("in the other directory there is %v, %v", names, err)
	}
	if info, err := os.Stat(filepath.Join(other, "varve.log")); err != nil || info.Size() != 0 {
		t.Errorf("the other log has %d bytes, %v", info.Size(), err)
	}
	if uid := owner(filepath.Join(moved, "varve.log")); uid != member {
		t.Errorf("a log that root has made is uid %d's", uid)
	}
}
