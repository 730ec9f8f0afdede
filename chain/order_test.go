package chain

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/overlay/hostfs"
)

// hookedFS calls a function before a rename, and lets fdatasync wait.
type hookedFS struct {
	hostfs.FS
	mu     sync.Mutex
	rename func()
	sync   func(path string)
}

func (h *hookedFS) hooks() (rename func(), sync func(path string)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rename, h.sync
}

func (h *hookedFS) set(rename func(), sync func(path string)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rename, h.sync = rename, sync
}

func (h *hookedFS) Rename(oldPath, newPath string) error {
	if rename, _ := h.hooks(); rename != nil {
		rename()
	}
	return h.FS.Rename(oldPath, newPath)
}

func (h *hookedFS) Open(path string, flag int, perm os.FileMode) (hostfs.File, error) {
	f, err := h.FS.Open(path, flag, perm)
	if err != nil {
		return nil, err
	}
	return &hookedFile{File: f, fs: h}, nil
}

type hookedFile struct {
	hostfs.File
	fs *hookedFS
}

func (f *hookedFile) Datasync() error {
	if _, sync := f.fs.hooks(); sync != nil {
		sync(f.Name())
	}
	return f.File.Datasync()
}

// hookedDisk is testDisk on a hookedFS.
func hookedDisk(t *testing.T) (*Disk, *hookedFS) {
	t.Helper()
	plain, _ := testDisk(t, 4<<20)
	must(t, plain.Close())
	fs := &hookedFS{FS: hostfs.OS()}
	d, err := Open(plain.Dir(), OpenOptions{FS: fs})
	must(t, err)
	t.Cleanup(func() {
		fs.set(nil, nil)
		d.Close()
	})
	return d, fs
}

// copyDisk copies a disk directory as it is at this moment, as if the host had
// died now, and opens the copy.
func copyDisk(t *testing.T, dir string) *Disk {
	t.Helper()
	to := filepath.Join(filepath.Dir(dir), "copy.varve")
	must(t, os.CopyFS(to, os.DirFS(dir)))
	return openDisk(t, to)
}

// A snapshot commits first and swaps last (M11): what the guest writes and
// flushes while chain.json is still the old one is in the layer that the old
// one calls the leaf.
func TestSnapshotCommitsBeforeItSwaps(t *testing.T) {
	d, fs := hookedDisk(t)
	put(t, d, 1, 0, 4096)
	var once sync.Once
	var died *Disk
	fs.set(func() {
		once.Do(func() {
			put(t, d, 2, 0, 4096)
			must(t, d.Flush())
			died = copyDisk(t, d.Dir())
		})
	}, nil)
	must(t, d.Snapshot("one"))
	if died == nil {
		t.Fatal("nothing was renamed")
	}
	if s := states(died); s != "base base, leaf" {
		t.Errorf("the copy was made too late: %s", s)
	}
	if got := at(t, died, 0); got != 2 {
		t.Errorf("got %d, want the 2 that was flushed", got)
	}
	if got := at(t, d, 0); got != 2 {
		t.Errorf("got %d after the snapshot", got)
	}
}

// A flush joins only one that has not started (M5): what was written while
// another flush was under way is durable when its own flush returns.
func TestFlushDoesNotJoinARunningOne(t *testing.T) {
	d, fs := hookedDisk(t)
	put(t, d, 1, 0, 4096)
	running, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	fs.set(nil, func(string) {
		once.Do(func() {
			close(running)
			<-release
		})
	})
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- d.Flush() }()
	<-running
	put(t, d, 2, 1<<20, 4096)
	go func() { second <- d.Flush() }()
	time.Sleep(50 * time.Millisecond) // it waits for the first, or has joined it
	select {
	case err := <-second:
		t.Fatalf("the second flush returned before the first: %v", err)
	default:
	}
	close(release)
	must(t, <-first)
	must(t, <-second)
	died := copyDisk(t, d.Dir())
	if a, b := at(t, died, 0), at(t, died, 1<<20); a != 1 || b != 2 {
		t.Errorf("got %d and %d, want 1 and 2", a, b)
	}
}

// After a snapshot the frozen layer is flushed before the leaf (M5).
func TestFrozenLayerIsFlushedFirst(t *testing.T) {
	d, fs := hookedDisk(t)
	put(t, d, 1, 0, 4096)
	m := d.manifest
	old := filepath.Base(m.Layer(m.Leaf).File)
	// From the swap on, until the snapshot's own flush: make that flush see a
	// dirty leaf too.
	var mu sync.Mutex
	var order []string
	fs.set(nil, func(path string) {
		mu.Lock()
		defer mu.Unlock()
		if strings.HasSuffix(path, ".qcow2") {
			order = append(order, filepath.Base(path))
		}
	})
	d.OnChange(func(c Change) {
		if c.Layers {
			mu.Lock()
			order = nil
			mu.Unlock()
			if err := d.WriteAt([]byte{2}, 1<<20); err != nil {
				t.Error(err)
			}
		}
	})
	must(t, d.Snapshot("one"))
	mu.Lock()
	defer mu.Unlock()
	newLeaf := filepath.Base(d.manifest.Layer(d.manifest.Leaf).File)
	firstOld, firstNew := -1, -1
	for i, name := range order {
		if name == old && firstOld < 0 {
			firstOld = i
		}
		if name == newLeaf && firstNew < 0 {
			firstNew = i
		}
	}
	if firstOld < 0 || firstNew < 0 || firstOld > firstNew {
		t.Errorf("synced in the order %v, want %s before %s", order, old, newLeaf)
	}
}

// A bug in a job fails the job: its record goes, the views stay, and so do the
// guest and the next job.
func TestPanicInAJob(t *testing.T) {
	d, fs := hookedDisk(t)
	put(t, d, 1, 0, 4096)
	must(t, d.Snapshot("one"))
	id, err := func() (string, error) {
		var once sync.Once
		started := make(chan struct{})
		fs.set(nil, func(path string) {
			if strings.HasSuffix(path, ".qcow2") {
				once.Do(func() { close(started); panic("a bug") })
			}
		})
		id, err := d.Flatten("one")
		<-started
		return id, err
	}()
	must(t, err)
	s, err := d.WaitJob(t.Context(), id)
	must(t, err)
	fs.set(nil, nil)
	if s.State != JobFailed || !strings.Contains(s.Error, "a bug") {
		t.Errorf("job: %+v", s)
	}
	if got := at(t, d, 0); got != 1 {
		t.Errorf("got %d", got)
	}
	put(t, d, 2, 4096, 4096)
	must(t, d.Flush())
	if err := d.jobBusy(); err != nil {
		t.Error(err)
	}
}
