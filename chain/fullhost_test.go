package chain

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/integration/powercut"
)

// fullCase is a disk of which "one" can be deleted with some gain.
type fullCase struct {
	name  string
	build func(g *simGuest) error
}

const kib = 1024 / powercut.SectorSize // in sectors

// The lower layer has 64 KiB at the start, 80 at an edge of two clusters and as much at
// one of two regions; of these the upper one hides some, and has some of its own.
var fullCases = []fullCase{
	{"up, frozen", func(g *simGuest) error {
		return all(g.write(0, 64*kib, false), g.write(16<<20/powercut.SectorSize-40*kib, 40*kib, false), g.snapshot("one", 0),
			g.write(16*kib, 40*kib, false), g.write(88*kib, 80*kib, false), g.snapshot("two", 0), g.write(3, 4, false))
	}},
	{"down, frozen, under a branch", func(g *simGuest) error {
		return all(g.write(0, 64*kib, false), g.write(88*kib, 80*kib, false), g.snapshot("one", 0),
			g.write(8*kib, 20*kib, false), g.write(16<<20/powercut.SectorSize-20*kib, 40*kib, false), g.snapshot("two", 0),
			g.write(3, 4, false), g.snapshot("three", 0), g.revert("two"), g.write(40*kib, 9, false))
	}},
	{"up, into the leaf", func(g *simGuest) error {
		return all(g.write(0, 64*kib, false), g.snapshot("one", 0),
			g.write(16*kib, 40*kib, false), g.write(88*kib, 80*kib, false), g.flush(0), g.write(20*kib, 12*kib, true))
	}},
	{"the leaf down", func(g *simGuest) error {
		return all(g.write(0, 64*kib, false), g.write(88*kib, 80*kib, false), g.snapshot("one", 0),
			g.write(8*kib, 20*kib, false), g.write(16<<20/powercut.SectorSize-8*kib, 16*kib, false), g.write(96*kib, 9, true))
	}},
	{"up, nothing hidden", func(g *simGuest) error {
		return all(g.write(0, 64*kib, false), g.snapshot("one", 0), g.write(88*kib, 80*kib, false), g.snapshot("two", 0))
	}},
	{"the leaf down, nothing hidden", func(g *simGuest) error {
		return all(g.write(88*kib, 80*kib, false), g.snapshot("one", 0), g.write(16*kib, 30*kib, false))
	}},
	{"wholly hidden", func(g *simGuest) error {
		return all(g.write(0, 40*kib, false), g.snapshot("one", 0), g.write(0, 64*kib, false), g.snapshot("two", 0))
	}},
}

// built is the host with the disk of a case, closed.
func (c fullCase) built(t *testing.T) *simGuest {
	t.Helper()
	g := newSimGuest(t, onRaw, 1)
	g.open()
	must(t, c.build(g))
	must(t, g.flush(0))
	must(t, g.d.Close())
	g.host.Settle()
	return g
}

// on opens the disk on a clone of the host that has some bytes free, with the room that
// is kept in the reserve; or without, and then "one" is unnamed already, so that the
// merge is not refused for what its plan says.
func (g *simGuest) on(t *testing.T, free int64, cow, reserve bool) *simGuest {
	t.Helper()
	o := &simGuest{t: t, rnd: g.rnd, kind: g.kind, host: g.host.Clone(), dir: g.dir, next: g.next, base: g.base,
		worlds: worlds{g.worlds[0].Clone()}, faulty: true}
	o.host.Record()
	o.open()
	if !reserve {
		o.d.holdJob = true
		must(t, o.delete("one", 0))
		must(t, o.cancel())
		o.d.holdJob = false
		must(t, o.host.Remove(filepath.Join(g.dir, reserveName)))
		must(t, o.host.SyncDir(g.dir))
		o.d.reserve.given++ // none is taken
	}
	o.host.Limit(free, cow)
	return o
}

// deleted deletes "one", or merges it when it is unnamed, and says whether that came to
// its end; every view is right.
func (g *simGuest) deleted(t *testing.T, when string) (done bool, err error) {
	t.Helper()
	if g.world()["one"] != nil {
		err = g.delete("one", 0)
	} else {
		err = g.deleteUnnamed()
	}
	if err == nil {
		must(t, g.waitJob())
		s := g.d.lastJob().status()
		done = s.State == JobDone
		if !done {
			err = errors.New(s.Error)
		}
	} else if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("%s: %v\n%s", when, err, g.story())
	}
	if bad := g.compare(); bad != nil {
		t.Fatalf("%s: %v\n%s", when, bad, g.story())
	}
	return done, err
}

// A host with any number of blocks free: a merge that gains something comes to its end
// with the room that is kept for it, and without that as soon as there are a few blocks:
// for chain.json, a piece of a subcluster, refcounts and a name. Whatever comes of it no
// view is wrong, the disk closes, and with room again nothing is lost and no image has as
// much as a leak.
func TestMergesOnAFullHost(t *testing.T) {
	t.Parallel()
	const few = 4
	for _, c := range fullCases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			built := c.built(t)
			for _, reserve := range []bool{false, true} {
				for _, cow := range []bool{false, true} {
					ended := 0
					for _, blocks := range []int64{0, 1, 2, 3, 4, 7, 12, 25, 60} {
						if reserve && blocks > 4 || cow && blocks > 12 {
							continue
						}
						when := fmt.Sprintf("%d blocks free, copy on write %v, a reserve %v", blocks, cow, reserve)
						g := built.on(t, blocks*4096, cow, reserve)
						done, err := g.deleted(t, when)
						if done {
							ended++
						} else if reserve || blocks >= few {
							t.Errorf("%s: %v\n%s", when, err, g.story())
						}
						if err := g.d.Close(); err != nil && (done || !errors.Is(err, unix.ENOSPC)) {
							t.Errorf("%s: close: %v", when, err)
						}
						g.host.Unlimit()
						if err := newCrashJudge(g, 1).reopen(g.host, g.worlds); err != nil {
							t.Errorf("%s: afterwards: %v\n%s", when, err, g.story())
						}
					}
					if ended == 0 {
						t.Error("no merge came to its end")
					}
				}
			}
		})
	}
}

// The power is cut after each call of a merge that frees before it needs, on a host that
// has next to nothing. The next mount has as little room, or enough.
func TestPowerCutOnAFullHost(t *testing.T) {
	t.Parallel()
	for i, c := range fullCases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			built := c.built(t)
			flags.Seeds(t, func(t *testing.T, seed uint64) {
				for _, o := range []struct {
					blocks  int64
					reserve bool
					again   int64 // blocks that the next mount has free, 0 for enough
				}{{4, false, 8}, {0, true, 0}, {9, false, 0}} {
					began := time.Now()
					g := built.on(t, o.blocks*4096, i%2 == 0, o.reserve)
					if done, err := g.deleted(t, c.name); !done {
						t.Fatal(err)
					}
					must(t, g.d.Close())
					log := g.host.Recorded()
					j := newCrashJudge(g, seed)
					j.room = o.again * 4096
					j.replay(g, log)
					j.report(t, len(log), began)
				}
			})
		})
	}
}

// What the leaf hides goes when the leaf is durable and whoever looked before has read.
func TestHiddenGoesWhenItIsDurable(t *testing.T) {
	g := newSimGuest(t, onRaw, 1)
	g.open()
	must(t, g.write(0, 64*kib, false))
	must(t, g.snapshot("one", 0))
	below, leaf := layerPath(g.d, "one"), layerPath(g.d, "")
	must(t, g.write(0, 64*kib, false)) // not flushed
	g.host.Limit(16<<10, false)
	section := g.d.readers.Enter() // a reader that has looked, and not read yet
	var mu sync.Mutex
	dirty, gone := true, false
	g.host.SetHook(false, func(op powercut.Op) error {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case op.Path == leaf && op.Kind == powercut.Write:
			dirty = true
		case op.Path == leaf && op.Kind == powercut.Datasync:
			dirty = false
		case op.Path == below && op.Kind == powercut.Punch:
			if gone = true; dirty {
				t.Error("blocks were given back that the leaf does not hide durably")
			}
		}
		return nil
	})
	must(t, g.delete("one", 0))
	for range 20 {
		time.Sleep(2 * time.Millisecond)
	}
	mu.Lock()
	early := gone
	mu.Unlock()
	g.d.readers.Exit(section)
	if early {
		t.Error("blocks were given back under a reader")
	}
	must(t, g.waitJob())
	g.host.SetHook(false, nil)
	if j := g.d.lastJob().status(); j.State != JobDone || !gone {
		t.Errorf("the job: %+v; blocks given back: %v", j, gone)
	}
	must(t, g.compare())
	must(t, g.d.Close())
}
