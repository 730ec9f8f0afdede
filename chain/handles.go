package chain

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"varve/chain/view"
	"varve/overlay/hostfs"
	"varve/overlay/procs"
)

// handleWait is how long a revert or a delete waits for handles to go: the
// kernel tells of a close late.
const handleWait = time.Second

// Opener says who opened a file of the mount.
type Opener struct {
	PID     int
	Command string
	Part    string // the file name where it is a partition only, such as p1.raw
}

// handle is an open of disk.raw (id "") or of a layer's view.
type handle struct {
	id    string
	who   Opener
	write bool
}

// file is its path in the mount, with the name that its layer has now.
func (h *handle) file(layer string) string {
	path := "disk"
	if h.id != "" {
		path = "layers/" + layer
	}
	if h.who.Part != "" {
		return path + ".d/" + h.who.Part
	}
	return path + ".raw"
}

// handleTable knows what is open now.
type handleTable struct {
	mu      sync.Mutex
	changed *sync.Cond
	open    map[*handle]struct{}
	// blocked makes opens of an id wait, while a revert (of "") or a delete runs.
	blocked map[string]bool
}

func (t *handleTable) init() {
	t.changed = sync.NewCond(&t.mu)
	t.open = make(map[*handle]struct{})
	t.blocked = make(map[string]bool)
}

func (t *handleTable) add(ctx context.Context, h *handle) error {
	stop := context.AfterFunc(ctx, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.changed.Broadcast()
	})
	defer stop()
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.blocked[h.id] {
		if err := ctx.Err(); err != nil {
			return err
		}
		t.changed.Wait()
	}
	t.open[h] = struct{}{}
	return nil
}

func (t *handleTable) remove(h *handle) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, h)
	t.changed.Broadcast()
}

func (t *handleTable) list() []*handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*handle, 0, len(t.open))
	for h := range t.open {
		all = append(all, h)
	}
	return all
}

// waitClosed waits a moment until nothing with that id is open. It returns who
// still has it open after that.
func (t *handleTable) waitClosed(id string) []Opener {
	late := false
	timer := time.AfterFunc(handleWait, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		late = true
		t.changed.Broadcast()
	})
	defer timer.Stop()
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		var who []Opener
		for h := range t.open {
			if h.id == id {
				who = append(who, h.who)
			}
		}
		if len(who) == 0 || late {
			return who
		}
		t.changed.Wait()
	}
}

// block makes opens of an id wait until unblock, and says who still has it open
// after a moment.
func (t *handleTable) block(id string) []Opener {
	t.mu.Lock()
	t.blocked[id] = true
	t.mu.Unlock()
	return t.waitClosed(id)
}

func (t *handleTable) unblock(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.blocked, id)
	t.changed.Broadcast()
}

// describe lists openers for an error message.
func describe(who []Opener) string {
	var parts []string
	for _, w := range who {
		words := procs.Title(w.PID, w.Command)
		if w.Part != "" {
			words += ": its partition " + w.Part
		}
		parts = append(parts, words)
	}
	return strings.Join(parts, ", ")
}

// Handle is an open of disk.raw. Close it once.
type Handle struct {
	disk *Disk
	h    *handle
}

// OpenDisk registers an open of disk.raw; it waits while a revert runs, at
// most until ctx is done.
func (d *Disk) OpenDisk(ctx context.Context, who Opener, write bool) (*Handle, error) {
	h := &handle{who: who, write: write}
	if err := d.handles.add(ctx, h); err != nil {
		return nil, err
	}
	return &Handle{disk: d, h: h}, nil
}

// Close ends the open.
func (h *Handle) Close() { h.disk.handles.remove(h.h) }

// View reads the disk as it is seen from one frozen layer. Its content never
// changes. Safe for concurrent use.
type View struct {
	disk *Disk
	node *view.Node
	h    *handle
}

// OpenView registers an open of a layer's view, by layer id. ErrNotExist when
// there is no named layer with that id.
func (d *Disk) OpenView(ctx context.Context, id string, who Opener) (*View, error) {
	h := &handle{id: id, who: who}
	if err := d.handles.add(ctx, h); err != nil {
		return nil, err
	}
	// Looked up after it was registered, which waits while a delete runs: one
	// that comes later sees the handle.
	m, nodes := d.tree()
	rec := m.Layer(id)
	if rec == nil || rec.Name == "" || nodes[id] == nil {
		d.handles.remove(h)
		return nil, fmt.Errorf("layer %s: %w", id, ErrNotExist)
	}
	return &View{disk: d, node: nodes[id], h: h}, nil
}

// ReadAt fills p from the view; bytes past the end read as zeros.
func (v *View) ReadAt(p []byte, off int64) error {
	section := v.disk.readers.Enter()
	defer v.disk.readers.Exit(section)
	return v.node.ReadAt(p, off)
}

// Size is the view's size in bytes.
func (v *View) Size() int64 { return v.node.Size() }

// SeekData is Disk.SeekData for the view.
func (v *View) SeekData(off int64) (int64, error) { return v.node.Seek(&v.disk.readers, off, true) }

// SeekHole is Disk.SeekHole for the view.
func (v *View) SeekHole(off int64) (int64, error) { return v.node.Seek(&v.disk.readers, off, false) }

// Close ends the open.
func (v *View) Close() { v.disk.handles.remove(v.h) }

// EachHostFile calls f with the layers whose view is a file of the host byte for byte, raw
// images, by their ids. The files stay the disk's, are not closed before f returns, and
// have the disk's locks: who reads one later opens it anew (M18).
func (d *Disk) EachHostFile(f func(id string, file hostfs.File)) {
	section := d.readers.Enter()
	defer d.readers.Exit(section)
	m, nodes := d.tree()
	for _, rec := range m.Layers {
		n := nodes[rec.ID]
		if n == nil || n.Layer() == nil {
			continue
		}
		if i := n.Layer().Image(); i != nil && i.Header() == nil {
			f(rec.ID, i.File())
		}
	}
}
