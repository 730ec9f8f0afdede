package chain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"varve/chain/manifest"
	"varve/integration/powercut"
	"varve/integration/turn"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

var flags = powercut.NewFlags()

// crashSteps is how many steps a random run makes.
const crashSteps = 100

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
	room   int64        // bytes that are free when a state is opened; 0 for enough
}

func newCrashJudge(g *simGuest, seed uint64) *crashJudge {
	return &crashJudge{dir: g.dir, tmp: g.t.TempDir(), rnd: rand.New(rand.NewPCG(seed, 2))}
}

// judge says what is wrong with a state: an image with errors, a disk that does
// not open, a view that shows what it must not, a job that does not end right.
func (c *crashJudge) judge(state *powercut.Host, ws worlds) error {
	c.states.Add(1)
	if err := c.checkImages(state, true); err != nil {
		return err
	}
	if err := c.readByHeaders(state, ws); err != nil {
		return err
	}
	if powercut.Sometimes(c.rnd, flags.Qemu) {
		if err := c.judgeWithQemu(state, ws); err != nil {
			return err
		}
	}
	if powercut.Sometimes(c.rnd, flags.Again) {
		// As varve check sees it, and repairs it.
		r, err := Check(context.Background(), c.dir, CheckOptions{FS: state})
		if err != nil || r.Errors > 0 {
			return fmt.Errorf("check: %w\n%s", err, findingLines(r))
		}
		// As varve doctor sees it.
		e, err := Examine(context.Background(), c.dir, state)
		if err != nil || hasTrouble(e) {
			return fmt.Errorf("examine: %w\n%s", err, troubleLines(e))
		}
		return c.repaired(state, ws)
	}
	if !powercut.Sometimes(c.rnd, flags.Again) {
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
		if !powercut.Sometimes(c.rnd, 1+len(log)/4) {
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
	if c.room > 0 {
		state.Limit(c.room, false)
	}
	log := &powercut.LogJudge{Never: []string{"raised refcounts that were too low", "job failed"}} // M7
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
	if err = errors.Join(err, log.Err()); err != nil {
		return err
	}
	return c.checkImages(state, false)
}

// checkImages looks through each layer of ours. Leaks are what a power cut may
// leave.
func (c *crashJudge) checkImages(state *powercut.Host, leaks bool) error {
	m, err := manifest.Load(state, c.dir)
	if err != nil {
		return err
	}
	for _, l := range m.Layers {
		if l.Foreign {
			continue
		}
		if err := powercut.CheckImage(state, l.Path(c.dir), leaks); err != nil {
			return fmt.Errorf("%s: %w", l.Label(), err)
		}
		if err := headerFollows(state, m, l, c.dir); err != nil && !leaks {
			return err
		}
	}
	return nil
}

// readByHeaders reads the views as the headers alone say, which is how QEMU reads
// them without varve, before varve has seen the state.
func (c *crashJudge) readByHeaders(state *powercut.Host, ws worlds) error {
	m, err := manifest.Load(state, c.dir)
	if err != nil {
		return err
	}
	views := map[string]powercut.Reader{}
	for _, l := range m.Layers {
		if l.ID != m.Leaf && l.ID != m.SetAside && (l.Name == "" || l.Name == manifest.BaseName) {
			continue
		}
		chain, err := openHeaderChain(state, l.Path(c.dir), l.Format, 0)
		if err != nil {
			return fmt.Errorf("by its header, %s: %w", l.Label(), err)
		}
		defer chain.close()
		views[viewName(m, l)] = chain.ReadAt
	}
	var last error
	for _, w := range ws {
		if last = w.checkViews(views); last == nil {
			return nil
		}
	}
	return fmt.Errorf("by the headers alone: %w", last)
}

// viewName is what a world calls a layer's view.
func viewName(m *manifest.Manifest, l *manifest.Layer) string {
	if l.ID == m.SetAside {
		return asideView
	}
	return l.Name
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
	m, err := manifest.Load(state, c.dir)
	if err != nil {
		return err
	}
	views := map[string]string{} // by name
	for _, l := range m.Layers {
		if l.Foreign {
			continue
		}
		path := l.Path(root)
		c.images.Add(1)
		if err := powercut.QemuCheck(path); err != nil {
			return fmt.Errorf("%s: %w", l.Label(), err)
		}
		switch {
		case l.ID == m.Leaf:
			views[""] = path
		case l.Name != "" || l.ID == m.SetAside:
			views[viewName(m, l)] = path
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

// replay goes through a guest's record and cuts the power at every stride-th
// place of it.
func (c *crashJudge) replay(g *simGuest, log []powercut.Op) {
	g.t.Helper()
	ws := worlds{g.known[0].Clone()}
	player := powercut.NewPlayer(g.began, log)
	for place := turn.Of(c.rnd.IntN(flags.Stride), flags.Stride); ; {
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
		if place++; place%flags.Stride != 0 {
			continue
		}
		for what, state := range player.States(c.rnd, flags.States) {
			kept := state.Clone()
			if err := c.judge(state, ws); err != nil {
				g.t.Fatalf("power cut after entry %d of the record, %v (%s): %v%s\nrecord:\n%s",
					player.At(), op, what, err, keepState(kept, c.dir), player.Story(60))
			}
		}
	}
}

func keepState(state *powercut.Host, dir string) string {
	if flags.Keep == "" {
		return ""
	}
	if err := state.Save(dir, flags.Keep); err != nil {
		return "\nthe state could not be kept: " + err.Error()
	}
	return "\nthe state is in " + flags.Keep
}

// TestPowerCut lets a guest do at random what guests and people do to a disk,
// with the host's calls recorded, and then cuts the power at places of that
// record, with any part of what was not synced lost: everything that was flushed
// is there, every other sector has an old or a new value, no image has errors,
// qemu-img reads the same, and the job under way ends right.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	for _, kind := range []simKind{onRaw, blank, onChain} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			flags.Seeds(t, func(t *testing.T, seed uint64) {
				began := time.Now()
				g := newSimGuest(t, kind, seed)
				log := g.record(func() error {
					for range crashSteps {
						if err := g.step(); err != nil && !errors.Is(err, ErrBusy) && !errors.Is(err, ErrNotExist) && !errors.Is(err, ErrInvalid) {
							return err
						}
					}
					return nil
				})
				c := newCrashJudge(g, seed)
				c.replay(g, log)
				c.report(t, len(log), began)
			})
		})
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
	log := g.host.Recorded()
	for _, op := range log {
		if op.Changes() && op.Path != g.dir && !strings.HasPrefix(op.Path, g.dir+"/") {
			g.t.Errorf("%v: a foreign file was changed", op) // D18
		}
	}
	return log
}

// headerFollows checks that a layer's header names what chain.json says (M15).
func headerFollows(fs hostfs.FS, m *manifest.Manifest, l *manifest.Layer, dir string) error {
	im, err := qcow2.OpenImage(fs, l.Path(dir), l.Format, hostfs.LockNone)
	if err != nil {
		return err
	}
	defer im.Close()
	name, _ := m.Layer(l.Parent).BackingName()
	if got := im.Header().BackingName; got != name {
		return fmt.Errorf("%s names the backing file %q, chain.json %q", l.Label(), got, name)
	}
	return nil
}

// headersFollow is headerFollows for all layers of ours.
func headersFollow(fs hostfs.FS, dir string) error {
	m, err := manifest.Load(fs, dir)
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
