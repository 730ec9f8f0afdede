package chain

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"varve/chain/manifest"
	"varve/integration/powercut"
)

// TestPowerCutCreate cuts the power at every call that making or adopting a disk
// makes: there is a whole disk or none, none is lost once Create has returned,
// and the next Create does its work over what is left.
func TestPowerCutCreate(t *testing.T) {
	t.Parallel()
	for _, kind := range []simKind{onRaw, blank, onKnown} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(flags.Seed, 11))
			g := newSimGuest(t, kind, flags.Seed) // a disk of another name beside it, which stays as it is
			dir := filepath.Join(filepath.Dir(g.dir), "new.varve")
			before := g.host.Clone()
			g.host.Record()
			_, err := Create(dir, g.made)
			must(t, err)
			g.host.Mark("made", nil)
			player := powercut.NewPlayer(before, g.host.Recorded())
			states, returned := 0, false
			for {
				op, ok := player.Next()
				if !ok {
					break
				}
				returned = returned || op.Kind == powercut.Mark
				for what, state := range player.States(rnd, 64) {
					states++
					if err := g.judgeCreated(state, dir, returned); err != nil {
						t.Fatalf("power cut after %v (%s): %v\nrecord:\n%s", op, what, err, player.Story(60))
					}
				}
			}
			t.Logf("%d crash states", states)
		})
	}
}

func (g *simGuest) judgeCreated(state *powercut.Host, dir string, returned bool) error {
	if _, err := state.Stat(dir); errors.Is(err, os.ErrNotExist) {
		if returned {
			return fmt.Errorf("the disk is gone: %w", err)
		}
		o := g.made
		o.FS = state
		if _, err := Create(dir, o); err != nil {
			return fmt.Errorf("make it again: %w", err)
		}
	}
	for _, at := range []string{dir, g.dir} {
		d, err := openSim(state, at, slog.DiscardHandler)
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		if err := errors.Join(g.world().check(d, true), d.Close()); err != nil {
			return err
		}
	}
	// Nothing of the work is left beside it.
	names, err := state.ReadDir(filepath.Dir(dir))
	if err != nil {
		return err
	}
	for _, name := range names {
		// Before the last sync it may be there; the next Create takes it away.
		if filepath.Ext(name) == ".creating" && returned {
			return fmt.Errorf("%s is left", name)
		}
	}
	return nil
}

// TestPowerCutAccept cuts the power while a changed base is accepted: the disk
// opens with what is there now, or is still refused by name.
func TestPowerCutAccept(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(flags.Seed, 12))
	g := newSimGuest(t, onRaw, flags.Seed)
	f, err := g.host.Open(g.made.Base, os.O_RDWR, 0)
	must(t, err)
	changed := make([]byte, powercut.SectorSize)
	powercut.FillSectors(changed, 77)
	_, err = f.WriteAt(changed, 0)
	must(t, err)
	must(t, f.Close())
	g.host.Settle()
	before := g.host.Clone()
	g.host.Record()
	must(t, Accept(g.dir, manifest.BaseName, OpenOptions{FS: g.host}))
	g.host.Mark("accepted", nil)
	player := powercut.NewPlayer(before, g.host.Recorded())
	states, refused := 0, 0
	for accepted := false; ; {
		op, ok := player.Next()
		if !ok {
			break
		}
		accepted = accepted || op.Kind == powercut.Mark
		for what, state := range player.States(rnd, 64) {
			states++
			d, err := openSim(state, g.dir, slog.DiscardHandler)
			if errors.Is(err, ErrChanged) && !accepted {
				refused++
				err = Accept(g.dir, manifest.BaseName, OpenOptions{FS: state})
				if err == nil {
					d, err = openSim(state, g.dir, slog.DiscardHandler)
				}
			}
			if err != nil {
				t.Fatalf("power cut after %v (%s): %v", op, what, err)
			}
			if got := at(t, d, 7); got != 77 {
				t.Fatalf("power cut after %v (%s): the leaf has %d", op, what, got)
			}
			must(t, d.Close())
		}
	}
	if refused == 0 {
		t.Error("no state was from before the accept")
	}
	t.Logf("%d crash states, %d of them before it", states, refused)
}
