package chain

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

var (
	crashSeed  = flag.Uint64("crash.seed", 0, "the one seed of the crash test; 0 for several")
	crashRuns  = flag.Int("crash.runs", 3, "seeds that the crash test tries")
	crashSteps = flag.Int("crash.steps", 120, "steps of each run")
	crashCuts  = flag.Int("crash.cuts", 20, "of how many calls to the host one is followed by a power cut")
	crashQemu  = flag.Int("crash.qemu", 150, "of how many crash states one is shown to qemu-img; 0 for none")
)

const (
	simDir    = "/vm.varve"
	simBase   = "/base.raw"
	simSize   = 40<<20 + 512*5
	simSector = 512
)

// hotRanges are where the guest writes: over clusters' and regions' edges.
var hotRanges = [][2]int64{
	{0, 300 << 10},
	{16<<20 - 160<<10, 16<<20 + 160<<10},
	{40<<20 - 200<<10, 40<<20 + 200<<10},
}

// simGuest drives a Disk on a simFS and knows what must be there.
type simGuest struct {
	t    *testing.T
	rnd  *rand.Rand
	fs   *simFS
	d    *Disk
	next uint64

	mu     sync.Mutex
	worlds []world // the present one; the one that an operation under way leads to

	cutRnd  *rand.Rand
	states  int
	depth   int
	failed  error
	faulty  bool // a call to the host fails somewhere
	traceMu sync.Mutex
	trace   []string
}

// logJudge fails on what recovery must never find (M7).
type logJudge struct {
	slog.Handler
	mu    sync.Mutex
	found string
}

func (l *logJudge) Enabled(context.Context, slog.Level) bool { return true }
func (l *logJudge) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logJudge) WithGroup(string) slog.Handler            { return l }
func (l *logJudge) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "raised refcounts that were too low" || r.Message == "job failed" {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.found = r.Message
		r.Attrs(func(a slog.Attr) bool { l.found += " " + a.String(); return true })
	}
	return nil
}

// errLive is what the disk shows while it is open and must not.
var errLive = errors.New("live")

type traceLog struct {
	logJudge
	g *simGuest
}

func (l *traceLog) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := "   LOG " + r.Message
	r.Attrs(func(a slog.Attr) bool { m += " " + a.String(); return true })
	l.g.note("%s", m)
	return nil
}
func (l *traceLog) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l *traceLog) WithGroup(string) slog.Handler      { return l }

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

func newSimGuest(t *testing.T, seed uint64) *simGuest {
	t.Helper()
	fs := newSimFS()
	fs.live["/"] = &simNode{dir: true}
	f, err := fs.Open(simBase, os.O_RDWR|os.O_CREATE, 0)
	must(t, err)
	must(t, f.Truncate(simSize))
	var p [simSector]byte
	for _, h := range hotRanges {
		for s := h[0] / simSector; s < min(h[1], simSize)/simSector; s++ {
			if v := baseValue(s); v != 0 {
				fillSector(p[:], v)
				_, err := f.WriteAt(p[:], s*simSector)
				must(t, err)
			}
		}
	}
	must(t, f.Close())
	_, err = Create(simDir, CreateOptions{FS: fs, Base: simBase})
	must(t, err)
	fs.settle()
	g := &simGuest{
		t: t, fs: fs, rnd: rand.New(rand.NewPCG(seed, 1)), cutRnd: rand.New(rand.NewPCG(seed, 2)), next: 1,
		worlds: []world{{"": newContents(simSize)}},
	}
	return g
}

func fillSector(p []byte, v uint64) {
	for i := 0; i < len(p); i += 8 {
		binary.BigEndian.PutUint64(p[i:], v)
	}
}

func (g *simGuest) open() {
	g.t.Helper()
	d, err := Open(simDir, OpenOptions{FS: g.fs, CacheBytes: 1 << 20, Log: slog.New(&traceLog{g: g})})
	must(g.t, err)
	g.d = d
}

// reopenLive opens the disk after it was closed, perhaps with an error.
func (g *simGuest) reopenLive() error {
	d, err := Open(simDir, OpenOptions{FS: g.fs, CacheBytes: 1 << 20, Log: slog.New(&traceLog{g: g})})
	if err != nil {
		// A call to the host that fails may fail this one.
		d, err = Open(simDir, OpenOptions{FS: g.fs, CacheBytes: 1 << 20})
	}
	if err != nil {
		return err
	}
	g.d = d
	if err := g.world().check(d, false); err != nil {
		return err
	}
	return g.world().adopt(d)
}

// place is somewhere in the hot ranges, in sectors.
func (g *simGuest) place() (sector, n int64) {
	for {
		h := hotRanges[g.rnd.IntN(len(hotRanges))]
		end := min(h[1], g.world().size())
		if h[0] >= end {
			continue
		}
		sector = (h[0] + g.rnd.Int64N(end-h[0])) / simSector
		n = 1 + g.rnd.Int64N(1<<g.rnd.IntN(9))
		return sector, max(1, min(n, end/simSector-sector))
	}
}

func (g *simGuest) world() world { return g.worlds[0] }

// during runs an operation that leads from the present world to another one.
// After an error the disk must be in one of both.
func (g *simGuest) during(change func(w world), op func() error) error {
	after := g.world().clone()
	change(after)
	g.mu.Lock()
	g.worlds = append(g.worlds, after)
	g.mu.Unlock()
	err := op()
	// Only this goroutine changes worlds; a cut, which reads them under mu,
	// keeps the host's lock, which a check needs.
	left := g.worlds[1:]
	if err != nil && (after.check(g.d, false) != nil || g.world().check(g.d, false) == nil) {
		left = g.worlds[:1]
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.worlds = left
	return err
}

func (g *simGuest) write(zero bool) error {
	sector, n := g.place()
	value := uint64(0)
	if !zero {
		value = g.next
		g.next++
	}
	leaf := g.world()[""]
	g.mu.Lock()
	leaf.write(sector, n, value)
	g.mu.Unlock()
	var err error
	if zero {
		err = g.d.Discard(sector*simSector, n*simSector)
	} else {
		p := make([]byte, n*simSector)
		fillSector(p, value)
		err = g.d.WriteAt(p, sector*simSector)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for s := sector; s < sector+n; s++ {
		if err != nil {
			leaf.unsure[s] = true
		} else {
			delete(leaf.unsure, s)
		}
	}
	return err
}

func (g *simGuest) flush() error {
	if err := g.d.Flush(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.world()[""].durable()
	return nil
}

func (g *simGuest) anyName() string {
	names := g.world().names()[1:]
	if len(names) == 0 {
		return baseName
	}
	return names[g.rnd.IntN(len(names))]
}

func (g *simGuest) step() error {
	w := g.world()
	k := g.rnd.IntN(100)
	record := g.note
	switch {
	case k < 42:
		record("write")
		return g.write(false)
	case k < 54:
		record("discard")
		return g.write(true)
	case k < 64:
		record("flush")
		return g.flush()
	case k < 74 && len(w) < 6:
		name := fmt.Sprintf("s%d", g.next)
		g.next++
		record("snapshot %s", name)
		err := g.during(func(w world) { w[name] = w[""].clone() }, func() error { return g.d.Snapshot(name) })
		if err == nil {
			g.mu.Lock()
			g.world()[""].durable()
			g.world()[name].durable()
			g.mu.Unlock()
		}
		return err
	case k < 80:
		name := g.anyName()
		if name == baseName {
			return nil
		}
		record("delete %s", name)
		return g.during(func(w world) { delete(w, name) }, func() error { _, err := g.d.Delete(name); return err })
	case k < 82:
		name := g.anyName()
		if name == baseName || g.rnd.IntN(2) == 0 {
			name = leafName
		}
		record("flatten %s", name)
		_, err := g.d.Flatten(name)
		return err
	case k < 85:
		name := g.anyName()
		record("revert %s", name)
		return g.during(func(w world) {
			if name == baseName {
				w[""] = newContents(simSize)
			} else {
				w[""] = w[name].clone()
			}
		}, func() error { return g.d.Revert(name) })
	case k < 87:
		name := g.anyName()
		if name == baseName {
			return nil
		}
		to := fmt.Sprintf("r%d", g.next)
		g.next++
		record("rename %s %s", name, to)
		return g.during(func(w world) { w[to] = w[name]; delete(w, name) }, func() error { return g.d.Rename(name, to) })
	case k < 89:
		size := w.size() + 512*g.rnd.Int64N(200)
		if size > 40<<20+200<<10 {
			return nil
		}
		record("resize %d", size)
		return g.during(func(w world) {
			for s := (w.size() + simSector - 1) / simSector; s < size/simSector; s++ {
				w[""].sectors[s] = []uint64{0}
			}
			w[""].size = size
		}, func() error { return g.d.Resize(size) })
	case k < 93:
		record("wait")
		if j := g.d.lastJob(); j.running() {
			_, err := g.d.WaitJob(context.Background(), j.id)
			return err
		}
	case k < 95:
		record("cancel")
		if j := g.d.lastJob(); j.running() {
			return g.d.Cancel(j.id)
		}
	case k < 97:
		record("close")
		err := g.d.Close()
		if err == nil {
			g.mu.Lock()
			g.world()[""].durable()
			g.mu.Unlock()
		}
		if again := g.reopenLive(); again != nil {
			return fmt.Errorf("%w: open: %w", errLive, again)
		}
		return err
	default:
		record("compare")
		if err := g.world().check(g.d, !g.faulty); err != nil {
			return fmt.Errorf("%w: %w", errLive, err)
		}
	}
	return nil
}

// judge opens what a power cut left, and compares.
func (g *simGuest) judge(after *simFS, qemu bool) error {
	if qemu {
		if err := g.judgeWithQemu(after); err != nil {
			return err
		}
	}
	if g.depth == 0 && g.cutRnd.IntN(4) == 0 {
		// The recovery is cut off as well.
		g.depth++
		defer func() { g.depth-- }()
		at := g.cutRnd.IntN(40)
		var second *simFS
		after.hook = func(string, string) error {
			if at--; at == 0 {
				second = after.cut(g.cutRnd)
			}
			return nil
		}
		if err := g.reopen(after); err != nil {
			return err
		}
		if second != nil {
			if err := g.reopen(second); err != nil {
				return fmt.Errorf("after a second cut: %w", err)
			}
		}
		return nil
	}
	return g.reopen(after)
}

func (g *simGuest) reopen(after *simFS) error {
	judge := &logJudge{}
	d, err := Open(simDir, OpenOptions{FS: after, CacheBytes: 1 << 20, Log: slog.New(judge)})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	err = g.anyWorld(d)
	for j := d.lastJob(); j.running() && err == nil; j = d.lastJob() {
		<-j.done
	}
	if err == nil {
		err = g.anyWorld(d)
	}
	if e := d.Close(); err == nil && e != nil {
		err = fmt.Errorf("close: %w", e)
	}
	if err == nil && judge.found != "" {
		err = errors.New(judge.found)
	}
	return err
}

func (g *simGuest) anyWorld(d *Disk) error {
	var all []error
	for _, w := range g.worlds {
		err := w.check(d, false)
		if err == nil {
			return nil
		}
		all = append(all, err)
	}
	return errors.Join(all...)
}

func (g *simGuest) judgeWithQemu(after *simFS) error {
	root, err := os.MkdirTemp(g.t.TempDir(), "cut")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	if err := after.save(root); err != nil {
		return err
	}
	m, err := loadManifest(after, simDir)
	if err != nil {
		return err
	}
	for _, l := range m.Layers {
		if l.Foreign {
			continue
		}
		path := filepath.Join(root, l.path(simDir))
		out, err := exec.Command("qemu-img", "check", "--image-opts", "driver=qcow2,backing=,file.driver=file,file.filename="+path).CombinedOutput()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == 3 {
			err = nil // leaks are what a cut may leave
		}
		if err != nil {
			return fmt.Errorf("qemu-img check %s: %w\n%s", l.label(), err, out)
		}
	}
	return nil
}

// run makes steps with power cuts in between.
func (g *simGuest) run(steps int) {
	g.open()
	g.fs.mu.Lock()
	g.fs.hook = func(op, path string) error {
		if g.failed != nil || g.cutRnd.IntN(*crashCuts) != 0 {
			return nil
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.states++
		after := g.fs.cut(g.cutRnd)
		if err := g.judge(after, *crashQemu > 0 && g.states%*crashQemu == 0); err != nil {
			g.failed = fmt.Errorf("power cut before call %d (%s %s): %w", g.fs.calls, op, path, err)
		}
		return nil
	}
	g.fs.mu.Unlock()
	for range steps {
		err := g.step()
		if errors.Is(err, ErrBusy) || errors.Is(err, ErrNotExist) {
			err = nil
		}
		g.fs.mu.Lock()
		if g.failed != nil {
			err = g.failed
		}
		g.fs.mu.Unlock()
		if err != nil {
			g.t.Fatalf("%v\nsteps:\n%s", err, g.story())
		}
	}
	must(g.t, g.d.Close())
}

// TestPowerCut cuts the power at random calls to the host, with any part of
// what was not synced lost, and opens what is left: everything that was
// flushed is there, every other sector has an old or a new value, no layer has
// errors, and the job under way ends right.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	seeds := []uint64{}
	for i := range *crashRuns {
		seeds = append(seeds, uint64(i+1))
	}
	if *crashSeed != 0 {
		seeds = []uint64{*crashSeed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			g := newSimGuest(t, seed)
			g.run(*crashSteps)
			t.Logf("%d crash states", g.states)
		})
	}
}
