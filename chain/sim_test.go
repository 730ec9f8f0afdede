package chain

import (
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"varve/overlay"
)

// simFS is a host in memory whose power can be cut: for every file it keeps
// what a completed fdatasync made durable and the calls that came after, and
// for every directory the names that its last sync made durable and the
// changes after it.
type simFS struct {
	mu      sync.Mutex
	live    map[string]*simNode
	durable map[string]*simNode
	names   []nameChange // not durable yet, in order
	inodes  uint64
	clock   int64
	calls   int // that change something

	failReads bool // hook is called for reads of files too

	// hook is called before every call that changes something, with mu held;
	// its error is the call's.
	hook func(op, path string) error
}

type simNode struct {
	dir     bool
	inode   uint64
	mtime   int64
	kept    int64 // the mtime that is durable
	now     simContent
	durable simContent
	pending []simChange
}

const simPage = 4096

// simContent has immutable pages: a copy of the map is a copy of the content.
type simContent struct {
	size  int64
	pages map[int64]*[simPage]byte
}

type simChange struct {
	kind string // write, size, punch
	off  int64
	data []byte // write
	n    int64  // punch: length; size: the new size
}

type nameChange struct {
	dir, from, to string // create: to; remove: from; rename: both
	node          *simNode
}

func newSimFS() *simFS {
	return &simFS{live: map[string]*simNode{}, durable: map[string]*simNode{}, clock: 1_700_000_000_000_000_000}
}

func (c *simContent) clone() simContent { return simContent{c.size, maps.Clone(c.pages)} }

func (c *simContent) write(p []byte, off int64) {
	for len(p) > 0 {
		page, in := off/simPage, off%simPage
		n := min(int64(len(p)), simPage-in)
		fresh := new([simPage]byte)
		if old := c.pages[page]; old != nil {
			*fresh = *old
		}
		copy(fresh[in:], p[:n])
		c.pages[page] = fresh
		p, off = p[n:], off+n
		c.size = max(c.size, off)
	}
}

func (c *simContent) zero(off, n int64) {
	for n > 0 {
		page, in := off/simPage, off%simPage
		part := min(n, simPage-in)
		if old := c.pages[page]; old != nil {
			if part == simPage {
				delete(c.pages, page)
			} else {
				fresh := *old
				clear(fresh[in : in+part])
				c.pages[page] = &fresh
			}
		}
		off, n = off+part, n-part
	}
}

func (c *simContent) resize(size int64) {
	if size < c.size {
		last := (size + simPage - 1) / simPage
		for page := range c.pages {
			if page >= last {
				delete(c.pages, page)
			}
		}
		if size%simPage != 0 {
			c.zero(size, simPage-size%simPage)
		}
	}
	c.size = size
}

func (c *simContent) read(p []byte, off int64) (int, error) {
	if off >= c.size {
		return 0, io.EOF
	}
	n := 0
	var err error
	if left := c.size - off; left < int64(len(p)) {
		p, err = p[:left], io.EOF
	}
	for n < len(p) {
		page, in := off/simPage, off%simPage
		part := min(int64(len(p)-n), simPage-in)
		if have := c.pages[page]; have != nil {
			copy(p[n:], have[in:in+part])
		} else {
			clear(p[n : n+int(part)])
		}
		n, off = n+int(part), off+part
	}
	return n, err
}

func (c *simContent) apply(ch simChange) {
	switch ch.kind {
	case "write":
		c.write(ch.data, ch.off)
	case "size":
		c.resize(ch.n)
	case "punch":
		c.zero(ch.off, ch.n)
	}
}

// cut gives the host as it may be after the power went now.
func (s *simFS) cut(rnd *rand.Rand) *simFS {
	after := newSimFS()
	after.inodes, after.clock = s.inodes, s.clock+1_000_000_000
	names := maps.Clone(s.durable)
	// Of each directory the changes up to some point, in order.
	stop := map[string]int{}
	for i, ch := range s.names {
		if _, ok := stop[ch.dir]; !ok {
			stop[ch.dir] = i + rnd.IntN(len(s.names)-i+1)
		}
		if i < stop[ch.dir] {
			ch.apply(names)
		}
	}
	how := rnd.IntN(6)
	for path, node := range names {
		fresh := &simNode{dir: node.dir, inode: node.inode, mtime: node.kept, kept: node.kept}
		if !node.dir {
			fresh.now = node.cut(rnd, how)
			fresh.durable = fresh.now.clone()
		}
		after.live[path], after.durable[path] = fresh, fresh
	}
	return after
}

// cut is the content that may be there: of what is not durable nothing, all,
// or any part, torn at sectors or at pages.
func (n *simNode) cut(rnd *rand.Rand, how int) simContent {
	c := n.durable.clone()
	if c.pages == nil {
		c.pages = map[int64]*[simPage]byte{}
	}
	if how == 0 {
		return c
	}
	unit := int64(512)
	if how == 2 {
		unit = simPage
	}
	for _, ch := range n.pending {
		switch {
		case how == 1:
			c.apply(ch)
		case ch.kind == "size" && ch.n < c.size, how == 3:
			if rnd.IntN(2) == 0 {
				c.apply(ch)
			}
		case ch.kind == "size":
			c.apply(ch)
		case ch.kind == "punch":
			for at := ch.off; at < ch.off+ch.n; at += simPage {
				if rnd.IntN(2) == 0 {
					c.zero(at, min(simPage, ch.off+ch.n-at))
				}
			}
		default:
			for at := int64(0); at < int64(len(ch.data)); {
				next := min(int64(len(ch.data)), at+unit-(ch.off+at)%unit)
				if rnd.IntN(2) == 0 {
					c.write(ch.data[at:next], ch.off+at)
				}
				at = next
			}
		}
	}
	return c
}

func (ch nameChange) apply(names map[string]*simNode) {
	if ch.from != "" {
		delete(names, ch.from)
	}
	if ch.to != "" {
		names[ch.to] = ch.node
	}
}

// settle makes all of it durable.
func (s *simFS) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names = nil
	s.durable = maps.Clone(s.live)
	for _, n := range s.live {
		n.durable, n.pending, n.kept = n.now.clone(), nil, n.mtime
	}
}

// save writes it into a directory of the host.
func (s *simFS) save(root string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	paths := make([]string, 0, len(s.live))
	for p := range s.live {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	for _, p := range paths {
		n := s.live[p]
		at := filepath.Join(root, p)
		if n.dir {
			if err := os.MkdirAll(at, 0o700); err != nil {
				return err
			}
			continue
		}
		f, err := os.Create(at)
		if err != nil {
			return err
		}
		for page, data := range n.now.pages {
			if _, err := f.WriteAt(data[:], page*simPage); err != nil {
				return err
			}
		}
		if err := errors.Join(f.Truncate(n.now.size), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (s *simFS) changing(op, path string) error {
	s.calls++
	s.clock += 1000
	if s.hook != nil {
		if err := s.hook(op, path); err != nil {
			return &os.PathError{Op: op, Path: path, Err: err}
		}
	}
	return nil
}

func (s *simFS) missing(op, path string) error {
	return &os.PathError{Op: op, Path: path, Err: syscall.ENOENT}
}

func (s *simFS) change(ch nameChange) {
	ch.apply(s.live)
	s.names = append(s.names, ch)
}

func (s *simFS) Open(path string, flag int, _ os.FileMode) (overlay.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.live[path]
	if n == nil {
		if flag&os.O_CREATE == 0 {
			return nil, s.missing("open", path)
		}
		if err := s.changing("create", path); err != nil {
			return nil, err
		}
		s.inodes++
		n = &simNode{inode: s.inodes, mtime: s.clock}
		n.now.pages, n.durable.pages = map[int64]*[simPage]byte{}, map[int64]*[simPage]byte{}
		s.change(nameChange{dir: filepath.Dir(path), to: path, node: n})
	} else if flag&os.O_EXCL != 0 {
		return nil, &os.PathError{Op: "open", Path: path, Err: syscall.EEXIST}
	}
	return &simFile{fs: s, node: n, path: path}, nil
}

func (s *simFS) Stat(path string) (overlay.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.live[path]
	if n == nil {
		return overlay.Info{}, s.missing("stat", path)
	}
	return n.info(), nil
}

func (n *simNode) info() overlay.Info {
	i := overlay.Info{
		Size: n.now.size, Blocks: int64(len(n.now.pages)) * simPage, BlockSize: simPage,
		ModTime: time.Unix(0, n.mtime), Inode: n.inode, Device: 1, Mode: 0o600,
	}
	if n.dir {
		i.Mode |= os.ModeDir
	}
	return i
}

func (s *simFS) ReadDir(path string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live[path] == nil {
		return nil, s.missing("readdir", path)
	}
	var names []string
	for p := range s.live {
		if filepath.Dir(p) == path && p != path {
			names = append(names, filepath.Base(p))
		}
	}
	sort.Strings(names)
	return names, nil
}

func (s *simFS) Mkdir(path string, _ os.FileMode) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live[path] != nil {
		return &os.PathError{Op: "mkdir", Path: path, Err: syscall.EEXIST}
	}
	if err := s.changing("mkdir", path); err != nil {
		return err
	}
	s.inodes++
	s.change(nameChange{dir: filepath.Dir(path), to: path, node: &simNode{dir: true, inode: s.inodes}})
	return nil
}

func (s *simFS) Rename(from, to string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.live[from]
	if n == nil {
		return s.missing("rename", from)
	}
	if err := s.changing("rename", from); err != nil {
		return err
	}
	s.change(nameChange{dir: filepath.Dir(to), from: from, to: to, node: n})
	if n.dir { // only while a disk is being made, which settle follows
		for p, child := range maps.Clone(s.live) {
			if rest, ok := strings.CutPrefix(p, from+"/"); ok {
				delete(s.live, p)
				s.live[to+"/"+rest] = child
			}
		}
	}
	return nil
}

func (s *simFS) Link(string, string) error { return errors.ErrUnsupported }

func (s *simFS) Remove(path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.live[path]
	if n == nil {
		return s.missing("remove", path)
	}
	if err := s.changing("remove", path); err != nil {
		return err
	}
	s.change(nameChange{dir: filepath.Dir(path), from: path, node: n})
	return nil
}

func (s *simFS) SyncDir(path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.changing("syncdir", path); err != nil {
		return err
	}
	var left []nameChange
	for _, ch := range s.names {
		if ch.dir == path {
			ch.apply(s.durable)
		} else {
			left = append(left, ch)
		}
	}
	s.names = left
	return nil
}

// simFile is an open file of a simFS.
type simFile struct {
	fs   *simFS
	node *simNode
	path string
	gone bool
}

func (f *simFile) Name() string { return f.path }
func (f *simFile) Fd() int      { return -1 }

func (f *simFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.gone {
		return 0, os.ErrClosed
	}
	if f.fs.failReads {
		if err := f.fs.changing("read", f.path); err != nil {
			return 0, err
		}
	}
	return f.node.now.read(p, off)
}

func (f *simFile) do(op string, ch simChange) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.gone {
		return os.ErrClosed
	}
	if err := f.fs.changing(op, f.path); err != nil {
		return err
	}
	if op == "allocate" {
		// A page that is there, with zeros, as far as reading goes; and the size.
		if ch.n <= f.node.now.size {
			return nil
		}
	}
	f.node.now.apply(ch)
	f.node.pending = append(f.node.pending, ch)
	f.node.mtime = f.fs.clock
	return nil
}

func (f *simFile) WriteAt(p []byte, off int64) (int, error) {
	data := append([]byte(nil), p...)
	if err := f.do("write", simChange{kind: "write", off: off, data: data}); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *simFile) Truncate(size int64) error {
	return f.do("truncate", simChange{kind: "size", n: size})
}

func (f *simFile) Allocate(off, n int64) error {
	return f.do("allocate", simChange{kind: "size", n: off + n})
}

func (f *simFile) PunchHole(off, n int64) error {
	return f.do("punch", simChange{kind: "punch", off: off, n: n})
}

func (f *simFile) Datasync() error { return f.sync("datasync") }

func (f *simFile) Sync() error { return f.sync("sync") }

func (f *simFile) sync(op string) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.gone {
		return os.ErrClosed
	}
	if err := f.fs.changing(op, f.path); err != nil {
		// As Linux does: the pages stay in the cache, clean, and never reach the
		// disk.
		f.node.pending = nil
		return err
	}
	for _, ch := range f.node.pending {
		f.node.durable.apply(ch)
	}
	f.node.pending = nil
	if op == "sync" {
		f.node.kept = f.node.mtime
	}
	return nil
}

func (f *simFile) Stat() (overlay.Info, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return f.node.info(), nil
}

func (f *simFile) SeekData(off int64) (int64, error) { return f.seek(off, true) }
func (f *simFile) SeekHole(off int64) (int64, error) { return f.seek(off, false) }

func (f *simFile) seek(off int64, data bool) (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	c := &f.node.now
	for ; off < c.size; off = off/simPage*simPage + simPage {
		if (c.pages[off/simPage] != nil) == data {
			return off, nil
		}
	}
	if data {
		return 0, io.EOF
	}
	return c.size, nil
}

func (f *simFile) Lock(overlay.LockMode) error { return nil }

// DropCache leaves what is on the disk, and what is still to be written.
func (f *simFile) DropCache() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	c := f.node.durable.clone()
	for _, ch := range f.node.pending {
		c.apply(ch)
	}
	f.node.now = c
	return nil
}

func (f *simFile) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	f.gone = true
	return nil
}
