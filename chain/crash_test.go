package chain

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"varve/integration/powercut"
	"varve/overlay"
)

var (
	crashSeed      = flag.Uint64("crash.seed", 0, "the one seed of the random crash runs; 0: those from 1 on")
	crashRuns      = flag.Int("crash.runs", 3, "how many seeds, of each kind of disk, the random crash runs take")
	crashSteps     = flag.Int("crash.steps", 100, "steps of each random run")
	crashStride    = flag.Int("crash.stride", 40, "in random runs, of how many places one has its power cut")
	crashStates    = flag.Int("crash.states", 8, "states tried at each place; all subsets of what is pending where there are no more")
	crashQemu      = flag.Int("crash.qemu", 300, "of how many states one is shown to qemu-img before it is opened; 0 for none")
	crashAgain     = flag.Int("crash.again", 12, "of how many states one has its recovery cut off too; 0 for none")
	scenarioStride = flag.Int("scenario.stride", 1, "of how many places in a scenario one has its power cut")
	scenarioStates = flag.Int("scenario.states", 8, "states tried at each place of a scenario; all subsets where there are no more")
	faultStride    = flag.Int("fault.stride", 1, "of how many calls in a scenario one fails, in a run of its own")
	crashKeep      = flag.String("crash.keep", "", "a directory into which the first state that fails is written")
)

const (
	errEIO    = syscall.EIO
	errENOSPC = syscall.ENOSPC
)

// crashJudge opens what power cuts left.
type crashJudge struct {
	dir    string
	tmp    string // on the real host
	rnd    *rand.Rand
	states atomic.Int64
	images atomic.Int64 // that qemu-img has checked
	again  atomic.Int64 // states after a cut of a recovery
}

func newCrashJudge(g *simGuest, seed uint64) *crashJudge {
	return &crashJudge{dir: g.dir, tmp: g.t.TempDir(), rnd: rand.New(rand.NewPCG(seed, 2))}
}

func sometimes(rnd *rand.Rand, n int) bool { return n > 0 && rnd.IntN(n) == 0 }

// judge says what is wrong with a state: an image with errors, a disk that does
// not open, a view that shows what it must not, a job that does not end right.
func (c *crashJudge) judge(state *powercut.Host, ws worlds) error {
	c.states.Add(1)
	if err := c.checkImages(state, true); err != nil {
		return err
	}
	if sometimes(c.rnd, *crashQemu) {
		if err := c.judgeWithQemu(state, ws); err != nil {
			return err
		}
	}
	if !sometimes(c.rnd, *crashAgain) {
		return c.reopen(state, ws)
	}
	before := state.Clone()
	state.Record()
	if err := c.reopen(state, ws); err != nil {
		return err
	}
	return c.judgeRecovery(before, state.Recorded(), ws)
}

// judgeRecovery cuts a recovery off at some places.
func (c *crashJudge) judgeRecovery(before *powercut.Host, log []powercut.Op, ws worlds) error {
	player := powercut.NewPlayer(before, log)
	for {
		op, ok := player.Next()
		if !ok {
			return nil
		}
		if !sometimes(c.rnd, 1+len(log)/4) {
			continue
		}
		for what, state := range player.States(c.rnd, 2) {
			c.states.Add(1)
			c.again.Add(1)
			err := c.checkImages(state, true)
			if err == nil {
				err = c.reopen(state, ws)
			}
			if err != nil {
				return fmt.Errorf("a second cut, after %v of the recovery (%s): %w", op, what, err)
			}
		}
	}
}

// reopen opens a state, looks at all views, lets the job end, looks again, and
// closes the disk. After that no image may have as much as a leak.
func (c *crashJudge) reopen(state *powercut.Host, ws worlds) error {
	log := &logJudge{}
	d, err := openSim(state, c.dir, log)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	err = ws.any(d)
	for j := d.lastJob(); j.running() && err == nil; j = d.lastJob() {
		<-j.done
	}
	if m, _ := d.tree(); err == nil && m.Job != nil {
		err = fmt.Errorf("the job %+v is not done", *m.Job)
	}
	if err == nil {
		err = ws.any(d)
	}
	if e := d.Close(); err == nil && e != nil {
		err = fmt.Errorf("close: %w", e)
	}
	switch {
	case err != nil:
		return err
	case log.found() != "":
		return errors.New(log.found())
	}
	return c.checkImages(state, false)
}

// checkImages looks through each layer of ours. Leaks are what a power cut may
// leave.
func (c *crashJudge) checkImages(state *powercut.Host, leaks bool) error {
	m, err := loadManifest(state, c.dir)
	if err != nil {
		return err
	}
	for _, l := range m.Layers {
		if l.Foreign {
			continue
		}
		if err := checkImage(state, l.path(c.dir), leaks); err != nil {
			return fmt.Errorf("%s: %w", l.label(), err)
		}
		if err := headerFollows(state, m, l, c.dir); err != nil && !leaks {
			return err
		}
	}
	return nil
}

// judgeWithQemu has qemu-img check each image and read each view, as a power
// cut left them.
func (c *crashJudge) judgeWithQemu(state *powercut.Host, ws worlds) error {
	root, err := os.MkdirTemp(c.tmp, "cut")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	if err := state.Save(c.dir, root); err != nil {
		return err
	}
	m, err := loadManifest(state, c.dir)
	if err != nil {
		return err
	}
	views := map[string]string{} // by name
	for _, l := range m.Layers {
		if l.Foreign {
			continue
		}
		path := l.path(root)
		c.images.Add(1)
		out, err := exec.Command("qemu-img", "check", "-f", "qcow2", path).CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 3) {
			return fmt.Errorf("qemu-img check %s: %w\n%s", l.label(), err, out)
		}
		switch {
		case l.ID == m.Leaf:
			views[""] = path
		case l.Name != "":
			views[l.Name] = path
		}
	}
	var failed error
	for _, w := range ws {
		if failed = readWithQemu(root, views, w); failed == nil {
			return nil
		}
	}
	return failed
}

// readWithQemu compares what qemu-img reads of views with what may be there.
func readWithQemu(root string, views map[string]string, w world) error {
	for name, path := range views {
		want := w[name]
		if want == nil {
			return fmt.Errorf("there is a view %q", name)
		}
		raw := filepath.Join(root, "view.raw")
		if out, err := exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw).CombinedOutput(); err != nil {
			return fmt.Errorf("qemu-img convert %q: %w\n%s", name, err, out)
		}
		f, err := os.Open(raw)
		if err != nil {
			return err
		}
		err = want.Check(func(p []byte, off int64) error {
			_, err := f.ReadAt(p, off)
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}, false)
		f.Close()
		if err != nil {
			return fmt.Errorf("qemu-img reads the view %q: %w", name, err)
		}
	}
	return nil
}

// logJudge finds in the log what recovery must never say (M7).
type logJudge struct {
	mu  sync.Mutex
	bad string
}

func (l *logJudge) found() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bad
}

func (l *logJudge) Enabled(context.Context, slog.Level) bool { return true }
func (l *logJudge) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logJudge) WithGroup(string) slog.Handler            { return l }
func (l *logJudge) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "raised refcounts that were too low" || r.Message == "job failed" {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.bad = recordText(r)
	}
	return nil
}

// replay goes through a guest's record and cuts the power at every stride-th
// place of it.
func (c *crashJudge) replay(g *simGuest, log []powercut.Op, stride, states int) {
	g.t.Helper()
	ws := worlds{g.known[0].Clone()}
	player := powercut.NewPlayer(g.began, log)
	for place := c.rnd.IntN(stride); ; {
		op, ok := player.Next()
		if !ok {
			return
		}
		if op.Kind == powercut.Mark {
			e := op.Event.(event)
			e.apply(&ws)
			if !e.firm {
				continue
			}
		}
		if place++; place%stride != 0 {
			continue
		}
		for what, state := range player.States(c.rnd, states) {
			kept := state.Clone()
			if err := c.judge(state, ws); err != nil {
				g.t.Fatalf("power cut after entry %d of the record, %v (%s): %v%s\nrecord:\n%s",
					player.At(), op, what, err, keepState(kept, c.dir), storyOf(player))
			}
		}
	}
}

func storyOf(player *powercut.Player) string {
	var lines []string
	for _, op := range player.Story(60) {
		lines = append(lines, op.String())
	}
	return strings.Join(lines, "\n")
}

func keepState(state *powercut.Host, dir string) string {
	if *crashKeep == "" {
		return ""
	}
	if err := state.Save(dir, *crashKeep); err != nil {
		return "\nthe state could not be kept: " + err.Error()
	}
	return "\nthe state is in " + *crashKeep
}

// TestPowerCut lets a guest do at random what guests and people do to a disk,
// with the host's calls recorded, and then cuts the power at places of that
// record, with any part of what was not synced lost: everything that was flushed
// is there, every other sector has an old or a new value, no image has errors,
// qemu-img reads the same, and the job under way ends right.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	var seeds []uint64
	for i := range *crashRuns {
		seeds = append(seeds, uint64(i+1))
	}
	if *crashSeed != 0 {
		seeds = []uint64{*crashSeed}
	}
	for _, seed := range seeds {
		for _, kind := range []simKind{onRaw, blank, onChain} {
			t.Run(fmt.Sprintf("%s seed %d", kind, seed), func(t *testing.T) {
				t.Parallel()
				began := time.Now()
				g := newSimGuest(t, kind, seed)
				log := g.record(func() error {
					for range *crashSteps {
						if err := g.step(); err != nil && !errors.Is(err, ErrBusy) && !errors.Is(err, ErrNotExist) && !errors.Is(err, ErrInvalid) {
							return err
						}
					}
					return nil
				})
				c := newCrashJudge(g, seed)
				c.replay(g, log, *crashStride, *crashStates)
				c.report(t, len(log), began)
			})
		}
	}
}

func (c *crashJudge) report(t *testing.T, entries int, began time.Time) {
	t.Logf("%d crash states of a record of %d entries, %d of them after a cut of a recovery; qemu-img checked %d images; %.1f s",
		c.states.Load(), entries, c.again.Load(), c.images.Load(), time.Since(began).Seconds())
}

// record opens the guest's disk, runs something and closes it, and gives the
// record of all calls to the host.
func (g *simGuest) record(run func() error) []powercut.Op {
	g.t.Helper()
	g.host.Record()
	g.open()
	if err := run(); err != nil {
		g.t.Fatalf("%v\nsteps:\n%s", err, g.story())
	}
	must(g.t, g.d.Close())
	return g.host.Recorded()
}

// headerFollows checks that a layer's header names what chain.json says (M15).
func headerFollows(fs overlay.FS, m *manifest, l *layerRecord, dir string) error {
	im, err := overlay.OpenImage(fs, l.path(dir), l.Format, overlay.LockNone)
	if err != nil {
		return err
	}
	defer im.Close()
	d := &Disk{dir: dir}
	name, _ := d.backingName(m.layer(l.Parent))
	if got := im.Header().BackingName; got != name {
		return fmt.Errorf("%s names the backing file %q, chain.json %q", l.label(), got, name)
	}
	return nil
}

// headersFollow is headerFollows for all layers of ours.
func headersFollow(fs overlay.FS, dir string) error {
	m, err := loadManifest(fs, dir)
	if err != nil {
		return err
	}
	for _, l := range m.Layers {
		if l.Foreign {
			continue
		}
		if err := headerFollows(fs, m, l, dir); err != nil {
			return err
		}
	}
	return nil
}

// checkImage says what overlay.Check, whose judge is qemu-img, finds in an image
// of ours: an error, or a leak where none may be.
func checkImage(fs overlay.FS, path string, leaks bool) error {
	f, err := fs.Open(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := overlay.Check(context.Background(), f, formatQcow2, overlay.CheckOptions{})
	if err != nil {
		return err
	}
	if r.Errors > 0 || r.Leaks > 0 && !leaks {
		return fmt.Errorf("%d errors and %d leaks: %+v", r.Errors, r.Leaks, r.Problems)
	}
	return nil
}
