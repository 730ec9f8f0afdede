package fs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"varve/chain"
	"varve/overlay/hostfs"
)

const fakeBlock = 4096

// fakeDisk is a disk in memory. It counts calls, and fails or panics in those
// that a test names.
type fakeDisk struct {
	dir string

	mu       sync.Mutex
	data     []byte
	mapped   map[int64]bool // block number: holds data
	views    []*fakeLayer
	readOnly bool
	modTime  time.Time
	calls    map[string]int
	order    []string // names of calls that change something
	fail     map[string]error
	panics   map[string]bool
	open     []chain.OpenStatus
	onChange func(chain.Change)
	hold     chan struct{} // where set, Snapshot waits for it

	// See fake_inside_test.go.
	slowCount bool
	uncounted bool // no figure of allocated bytes is known yet
	pieces    [][]chain.Difference
	diffs     int // open ones
}

type fakeLayer struct {
	status chain.LayerStatus
	data   []byte
	mapped map[int64]bool
}

func newFakeDisk(dir string, size int64) *fakeDisk {
	created := time.Date(2026, 11, 1, 8, 30, 0, 5, time.UTC)
	return &fakeDisk{
		dir: dir, data: make([]byte, size), mapped: map[int64]bool{},
		modTime: created, calls: map[string]int{}, fail: map[string]error{}, panics: map[string]bool{},
		views: []*fakeLayer{{
			status: chain.LayerStatus{
				ID: "000001", Name: "base", State: "base", Foreign: true, Format: "raw",
				File: "/images/base.raw", Created: created, Frozen: created, Size: size, Depth: 1,
			},
			data: make([]byte, size), mapped: map[int64]bool{},
		}},
	}
}

// enter counts a call, panics or gives the error that a test asked for. The
// caller holds no lock.
func (d *fakeDisk) enter(call string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls[call]++
	d.order = append(d.order, call)
	if d.panics[call] {
		panic("asked for by the test: " + call)
	}
	return d.fail[call]
}

func (d *fakeDisk) count(call string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls[call]
}

func (d *fakeDisk) failWith(call string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail[call] = err
}

func (d *fakeDisk) panicIn(call string, on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.panics[call] = on
}

// history is the calls so far; it starts a new one.
func (d *fakeDisk) history() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	o := d.order
	d.order = nil
	return o
}

func (d *fakeDisk) Dir() string { return d.dir }
func (d *fakeDisk) ReadOnly() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.readOnly
}
func (d *fakeDisk) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(len(d.data))
}

func (d *fakeDisk) ReadAt(p []byte, off int64) error {
	if err := d.enter("ReadAt"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.data[off:])
	return nil
}

func (d *fakeDisk) WriteAt(p []byte, off int64) error {
	if err := d.enter("WriteAt"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if off+int64(len(p)) > int64(len(d.data)) {
		return fmt.Errorf("write past the end: %w", chain.ErrInvalid)
	}
	copy(d.data[off:], p)
	for b := off / fakeBlock; b*fakeBlock < off+int64(len(p)); b++ {
		d.mapped[b] = true
	}
	d.modTime = d.modTime.Add(time.Second)
	return nil
}

func (d *fakeDisk) Flush() error { return d.enter("Flush") }

func (d *fakeDisk) Discard(off, length int64) error {
	if err := d.enter("Discard"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[off : off+length])
	for b := (off + fakeBlock - 1) / fakeBlock; (b+1)*fakeBlock <= off+length; b++ {
		delete(d.mapped, b)
	}
	return nil
}

func (d *fakeDisk) Reserve(off, length int64) error {
	return d.enter(fmt.Sprintf("Reserve %d+%d", off, length))
}

func (d *fakeDisk) CheckGrowth(size, reserve int64) error {
	return d.enter(fmt.Sprintf("CheckGrowth %d %d", size, reserve))
}

func (d *fakeDisk) Resize(size int64) error {
	if err := d.enter("Resize"); err != nil {
		return err
	}
	d.mu.Lock()
	if size < int64(len(d.data)) {
		d.mu.Unlock()
		return fmt.Errorf("shrink: %w", chain.ErrInvalid)
	}
	d.data = append(d.data, make([]byte, size-int64(len(d.data)))...)
	tell := d.tell()
	d.mu.Unlock()
	tell(chain.Change{Size: true})
	return nil
}

func seek(mapped map[int64]bool, size, off int64, data bool) (int64, error) {
	if off >= size {
		return 0, io.EOF
	}
	for off < size {
		if mapped[off/fakeBlock] == data {
			return off, nil
		}
		off = (off/fakeBlock + 1) * fakeBlock
	}
	if data {
		return 0, io.EOF
	}
	return size, nil
}

func (d *fakeDisk) SeekData(off int64) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return seek(d.mapped, int64(len(d.data)), off, true)
}
func (d *fakeDisk) SeekHole(off int64) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return seek(d.mapped, int64(len(d.data)), off, false)
}
func (d *fakeDisk) AllocatedBytes() (int64, bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.uncounted {
		return 0, false, nil
	}
	return int64(len(d.mapped)) * fakeBlock, true, nil
}
func (d *fakeDisk) ModTime() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.modTime
}
func (d *fakeDisk) SetModTime(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.modTime = t
}

type fakeHandle struct {
	d      *fakeDisk
	status chain.OpenStatus
}

func (h *fakeHandle) Close() {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	for i, o := range h.d.open {
		if o == h.status {
			h.d.open = append(h.d.open[:i:i], h.d.open[i+1:]...)
			return
		}
	}
}

func (d *fakeDisk) OpenDisk(ctx context.Context, who chain.Opener, write bool) (handle, error) {
	if err := d.enter("OpenDisk"); err != nil {
		return nil, err
	}
	return d.opened(chain.OpenStatus{File: "disk.raw", PID: who.PID, Command: who.Command, Write: write}), nil
}

func (d *fakeDisk) opened(s chain.OpenStatus) *fakeHandle {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = append(d.open, s)
	return &fakeHandle{d, s}
}

type fakeView struct {
	*fakeHandle
	layer *fakeLayer
}

func (d *fakeDisk) OpenView(ctx context.Context, id string, who chain.Opener) (view, error) {
	if err := d.enter("OpenView"); err != nil {
		return nil, err
	}
	for _, l := range d.layers() {
		if l.status.ID == id {
			return &fakeView{d.opened(chain.OpenStatus{
				File: "layers/" + l.status.Name + ".raw", PID: who.PID, Command: who.Command,
			}), l}, nil
		}
	}
	return nil, chain.ErrNotExist
}

func (v *fakeView) ReadAt(p []byte, off int64) error {
	if err := v.d.enter("View.ReadAt"); err != nil {
		return err
	}
	copy(p, v.layer.data[off:])
	return nil
}
func (v *fakeView) Size() int64 { return int64(len(v.layer.data)) }
func (v *fakeView) SeekData(off int64) (int64, error) {
	return seek(v.layer.mapped, v.Size(), off, true)
}
func (v *fakeView) SeekHole(off int64) (int64, error) {
	return seek(v.layer.mapped, v.Size(), off, false)
}

func (d *fakeDisk) layers() []*fakeLayer {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]*fakeLayer(nil), d.views...)
}

func (d *fakeDisk) EachHostFile(func(id string, file hostfs.File)) {}

func (d *fakeDisk) Layers() []chain.LayerStatus {
	var ls []chain.LayerStatus
	for _, l := range d.layers() {
		ls = append(ls, l.status)
	}
	parent := ls[len(ls)-1].ID
	return append(ls, chain.LayerStatus{
		ID: "000100", State: "leaf", Parent: &parent, Format: "qcow2", Size: d.Size(), Depth: len(ls) + 1,
		Created: ls[0].Created, File: d.dir + "/layers/000100.qcow2",
	})
}

func (d *fakeDisk) ViewFiles(id string) (chain.ViewFiles, error) {
	return chain.ViewFiles{File: "/layers/" + id, Format: "qcow2", Digest: "digest"}, nil
}

func (d *fakeDisk) LayerAllocatedBytes(id string) (int64, bool, error) {
	for _, l := range d.layers() {
		if l.status.ID == id {
			if d.uncounted {
				return 0, false, nil
			}
			return int64(len(l.mapped)) * fakeBlock, true, nil
		}
	}
	return 0, false, chain.ErrNotExist
}

func (d *fakeDisk) Status() (chain.Status, error) {
	if err := d.enter("Status"); err != nil {
		return chain.Status{}, err
	}
	st := chain.Status{Version: 1, Disk: d.dir, Size: d.Size(), Leaf: "000100", Layers: d.Layers()}
	for i := range st.Layers {
		st.Layers[i].OwnBytes, st.Layers[i].Counted, st.Layers[i].HostBytes = 8192, true, 12288
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	st.Open = append(st.Open, d.open...)
	return st, nil
}

func (d *fakeDisk) Metrics() chain.Metrics {
	_ = d.enter("Metrics")
	return chain.Metrics{Size: d.Size(), ReadOnly: d.ReadOnly()}
}

func (d *fakeDisk) ExtentMap(ctx context.Context, most time.Duration) (*chain.ExtentMap, error) {
	if err := d.enter("ExtentMap"); err != nil {
		return nil, err
	}
	m := &chain.ExtentMap{Disk: d.dir, Size: d.Size(), BinBytes: d.Size(), Known: []bool{true}}
	for _, l := range d.Layers() {
		m.Layers = append(m.Layers, chain.MapLayer{LayerStatus: l, Data: []float32{4096}, Zero: []float32{0}, Seen: []float32{4096}})
	}
	return m, nil
}

func (d *fakeDisk) named(name string) *fakeLayer {
	for _, l := range d.layers() {
		if l.status.Name == name {
			return l
		}
	}
	return nil
}

func (d *fakeDisk) Snapshot(name string) error {
	if err := d.enter("Snapshot"); err != nil {
		return err
	}
	d.mu.Lock()
	hold := d.hold
	d.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if err := chain.CheckName(name); err != nil {
		return err
	}
	if d.named(name) != nil {
		return fmt.Errorf("layer %s %w", name, chain.ErrExist)
	}
	d.mu.Lock()
	parent := d.views[len(d.views)-1].status.ID
	mapped := map[int64]bool{}
	for b := range d.mapped {
		mapped[b] = true
	}
	d.views = append(d.views, &fakeLayer{
		status: chain.LayerStatus{
			ID: fmt.Sprintf("%06d", len(d.views)+1), Name: name, State: "frozen", Parent: &parent, Format: "qcow2",
			File: d.dir + "/layers/" + name, Size: int64(len(d.data)), Depth: len(d.views) + 1,
			Created: d.modTime, Frozen: d.modTime.Add(time.Hour),
		},
		data: bytes.Clone(d.data), mapped: mapped,
	})
	tell := d.tell()
	d.mu.Unlock()
	tell(chain.Change{Layers: true})
	return nil
}

func (d *fakeDisk) Revert(name string) error {
	if err := d.enter("Revert"); err != nil {
		return err
	}
	l := d.named(name)
	if l == nil {
		return fmt.Errorf("layer %s %w", name, chain.ErrNotExist)
	}
	d.mu.Lock()
	if len(d.open) > 0 {
		d.mu.Unlock()
		return fmt.Errorf("disk.raw is open (pid %d %s): %w", d.open[0].PID, d.open[0].Command, chain.ErrBusy)
	}
	d.data = bytes.Clone(l.data)
	tell := d.tell()
	d.mu.Unlock()
	tell(chain.Change{Content: true})
	return nil
}

func (d *fakeDisk) Delete(names ...string) (string, error) {
	return "3", d.enter("Delete " + strings.Join(names, "+"))
}
func (d *fakeDisk) Undo() error               { return d.enter("Undo") }
func (d *fakeDisk) Forget() (string, error)   { return "5", d.enter("Forget") }
func (d *fakeDisk) Hold(name string) error    { return d.enter("Hold " + name) }
func (d *fakeDisk) Release(name string) error { return d.enter("Release " + name) }
func (d *fakeDisk) Clone(name, dir string) (chain.Created, error) {
	return chain.Created{}, d.enter("Clone " + name + " " + dir)
}
func (d *fakeDisk) Plan(operation chain.Operation, names []string) (chain.Plan, error) {
	return chain.Plan{Version: 1, Operation: operation}, d.enter("Plan " + operation.String() + " " + strings.Join(names, "+"))
}
func (d *fakeDisk) DeleteUnnamed() (string, error)      { return "4", d.enter("DeleteUnnamed") }
func (d *fakeDisk) Flatten(name string) (string, error) { return "", d.enter("Flatten " + name) }
func (d *fakeDisk) Cancel(job string) error             { return d.enter("Cancel " + job) }
func (d *fakeDisk) JobRate() int64                      { return 5 << 20 }
func (d *fakeDisk) SetJobRate(bytes int64) error        { return d.enter(fmt.Sprintf("SetJobRate %d", bytes)) }

func (d *fakeDisk) Rename(oldName, newName string) error {
	if err := d.enter("Rename"); err != nil {
		return err
	}
	if err := chain.CheckName(oldName); err != nil {
		return err
	}
	if err := chain.CheckName(newName); err != nil {
		return err
	}
	l := d.named(oldName)
	if l == nil {
		return chain.ErrNotExist
	}
	if d.named(newName) != nil {
		return chain.ErrExist
	}
	d.mu.Lock()
	renamed := *l
	renamed.status.Name = newName
	for i := range d.views {
		if d.views[i] == l {
			d.views[i] = &renamed
		}
	}
	tell := d.tell()
	d.mu.Unlock()
	tell(chain.Change{Layers: true})
	return nil
}

func (d *fakeDisk) OnChange(f func(chain.Change)) { d.onChange = f }

// tell is whom to tell of a change. The caller holds mu.
func (d *fakeDisk) tell() func(chain.Change) {
	if d.onChange == nil {
		return func(chain.Change) {}
	}
	return d.onChange
}

// bytes, opens and layer show the disk's state to a test, under its lock.
func (d *fakeDisk) bytes(off, n int64) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.data[off : off+n])
}

func (d *fakeDisk) opens() []chain.OpenStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]chain.OpenStatus(nil), d.open...)
}

func (d *fakeDisk) layer(i int) *fakeLayer { return d.layers()[i] }
