package overlay_test

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"varve/integration/powercut"
	"varve/integration/turn"
	"varve/overlay"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

var flags = powercut.NewFlags()

// layerSteps is how many steps a random run makes.
const layerSteps = 60

const (
	layerPath = "/layer.qcow2"
	layerSize = 6<<20 + 512*3
	layerEnd  = layerSize + 200<<10 // how far it grows
)

// layerRanges are where a layer is written: over edges of clusters of 16 and of
// 128 KiB, and around its end.
var layerRanges = [][2]int64{
	{0, 48 << 10},
	{128<<10 - 20<<10, 128<<10 + 20<<10},
	{4 << 20, 4<<20 + 16<<10},
	{layerSize&^511 - 30<<10, layerSize&^511 + 60<<10},
}

// below is what a layer stands on: larger than it, so that what is behind its
// end must not show through when it grows.
type below struct{}

func belowValue(sector int64) uint64 {
	if sector/9%3 == 0 {
		return 0
	}
	return uint64(sector) | 0xba5e<<48
}

func (below) ReadAt(p []byte, off int64) error {
	var sector [powercut.SectorSize]byte
	for len(p) > 0 {
		in := off % powercut.SectorSize
		powercut.FillSectors(sector[:], belowValue(off/powercut.SectorSize))
		n := copy(p, sector[in:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (below) IsZero(off, length int64) (bool, error) {
	for s := off / powercut.SectorSize; s*powercut.SectorSize < off+length; s++ {
		if belowValue(s) != 0 {
			return false, nil
		}
	}
	return true, nil
}

// layerGuest writes a layer on a simulated host and knows what must be there.
type layerGuest struct {
	t    testing.TB
	rnd  *rand.Rand
	host *powercut.Host
	o    *overlay.Overlay
	view *powercut.View
	next uint64
	bits uint32

	before *powercut.Host // when the layer was made
	first  *powercut.View
	faulty bool
	trace  []string
}

// layerEvent is an entry in the record: what is known from here on.
type layerEvent struct {
	apply func(v *powercut.View)
	firm  bool // less may be there from here on
}

func newLayerGuest(t testing.TB, bits uint32, seed uint64) *layerGuest {
	t.Helper()
	g := &layerGuest{
		t: t, rnd: rand.New(rand.NewPCG(seed, 5)), host: powercut.NewHost(), bits: bits, next: 1,
		view: powercut.NewView(layerSize, layerRanges, belowValue),
	}
	noError(t, overlay.Create(g.host, layerPath, overlay.CreateOptions{
		Size: layerSize, Backing: "below.raw", BackingFormat: "raw", ClusterBits: bits,
	}))
	g.host.Settle()
	g.before, g.first = g.host.Clone(), g.view.Clone()
	return g
}

func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (g *layerGuest) event(what string, firm bool, apply func(v *powercut.View)) {
	apply(g.view)
	g.host.Mark(what, layerEvent{apply, firm})
	g.trace = append(g.trace, what)
}

func (g *layerGuest) open(unclean bool) error {
	o, err := overlay.OpenOverlay(g.host, layerPath, overlay.OverlayOptions{Unclean: unclean, MaxSlices: 2})
	if err == nil {
		g.o = o
	}
	return err
}

func (g *layerGuest) write(from, n int64, zero bool) error {
	s := powercut.Stamp{Write: g.next, Value: g.next}
	g.next++
	if zero {
		s.Value = 0
	}
	g.event(fmt.Sprintf("write %x to %d sectors at %d", s.Value, n, from), false, func(v *powercut.View) { v.Write(from, n, s) })
	var err error
	if zero {
		err = g.o.Discard(from*powercut.SectorSize, n*powercut.SectorSize, below{})
	} else {
		p := make([]byte, n*powercut.SectorSize)
		powercut.FillSectors(p, s.Value)
		err = g.o.WriteAt(p, from*powercut.SectorSize, below{})
	}
	if g.faulty && err != nil {
		g.view.Failed(from, n, s)
	}
	return err
}

func (g *layerGuest) randomWrite() error {
	for {
		r := layerRanges[g.rnd.IntN(len(layerRanges))]
		end := min(r[1], g.view.Size)
		if r[0] >= end {
			continue
		}
		from := (r[0] + g.rnd.Int64N(end-r[0])) / powercut.SectorSize
		n := min(1+g.rnd.Int64N(1<<g.rnd.IntN(7)), end/powercut.SectorSize-from)
		if n > 0 {
			return g.write(from, n, g.rnd.IntN(3) == 0)
		}
	}
}

// flush flushes, beside some writes of which it promises nothing.
func (g *layerGuest) flush(writes int, f func() error) error {
	last := g.next - 1
	ended := make(chan error, 1)
	go func() { ended <- f() }()
	var err error
	for range writes {
		err = errors.Join(err, g.randomWrite())
	}
	flushed := <-ended
	if flushed == nil {
		g.event("flushed", true, func(v *powercut.View) { v.Durable(last) })
	}
	return errors.Join(err, flushed)
}

// step does something at random.
func (g *layerGuest) step() error {
	switch k := g.rnd.IntN(100); {
	case k < 58:
		return g.randomWrite()
	case k < 76:
		return g.flush(g.rnd.IntN(3), g.o.Flush)
	case k < 84:
		return g.o.Punch()
	case k < 87:
		size := g.view.Size + powercut.SectorSize*g.rnd.Int64N(80)
		if size > layerEnd {
			return nil
		}
		return g.grow(size)
	case k < 90:
		from := g.rnd.Int64N(g.view.Size - 1)
		g.host.Mark("reserve", layerEvent{apply: func(*powercut.View) {}})
		return g.o.Reserve(from, min(200<<10, g.view.Size-from))
	case k < 93:
		return g.o.SetBacking(fmt.Sprint("below.raw", strings.Repeat("x", g.rnd.IntN(900))), "raw")
	case k < 97:
		return g.flush(0, g.o.Settle)
	default:
		return g.reopen()
	}
}

func (g *layerGuest) grow(size int64) error {
	// The larger one may be there from the call on, the smaller one until it
	// returns.
	g.event(fmt.Sprint("grow to ", size), false, func(v *powercut.View) { v.MayGrow(size) })
	err := g.o.Grow(size, below{})
	grown := err == nil || g.o.Size() == size
	g.event(fmt.Sprint("grown: ", grown), true, func(v *powercut.View) { v.Grown(grown) })
	return err
}

// reopen settles the layer, or leaves it as a killed daemon does.
func (g *layerGuest) reopen() error {
	kill := g.rnd.IntN(2) == 0
	if !kill {
		if err := g.flush(0, g.o.Settle); err != nil {
			return err
		}
	}
	if err := g.o.Close(); err != nil {
		return err
	}
	if err := g.open(kill); err != nil {
		return err
	}
	if !kill {
		return nil
	}
	// What is there now is what is there.
	now := map[int64]uint64{}
	for _, s := range g.view.Loose() {
		var p [powercut.SectorSize]byte
		if err := readLayer(g.o)(p[:], s*powercut.SectorSize); err != nil {
			return err
		}
		if now[s] = powercut.SectorValue(p[:]); !g.view.May(s, now[s]) {
			return fmt.Errorf("sector %d has %x after a kill", s, now[s])
		}
	}
	g.event("killed and opened again", false, func(v *powercut.View) {
		for s, value := range now {
			v.Write(s, 1, powercut.Stamp{Value: value}) // no write: the others may still be on disk
		}
	})
	return nil
}

// readLayer reads a layer over below.
func readLayer(l overlay.Layer) powercut.Reader {
	return func(p []byte, off int64) error {
		extents, err := l.Map(nil, off, int64(len(p)))
		if err != nil {
			return err
		}
		for _, e := range extents {
			part := p[:e.Length]
			p = p[e.Length:]
			switch e.Kind {
			case extent.Data:
				err = l.ReadExtent(part, e, e.Start)
			case extent.Zero:
				clear(part)
			default:
				err = below{}.ReadAt(part, e.Start)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// layerJudge opens what power cuts left of a layer.
type layerJudge struct {
	t      testing.TB
	rnd    *rand.Rand
	states int
	again  int
	images int
	seen   map[powercut.Version]bool
}

func (c *layerJudge) judge(state *powercut.Host, v *powercut.View) error {
	c.states++
	if err := powercut.CheckImage(state, layerPath, true); err != nil {
		return err
	}
	if powercut.Sometimes(c.rnd, flags.Qemu) {
		if err := c.qemuCheck(state); err != nil {
			return err
		}
	}
	if !powercut.Sometimes(c.rnd, flags.Again) {
		return c.reopen(state, v)
	}
	// Its recovery is cut off as well, everywhere.
	before := state.Clone()
	state.Record()
	if err := c.reopen(state, v); err != nil {
		return err
	}
	player := powercut.NewPlayer(before, state.Recorded())
	for {
		op, ok := player.Next()
		if !ok {
			return nil
		}
		for what, second := range player.States(c.rnd, 2) {
			c.states++
			c.again++
			err := powercut.CheckImage(second, layerPath, true)
			if err == nil {
				err = c.reopen(second, v)
			}
			if err != nil {
				return fmt.Errorf("a second cut, after %v of the recovery (%s): %w", op, what, err)
			}
		}
	}
}

// reopen recovers a layer, compares it, settles it and compares again.
func (c *layerJudge) reopen(state *powercut.Host, v *powercut.View) error {
	log := &powercut.LogJudge{Never: []string{"raised refcounts that were too low"}} // M7
	o, err := overlay.OpenOverlay(state, layerPath, overlay.OverlayOptions{Unclean: true, Log: slog.New(log)})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	if v, err = v.Of(o.Size()); err != nil {
		return err
	}
	if err := v.Check(readLayer(o), false); err != nil {
		return err
	}
	if err := log.Err(); err != nil {
		return err
	}
	if err := errors.Join(o.Settle(), o.Close()); err != nil {
		return err
	}
	if err := powercut.CheckImage(state, layerPath, false); err != nil {
		return fmt.Errorf("after it was settled: %w", err)
	}
	im, err := qcow2.OpenImage(state, layerPath, "qcow2", hostfs.LockNone)
	if err != nil {
		return err
	}
	defer im.Close()
	return v.Check(readLayer(im), false)
}

func (c *layerJudge) qemuCheck(state *powercut.Host) error {
	version, _ := state.Version(layerPath)
	if c.seen[version] {
		return nil
	}
	c.seen[version] = true
	c.images++
	path := filepath.Join(c.t.TempDir(), "layer.qcow2")
	if err := state.Save(layerPath, path); err != nil {
		return err
	}
	defer os.Remove(path)
	return powercut.QemuCheck(path)
}

func (g *layerGuest) replay(log []powercut.Op, seed uint64) *layerJudge {
	g.t.Helper()
	c := &layerJudge{t: g.t, rnd: rand.New(rand.NewPCG(seed, 2)), seen: map[powercut.Version]bool{}}
	v := g.first.Clone()
	player := powercut.NewPlayer(g.before, log)
	for place := turn.Of(c.rnd.IntN(flags.Stride), flags.Stride); ; {
		op, ok := player.Next()
		if !ok {
			return c
		}
		if op.Kind == powercut.Mark {
			e := op.Event.(layerEvent)
			e.apply(v)
			if !e.firm {
				continue
			}
		}
		if place++; place%flags.Stride != 0 {
			continue
		}
		for what, state := range player.States(c.rnd, flags.States) {
			if err := c.judge(state, v); err != nil {
				g.t.Fatalf("power cut after entry %d of the record, %v (%s): %v\nrecord:\n%s",
					player.At(), op, what, err, player.Story(50))
			}
		}
	}
}

// TestLayerPowerCut writes, discards, flushes, punches, grows, settles and kills
// a layer at random, beside flushes too, and cuts the power after every call to
// the host: what was flushed is there, every other sector has an old or a new
// value, the image has no errors, and none and no leaks once it is settled.
func TestLayerPowerCut(t *testing.T) {
	t.Parallel()
	for _, bits := range []uint32{14, 17} {
		t.Run(fmt.Sprintf("clusters of %d KiB", 1<<bits>>10), func(t *testing.T) {
			t.Parallel()
			flags.Seeds(t, func(t *testing.T, seed uint64) {
				began := time.Now()
				g := newLayerGuest(t, bits, seed)
				noError(t, g.open(false))
				g.host.Record()
				for range layerSteps {
					if err := g.step(); err != nil {
						t.Fatalf("%v\nsteps:\n%s", err, strings.Join(g.trace, "\n"))
					}
				}
				log := g.host.Recorded()
				c := g.replay(log, seed)
				t.Logf("%d crash states of a record of %d entries, %d of them after a cut of a recovery; qemu-img checked %d images; %.1f s",
					c.states, len(log), c.again, c.images, time.Since(began).Seconds())
			})
		})
	}
}

// TestLayerFaults fails every call to the host of a run, in each way, and goes
// on: what a flush acknowledged, before or after, is there at the end, and after
// a power cut.
func TestLayerFaults(t *testing.T) {
	t.Parallel()
	kinds := []error{syscall.EIO, syscall.ENOSPC, powercut.Partly{Err: syscall.ENOSPC}, powercut.Partly{Err: syscall.EIO}}
	for _, bits := range []uint32{14, 17} {
		t.Run(fmt.Sprintf("clusters of %d KiB", 1<<bits>>10), func(t *testing.T) {
			t.Parallel()
			runs := 0
			for _, reads := range []bool{false, true} {
				for k, kind := range kinds {
					if reads && k > 0 {
						break
					}
					for n := 1 + turn.Of(k, flags.FaultStride); ; n += flags.FaultStride {
						what, err := layerFault(t, bits, uint64(k+1), n, reads, kind)
						if err != nil {
							t.Fatalf("call %d, %s, failed with %v: %v", n, what, kind, err)
						}
						if what == "" {
							break
						}
						runs++
					}
				}
			}
			t.Logf("%d calls failed, one in each run", runs)
		})
	}
}

// layerFault makes call number at fail; what is "" when there are fewer.
func layerFault(t testing.TB, bits uint32, seed uint64, at int, reads bool, fault error) (what string, err error) {
	g := newLayerGuest(t, bits, seed)
	g.faulty = true
	noError(t, g.open(false))
	g.host.SetHook(reads, func(op powercut.Op) error {
		if op.Changes() == reads {
			return nil
		}
		if at--; at != 0 {
			return nil
		}
		what = op.String()
		return fault
	})
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\nsteps:\n%s", err, strings.Join(g.trace, "\n"))
		}
	}()
	for range 40 {
		if err := g.step(); err != nil {
			g.trace = append(g.trace, "→ "+err.Error())
		}
	}
	g.host.SetHook(false, nil)
	if flushed := g.flush(0, g.o.Flush); flushed != nil {
		g.trace = append(g.trace, "→ "+flushed.Error())
	}
	c := &layerJudge{t: t, rnd: g.rnd}
	for range 3 {
		state := g.host.Cut(g.rnd)
		if err := powercut.CheckImage(state, layerPath, true); err != nil {
			return what, err
		}
		if err := c.reopen(state, g.view); err != nil {
			return what, err
		}
	}
	return what, nil
}
