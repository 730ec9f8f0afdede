package chain

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"varve/chain/manifest"
	"varve/integration/interleave"
	"varve/overlay/hostfs"
)

// watchedFS stands between a disk and the host. It stops callers where a test
// wants it, and keeps account of what is not durable yet: of each file the
// changes since it was last synced, of each directory the names.
type watchedFS struct {
	hostfs.FS
	interleave.Host

	mu    sync.Mutex
	files map[string]*fileAccount
	names map[string]bool // paths that came or were replaced since their directory was synced
	fail  func(c interleave.Call) error

	// dir is the disk directory whose calls are judged by the rules about names
	// and marks (audit_test.go); "" for none.
	dir       string
	committed *manifest.Manifest // what chain.json says, as it was renamed last
	created   map[string]bool
	faults    []string
}

type fileAccount struct {
	changes int // since the file was synced
	times   int // the same, with its times, which fdatasync leaves out
	locked  hostfs.LockMode
}

func newWatchedFS() *watchedFS {
	return &watchedFS{FS: hostfs.OS(), files: map[string]*fileAccount{}, names: map[string]bool{}, created: map[string]bool{}}
}

// account is what is known of a file; w.mu is held.
func (w *watchedFS) account(path string) *fileAccount {
	a := w.files[path]
	if a == nil {
		a = new(fileAccount)
		w.files[path] = a
	}
	return a
}

// clean says whether all that was written to a file is durable.
func (w *watchedFS) clean(path string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.account(path).changes == 0
}

// call makes a call to the host: note changes the account when it succeeded.
func (w *watchedFS) call(c interleave.Call, do func() error, note func()) error {
	w.Do(c)
	err := func() error {
		w.mu.Lock()
		fail := w.fail
		w.judge(c)
		w.mu.Unlock()
		if fail != nil {
			if err := fail(c); err != nil {
				return &os.PathError{Op: c.Op, Path: c.Path, Err: err}
			}
		}
		return do()
	}()
	if err == nil && note != nil {
		w.mu.Lock()
		note()
		w.mu.Unlock()
	}
	c.Done = true
	w.Do(c)
	return err
}

// failing has a function give the errors of calls.
func (w *watchedFS) failing(f func(c interleave.Call) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = f
}

func (w *watchedFS) Open(path string, flag int, perm os.FileMode) (hostfs.File, error) {
	_, statErr := w.FS.Stat(path)
	fresh := flag&os.O_CREATE != 0 && errors.Is(statErr, os.ErrNotExist)
	op := "open"
	if fresh {
		op = "create"
	}
	var f hostfs.File
	err := w.call(interleave.Call{Op: op, Path: path}, func() (err error) {
		f, err = w.FS.Open(path, flag, perm)
		return err
	}, func() {
		if fresh {
			w.files[path] = new(fileAccount)
			w.names[path] = true
			w.created[path] = true
		}
	})
	if err != nil {
		return nil, err
	}
	return &watchedFile{File: f, fs: w}, nil
}

func (w *watchedFS) Rename(from, to string) error {
	return w.call(interleave.Call{Op: "rename", Path: to}, func() error { return w.FS.Rename(from, to) }, func() {
		w.files[to], w.names[to] = w.account(from), true
		delete(w.files, from)
		delete(w.names, from)
		if to == filepath.Join(w.dir, manifest.FileName) {
			w.readCommitted()
		}
	})
}

func (w *watchedFS) Remove(path string) error {
	return w.call(interleave.Call{Op: "remove", Path: path}, func() error { return w.FS.Remove(path) }, func() {
		delete(w.files, path)
		delete(w.names, path)
	})
}

func (w *watchedFS) SyncDir(path string) error {
	return w.call(interleave.Call{Op: "syncdir", Path: path}, func() error { return w.FS.SyncDir(path) }, func() {
		for name := range w.names {
			if filepath.Dir(name) == path {
				delete(w.names, name)
			}
		}
	})
}

type watchedFile struct {
	hostfs.File
	fs *watchedFS
}

// change makes a call that changes the file.
func (f *watchedFile) change(op string, off, length int64, do func() error) error {
	return f.fs.call(interleave.Call{Op: op, Path: f.Name(), Off: off, Length: length}, do, func() {
		a := f.fs.account(f.Name())
		a.changes++
		a.times++
	})
}

func (f *watchedFile) ReadAt(p []byte, off int64) (n int, err error) {
	// io.EOF comes with bytes: it is no failure.
	failed := f.fs.call(interleave.Call{Op: "read", Path: f.Name(), Off: off, Length: int64(len(p))}, func() error {
		n, err = f.File.ReadAt(p, off)
		return nil
	}, nil)
	if failed != nil {
		return 0, failed
	}
	return n, err
}

func (f *watchedFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.change("write", off, int64(len(p)), func() error { n, err = f.File.WriteAt(p, off); return err })
	return n, err
}

func (f *watchedFile) Truncate(size int64) error {
	return f.change("truncate", size, 0, func() error { return f.File.Truncate(size) })
}

func (f *watchedFile) Allocate(off, length int64) error {
	return f.change("allocate", off, length, func() error { return f.File.Allocate(off, length) })
}

func (f *watchedFile) PunchHole(off, length int64) error {
	return f.change("punch", off, length, func() error { return f.File.PunchHole(off, length) })
}

// sync syncs; what is written meanwhile is not covered.
func (f *watchedFile) sync(do func() error, times bool) error {
	var before fileAccount
	return f.fs.call(interleave.Call{Op: "sync", Path: f.Name()}, func() error {
		f.fs.mu.Lock()
		before = *f.fs.account(f.Name())
		f.fs.mu.Unlock()
		return do()
	}, func() {
		a := f.fs.account(f.Name())
		a.changes -= before.changes
		if times {
			a.times -= before.times
		}
	})
}

func (f *watchedFile) Datasync() error { return f.sync(f.File.Datasync, false) }
func (f *watchedFile) Sync() error     { return f.sync(f.File.Sync, true) }

func (f *watchedFile) Lock(mode hostfs.LockMode) error {
	return f.fs.call(interleave.Call{Op: "lock", Path: f.Name(), Off: int64(mode)}, func() error { return f.File.Lock(mode) },
		func() { f.fs.account(f.Name()).locked = mode })
}

func (f *watchedFile) Close() error {
	return f.fs.call(interleave.Call{Op: "close", Path: f.Name()}, f.File.Close, func() { f.fs.account(f.Name()).locked = hostfs.LockNone })
}

// watchedDisk is testDisk on a watchedFS.
func watchedDisk(t *testing.T, size int64) (*Disk, *watchedFS) {
	t.Helper()
	plain, _ := testDisk(t, size)
	must(t, plain.Close())
	fs := newWatchedFS()
	return openWatched(t, fs, plain.Dir()), fs
}

func openWatched(t *testing.T, fs *watchedFS, dir string) *Disk {
	t.Helper()
	d, err := Open(dir, OpenOptions{FS: fs})
	must(t, err)
	t.Cleanup(func() {
		fs.failing(nil)
		fs.Watch(nil)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// layerPath is the file of a layer by its name, "" for the leaf.
func layerPath(d *Disk, name string) string {
	m, nodes := d.tree()
	id := m.Leaf
	if name != "" {
		id = m.ByName(name).ID
	}
	return nodes[id].Layer().Path
}

// on matches calls of a kind to a file, before they are made.
func on(op, path string) func(interleave.Call) bool {
	return func(c interleave.Call) bool { return c.Op == op && c.Path == path && !c.Done }
}

// judge holds a call against the rules about names and marks; w.mu is held.
func (w *watchedFS) judge(c interleave.Call) {
	if w.dir == "" {
		return
	}
	fault := func(format string, args ...any) {
		w.faults = append(w.faults, fmt.Sprintf("%v: ", c)+fmt.Sprintf(format, args...))
	}
	inLayers := filepath.Dir(c.Path) == filepath.Join(w.dir, manifest.LayersDir)
	manifestPath := filepath.Join(w.dir, manifest.FileName)
	switch {
	case c.Op == "rename" && c.Path == manifestPath:
		w.judgeCommit(fault)
	case c.Op == "create" && inLayers && w.created[c.Path]:
		fault("the number is used a second time (M15)")
	case c.Op == "remove" && inLayers:
		if w.names[manifestPath] {
			fault("the chain.json that gives the file up is not durable (M15)")
		}
		for _, l := range w.committed.Layers {
			if l.Path(w.dir) == c.Path {
				fault("chain.json names the file (M15)")
			} else if !l.Foreign && w.backingOf(l.Path(w.dir)) == c.Path {
				fault("the header of %s names the file (M15)", l.File)
			}
		}
	case c.Op == "write" || c.Op == "punch" || c.Op == "truncate" || c.Op == "allocate":
		if !inLayers && filepath.Dir(c.Path) != w.dir {
			fault("a foreign file is written")
		}
		for _, l := range w.committed.Layers {
			if l.Path(w.dir) == c.Path && !l.Writing {
				fault("the layer is not marked as being written (M16)")
			}
		}
		if inLayers && c.Op == "punch" {
			for path, a := range w.files {
				if path != c.Path && filepath.Dir(path) == filepath.Dir(c.Path) && a.changes > 0 {
					fault("a hole is punched while %s is not durable (M1)", filepath.Base(path))
				}
			}
		}
	}
}

// judgeCommit judges a chain.json that is about to get its name.
func (w *watchedFS) judgeCommit(fault func(string, ...any)) {
	temp := filepath.Join(w.dir, manifest.TempName)
	if w.account(temp).changes > 0 {
		fault("its content is not durable (M15)")
	}
	data, err := os.ReadFile(temp)
	if err != nil {
		fault("%v", err)
		return
	}
	m, err := manifest.Parse(data)
	if err != nil {
		fault("%v", err)
		return
	}
	for _, l := range m.Layers {
		path := l.Path(w.dir)
		if l.Foreign {
			continue
		}
		if w.names[path] {
			fault("it names %s, whose name is not durable (M15)", l.File)
		}
		if backing := w.backingOf(path); backing != "" {
			if _, err := os.Stat(backing); err != nil {
				fault("the header of %s names %s: %v (M15)", l.File, backing, err)
			}
		}
		old := w.committed.Layer(l.ID)
		changes, times := w.account(path).changes, w.account(path).times
		switch {
		case old == nil && changes > 0:
			fault("the new %s is not durable (M11)", l.File)
		case !l.Writing && changes > 0:
			fault("%s is called settled and is not durable (M16)", l.File)
		case !l.Writing && times > 0:
			fault("%s is called settled and its time, part of the fingerprint, is not durable (M16)", l.File)
		case !l.Writing && l.Fingerprint == nil && l.ID != m.Leaf:
			fault("%s is called settled and has no fingerprint (M16)", l.File)
		}
	}
}

// readCommitted takes chain.json as it is now; w.mu is held.
func (w *watchedFS) readCommitted() {
	data, err := os.ReadFile(filepath.Join(w.dir, manifest.FileName))
	if err == nil {
		w.committed, err = manifest.Parse(data)
	}
	if err != nil {
		w.faults = append(w.faults, err.Error())
	}
}

// backingOf is the file that a layer's header names, read by nobody else's code.
func (w *watchedFS) backingOf(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	p := make([]byte, 4096)
	if n, _ := f.ReadAt(p, 0); n < 512 {
		return ""
	}
	off, n := binary.BigEndian.Uint64(p[8:]), binary.BigEndian.Uint32(p[16:])
	if n == 0 || off+uint64(n) > 4096 {
		return ""
	}
	name := string(p[off : off+uint64(n)])
	if !strings.HasPrefix(name, "/") {
		name = filepath.Join(filepath.Dir(path), name)
	}
	return name
}

// audit begins to judge the calls to a disk directory.
func (w *watchedFS) audit(dir string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dir = dir
	w.readCommitted()
}

// verdict fails the test with what was found.
func (w *watchedFS) verdict(t *testing.T, after string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.faults {
		t.Errorf("%s: %s", after, f)
	}
	w.faults = nil
	for name := range w.names {
		if filepath.Dir(name) == w.dir && filepath.Base(name) == manifest.FileName {
			t.Errorf("%s: chain.json has not got its name for good (M15)", after)
		}
	}
}
