package chain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"varve/chain/manifest"
	"varve/integration/powercut"
	"varve/overlay"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// hotRanges are where the guest writes: over the edges of clusters, regions and
// of the disk before and after it has grown.
var hotRanges = [][2]int64{
	{0, 64 << 10},
	{128<<10 - 40<<10, 128<<10 + 40<<10},
	{16<<20 - 40<<10, 16<<20 + 40<<10},
	{simSize&^511 - 40<<10, hotEnd},
}

const (
	simSize = 40<<20 + 512*5 // bytes of the disk at first
	hotEnd  = 40<<20 + 80<<10
)

// simKind is what a simulated disk stands on.
type simKind string

const (
	onRaw   simKind = "raw"
	blank   simKind = "blank"
	onChain simKind = "chain"
	onKnown simKind = "chain of known snapshots" // the base is the state of s1
)

// baseValue is what a sector of the base has.
func baseValue(sector int64) uint64 {
	at := sector * powercut.SectorSize
	for _, h := range hotRanges {
		if at >= h[0] && at < h[1] && at < simSize && at>>15%3 != 0 {
			return uint64(sector) | 0xba5e<<48
		}
	}
	return 0
}

// adoptedValue is what a sector has in the layer that stands on the base of an
// adopted chain.
func adoptedValue(sector int64) uint64 {
	switch sector / 24 % 4 {
	case 0:
		return uint64(sector) | 0xad0b<<48
	case 1:
		return 0
	}
	return baseValue(sector)
}

// simGuest drives a Disk on a simulated host and knows what must be there. One
// goroutine drives; jobs and flushes run beside it.
type simGuest struct {
	t    testing.TB
	rnd  *rand.Rand
	kind simKind
	host *powercut.Host
	dir  string // the disk directory, on the simulated host
	made CreateOptions
	d    *Disk
	next uint64 // the next number of a write

	base   *powercut.View // what a revert to the base gives
	worlds worlds         // see event
	began  *powercut.Host // the host, and what is known, when open was called first
	known  worlds

	grown   world // after a growth that failed, as if it had not; nil for none
	faulty  bool  // a call to the host may fail
	traceMu sync.Mutex
	trace   []string
}

// event is an entry in the host's record: what is known of the disk's content
// from here on. Applied again and again by whoever replays the record, so it
// must refer to nothing but its argument and values.
type event struct {
	apply func(ws *worlds)
	// firm says that the disk may show less from here on: worth another look.
	firm bool
}

func (g *simGuest) event(what string, firm bool, apply func(ws *worlds)) {
	apply(&g.worlds)
	g.host.Mark(what, event{apply, firm})
}

// newSimGuest makes a disk on a simulated host. The foreign files stand at the
// same paths on the real one, for qemu-img.
func newSimGuest(t testing.TB, kind simKind, seed uint64) *simGuest {
	t.Helper()
	root := t.TempDir()
	g := &simGuest{
		t: t, rnd: rand.New(rand.NewPCG(seed, 1)), kind: kind, next: 1,
		host: powercut.NewHost(root), dir: filepath.Join(root, "vm.varve"),
	}
	zeros := func(int64) uint64 { return 0 }
	o := CreateOptions{FS: g.host}
	switch kind {
	case blank:
		o.Size = simSize
		g.base = powercut.NewView(simSize, hotRanges, zeros)
	case onRaw:
		o.Base = filepath.Join(root, "base.raw")
		g.makeRaw(o.Base)
		g.base = powercut.NewView(simSize, hotRanges, baseValue)
	case onChain, onKnown:
		raw := filepath.Join(root, "base.raw")
		o.Base, o.Format = filepath.Join(root, "mid.qcow2"), formatQcow2
		g.makeRaw(raw)
		g.makeAdopted(o.Base, raw)
		g.base = powercut.NewView(simSize, hotRanges, baseValue)
		if kind == onKnown {
			o.Witness = witness{states: map[string]string{raw: "s1"}}
		}
	}
	g.host.Settle()
	must(t, g.host.Save(root, root))
	_, err := Create(g.dir, o)
	must(t, err)
	g.made = o
	g.host.Settle()
	w := world{"": g.base.Clone()}
	if kind == onChain || kind == onKnown {
		w = world{"": powercut.NewView(simSize, hotRanges, adoptedValue), "adopted": powercut.NewView(simSize, hotRanges, adoptedValue)}
	}
	if kind == onKnown {
		w["s1"] = g.base.Clone()
	}
	g.worlds = worlds{w}
	return g
}

// fill writes each sector's value with write.
func fill(t testing.TB, write func(p []byte, off int64) error, value func(sector int64) uint64, skip func(sector int64) bool) {
	t.Helper()
	var p [powercut.SectorSize]byte
	for _, h := range hotRanges {
		for s := h[0] / powercut.SectorSize; s < min(h[1], simSize)/powercut.SectorSize; s++ {
			if skip(s) {
				continue
			}
			powercut.FillSectors(p[:], value(s))
			must(t, write(p[:], s*powercut.SectorSize))
		}
	}
}

func (g *simGuest) makeRaw(path string) {
	f, err := g.host.Open(path, os.O_RDWR|os.O_CREATE, 0)
	must(g.t, err)
	must(g.t, f.Truncate(simSize))
	fill(g.t, func(p []byte, off int64) error { _, err := f.WriteAt(p, off); return err },
		baseValue, func(s int64) bool { return baseValue(s) == 0 })
	must(g.t, f.Close())
}

// makeAdopted makes a qcow2 with smaller clusters on a raw image.
func (g *simGuest) makeAdopted(path, raw string) {
	must(g.t, overlay.Create(g.host, path, overlay.CreateOptions{
		Size: simSize, Backing: raw, BackingFormat: formatRaw, ClusterBits: 16,
	}))
	o, err := overlay.OpenOverlay(g.host, path, overlay.OverlayOptions{})
	must(g.t, err)
	below, err := qcow2.OpenImage(g.host, raw, formatRaw, hostfs.LockNone)
	must(g.t, err)
	fill(g.t, func(p []byte, off int64) error { return o.WriteAt(p, off, rawBacking{below}) },
		adoptedValue, func(s int64) bool { return adoptedValue(s) == baseValue(s) })
	must(g.t, o.Settle())
	must(g.t, o.Close())
	must(g.t, below.Close())
}

// rawBacking shows a raw image below a layer.
type rawBacking struct{ image *qcow2.Image }

func (b rawBacking) IsZero(int64, int64) (bool, error) { return false, nil }
func (b rawBacking) ReadAt(p []byte, off int64) error {
	return b.image.ReadExtent(p, extent.Extent{Start: off, Length: int64(len(p)), Host: off, Kind: extent.Data}, off)
}

// note adds a line to what is told of a run that fails.
func (g *simGuest) note(format string, args ...any) {
	g.traceMu.Lock()
	defer g.traceMu.Unlock()
	g.trace = append(g.trace, fmt.Sprintf(format, args...))
}

// story is the end of the run so far.
func (g *simGuest) story() string {
	g.traceMu.Lock()
	defer g.traceMu.Unlock()
	return strings.Join(g.trace[max(0, len(g.trace)-60):], "\n")
}

// openSim opens a disk on a simulated host. Jobs have a window for each region.
func openSim(host *powercut.Host, dir string, log slog.Handler) (*Disk, error) {
	return Open(dir, OpenOptions{FS: host, CacheBytes: 1 << 20, Log: slog.New(log), window: 1})
}

func (g *simGuest) open() {
	g.t.Helper()
	if g.began == nil {
		g.began = g.host.Clone()
		g.known = worlds{g.worlds[0].Clone()}
	}
	d, err := openSim(g.host, g.dir, &traceLog{g: g})
	must(g.t, err)
	g.d = d
}

func (g *simGuest) world() world { return g.worlds[0] }

// place is somewhere in the hot ranges, in sectors.
func (g *simGuest) place() (sector, n int64) {
	for {
		h := hotRanges[g.rnd.IntN(len(hotRanges))]
		end := min(h[1], g.world().size())
		if h[0] >= end {
			continue
		}
		sector = (h[0] + g.rnd.Int64N(end-h[0])) / powercut.SectorSize
		n = 1 + g.rnd.Int64N(1<<g.rnd.IntN(8))
		return sector, max(1, min(n, end/powercut.SectorSize-sector))
	}
}

// write writes a value of its own into sectors, or discards them.
func (g *simGuest) write(sector, n int64, zero bool) error {
	s := powercut.Stamp{Write: g.next, Value: g.next}
	g.next++
	if zero {
		s.Value = 0
	}
	g.event(fmt.Sprintf("write %x to %d sectors at %d", s.Value, n, sector), false, func(ws *worlds) { ws.write(sector, n, s) })
	var err error
	if zero {
		err = g.d.Discard(sector*powercut.SectorSize, n*powercut.SectorSize)
	} else {
		p := make([]byte, n*powercut.SectorSize)
		powercut.FillSectors(p, s.Value)
		err = g.d.WriteAt(p, sector*powercut.SectorSize)
	}
	if g.faulty && err != nil {
		g.worlds.failed(sector, n, s)
	}
	return err
}

func (g *simGuest) randomWrite() error {
	sector, n := g.place()
	return g.write(sector, n, g.rnd.IntN(9) < 2)
}

// beside runs an operation while the guest writes, or alone. What the guest
// writes meanwhile has no part in what the operation promises.
func (g *simGuest) beside(writes int, op func() error) error {
	if writes == 0 {
		return op()
	}
	ended := make(chan error, 1)
	go func() { ended <- op() }()
	var err error
	for range writes {
		err = errors.Join(err, g.randomWrite())
	}
	return errors.Join(err, <-ended)
}

func (g *simGuest) flush(writes int) error {
	last := g.next - 1
	err := g.beside(writes, func() error { return g.d.Flush() })
	if err == nil {
		g.event("flushed", true, func(ws *worlds) { ws.durable(last) })
	}
	return err
}

// during runs an operation that leads from the present world to another one,
// beside some writes. After an error the disk must be in one of both.
func (g *simGuest) during(what string, writes int, change func(w world), op func() error) error {
	g.event(what, false, func(ws *worlds) {
		after := (*ws)[0].Clone()
		change(after)
		*ws = append(*ws, after)
	})
	err := g.beside(writes, op)
	happened := err == nil || g.faulty && g.worlds[1].check(g.d, false) == nil && g.worlds[0].check(g.d, false) != nil
	g.event(fmt.Sprint(what, " happened: ", happened), true, func(ws *worlds) {
		if happened {
			*ws = (*ws)[1:]
		} else {
			*ws = (*ws)[:1]
		}
	})
	return err
}

func (g *simGuest) snapshot(name string, writes int) error {
	last := g.next - 1
	err := g.during("snapshot "+name, writes,
		func(w world) { w[name] = w[""].Clone() }, func() error { return g.d.Snapshot(name) })
	if g.world()[name] == nil {
		return err
	}
	if err == nil {
		g.event("what came before snapshot "+name+" is durable", true, func(ws *worlds) { ws.durable(last) })
	}
	if writes == 0 {
		return err
	}
	// What was written beside it is in the snapshot or not: that stays so.
	read, _ := simView(g.d, name)
	values := map[int64]uint64{}
	var p [powercut.SectorSize]byte
	for _, s := range g.world()[name].Loose() {
		failed := read(p[:], s*powercut.SectorSize)
		if failed != nil { // this may be the one call that fails
			failed = read(p[:], s*powercut.SectorSize)
		}
		if failed != nil {
			return failed
		}
		value := powercut.SectorValue(p[:])
		if !g.world()[name].May(s, value) {
			return fmt.Errorf("%w: snapshot %s has %x in sector %d", errLive, name, value, s)
		}
		values[s] = value
	}
	g.event("what snapshot "+name+" has", true, func(ws *worlds) {
		for s, value := range values {
			(*ws)[0][name].Last(s, value)
		}
		if err == nil { // it has been flushed, too
			(*ws)[0][name].Durable(math.MaxUint64)
		}
	})
	return err
}

// unknown runs an operation on a name that no snapshot has, because making it
// failed.
func (g *simGuest) unknown(name string, op func() error) error {
	err := op()
	if !errors.Is(err, ErrNotExist) && !errors.Is(err, errEIO) && !errors.Is(err, errENOSPC) {
		return fmt.Errorf("%w: there is no snapshot %s, and using it gave: %w", errLive, name, err)
	}
	return err
}

func (g *simGuest) delete(name string, writes int) error {
	op := func() error { _, err := g.d.Delete(name); return err }
	if g.world()[name] == nil {
		return g.unknown(name, op)
	}
	return g.during("delete "+name, writes,
		func(w world) { delete(w, name) }, op)
}

func (g *simGuest) deleteAll(writes int, names ...string) error {
	return g.during("delete "+strings.Join(names, " "), writes, func(w world) {
		for _, name := range names {
			delete(w, name)
		}
	}, func() error { _, err := g.d.Delete(names...); return err })
}

func (g *simGuest) flatten(name string) error {
	_, err := g.d.Flatten(name)
	return err
}

func (g *simGuest) revert(name string) error {
	op := func() error { return g.d.Revert(name) }
	if name != manifest.BaseName && g.world()[name] == nil {
		return g.unknown(name, op)
	}
	empty := g.leafIsEmpty()
	return g.during("revert "+name, 0, func(w world) {
		if !empty {
			w[asideView] = w[""].Clone()
		}
		if name == manifest.BaseName {
			w[""] = g.base.Clone()
		} else {
			w[""] = w[name].Clone()
		}
	}, op)
}

// leafIsEmpty says whether a revert drops the leaf instead of setting it aside.
func (g *simGuest) leafIsEmpty() bool {
	m, nodes := g.d.tree()
	leaf := nodes[m.Leaf]
	own, err := leaf.Layer().OwnBytes()
	parent := leaf.Parent()
	return err == nil && own == 0 && (parent == nil || parent.Size() == leaf.Size())
}

func (g *simGuest) undo() error {
	op := func() error { return g.d.Undo() }
	if g.world()[asideView] == nil {
		return g.unknown(asideView, op)
	}
	empty := g.leafIsEmpty()
	return g.during("undo", 0, func(w world) {
		leaf := w[""]
		w[""] = w[asideView]
		if w[asideView] = leaf; empty {
			delete(w, asideView)
		}
	}, op)
}

func (g *simGuest) forget() error {
	op := func() error { _, err := g.d.Forget(); return err }
	if g.world()[asideView] == nil {
		return g.unknown(asideView, op)
	}
	return g.during("forget", 0, func(w world) { delete(w, asideView) }, op)
}

func (g *simGuest) rename(from, to string) error {
	op := func() error { return g.d.Rename(from, to) }
	if g.world()[from] == nil {
		return g.unknown(from, op)
	}
	return g.during("rename "+from+" "+to, 0,
		func(w world) { w[to] = w[from]; delete(w, from) }, op)
}

// remember keeps the options of a mount, which no view shows.
func (g *simGuest) remember(words string) error {
	return g.during("remember "+words, 0, func(world) {}, func() error { return g.d.RememberMount("/mnt", words) })
}

func (g *simGuest) resize(size int64) error {
	err := g.during(fmt.Sprint("resize ", size), 0,
		func(w world) { w[""].Grow(size) }, func() error { return g.d.Resize(size) })
	if err == nil {
		g.grown = nil
	} else if g.grown == nil && g.faulty && size > g.world().size() {
		// The size may have reached the disk although fdatasync says that it
		// did not. Then no more is written, and no other size either.
		g.grown = g.world().Clone()
		g.grown[""].Grow(size)
	}
	return err
}

// possible are the worlds that the next mount may find.
func (g *simGuest) possible() worlds {
	if g.grown == nil {
		return g.worlds
	}
	return append(worlds{g.grown}, g.worlds...)
}

func (g *simGuest) waitJob() error {
	for {
		j := g.d.lastJob()
		if !j.running() {
			return nil
		}
		if _, err := g.d.WaitJob(context.Background(), j.id); err != nil {
			return err
		}
	}
}

func (g *simGuest) cancel() error {
	if j := g.d.lastJob(); j.running() {
		if err := g.d.Cancel(j.id); !errors.Is(err, ErrNotExist) {
			return err
		}
	}
	return nil
}

func (g *simGuest) deleteUnnamed() error {
	_, err := g.d.DeleteUnnamed()
	return err
}

// reopen closes the disk and opens it again.
func (g *simGuest) reopen() error {
	last := g.next - 1
	err := g.d.Close()
	if err == nil {
		g.event("closed", true, func(ws *worlds) { ws.durable(last) })
	}
	d, again := openSim(g.host, g.dir, &traceLog{g: g})
	if again != nil && g.faulty {
		// A call to the host that fails may fail this one.
		d, again = openSim(g.host, g.dir, &traceLog{g: g})
	}
	if again != nil {
		return fmt.Errorf("%w: open: %w", errLive, again)
	}
	g.d = d
	if err == nil {
		return nil
	}
	if g.grown != nil && d.Size() == g.grown.size() {
		g.event("the growth that failed had reached the disk", true, func(ws *worlds) { *ws = worlds{g.grown} })
		g.grown = nil
	}
	if err := g.world().check(d, false); err != nil {
		return fmt.Errorf("%w: %w", errLive, err)
	}
	return errors.Join(err, g.world().adopt(d))
}

func (g *simGuest) compare() error {
	if err := g.world().check(g.d, !g.faulty); err != nil {
		return fmt.Errorf("%w: %w", errLive, err)
	}
	return nil
}

// errLive is what the disk shows while it is open and must not.
var errLive = errors.New("live")

// traceLog keeps what the disk logs.
type traceLog struct {
	g  *simGuest
	mu sync.Mutex
}

func (l *traceLog) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.g.note("   LOG %s", powercut.RecordText(r))
	return nil
}
func (l *traceLog) Enabled(context.Context, slog.Level) bool { return true }
func (l *traceLog) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *traceLog) WithGroup(string) slog.Handler            { return l }
