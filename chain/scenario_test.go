package chain

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"varve/chain/manifest"
	"varve/integration/powercut"
	"varve/integration/turn"
)

// scenario is a short piece of a disk's life, in which every call to the host
// has the power cut after it, and every call fails once.
type scenario struct {
	name string
	kind simKind
	run  func(g *simGuest) error
}

// The hot ranges' first sectors: the start of a cluster that no other range
// touches, the edge between two clusters, the edge of a region, the disk's end.
const (
	atStart  = 0
	atEdge   = 128<<10/powercut.SectorSize - 8
	atRegion = 16<<20/powercut.SectorSize - 8
	atEnd    = simSize/powercut.SectorSize - 8
)

// all gives the first error of some steps, all of which are made.
func all(errs ...error) error { return errors.Join(errs...) }

var scenarios = []scenario{
	{"first touch, whole and in part, and in place", onRaw, func(g *simGuest) error {
		return all(
			g.write(atStart, 8, false), g.write(atStart+11, 3, false), g.write(atEdge, 16, false), g.flush(0),
			g.write(atStart, 3, false), g.write(atStart+12, 9, false), g.write(atEnd, 8, false), g.flush(1),
		)
	}},
	{"discard, rewrite, discard", onRaw, func(g *simGuest) error {
		return all(
			g.write(atStart, 64, false), g.flush(0),
			g.write(atStart+3, 50, true), g.flush(0), g.write(atStart+16, 8, false), g.flush(0),
			g.write(atStart, 64, true), g.write(atEdge, 40, true), g.write(atStart+8, 4, false), g.flush(0),
		)
	}},
	{"growth", onRaw, func(g *simGuest) error {
		return all(
			g.write(atEnd, 8, false), g.resize(simSize+20*powercut.SectorSize), g.write(atEnd+2, 20, false), g.flush(0),
			g.resize(3<<30+powercut.SectorSize), g.write(atEnd+20, 8, false), g.flush(0), g.reopen(),
		)
	}},
	{"snapshots, rename, revert there and back", onRaw, func(g *simGuest) error {
		return all(
			g.remember("umask=007"), g.write(atStart, 9, false), g.snapshot("one", 0),
			g.write(atStart, 9, false), g.write(atEdge, 16, false), g.snapshot("two", 2), g.remember(""),
			g.rename("one", "first"), g.write(atStart+4, 9, false), g.flush(0),
			g.revert("first"), g.write(atRegion, 16, false), g.snapshot("branch", 0),
			g.revert("two"), g.write(atStart, 4, false), g.revert(manifest.BaseName), g.compare(),
		)
	}},
	{"revert and undo, writes between them, another mount, forget", onRaw, func(g *simGuest) error {
		return all(
			g.write(atStart, 16, false), g.snapshot("one", 0), g.write(atStart+4, 9, false), g.write(atEdge, 16, false),
			g.revert("one"), g.write(atStart+2, 6, false), g.undo(), g.write(atRegion, 16, false), g.flush(0),
			g.undo(), g.write(atEdge, 4, true), g.flush(0), g.reopen(), g.undo(), g.write(atStart+30, 3, false),
			g.snapshot("two", 2), g.delete("one", 0), g.waitJob(), g.forget(), g.waitJob(), g.compare(),
		)
	}},
	{"a delete that merges up, frozen", onRaw, func(g *simGuest) error {
		return all(
			g.write(atStart, 16, false), g.write(atEdge, 4, true), g.snapshot("one", 0),
			g.write(atStart+4, 40, false), g.write(atRegion, 16, false), g.snapshot("two", 0),
			g.delete("one", 2), g.waitJob(), g.compare(),
		)
	}},
	{"a delete that merges down, frozen, under branches", onRaw, func(g *simGuest) error {
		return all(
			g.write(atStart, 60, false), g.write(atEdge, 16, false), g.snapshot("one", 0),
			g.write(atStart+4, 9, false), g.write(atStart+20, 8, true), g.snapshot("two", 0),
			g.write(atStart+2, 4, false), g.snapshot("three", 0),
			g.revert("two"), g.write(atRegion, 9, false),
			g.delete("one", 2), g.waitJob(), g.compare(),
		)
	}},
	{"a delete of four layers at once, the third of them the largest", onRaw, func(g *simGuest) error {
		return all(
			g.write(atStart, 9, false), g.snapshot("one", 0), g.write(atEdge, 16, false), g.snapshot("two", 0),
			g.write(atStart+4, 60, false), g.write(atRegion, 16, false), g.snapshot("three", 0),
			g.write(atStart+20, 8, true), g.snapshot("four", 0), g.write(atStart+2, 4, false), g.snapshot("five", 0),
			g.deleteAll(2, "one", "two", "three", "four"), g.waitJob(), g.write(atEdge, 3, false), g.flush(0), g.compare(),
		)
	}},
	{"a delete that moves the leaf down under the guest", onRaw, func(g *simGuest) error {
		return all(
			g.write(atStart, 64, false), g.write(atRegion, 16, false), g.write(atEdge, 16, false), g.snapshot("one", 0),
			g.write(atStart+4, 8, false), g.write(atRegion+4, 4, true), g.flush(0),
			g.delete("one", 6), g.flush(2), g.waitJob(), g.write(atStart, 2, false), g.flush(0), g.compare(),
		)
	}},
	{"a delete that moves up into the leaf", onRaw, func(g *simGuest) error {
		return all(
			g.write(atStart, 8, false), g.snapshot("one", 0),
			g.write(atStart+4, 40, false), g.flush(0),
			g.delete("one", 6), g.flush(2), g.waitJob(), g.compare(),
		)
	}},
	{"a snapshot, a cancel and a delete of what is unnamed", onRaw, func(g *simGuest) error {
		return all(
			g.write(atStart, 64, false), g.write(atRegion, 16, false), g.snapshot("one", 0),
			g.write(atStart+4, 8, false), g.flush(0),
			g.delete("one", 2), g.snapshot("two", 1), g.cancel(), g.write(atEdge, 8, false), g.flush(0),
			g.deleteUnnamed(), g.waitJob(), g.compare(),
		)
	}},
	{"flatten of a snapshot and of the leaf", onRaw, func(g *simGuest) error {
		return all(
			g.write(atStart, 8, false), g.snapshot("one", 0), g.write(atStart+4, 8, false), g.snapshot("two", 0),
			g.flatten("one"), g.waitJob(), g.write(atEdge, 8, true), g.flush(0),
			g.flatten(manifest.LeafName), g.write(atStart+9, 30, false), g.flush(2), g.waitJob(), g.compare(),
		)
	}},
	{"a flatten that is stopped by the end of the mount", onRaw, func(g *simGuest) error {
		return all(
			g.write(atStart, 8, false), g.snapshot("one", 0), g.write(atStart+4, 8, false),
			g.flatten(manifest.LeafName), g.reopen(), g.waitJob(), g.reopen(), g.compare(),
		)
	}},
	{"a blank disk: snapshots, branches, deletes", blank, func(g *simGuest) error {
		return all(
			g.write(atStart, 8, false), g.snapshot("one", 0), g.write(atStart+4, 8, true), g.write(atEdge, 16, false),
			g.snapshot("two", 1), g.revert(manifest.BaseName), g.write(atStart, 3, false), g.snapshot("three", 0),
			g.delete("one", 1), g.waitJob(), g.delete("two", 0), g.waitJob(), g.compare(),
		)
	}},
	{"an adopted chain: its own layer deleted under the leaf", onChain, func(g *simGuest) error {
		return all(
			g.write(atStart, 8, false), g.write(atStart+40, 8, true), g.flush(0),
			g.delete("adopted", 3), g.waitJob(), g.write(atEdge, 4, false), g.flush(0), g.compare(),
		)
	}},
	{"an adopted chain: snapshots, revert to it, flatten", onChain, func(g *simGuest) error {
		return all(
			g.write(atStart, 8, false), g.snapshot("one", 0), g.write(atRegion, 12, false),
			g.revert("adopted"), g.write(atStart+2, 4, false), g.flatten(manifest.LeafName), g.waitJob(), g.compare(),
		)
	}},
}

// TestPowerCutScenarios cuts the power after every call to the host that each
// scenario makes.
func TestPowerCutScenarios(t *testing.T) {
	t.Parallel()
	for i, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			flags.Seeds(t, func(t *testing.T, seed uint64) {
				began := time.Now()
				g := newSimGuest(t, s.kind, seed+uint64(i))
				log := g.record(func() error { return s.run(g) })
				c := newCrashJudge(g, seed)
				c.replay(g, log)
				c.report(t, len(log), began)
			})
		})
	}
}

// faultKinds are the ways in which a call fails.
var faultKinds = []struct {
	name string
	err  error
}{
	{"EIO", errEIO},
	{"ENOSPC", errENOSPC},
	{"a half write, then ENOSPC", powercut.Partly{Err: errENOSPC}},
	{"a half write, then EIO", powercut.Partly{Err: errEIO}},
}

// TestFaults fails every call to the host of each scenario in turn, in every
// way, and goes on. Whatever failed: nothing that was acknowledged is lost, then
// and after a power cut; every operation happened or did not; the next mount
// finds it all in order.
func TestFaults(t *testing.T) {
	t.Parallel()
	for i, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			runs := 0
			for _, reads := range []bool{false, true} {
				for k, kind := range faultKinds {
					if reads && k > 0 {
						break // a read fails in one way
					}
					stride := flags.FaultStride
					if reads {
						stride *= 7
					}
					for n := 1 + turn.Of(i+k, stride); ; n += stride {
						f := &faultRun{scenario: s, at: n, reads: reads, err: kind.err}
						if err := f.run(t, uint64(n)); err != nil {
							t.Fatalf("call %d, %s, failed with %s: %v\nsteps:\n%s", n, f.what, kind.name, err, f.g.story())
						}
						if f.what == "" {
							break
						}
						runs++
					}
				}
			}
			t.Logf("%d calls failed, one in each run; %.1f s", runs, time.Since(began).Seconds())
		})
	}
}

// faultRun is a scenario in which one call fails.
type faultRun struct {
	scenario
	at    int   // the call, counted from 1
	reads bool  // among reads and looks, or among changes
	err   error // what it fails with
	what  string
	g     *simGuest
}

func (f *faultRun) run(t *testing.T, seed uint64) error {
	g := newSimGuest(t, f.kind, seed)
	f.g = g
	g.faulty = true
	g.open()
	left := f.at
	g.host.SetHook(f.reads, func(op powercut.Op) error {
		if op.Changes() == f.reads {
			return nil
		}
		if left--; left != 0 {
			return nil
		}
		f.what = op.String()
		g.note("FAULT %s", f.what)
		return f.err
	})
	err := f.scenario.run(g)
	if errors.Is(err, errLive) && !errors.Is(err, f.err) {
		return err
	}
	if err == nil && f.what != "" {
		g.note("nothing said that a call failed")
	}
	if live := g.world().check(g.d, false); live != nil && !errors.Is(live, f.err) {
		return fmt.Errorf("%w: %w", errLive, live)
	}
	// A flush that succeeds now has told the truth, whatever failed before.
	if g.flush(0) == nil {
		g.note("a flush succeeded")
	}
	c := newCrashJudge(g, seed)
	for range 2 {
		if err := c.judgeAfterFault(g.host.Cut(g.rnd), g.possible()); err != nil {
			return fmt.Errorf("a power cut after it: %w", err)
		}
	}
	if err := g.d.Close(); errors.Is(err, ErrBusy) {
		return err
	}
	g.host.SetHook(false, nil)
	if err := c.judgeAfterFault(g.host.Cut(g.rnd), g.possible()); err != nil {
		return fmt.Errorf("a power cut after the end: %w", err)
	}
	return c.judgeAfterFault(g.host, g.possible())
}

// judgeAfterFault is reopen, and then nothing is out of order.
func (c *crashJudge) judgeAfterFault(state *powercut.Host, ws worlds) error {
	if err := c.checkImages(state, true); err != nil {
		return err
	}
	if err := c.reopen(state, ws); err != nil {
		return err
	}
	if e, err := Examine(context.Background(), c.dir, state); err != nil || hasTrouble(e) {
		return fmt.Errorf("examine: %w\n%s", err, troubleLines(e))
	}
	return headersFollow(state, c.dir)
}
