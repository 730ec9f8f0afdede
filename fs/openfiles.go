package fs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// openFile is what stands behind a file handle: *diskFile, *layerFile,
// *partFile, *textFile, *controlFile or *directory.
type openFile interface{ close() }

// openFiles gives numbers to open files. Safe for concurrent use.
type openFiles struct {
	mu    sync.RWMutex // guards all below; held for no call
	next  uint64
	files map[uint64]openFile
	ended bool // nothing is opened any more
}

// add gives an open file its number. After end it closes the file and fails with
// ENOTCONN, as the kernel will in a moment.
func (t *openFiles) add(o openFile) (uint64, fuse.Status) {
	fh, ok := t.tryAdd(o)
	if !ok {
		o.close()
		return 0, fuse.Status(unix.ENOTCONN)
	}
	return fh, fuse.OK
}

func (t *openFiles) tryAdd(o openFile) (fh uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return 0, false
	}
	if t.files == nil {
		t.files = make(map[uint64]openFile)
	}
	t.next++ // from 1: a handle of 0 is never ours
	t.files[t.next] = o
	return t.next, true
}

// end lets nothing be opened any more, unless something is open.
func (t *openFiles) end() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = t.ended || len(t.files) == 0
	return t.ended
}

// goOn takes back end.
func (t *openFiles) goOn() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = false
}

// any says whether something is open.
func (t *openFiles) any() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.files) > 0
}

func (t *openFiles) get(fh uint64) openFile {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.files[fh]
}

func (t *openFiles) remove(fh uint64) openFile {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.files[fh]
	delete(t.files, fh)
	return o
}

// closeAll closes what the kernel never released, as when a connection is
// aborted.
func (t *openFiles) closeAll() {
	t.mu.Lock()
	files := t.files
	t.files = nil
	t.mu.Unlock()
	for _, o := range files {
		o.close()
	}
}

// Release closes a file. The kernel tells it late and ignores the answer.
func (f *fileSystem) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	if o := f.open.remove(in.Fh); o != nil {
		o.close()
	}
}

// ReleaseDir closes a directory.
func (f *fileSystem) ReleaseDir(in *fuse.ReleaseIn) {
	if o := f.open.remove(in.Fh); o != nil {
		o.close()
	}
}
