package integration

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/integration/harness"
	"varve/integration/model"
	"varve/integration/patience"
	"varve/integration/stamps"
)

var (
	soakTime = flag.Duration("soak.time", 0, "how long TestSoak goes on; 0 for the default")
	soakSeed = flag.Uint64("soak.seed", 1, "seed of TestSoak")
)

// The disk of TestSoak: its base, as far as it grows, and what of it is whose
// while everybody writes at the same time.
const (
	soakDisk     = 20<<20 + 777
	soakMax      = 28 << 20
	soakStamps   = 2 << 20 // at 0
	soakFio      = 2 << 20
	soakBulk     = 4 << 20
	soakBulkSize = 16 << 20
)

// TestSoak works on one disk for as long as it is told: rounds of the state
// machine's random steps take turns with rounds in which stamp writers, fio and
// somebody at the control files are all at work at once, with cancelled jobs,
// and twice the disk is unmounted, judged and mounted again. Everything is
// verified; and after each round, at rest, the daemon must not use more than it
// did after the first one since it was mounted, give or take what soakBounds say.
func TestSoak(t *testing.T) {
	limit := 12 * time.Second
	if harness.Long() {
		limit = 3 * time.Minute
	}
	if *soakTime != 0 {
		limit = *soakTime
	}
	dir := t.TempDir()
	base := filepath.Join(dir, "base.raw")
	save(t, base, noise(*soakSeed, soakDisk))
	harness.Guard(t, base)
	s := &soak{T: t, rnd: rand.New(rand.NewPCG(*soakSeed, 0)), base: load(t, base), began: time.Now()}
	s.target = soakTarget{&mountTarget{t: t, source: base}}
	s.mount()
	t.Cleanup(func() {
		t.Logf("the daemon's use of resources (again with -soak.seed %d -soak.time %v):\n%s", *soakSeed, limit, s.table())
	})
	for time.Since(s.began) < limit || s.rounds < 2 {
		s.round, s.rounds = s.round+1, s.rounds+1
		s.machine()
		s.load(min(20*time.Second, limit/10))
		s.tidy()
		s.rest()
		if now := time.Since(s.began); s.rounds > 1 && now > limit*time.Duration(s.mounts)/3 && now < limit {
			s.remount()
		}
	}
	s.remount()
}

// soakTarget is a mounted disk for the model that is not mounted again by it:
// TestSoak does that itself, seldom.
type soakTarget struct{ *mountTarget }

func (soakTarget) Reopen(bool, map[string][]byte) error { return nil }

// soak is a TestSoak under way.
type soak struct {
	*testing.T
	rnd    *rand.Rand
	base   []byte
	target soakTarget
	began  time.Time
	round  int
	mounts int
	rounds int // since it was mounted

	steps, controls, refused, passes, sectors, reads int // done so far

	warm *harness.Use // at rest after the first round of this mount
	rows []soakRow
}

type soakRow struct {
	at            time.Duration
	mount, layers int
	use           harness.Use
	peak          int64 // RSS in bytes since the row before
	done          string
}

func (s *soak) mount() {
	s.Helper()
	if err := s.target.mount(); err != nil {
		s.Fatal(err)
	}
	s.mounts, s.rounds, s.warm = s.mounts+1, 0, nil
}

// remount unmounts, judges the files, and mounts again.
func (s *soak) remount() {
	s.Helper()
	_ = s.target.raw.Close() // nothing is held back until then
	views := s.target.m.SaveViews()
	for id, file := range views {
		// QEMU leaves out what is less than a sector.
		if info, err := os.Stat(file); err == nil && id != "000001" {
			harness.Run(s.T, "truncate", "-s", fmt.Sprint(info.Size()&^511), file)
		}
	}
	s.target.m.Unmount()
	harness.Judge(s.T, s.target.m.Disk, views)
	if s.Failed() {
		s.FailNow()
	}
	s.mount()
}

// machine does random steps of the model, which begins with the disk as it is:
// one snapshot of it beside the base.
func (s *soak) machine() {
	s.Helper()
	name := fmt.Sprintf("zz-%d", s.round)
	s.target.m.Do("snapshot", name)
	leaf := load(s.T, s.target.m.Raw())
	const steps = 120
	o := model.Options{
		Seed: *soakSeed<<32 + uint64(s.round), Steps: steps, Every: 40,
		Base: s.base, Extra: map[string][]byte{name: leaf}, Top: name, Size: int64(len(leaf)), MaxSize: soakMax,
	}
	if err := model.Run(s.target, o); err != nil {
		s.Fatal(err)
	}
	s.steps += steps
}

// load has everybody at work at once for a time, and verifies what they did.
func (s *soak) load(limit time.Duration) {
	s.Helper()
	m := s.target.m
	dir, err := os.MkdirTemp("", "soak-")
	if err != nil {
		s.Fatal(err)
	}
	defer os.RemoveAll(dir)
	first, record := filepath.Join(dir, "first"), filepath.Join(dir, "record")
	harness.Run(s.T, "cp", "--sparse=always", m.Raw(), first)
	if err := os.Mkdir(record, 0o700); err != nil {
		s.Fatal(err)
	}
	area := stamps.Area{File: m.Raw(), Record: record, Count: soakStamps / stamps.Sector, Writers: 3}
	c := &controller{soak: s, m: m, area: area, dir: dir, first: first, views: map[string]*soakView{},
		bulk: load(s.T, first)[soakBulk : soakBulk+soakBulkSize]}

	writers := startWriters(s.T, area, *soakSeed<<32+uint64(s.round))
	stop := make(chan struct{})
	var others sync.WaitGroup
	slot := fioSlot{off: soakFio, size: soakBulk - soakFio}
	others.Go(func() {
		for !closed(stop) {
			s.passes++
			slot.seed, slot.block = uint64(s.passes), []string{"4k", "512", "16k", "2k"}[s.passes%4]
			if r := slot.write(s.T, m.Raw()); r.Code != 0 {
				s.Errorf("fio: exit code %d\n%s", r.Code, r.Stderr)
				return
			}
		}
	})
	others.Go(func() {
		for !closed(stop) && !s.Failed() {
			c.step()
		}
	})
	time.Sleep(limit)
	close(stop)
	others.Wait()
	writers.stop(s.T)

	v, err := area.JudgeLive(m.Raw(), first)
	if err != nil {
		s.Error(err)
	}
	s.sectors += v.Written
	slot.verify(s.T, m.Raw())
	c.judge()
	if s.Failed() {
		s.FailNow()
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// controller is whoever works at the control files during a load.
type controller struct {
	*soak
	m          *harness.Mount
	area       stamps.Area
	dir, first string
	bulk       []byte
	views      map[string]*soakView
	names      int
}

// soakView is a snapshot that was taken during a load.
type soakView struct {
	file          string // a copy of it
	before, after stamps.Mark
	bulk          []byte // what it has of the bulk area
}

// step does one thing.
func (c *controller) step() {
	var names []string
	for name := range c.views {
		names = append(names, name)
	}
	slices.Sort(names)
	one := func() string { return names[c.rnd.IntN(len(names))] }
	switch n := c.rnd.IntN(20); {
	case n < 7:
		c.write()
	case n < 11 && len(names) < 8 || len(names) == 0:
		c.snapshot()
	case n < 14 || len(names) >= 8:
		name := one()
		if c.control("delete", name) {
			delete(c.views, name)
		}
	case n < 15:
		c.control("flatten", one())
	case n < 16:
		c.control("flatten", "leaf")
	case n < 17:
		c.control("delete", "--unnamed")
	case n < 18:
		from, to := one(), c.newName()
		if c.control("rename", from+" "+to) {
			c.views[to] = c.views[from]
			delete(c.views, from)
		}
	case n < 19:
		if job := c.m.Status().Job; job != nil && job.State == "running" {
			c.control("cancel", job.ID)
		}
	default:
		c.compare(one())
	}
}

func (c *controller) newName() string {
	c.names++
	return fmt.Sprintf("s%d", c.names)
}

// control writes to a control file. During a job EBUSY is an answer, and so is
// ENOENT to the cancel of a job that has just ended.
func (c *controller) control(name, line string) bool {
	err := c.m.Control(name, line)
	c.controls++
	if errors.Is(err, unix.EBUSY) || name == "cancel" && errors.Is(err, unix.ENOENT) {
		c.refused++
		return false
	}
	if err != nil {
		words, _ := os.ReadFile(c.m.Path("control", name))
		c.Errorf("%s %q: %v\n%s", name, line, err, words)
	}
	return err == nil
}

func (c *controller) write() {
	off, length := c.rnd.Int64N(soakBulkSize), 1+c.rnd.Int64N(3<<20)
	length = min(length, soakBulkSize-off)
	copy(c.bulk[off:], noise(c.rnd.Uint64(), int(length)))
	if _, err := c.target.raw.WriteAt(c.bulk[off:off+length], soakBulk+off); err != nil {
		c.Error(err)
	}
}

func (c *controller) snapshot() {
	name := c.newName()
	v := &soakView{file: filepath.Join(c.dir, name), bulk: slices.Clone(c.bulk)}
	var err error
	if v.before, err = stamps.MarkNow(c.area.Record, c.area.Writers); err != nil {
		c.Error(err)
	}
	if !c.control("snapshot", name) {
		return
	}
	if v.after, err = stamps.MarkNow(c.area.Record, c.area.Writers); err != nil {
		c.Error(err)
	}
	harness.Run(c.T, "cp", "--sparse=always", c.m.Layer(name), v.file)
	c.views[name] = v
}

func (c *controller) compare(name string) {
	c.reads++
	if r := harness.Try(c.T, "cmp", c.views[name].file, c.m.Layer(name)); r.Code != 0 {
		c.Errorf("layers/%s.raw is not what it was: %s%s", name, r.Stdout, r.Stderr)
	}
}

// judge looks at everything once more, at the end.
func (c *controller) judge() {
	c.Helper()
	c.m.WaitJob(patience.Hang)
	if !bytes.Equal(load(c.T, c.m.Raw())[soakBulk:soakBulk+soakBulkSize], c.bulk) {
		c.Error("the bulk area is not what was written")
	}
	for name, v := range c.views {
		c.compare(name)
		if !bytes.Equal(load(c.T, v.file)[soakBulk:soakBulk+soakBulkSize], v.bulk) {
			c.Errorf("snapshot %s: the bulk area is not what it was at that moment", name)
		}
		if _, err := c.area.JudgeSnapshot(v.file, c.first, v.before, v.after, true); err != nil {
			c.Errorf("snapshot %s: %v", name, err)
		}
	}
}

// tidy deletes every snapshot, so that the rounds have the same to begin with.
func (s *soak) tidy() {
	s.Helper()
	m := s.target.m
	for {
		m.WaitJob(patience.Hang)
		names, err := s.target.Names()
		if err != nil {
			s.Fatal(err)
		}
		names = slices.DeleteFunc(names, func(n string) bool { return n == "base" })
		line := "--unnamed"
		if len(names) > 0 {
			line = names[s.rnd.IntN(len(names))]
		}
		before := m.Status().Job
		m.Do("delete", line)
		if after := m.WaitJob(patience.Hang); len(names) == 0 && (after == nil || before != nil && after.ID == before.ID) {
			return // nothing is left to merge
		}
	}
}

// soakBounds are what the daemon may use at rest more than it did at rest after
// the first round since it was mounted. Its caches (40 MiB by default) are not full
// then, and Go's heap may be twice what is live.
var soakBounds = harness.Use{RSS: 80 << 20, Live: 40 << 20, Goroutines: 16, Threads: 16, Files: 1}

// rest waits until the daemon is at rest, and compares.
func (s *soak) rest() {
	s.Helper()
	m := s.target.m
	if err := s.target.raw.Close(); err != nil {
		s.Error(err)
	}
	var layers int
	var use harness.Use
	harness.Eventually(s.T, time.Minute, func() error {
		status := m.Status()
		layers = len(status.Layers)
		if len(status.Open) > 0 || status.Job != nil && status.Job.State == "running" {
			return fmt.Errorf("not at rest: open %+v, job %+v", status.Open, status.Job)
		}
		use = m.Use()
		use.Files -= layers // one each
		return s.flat(use)
	})
	if s.warm == nil {
		s.warm = &use
	}
	s.rows = append(s.rows, soakRow{
		at: time.Since(s.began), mount: s.mounts, layers: layers, use: use, peak: m.PeakRSS(),
		done: fmt.Sprintf("%d/%d/%d/%d/%d", s.steps, s.controls-s.refused, s.passes, s.sectors, s.reads),
	})
	if err := s.target.openRaw(); err != nil {
		s.Fatal(err)
	}
}

// flat says what the daemon uses more than it may.
func (s *soak) flat(use harness.Use) error {
	if s.warm == nil {
		return nil
	}
	if harness.Raced() {
		use.RSS = 0 // the race detector's memory is not bounded
	}
	var more []string
	for _, c := range []struct {
		what             string
		warm, now, bound int64
	}{
		{"bytes resident", s.warm.RSS, use.RSS, soakBounds.RSS},
		{"bytes live", s.warm.Live, use.Live, soakBounds.Live},
		{"goroutines", int64(s.warm.Goroutines), int64(use.Goroutines), int64(soakBounds.Goroutines)},
		{"threads", int64(s.warm.Threads), int64(use.Threads), int64(soakBounds.Threads)},
		{"open files besides the layers'", int64(s.warm.Files), int64(use.Files), int64(soakBounds.Files)},
	} {
		if c.now > c.warm+c.bound {
			more = append(more, fmt.Sprintf("%d %s, %d after the first round, and at most %d more are allowed", c.now, c.what, c.warm, c.bound))
		}
	}
	if len(more) > 0 {
		return fmt.Errorf("the daemon has grown: %s", strings.Join(more, "; "))
	}
	return nil
}

// table is the rows as text; of many, about thirty.
func (s *soak) table() string {
	var b strings.Builder
	mib := func(n int64) string { return fmt.Sprintf("%.1f", float64(n)/(1<<20)) }
	const format = "%8s %5s %6s %8s %8s %8s %8s %6s %7s %6s  %s\n"
	fmt.Fprintf(&b, format, "time", "mount", "layers", "RSS MiB", "peak", "live MiB", "heap MiB", "gorout", "threads", "files", "steps/controls/fio passes/sectors/views")
	every := max(1, len(s.rows)/30)
	for i, r := range s.rows {
		if i%every != 0 && i != len(s.rows)-1 {
			continue
		}
		fmt.Fprintf(&b, format, r.at.Round(time.Second), fmt.Sprint(r.mount), fmt.Sprint(r.layers), mib(r.use.RSS), mib(r.peak),
			mib(r.use.Live), mib(r.use.Heap), fmt.Sprint(r.use.Goroutines), fmt.Sprint(r.use.Threads), fmt.Sprint(r.use.Files+r.layers), r.done)
	}
	return b.String()
}
