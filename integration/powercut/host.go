package powercut

import (
	"errors"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"varve/overlay/hostfs"
)

// Host is a file system in memory. It has the directories of the paths that
// NewHost is given; paths are absolute and have no links. Safe for concurrent
// use; one lock orders all calls, and with it the record.
type Host struct {
	mu    sync.Mutex
	root  *node
	byID  map[uint64]*node
	clock int64 // nanoseconds
	seq   uint64

	record    bool
	log       []Op
	hook      func(op Op) error
	hookReads bool
	versions  maphash.Seed // of Version, shared by all hosts that come from one

	room *room // nil: without a limit
}

// node is a file or a directory.
type node struct {
	id    uint64
	isDir bool
	opens int // open files
	mtime int64
	kept  int64 // the mtime that is durable

	// Of a directory: what is in it, and what would be after a power cut
	// without any of the changes that are pending.
	names, durableNames map[string]*node
	pendingNames        []nameChange

	now, durable content
	pending      []change
}

// change is a call on a file that is not durable yet.
type change struct {
	kind Kind
	off  int64
	n    int64
	data []byte
	seq  uint64
	at   int64 // clock
}

// nameChange is a change of a directory that is not durable yet.
type nameChange struct {
	from, to string // create: to; remove: from; rename: both
	node     *node
	seq      uint64
}

var _ hostfs.FS = (*Host)(nil)

// NewHost gives an empty host with some directories, all of it durable.
func NewHost(dirs ...string) *Host {
	h := &Host{byID: map[uint64]*node{}, clock: 1_700_000_000_000_000_000, versions: maphash.MakeSeed()}
	h.root = h.newNode(true)
	for _, dir := range dirs {
		at := h.root
		for _, name := range parts(dir) {
			next := at.names[name]
			if next == nil {
				next = h.newNode(true)
				at.names[name] = next
			}
			at = next
		}
	}
	h.Settle()
	return h
}

func (h *Host) newNode(isDir bool) *node {
	n := &node{id: uint64(len(h.byID)) + 1, isDir: isDir, mtime: h.clock}
	if isDir {
		n.names, n.durableNames = map[string]*node{}, map[string]*node{}
	} else {
		n.now, n.durable = newContent(), newContent()
	}
	h.byID[n.id] = n
	return n
}

// Record begins a record of all calls that change something.
func (h *Host) Record() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.record, h.log = true, nil
}

// Recorded ends the record and gives it.
func (h *Host) Recorded() []Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	log := h.log
	h.record, h.log = false, nil
	return log
}

// Mark puts an entry of the test's own into the record, at its place among the
// calls.
func (h *Host) Mark(what string, event any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.record {
		h.log = append(h.log, Op{Kind: Mark, Path: what, Event: event})
	}
}

// SetHook has f called before every call, with the host's lock held: an error
// that it gives is the call's, which then does nothing, unless it is Partly.
// Reads and looks are shown to f only with reads set. nil takes it away.
func (h *Host) SetHook(reads bool, f func(op Op) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hook, h.hookReads = f, reads
}

// Partly is a hook's error for a write of which only the first half, in whole
// sectors, reaches the file, and for every other call the error that it holds.
type Partly struct{ Err error }

func (p Partly) Error() string { return p.Err.Error() + " after half of it" }
func (p Partly) Unwrap() error { return p.Err }

// Settle makes all of it durable.
func (h *Host) Settle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range h.byID {
		if n.isDir {
			n.durableNames, n.pendingNames = maps.Clone(n.names), nil
		} else {
			n.durable, n.pending, n.kept = n.now.clone(), nil, n.mtime
		}
	}
}

// Clone gives a host that is the same, with nothing open, recorded or hooked.
func (h *Host) Clone() *Host {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := &Host{byID: make(map[uint64]*node, len(h.byID)), clock: h.clock, seq: h.seq, versions: h.versions}
	for id, n := range h.byID {
		fresh := *n
		fresh.opens = 0
		if !n.isDir {
			fresh.now, fresh.durable = n.now.clone(), n.durable.clone()
			fresh.pending = slices.Clone(n.pending)
		}
		c.byID[id] = &fresh
	}
	move := func(names map[string]*node) map[string]*node {
		moved := make(map[string]*node, len(names))
		for name, n := range names {
			moved[name] = c.byID[n.id]
		}
		return moved
	}
	for _, n := range c.byID {
		if !n.isDir {
			continue
		}
		n.names, n.durableNames = move(n.names), move(n.durableNames)
		n.pendingNames = slices.Clone(n.pendingNames)
		for i := range n.pendingNames {
			n.pendingNames[i].node = c.byID[n.pendingNames[i].node.id]
		}
	}
	c.root = c.byID[h.root.id]
	return c
}

func parts(path string) []string {
	var names []string
	for _, name := range filepath.SplitList(path) {
		for rest := filepath.Clean(name); rest != "/" && rest != "."; rest = filepath.Dir(rest) {
			names = append(names, filepath.Base(rest))
		}
	}
	slices.Reverse(names)
	return names
}

// find gives the node at a path, nil for none; mu is held.
func (h *Host) find(path string) *node {
	n := h.root
	for _, name := range parts(path) {
		if n == nil || !n.isDir {
			return nil
		}
		n = n.names[name]
	}
	return n
}

// parent gives the directory in which a path is, and the path's last name.
func (h *Host) parent(path string) (*node, string) {
	dir := h.find(filepath.Dir(path))
	if dir == nil || !dir.isDir {
		return nil, ""
	}
	return dir, filepath.Base(path)
}

func fail(op Op, err error) error {
	return &os.PathError{Op: op.Kind.String(), Path: op.Path, Err: err}
}

// ask shows a call to the hook; mu is held.
func (h *Host) ask(op Op) error {
	if h.hook == nil || !op.Changes() && !h.hookReads {
		return nil
	}
	return h.hook(op)
}

// change does a call that changes something, after the hook was asked, and
// records it; mu is held.
func (h *Host) change(op Op) error {
	err := h.ask(op)
	if err == nil {
		op, err = h.fit(op)
	}
	var partly Partly
	var full noRoom
	switch {
	case err == nil:
	case errors.As(err, &full) && op.N > 0:
	case op.Kind == Write && errors.As(err, &partly):
		op.N = op.half()
		op.Data = op.Data[:op.N]
	case op.Kind == Datasync || op.Kind == Sync:
		op.failed, op.survive = true, h.seq
	default:
		return fail(op, err)
	}
	h.clock += 1000
	op.clock = h.clock
	if h.record {
		h.log = append(h.log, op)
	}
	h.do(op)
	if err != nil {
		return fail(op, err)
	}
	return nil
}

// do carries out a call that is possible; mu is held. A Player calls it with
// the record of another host that was the same at the record's begin.
func (h *Host) do(op Op) {
	h.clock = op.clock
	h.seq++
	switch op.Kind {
	case Create, Mkdir:
		dir, name := h.parent(op.Path)
		n := h.newNode(op.Kind == Mkdir)
		dir.changeNames(nameChange{to: name, node: n, seq: h.seq})
	case Rename:
		dir, from := h.parent(op.Path)
		dir.changeNames(nameChange{from: from, to: filepath.Base(op.To), node: dir.names[from], seq: h.seq})
	case Remove:
		dir, name := h.parent(op.Path)
		dir.changeNames(nameChange{from: name, node: dir.names[name], seq: h.seq})
	case SyncDir:
		n := h.find(op.Path)
		n.durableNames, n.pendingNames = maps.Clone(n.names), nil
	case Write, Truncate, Allocate, Punch:
		n := h.byID[op.node]
		c := change{kind: op.Kind, off: op.Off, n: op.N, data: op.Data, seq: h.seq, at: h.clock}
		c.apply(&n.now)
		n.pending = append(n.pending, c)
		n.mtime = h.clock
	case Datasync, Sync:
		h.byID[op.node].sync(op)
	case DropCache:
		// What is on the disk, and what is still to be written.
		n := h.byID[op.node]
		n.now = n.durable.clone()
		for _, c := range n.pending {
			c.apply(&n.now)
		}
	}
}

func (n *node) changeNames(c nameChange) {
	c.apply(n.names)
	n.pendingNames = append(n.pendingNames, c)
}

func (c nameChange) apply(names map[string]*node) {
	if c.from != "" && (c.to != "" || names[c.from] == c.node) {
		delete(names, c.from)
	}
	if c.to != "" {
		names[c.to] = c.node
	}
}

func (c change) apply(to *content) {
	switch c.kind {
	case Write:
		to.write(c.data, c.off)
	case Truncate:
		to.resize(c.n)
	case Allocate:
		to.allocate(c.off, c.n)
	case Punch:
		to.zero(c.off, c.n)
	}
}

// sync makes what is pending durable. When it fails, part of it may be and the
// rest never will: the cache says it is clean.
func (n *node) sync(op Op) {
	rnd := rand.New(rand.NewPCG(op.survive, 3))
	lost := op.failed && rnd.IntN(2) == 0
	for _, c := range n.pending {
		if !op.failed || !lost && rnd.IntN(2) == 0 {
			c.apply(&n.durable)
		}
	}
	n.pending = nil
	if op.Kind == Sync && !op.failed {
		n.kept = n.mtime
	}
}

func (h *Host) Open(path string, flag int, _ os.FileMode) (hostfs.File, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.find(path)
	switch {
	case n == nil && flag&os.O_CREATE == 0:
		return nil, fail(Op{Kind: Open, Path: path}, syscall.ENOENT)
	case n == nil:
		dir, name := h.parent(path)
		if dir == nil {
			return nil, fail(Op{Kind: Open, Path: path}, syscall.ENOENT)
		}
		if err := h.change(Op{Kind: Create, Path: path}); err != nil {
			return nil, err
		}
		n = dir.names[name]
	case flag&os.O_EXCL != 0:
		return nil, fail(Op{Kind: Open, Path: path}, syscall.EEXIST)
	case n.isDir:
		return nil, fail(Op{Kind: Open, Path: path}, syscall.EISDIR)
	default:
		if err := h.ask(Op{Kind: Open, Path: path}); err != nil {
			return nil, fail(Op{Kind: Open, Path: path}, err)
		}
		if flag&os.O_TRUNC != 0 {
			if err := h.change(Op{Kind: Truncate, Path: path, node: n.id}); err != nil {
				return nil, err
			}
		}
	}
	n.opens++
	return &file{host: h, node: n, path: path}, nil
}

func (h *Host) Stat(path string) (hostfs.Info, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.find(path)
	if n == nil {
		return hostfs.Info{}, fail(Op{Kind: Stat, Path: path}, syscall.ENOENT)
	}
	if err := h.ask(Op{Kind: Stat, Path: path}); err != nil {
		return hostfs.Info{}, fail(Op{Kind: Stat, Path: path}, err)
	}
	return n.info(), nil
}

func (n *node) info() hostfs.Info {
	i := hostfs.Info{
		Size: n.now.size, Blocks: int64(len(n.now.pages)) * pageSize, BlockSize: pageSize,
		ModTime: time.Unix(0, n.mtime), Inode: n.id, Device: 1, Mode: 0o600,
	}
	if n.isDir {
		i.Mode |= os.ModeDir
	}
	return i
}

func (h *Host) ReadDir(path string) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.find(path)
	if n == nil || !n.isDir {
		return nil, fail(Op{Kind: ReadDir, Path: path}, syscall.ENOENT)
	}
	if err := h.ask(Op{Kind: ReadDir, Path: path}); err != nil {
		return nil, fail(Op{Kind: ReadDir, Path: path}, err)
	}
	return slices.Sorted(maps.Keys(n.names)), nil
}

func (h *Host) Mkdir(path string, _ os.FileMode) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	op := Op{Kind: Mkdir, Path: path}
	dir, name := h.parent(path)
	switch {
	case dir == nil:
		return fail(op, syscall.ENOENT)
	case dir.names[name] != nil:
		return fail(op, syscall.EEXIST)
	}
	return h.change(op)
}

// Rename renames within a directory only: nothing here does more.
func (h *Host) Rename(from, to string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	op := Op{Kind: Rename, Path: from, To: to}
	n, target := h.find(from), h.find(to)
	switch {
	case n == nil:
		return fail(op, syscall.ENOENT)
	case filepath.Dir(from) != filepath.Dir(to):
		return fail(op, syscall.EXDEV)
	case target != nil && target.isDir && len(target.names) > 0:
		return fail(op, syscall.ENOTEMPTY)
	}
	return h.change(op)
}

func (h *Host) Link(from, to string) error {
	return fail(Op{Kind: Create, Path: to}, errors.ErrUnsupported)
}

func (h *Host) Remove(path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	op := Op{Kind: Remove, Path: path}
	n := h.find(path)
	switch {
	case n == nil:
		return fail(op, syscall.ENOENT)
	case n.isDir && len(n.names) > 0:
		return fail(op, syscall.ENOTEMPTY)
	}
	return h.change(op)
}

func (h *Host) SyncDir(path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	op := Op{Kind: SyncDir, Path: path}
	if n := h.find(path); n == nil || !n.isDir {
		return fail(op, syscall.ENOENT)
	}
	return h.change(op)
}
