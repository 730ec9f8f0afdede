package chain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"varve/chain/dirlock"
	"varve/chain/figures"
	"varve/chain/manifest"
	"varve/chain/view"
	"varve/overlay"
	"varve/overlay/hostfs"
)

// defaultCacheBytes bounds the resolved regions of a disk: a host with fifty
// mounts then spends some hundreds of MiB on them at most.
const defaultCacheBytes = 32 << 20

// OpenOptions are the options of Open.
type OpenOptions struct {
	FS         hostfs.FS     // nil: the host's
	ReadOnly   bool          // write nothing anywhere
	Mountpoint string        // recorded in the lock file; "" for work on the directory
	CacheBytes int64         // bound on resolved regions; a quarter on top for the leaf's tables; 0: the default
	Log        *slog.Logger  // nil: discard
	LockWait   time.Duration // how long to wait for another varve to let go
	HoldJob    bool          // leave a recorded job for the next Open without this
	JobRate    int64         // limit of jobs in bytes per second, see SetJobRate; 0: none
	Witness    Witness       // of an image that is given for the first time; nil for none
	// Locked is called once the directory is locked, before anything is logged, with the
	// descriptor by which everything in it is reached, which is the disk's. nil: nothing.
	Locked func(dir int) error

	window int64 // of jobs, for tests; 0: copyWindow
}

func (o OpenOptions) withDefaults() OpenOptions {
	if o.FS == nil {
		o.FS = hostfs.OS()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.CacheBytes <= 0 {
		o.CacheBytes = defaultCacheBytes
	}
	if o.window <= 0 {
		o.window = copyWindow
	}
	return o
}

// Disk is an open disk directory. All methods are safe for concurrent use.
//
// Locks, in the order in which they are taken: opMu, handles.mu, gate, then
// those of overlay; the locks of a leaf's figures before those of overlay too.
// flushGroup.mu, figures.mu, stateMu and jobMu are taken last, in this order, and held
// for moments. A grace section is never left open while Synchronize is called.
type Disk struct {
	fs       hostfs.FS
	dir      string
	readOnly bool
	log      *slog.Logger
	lock     *dirlock.Lock
	holdJob  bool // jobs are recorded, not run
	pacer    *pacer
	window   int64 // bytes that a job copies before it settles them
	// maxSlices bounds the table slices that the leaf keeps in memory.
	maxSlices int

	// opMu: one operation on the tree at a time. A job takes it for its
	// commits only, not while it copies.
	opMu    sync.Mutex
	closed  bool     // guarded by opMu
	numbers int      // the lowest number never used, also by what failed; guarded by opMu
	orphans []string // files that no layer owns, to go with the next commit; guarded by opMu
	removed []string // what of manifest.Removing is unlinked, not durably yet; guarded by opMu

	// stateMu guards the manifest, which is replaced and never edited, and
	// nodes, both changed under opMu only.
	stateMu  sync.RWMutex
	manifest *manifest.Manifest
	nodes    map[string]*view.Node // by layer id
	listed   atomic.Pointer[listedLayers]

	// gate: writes to the leaf hold it shared, the swap of a snapshot owns it.
	gate    sync.RWMutex
	leaf    atomic.Pointer[view.Node] // changes while the gate is owned
	move    *leafMove                 // guarded by gate; nil unless a merge moves the leaf down
	readers view.Grace
	cache   *view.Cache

	// punchMu is held while the background punches the leaf. kept is a leaf that
	// is being moved down: the job punches it, when its readers are gone.
	punchMu sync.Mutex
	kept    *overlay.Overlay // guarded by punchMu

	flushes flushGroup
	handles handleTable
	jobMu   sync.Mutex
	job     *job // the one under way or the last one; nil for none
	closing bool // no job begins any more; guarded by jobMu

	uneven  int64    // see Uneven; set by Open
	adopted Adoption // see Adopted
	outside atomic.Pointer[Outside]

	reserve    reserve
	figures    *figures.Figures
	measures   measures
	modified   atomic.Int64 // UnixNano of the last write
	background *background

	changeMu sync.Mutex
	onChange []func(Change)
}

// Change says what OnChange is told.
type Change struct {
	Size    bool // disk.raw's size
	Content bool // disk.raw's content (a revert)
	Layers  bool // names in layers/
}

// OnChange registers a function that is called after the tree, the size or the
// content of disk.raw changed otherwise than by a write. It may look at the
// disk, read and write it, but not begin an operation on the tree.
func (d *Disk) OnChange(f func(Change)) {
	d.changeMu.Lock()
	defer d.changeMu.Unlock()
	d.onChange = append(d.onChange, f)
}

func (d *Disk) changed(c Change) {
	d.changeMu.Lock()
	fs := d.onChange
	d.changeMu.Unlock()
	for _, f := range fs {
		f(c)
	}
}

// Dir is the absolute path of the disk directory, or of the image that
// OpenForeign shows.
func (d *Disk) Dir() string { return d.dir }

// ReadOnly says whether the disk was opened read-only.
func (d *Disk) ReadOnly() bool { return d.readOnly }

// Size is the disk's size in bytes.
func (d *Disk) Size() int64 { return d.leaf.Load().Size() }

// ModTime is the time of the last write, or of the last revert.
func (d *Disk) ModTime() time.Time { return time.Unix(0, d.modified.Load()) }

// SetModTime sets what ModTime gives, until the next write.
func (d *Disk) SetModTime(t time.Time) { d.modified.Store(t.UnixNano()) }

func (d *Disk) touch() { d.modified.Store(time.Now().UnixNano()) }

// tree gives the manifest and nodes of this moment, which are not changed any
// more.
func (d *Disk) tree() (*manifest.Manifest, map[string]*view.Node) {
	d.stateMu.RLock()
	defer d.stateMu.RUnlock()
	return d.manifest, d.nodes
}

// install puts a committed manifest in force; edit changes a copy of nodes.
// Called with opMu held.
func (d *Disk) install(m *manifest.Manifest, edit func(nodes map[string]*view.Node)) {
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	d.manifest = m
	if edit != nil {
		nodes := make(map[string]*view.Node, len(d.nodes)+1)
		for id, n := range d.nodes {
			nodes[id] = n
		}
		edit(nodes)
		d.nodes = nodes
	}
}

// commit makes a changed manifest durable. Called with opMu held. When it
// fails the old manifest stays in force; its numbers stay used.
func (d *Disk) commit(m *manifest.Manifest) error {
	m.Next = max(m.Next, d.numbers)
	m.Modified = d.ModTime().UTC()
	m.Removing = append(m.Removing, d.orphans...)
	// The next Open removes what this names, and another file than a layer's is not varve's.
	m.Removing = slices.DeleteFunc(m.Removing, d.replacedFile)
	d.figures.Note(m)
	if err := d.commitWithReserve(m); err != nil {
		return d.takeBack(m, err)
	}
	d.numbers = m.Next
	d.removed = slices.DeleteFunc(d.removed, func(file string) bool { return !slices.Contains(m.Removing, file) })
	orphans := d.orphans
	d.orphans = nil
	for _, file := range orphans {
		d.unlink(file)
	}
	return nil
}

// takeBack commits the manifest in force again after a commit of m of which nobody
// knows whether it happened. A crash could make a failed revert come true
// otherwise, and set aside, or unlink, what the guest went on to write. Files that
// only m has are to be removed.
func (d *Disk) takeBack(m *manifest.Manifest, err error) error {
	if !errors.Is(err, manifest.ErrUnknown) {
		return err
	}
	old := d.edit()
	old.Removing = append(old.Removing, d.orphans...)
	for _, l := range m.Layers {
		if !l.Foreign && !slices.ContainsFunc(old.Layers, func(o *manifest.Layer) bool { return o.File == l.File }) {
			old.Removing = append(old.Removing, l.File)
		}
	}
	if failed := d.commitWithReserve(old); failed != nil {
		// What is written from now on might be lost with the next power cut.
		err = errors.Join(err, failed)
		d.log.Error("it is not known which chain.json is on disk; the disk takes no writes until it is mounted again", "error", err)
		if leaf := d.leaf.Load(); leaf != nil {
			if o := leaf.Layer().Over(); o != nil {
				o.Fail(err)
			}
		}
		return err
	}
	return takenBack{err}
}

// takenBack is an error of a commit that certainly did not happen.
type takenBack struct{ err error }

func (e takenBack) Error() string { return e.err.Error() + "; the old one was put back" }
func (e takenBack) Is(target error) bool {
	return target != manifest.ErrUnknown && errors.Is(e.err, target)
}
func (e takenBack) As(target any) bool { return errors.As(e.err, target) }

// unlink removes the file of a layer that a committed manifest lists under
// Removing. Called with opMu held.
func (d *Disk) unlink(file string) {
	err := d.fs.Remove(filepath.Join(d.dir, file))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		d.log.Warn("cannot remove a file that no layer owns; the next mount tries again", "file", file, "error", err)
		return
	}
	d.removed = append(d.removed, file)
}

// forgetNodes lets go of all that is remembered of nodes that the tree has not any more.
func (d *Disk) forgetNodes(gone map[*view.Node]bool) {
	d.cache.Forget(gone)
	d.figures.Gone(gone)
}

// edit gives a copy of the manifest to be changed and committed. Of the files under
// Removing it leaves out those that are durably gone: after a power cut a file could
// come back otherwise, and belong to nobody.
func (d *Disk) edit() *manifest.Manifest {
	m := d.manifest.Copy()
	m.Next = max(m.Next, d.numbers)
	if len(d.removed) == 0 {
		return m
	}
	if err := d.fs.SyncDir(filepath.Join(d.dir, manifest.LayersDir)); err != nil {
		d.log.Warn("it is not known whether files that were removed are gone for good", "error", err)
		return m
	}
	m.Removing = slices.DeleteFunc(m.Removing, func(file string) bool { return slices.Contains(d.removed, file) })
	return m
}

// begin starts an operation on the tree; end it with opMu.Unlock.
func (d *Disk) begin() error {
	if d.readOnly {
		return fmt.Errorf("%s: %w", d.dir, ErrReadOnly)
	}
	d.opMu.Lock()
	if d.closed {
		d.opMu.Unlock()
		return fmt.Errorf("%s: %w: it is being closed", d.dir, ErrBusy)
	}
	if err := inPlace(d.fs); err != nil {
		d.opMu.Unlock()
		return err
	}
	return nil
}

// path is where a layer's file stands.
func (d *Disk) path(l *manifest.Layer) string { return l.Path(d.dir) }

// Flush makes every write that was completed before the call durable (D1).
func (d *Disk) Flush() error {
	if d.readOnly {
		return nil
	}
	return d.flushes.flush()
}

// Close flushes, settles the leaf, stops the job (it goes on at the next Open)
// and releases the lock. Its error means that the last writes may be lost. A
// second Close does nothing.
func (d *Disk) Close() error {
	d.stopJob()
	d.figures.Close()
	d.opMu.Lock()
	defer d.opMu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	if d.background != nil {
		d.background.stop()
	}
	var err error
	if !d.readOnly {
		err = d.shut()
	}
	d.readers.Synchronize()
	for _, n := range d.nodes {
		if l := n.Layer(); l != nil {
			err = errors.Join(err, l.Close())
		}
	}
	if d.lock != nil {
		d.lock.Failed = err
		err = errors.Join(err, d.lock.Unlock())
	}
	return err
}

// shut brings everything on disk into the state of a disk at rest. Where that
// fails the marks stay, and the next Open mends it.
func (d *Disk) shut() error {
	d.gate.Lock()
	defer d.gate.Unlock()
	if err := d.withReserve(d.flushes.flush); err != nil {
		return err
	}
	// Settling punches what a job has moved.
	d.readers.Synchronize()
	m := d.edit()
	errs := []error{d.lostAtClose(m)}
	for _, l := range m.Layers {
		if !l.Writing {
			continue
		}
		if err := d.withReserve(func() error { return d.settle(l) }); err != nil {
			errs = append(errs, err)
		}
	}
	if err := d.commit(m); err != nil {
		return errors.Join(append(errs, err)...)
	}
	d.install(m, nil)
	return errors.Join(errs...)
}

// WaitJob waits until the job is no longer running and gives its last state.
// ErrNotExist when it is neither under way nor the last one.
func (d *Disk) WaitJob(ctx context.Context, id string) (JobStatus, error) {
	d.jobMu.Lock()
	j := d.job
	d.jobMu.Unlock()
	if j == nil || j.id != id {
		return JobStatus{}, fmt.Errorf("job %s: %w", id, ErrNotExist)
	}
	select {
	case <-j.done:
		return j.status(), nil
	case <-ctx.Done():
		return j.status(), ctx.Err()
	}
}

// WaitJobs waits until no job runs any more, for the next ones of several merges too,
// and gives the state of the last one. ErrNotExist when there was none.
func (d *Disk) WaitJobs(ctx context.Context) (JobStatus, error) {
	for {
		j := d.lastJob()
		if j == nil {
			return JobStatus{}, fmt.Errorf("a job: %w", ErrNotExist)
		}
		s, err := d.WaitJob(ctx, j.id)
		if errors.Is(err, ErrNotExist) || err == nil && d.lastJob() != j {
			continue // it has begun another one
		}
		return s, err
	}
}
