package chain

import (
	"context"
	"fmt"
	"testing"

	"varve/chain/manifest"
	"varve/integration/powercut"
)

// TestRepairPowerCut cuts the power after every call of a repair, and repairs
// what is left: no error, no leak, every view as it was.
func TestRepairPowerCut(t *testing.T) {
	t.Parallel()
	for _, kind := range []simKind{onRaw, blank, onChain} {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s killed %v", kind, killed), func(t *testing.T) {
				t.Parallel()
				g := damagedSim(t, kind, killed)
				c := newCrashJudge(g, flags.Seed)
				began := g.host.Clone()
				g.host.Record()
				must(t, c.repaired(g.host, g.worlds))
				player, cuts := powercut.NewPlayer(began, g.host.Recorded()), 0
				for {
					op, ok := player.Next()
					if !ok {
						break
					}
					for what, state := range player.States(c.rnd, max(1, flags.States/flags.Stride)) {
						cuts++
						if err := c.repaired(state, g.worlds); err != nil {
							t.Fatalf("power cut after %v (%s): %v\nrecord:\n%s", op, what, err, player.Story(60))
						}
					}
				}
				if cuts < 20 {
					t.Errorf("only %d cuts", cuts)
				}
				t.Logf("%d crash states", cuts)
			})
		}
	}
}

// damagedSim makes a disk of some layers, closed or killed, whose layers of
// varve's own have leaks and refcounts that are too low.
func damagedSim(t *testing.T, kind simKind, killed bool) *simGuest {
	t.Helper()
	g := newSimGuest(t, kind, flags.Seed)
	g.open()
	must(t, all(
		g.write(atStart, 30, false), g.snapshot("one", 0), g.write(atStart+5, 9, true), g.write(atEdge, 16, false),
		g.snapshot("two", 0), g.revert("one"), g.write(atRegion, 12, false), g.flush(0),
	))
	must(t, g.d.Close())
	if killed {
		d, err := Open(g.dir, OpenOptions{FS: g.host, HoldJob: true})
		must(t, err)
		must(t, d.Flush())
		g.host = g.host.Cut(g.rnd)
		d.background.stop()
	}
	g.host.Settle()
	m, err := manifest.Load(g.host, g.dir)
	must(t, err)
	damaged := 0
	for _, l := range m.Layers {
		if l.Foreign {
			continue
		}
		w := openWords(t, g.host, l.Path(g.dir))
		w.leak()
		if w.word(w.h.L1Offset) != 0 {
			w.lower()
		}
		must(t, w.f.Sync())
		w.close()
		if !l.Writing {
			l.Fingerprint, err = manifest.FingerprintFile(g.host, l.Path(g.dir), l.Format)
			must(t, err)
		}
		damaged++
	}
	must(t, m.Commit(g.host, g.dir))
	g.host.Settle()
	r, err := Check(context.Background(), g.dir, CheckOptions{FS: g.host})
	if err != nil || r.Errors == 0 || r.Leaks < int64(damaged) || damaged < 3 {
		t.Fatalf("%d layers: %v\n%s", damaged, err, findingLines(r))
	}
	return g
}

// repaired repairs a disk, checks it again, and opens it.
func (c *crashJudge) repaired(state *powercut.Host, ws worlds) error {
	for _, repair := range []bool{true, false} {
		r, err := Check(context.Background(), c.dir, CheckOptions{FS: state, Repair: repair})
		if err != nil || r.Errors+r.Leaks != 0 {
			return fmt.Errorf("repair %v: %w\n%s", repair, err, findingLines(r))
		}
	}
	return c.reopen(state, ws)
}
