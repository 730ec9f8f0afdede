// Package model is a disk in memory, a byte slice for every view, and a driver
// that does random steps to it and to a real disk and compares the two. It
// knows neither FUSE nor chain: a Target is either.
package model

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"

	"varve/integration/bulk"
)

// Target is the real disk. An error from it is a finding.
type Target interface {
	Write(p []byte, off int64) error
	Read(p []byte, off int64) error
	Discard(off, length int64) error
	Flush() error
	Grow(size int64) error
	Size() (int64, error)

	Snapshot(name string) error
	Revert(name string) error
	Delete(name string) error
	Flatten(name string) error // "leaf" for the leaf
	Rename(oldName, newName string) error
	// WaitJob waits for the job under way, if there is one; CancelJob stops it.
	WaitJob() error
	CancelJob() error
	// Names are the views that can be read, in any order.
	Names() ([]string, error)
	ReadView(name string) ([]byte, error)

	// Reopen closes the disk and opens it again: in good order, judged by
	// tools on the files between, or, with crash, as after a kill, when
	// everything flushed must be there. want is every view's content, "" the
	// leaf's.
	Reopen(crash bool, want map[string][]byte) error
}

// Options shape a run.
type Options struct {
	Seed    uint64
	Steps   int
	Base    []byte // content of the base, "base" in the tree; nil for a blank disk
	Size    int64  // of the disk at first
	MaxSize int64  // growth stops there
	Crash   bool   // crashes too
	Every   int    // steps between comparisons of everything; 0: 25
	Logf    func(format string, args ...any)
	Extra   map[string][]byte // further views of an adopted chain
	Top     string            // the one of them as which disk.raw begins
}

// run is a run under way.
type run struct {
	Options
	t     Target
	rnd   *rand.Rand
	leaf  []byte
	views map[string][]byte
	next  int
	trail []string
}

// Run does Options.Steps random steps, comparing as it goes. The error says the
// seed, the step and the last steps before it.
func Run(t Target, o Options) error {
	r := &run{Options: o, t: t, rnd: rand.New(rand.NewPCG(o.Seed, o.Seed)), views: make(map[string][]byte)}
	r.leaf = make([]byte, wholeSectors(o.Size))
	if o.Base != nil {
		r.views["base"] = o.Base
		copy(r.leaf, o.Base)
	}
	for name, content := range o.Extra {
		r.views[name] = content
	}
	if o.Top != "" {
		copy(r.leaf, o.Extra[o.Top])
	}
	every := max(o.Every, 1)
	if o.Every == 0 {
		every = 25
	}
	for i := range o.Steps {
		err := r.step()
		if err == nil && (i%every == every-1 || i == o.Steps-1) {
			err = r.compare()
		}
		if err != nil {
			return fmt.Errorf("seed %d, step %d: %w\nlast steps: %v", o.Seed, i, err, r.trail[max(0, len(r.trail)-40):])
		}
	}
	return nil
}

func (r *run) did(format string, args ...any) {
	r.trail = append(r.trail, fmt.Sprintf(format, args...))
	if r.Logf != nil {
		r.Logf(format, args...)
	}
}

// span is aligned to something, or to nothing.
func (r *run) span() (off, length int64) {
	size := int64(len(r.leaf))
	align := []int64{1, 512, 4096, 65536, 1 << 20}[r.rnd.IntN(5)]
	off = r.rnd.Int64N(size) / align * align
	most := []int64{512, 4096, 65536, 1 << 20}[r.rnd.IntN(4)]
	length = 1 + r.rnd.Int64N(min(size-off, most))
	return off, min(size-off, (length+align-1)/align*align)
}

func (r *run) snapshots() []string {
	var names []string
	for n := range r.views {
		if n != "base" && n != "" {
			names = append(names, n)
		}
	}
	sort.Strings(names)
	return names
}

// any picks one of names; "" when there is none.
func (r *run) any(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[r.rnd.IntN(len(names))]
}

func (r *run) newName() string {
	r.next++
	return fmt.Sprintf("snap-%d_%d.x", r.Seed, r.next)
}

func (r *run) step() error {
	switch n := r.rnd.IntN(100); {
	case n < 45:
		return r.write()
	case n < 55:
		off, length := r.span()
		p := make([]byte, length)
		if err := r.t.Read(p, off); err != nil {
			return fmt.Errorf("read %d+%d: %w", off, length, err)
		}
		return differ("disk", off, p, r.leaf[off:off+length])
	case n < 65:
		off, length := r.span()
		r.did("discard %d+%d", off, length)
		clear(r.leaf[off : off+length])
		return wrap("discard", r.t.Discard(off, length))
	case n < 71:
		r.did("flush")
		return wrap("flush", r.t.Flush())
	case n < 73:
		return r.grow()
	case n < 80:
		if len(r.views) > 14 {
			return r.delete()
		}
		name := r.newName()
		r.did("snapshot %s", name)
		r.views[name] = slices.Clone(r.leaf)
		return wrap("snapshot", r.t.Snapshot(name))
	case n < 85:
		return r.delete()
	case n < 88:
		return r.flatten()
	case n < 91:
		return r.revert()
	case n < 93:
		return r.rename()
	case n < 95:
		r.did("wait")
		return wrap("wait for the job", r.t.WaitJob())
	case n < 96:
		r.did("cancel")
		return wrap("cancel the job", r.t.CancelJob())
	case n < 98:
		return r.reopen()
	default:
		return r.compareOne(r.any(append(r.snapshots(), "")))
	}
}

func (r *run) write() error {
	off, length := r.span()
	p := make([]byte, length)
	switch r.rnd.IntN(8) {
	case 0: // zeros, written
	default:
		r.fill(p)
	}
	r.did("write %d+%d", off, length)
	copy(r.leaf[off:], p)
	return wrap("write", r.t.Write(p, off))
}

// fill is fast where the race detector counts every byte that is touched.
func (r *run) fill(p []byte) {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], r.rnd.Uint64())
	_, _ = rand.NewChaCha8(seed).Read(p) // never fails
}

func (r *run) grow() error {
	more := 1 + r.rnd.Int64N(3<<20)
	if r.rnd.IntN(2) == 0 {
		more = more&^511 + 512
	}
	if int64(len(r.leaf))+more > r.MaxSize {
		return nil
	}
	r.did("grow by %d", more)
	size := int64(len(r.leaf)) + more
	r.leaf = append(r.leaf, make([]byte, wholeSectors(size)-int64(len(r.leaf)))...)
	return wrap("grow", r.t.Grow(size))
}

// wholeSectors rounds a size up to what a disk has: sectors of 512 bytes. The view of a
// base keeps its file's own length.
func wholeSectors(size int64) int64 { return (size + 511) &^ 511 }

func (r *run) delete() error {
	name := r.any(r.snapshots())
	if name == "" {
		return nil
	}
	if err := r.t.WaitJob(); err != nil {
		return wrap("wait for the job", err)
	}
	r.did("delete %s", name)
	delete(r.views, name)
	return wrap("delete", r.t.Delete(name))
}

func (r *run) flatten() error {
	name := r.any(append(r.snapshots(), "leaf"))
	if _, foreign := r.Extra[name]; foreign {
		return nil
	}
	if err := r.t.WaitJob(); err != nil {
		return wrap("wait for the job", err)
	}
	r.did("flatten %s", name)
	return wrap("flatten", r.t.Flatten(name))
}

func (r *run) revert() error {
	name := r.any(append(r.snapshots(), "base"))
	if err := r.t.WaitJob(); err != nil {
		return wrap("wait for the job", err)
	}
	r.did("revert %s", name)
	if name == "base" && r.Base == nil {
		r.leaf = make([]byte, wholeSectors(r.Size)) // back to blank
	} else {
		r.leaf = make([]byte, wholeSectors(int64(len(r.views[name]))))
		copy(r.leaf, r.views[name])
	}
	return wrap("revert", r.t.Revert(name))
}

func (r *run) rename() error {
	name := r.any(r.snapshots())
	if name == "" {
		return nil
	}
	other := r.newName()
	r.did("rename %s %s", name, other)
	r.views[other] = r.views[name]
	delete(r.views, name)
	if c, foreign := r.Extra[name]; foreign {
		r.Extra[other] = c
	}
	return wrap("rename", r.t.Rename(name, other))
}

func (r *run) reopen() error {
	crash := r.Crash && r.rnd.IntN(2) == 0
	if crash {
		if err := r.t.Flush(); err != nil {
			return wrap("flush", err)
		}
	}
	r.did("reopen, crash %v", crash)
	want := make(map[string][]byte, len(r.views)+1)
	for name, content := range r.views {
		want[name] = content
	}
	want[""] = r.leaf
	if err := r.t.Reopen(crash, want); err != nil {
		return wrap("reopen", err)
	}
	return r.compare()
}

// compare compares every view, and the list of them.
func (r *run) compare() error {
	names, err := r.t.Names()
	if err != nil {
		return wrap("list", err)
	}
	want := r.snapshots()
	if r.Base != nil {
		want = append(want, "base")
	}
	sort.Strings(names)
	sort.Strings(want)
	if !slices.Equal(names, want) {
		return fmt.Errorf("the views are %v, want %v", names, want)
	}
	for _, name := range append(want, "") {
		if err := r.compareOne(name); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) compareOne(name string) error {
	if name == "" {
		size, err := r.t.Size()
		if err != nil || size != int64(len(r.leaf)) {
			return fmt.Errorf("size %d, want %d: %v", size, len(r.leaf), err)
		}
		p := make([]byte, size)
		if err := r.t.Read(p, 0); err != nil {
			return wrap("read the disk", err)
		}
		return differ("disk", 0, p, r.leaf)
	}
	p, err := r.t.ReadView(name)
	if err != nil {
		return wrap("read "+name, err)
	}
	return differ(name, 0, p, r.views[name])
}

// differ is nil when got is want, else it says where the first difference is.
func differ(what string, off int64, got, want []byte) error {
	if bulk.Equal(got, want) {
		return nil
	}
	if len(got) != len(want) {
		return fmt.Errorf("%s has %d bytes, want %d", what, len(got), len(want))
	}
	i := bulk.First(got, want)
	last := len(got) - 1
	for got[last] == want[last] {
		last--
	}
	return fmt.Errorf("%s differs from %d (0x%x) to %d: got %02x, want %02x", what, off+int64(i), off+int64(i), off+int64(last), got[i], want[i])
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
