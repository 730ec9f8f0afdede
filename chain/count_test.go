package chain

import (
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"varve/integration/powercut"
	"varve/overlay/hostfs"
)

// lookedFS calls a function before a file is looked at or read.
type lookedFS struct {
	*powercut.Host
	look atomic.Pointer[func(path string)]
}

type lookedFile struct {
	hostfs.File
	fs *lookedFS
}

func (l *lookedFS) Open(path string, flag int, perm os.FileMode) (hostfs.File, error) {
	f, err := l.Host.Open(path, flag, perm)
	if err != nil {
		return nil, err
	}
	return &lookedFile{f, l}, nil
}

func (f *lookedFile) looked() {
	if look := f.fs.look.Load(); look != nil {
		(*look)(f.Name())
	}
}

func (f *lookedFile) Stat() (hostfs.Info, error) {
	f.looked()
	return f.File.Stat()
}

func (f *lookedFile) ReadAt(p []byte, off int64) (int, error) {
	f.looked()
	return f.File.ReadAt(p, off)
}

// TestCountWhileLayersGo: a look at the status, or at how much of a view is
// data, that meets the removal of a layer looks again, at the layers that are
// left, and does not fail.
func TestCountWhileLayersGo(t *testing.T) {
	for what, count := range map[string]func(d *Disk, id string) error{
		"status": func(d *Disk, _ string) error { _, err := d.Status(); return err },
		"allocated bytes": func(d *Disk, id string) error {
			if _, _, err := d.LayerAllocatedBytes(id); err != ErrNotExist {
				return errors.Join(errors.New("the layer is gone"), err)
			}
			return nil
		},
	} {
		t.Run(what, func(t *testing.T) {
			host := &lookedFS{Host: hostileDisks(t)[0]}
			d, err := Open(hostileDir, OpenOptions{FS: host})
			must(t, err)
			defer func() { must(t, d.Close()) }()
			// A snapshot on which nothing stands: it goes at once.
			must(t, d.WriteAt([]byte("region 0"), 0))
			must(t, d.WriteAt([]byte("region 1"), 17<<20))
			must(t, d.Snapshot("four"))
			must(t, d.Revert("one"))
			must(t, d.Revert("one"))
			m, _ := d.tree()
			id := m.ByName("four").ID

			// The first look starts the deletion, and goes on when the layer is
			// out of the tree. The file is closed when that look's section ends;
			// the later looks, in sections of their own, wait for that.
			deleted := make(chan error, 1)
			started := false
			look := func(string) {
				if !started {
					started = true
					go func() {
						_, err := d.Delete("four")
						deleted <- err
						close(deleted)
					}()
					for gone := false; !gone; time.Sleep(time.Millisecond) {
						m, _ := d.tree()
						gone = m.Layer(id) == nil
					}
					time.Sleep(100 * time.Millisecond) // until it waits for us
					return
				}
				select {
				case <-deleted:
				case <-time.After(time.Second): // it waits for this section, too
				}
			}
			host.look.Store(&look)
			err = count(d, id)
			host.look.Store(nil)
			if err != nil {
				t.Error(err)
			}
			must(t, <-deleted)
		})
	}
}

// A bug that shows while tables are counted in the background costs a figure: the
// disk goes on, and the figure is there when it can be counted.
func TestCountingPanics(t *testing.T) {
	host := &lookedFS{Host: hostileDisks(t)[0]}
	d, err := Open(hostileDir, OpenOptions{FS: host})
	must(t, err)
	defer func() { must(t, d.Close()) }()
	look := func(string) { panic("a bug") }
	host.look.Store(&look)
	err = d.CountAll(t.Context())
	host.look.Store(nil)
	if err == nil {
		t.Error("the pass that panicked is taken for a good one")
	}
	if err := d.ReadAt(make([]byte, 512), 0); err != nil {
		t.Error(err)
	}
	must(t, d.Snapshot("later"))
	checkCounts(t, d, "after a panic")
}
