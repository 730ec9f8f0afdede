package powercut

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
)

// Player goes through a record, call by call.
type Player struct {
	host *Host
	log  []Op
	at   int
}

// NewPlayer begins a record at the host on which it began.
func NewPlayer(before *Host, log []Op) *Player {
	return &Player{host: before.Clone(), log: log}
}

// Next does the next call and gives it; false at the end.
func (p *Player) Next() (Op, bool) {
	if p.at == len(p.log) {
		return Op{}, false
	}
	op := p.log[p.at]
	p.at++
	if op.Kind != Mark {
		p.host.do(op)
	}
	return op, true
}

// At is how many entries of the record are behind.
func (p *Player) At() int { return p.at }

// States gives what a power cut here may leave, with words for how it was
// chosen. Where all subsets of what is not durable, taken call by call, are at
// most limit, they come first, each once, and then as many again that are torn
// within calls; else limit states are chosen by rnd.
func (p *Player) States(rnd *rand.Rand, limit int) iter.Seq2[string, *Host] {
	return p.host.states(rnd, limit)
}

// Cut gives one state that a power cut now may leave.
func (h *Host) Cut(rnd *rand.Rand) *Host {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cut(randomChoice(rnd))
}

func (h *Host) states(rnd *rand.Rand, limit int) iter.Seq2[string, *Host] {
	return func(yield func(string, *Host) bool) {
		order := h.pendingOrder()
		if len(order) == 0 {
			yield("nothing was pending", h.cut(keepAll))
			return
		}
		left := limit
		if len(order) < 31 && 1<<len(order) <= limit {
			for set := range uint64(1) << len(order) {
				c := choice{what: fmt.Sprintf("subset %0*b of %d calls", len(order), set, len(order))}
				c.keep = func(seq uint64) bool { return set>>order[seq]&1 != 0 }
				if !yield(c.what, h.cut(c)) {
					return
				}
			}
			left = min(limit, 1<<len(order))
			if !h.canTear() {
				return
			}
		}
		for range left {
			c := randomChoice(rnd)
			if !yield(c.what, h.cut(c)) {
				return
			}
		}
	}
}

// pendingOrder numbers what is pending, in order.
func (h *Host) pendingOrder() map[uint64]int {
	var all []uint64
	for _, n := range h.byID {
		for _, c := range n.pending {
			all = append(all, c.seq)
		}
		for _, c := range n.pendingNames {
			all = append(all, c.seq)
		}
	}
	slices.Sort(all)
	order := make(map[uint64]int, len(all))
	for i, seq := range all {
		order[seq] = i
	}
	return order
}

// canTear says whether any pending call can happen in part.
func (h *Host) canTear() bool {
	for _, n := range h.byID {
		for _, c := range n.pending {
			if (c.kind == Write || c.kind == Punch) && c.n > SectorSize {
				return true
			}
		}
	}
	return false
}

// choice says what of the pending changes a power cut leaves.
type choice struct {
	what string
	// keep is asked for each call, by its number, or for each piece of one when
	// unit is set.
	keep func(seq uint64) bool
	unit int64
	// names is asked for changes of directories; keep when it is nil.
	names func(dir, seq uint64) bool
	// late says whether a file's time is that of its last write although
	// nothing made it durable.
	late func() bool
}

var keepAll = choice{keep: func(uint64) bool { return true }}

// randomChoice chooses in one of several ways, since the mean of everything
// finds little: much or little is lost, of some files all, of directories an
// end of the changes or any of them, in whole calls or in pieces.
func randomChoice(rnd *rand.Rand) choice {
	var c choice
	coin := func() bool { return rnd.IntN(2) == 0 }
	share := []int{0, 10, 50, 90, 100}[rnd.IntN(5)] // of 100 calls or pieces that stay
	c.unit = []int64{0, SectorSize, pageSize}[rnd.IntN(3)]
	c.keep = func(uint64) bool { return rnd.IntN(100) < share }
	c.late = coin
	how := "any"
	if coin() {
		how = "an end"
		stop := map[uint64]uint64{} // per directory, the first number that is lost
		c.names = func(dir, seq uint64) bool {
			if _, ok := stop[dir]; !ok && rnd.IntN(3) == 0 {
				stop[dir] = seq
			}
			s, lost := stop[dir]
			return !lost || seq < s
		}
	}
	c.what = fmt.Sprintf("%d in 100 stay, in pieces of %d bytes (0: whole calls), of the names %s is lost", share, c.unit, how)
	return c
}

// cut gives the host after a power cut; mu is held, or the host is a player's.
// Its nodes keep their numbers, as a real host's files keep their inodes.
func (h *Host) cut(c choice) *Host {
	after := &Host{byID: map[uint64]*node{}, clock: h.clock + 1_000_000_000, seq: h.seq, versions: h.versions}
	var build func(n *node) *node
	build = func(n *node) *node {
		if done := after.byID[n.id]; done != nil {
			return done // a name that was there and the one that it got
		}
		fresh := &node{id: n.id, isDir: n.isDir, mtime: n.kept, kept: n.kept}
		after.byID[n.id] = fresh
		if !n.isDir {
			fresh.now = n.cut(c)
			fresh.durable = fresh.now.clone()
			if k := len(n.pending); k > 0 && c.late != nil && c.late() {
				fresh.mtime, fresh.kept = n.pending[k-1].at, n.pending[k-1].at
			}
			return fresh
		}
		names := maps.Clone(n.durableNames)
		for _, ch := range n.pendingNames {
			keep := false
			if c.names != nil {
				keep = c.names(n.id, ch.seq)
			} else {
				keep = c.keep(ch.seq)
			}
			if keep {
				ch.apply(names)
			}
		}
		fresh.names, fresh.durableNames = map[string]*node{}, map[string]*node{}
		for _, name := range slices.Sorted(maps.Keys(names)) {
			fresh.names[name] = build(names[name])
			fresh.durableNames[name] = fresh.names[name]
		}
		return fresh
	}
	after.root = build(h.root)
	// Numbers that are gone stay used.
	for id := range h.byID {
		if after.byID[id] == nil {
			after.byID[id] = &node{id: id}
		}
	}
	return after
}

// cut is the content that is there after a power cut.
func (n *node) cut(c choice) content {
	if len(n.pending) == 0 {
		return n.durable.clone()
	}
	left := n.durable.clone()
	for _, ch := range n.pending {
		if c.unit == 0 || ch.kind == Truncate || ch.kind == Allocate {
			if c.keep(ch.seq) {
				ch.apply(&left)
			}
			continue
		}
		unit := c.unit
		if ch.kind == Punch {
			unit = pageSize
		}
		for at := ch.off; at < ch.off+ch.n; {
			next := min(ch.off+ch.n, at/unit*unit+unit)
			if c.keep(ch.seq) {
				part := change{kind: ch.kind, off: at, n: next - at}
				if ch.kind == Write {
					part.data = ch.data[at-ch.off : next-ch.off]
				}
				part.apply(&left)
			}
			at = next
		}
	}
	return left
}

// Save writes all files below a directory of this host into one of the real
// host, for tools that know no simulation.
func (h *Host) Save(from, to string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.find(from)
	if n == nil {
		return fmt.Errorf("save %s: %w", from, os.ErrNotExist)
	}
	return n.save(to)
}

func (n *node) save(to string) (err error) {
	if n.isDir {
		if err := os.MkdirAll(to, 0o700); err != nil {
			return err
		}
		for name, child := range n.names {
			if err := child.save(filepath.Join(to, name)); err != nil {
				return err
			}
		}
		return nil
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}()
	for page, data := range n.now.pages {
		if data == &zeroPage {
			continue
		}
		if _, err := f.WriteAt(data[:], page*pageSize); err != nil {
			return err
		}
	}
	return f.Truncate(n.now.size)
}

// Version stands for a file's content: two files with the same one are the same.
type Version struct {
	size int64
	sum  uint64
}

// Version gives that of a file; false when there is none.
func (h *Host) Version(path string) (v Version, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.find(path)
	if n == nil || n.isDir {
		return Version{}, false
	}
	return n.version(h.versions), true
}

// Versions gives those of all files, by path.
func (h *Host) Versions() map[string]Version {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := map[string]Version{}
	var walk func(path string, n *node)
	walk = func(path string, n *node) {
		if !n.isDir {
			all[path] = n.version(h.versions)
		}
		for name, child := range n.names {
			walk(path+"/"+name, child)
		}
	}
	walk("", h.root)
	return all
}

func (n *node) version(seed maphash.Seed) Version {
	v := Version{size: n.now.size}
	var at [8]byte
	for page, data := range n.now.pages {
		if data == &zeroPage {
			continue
		}
		var hash maphash.Hash
		hash.SetSeed(seed)
		binary.LittleEndian.PutUint64(at[:], uint64(page))
		hash.Write(at[:])
		hash.Write(data[:])
		v.sum += hash.Sum64() // the order of a map is none
	}
	return v
}
