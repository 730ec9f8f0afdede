package chain

import (
	"fmt"
	"slices"

	"varve/chain/manifest"
	"varve/integration/powercut"
)

// What a simulated guest, and people, do to a disk at random.

func (g *simGuest) anyName() string {
	names := slices.DeleteFunc(g.world().names(), func(name string) bool { return name == "" || name == asideView })
	if len(names) == 0 {
		return manifest.BaseName
	}
	return names[g.rnd.IntN(len(names))]
}

func (g *simGuest) newName(prefix string) string {
	g.next++
	return fmt.Sprint(prefix, g.next-1)
}

// step does something at random.
func (g *simGuest) step() error {
	k := g.rnd.IntN(100)
	writes := 0
	if g.rnd.IntN(3) == 0 && !g.faulty {
		writes = 1 + g.rnd.IntN(4)
	}
	name := g.anyName()
	switch {
	case k < 50:
		g.note("write")
		return g.randomWrite()
	case k < 62:
		g.note("flush")
		return g.flush(writes)
	case k < 72 && len(g.world()) < 6:
		name := g.newName("s")
		g.note("snapshot %s", name)
		return g.snapshot(name, writes)
	case k < 79 && name != manifest.BaseName:
		g.note("delete %s", name)
		return g.delete(name, writes)
	case k < 82:
		if name == manifest.BaseName || g.rnd.IntN(2) == 0 {
			name = manifest.LeafName
		}
		g.note("flatten %s", name)
		return g.flatten(name)
	case k < 84:
		g.note("revert %s", name)
		return g.revert(name)
	case k < 85 && g.rnd.IntN(3) > 0:
		g.note("undo")
		return g.undo()
	case k < 85:
		g.note("forget")
		return g.forget()
	case k < 87 && name != manifest.BaseName:
		to := g.newName("r")
		g.note("rename %s %s", name, to)
		return g.rename(name, to)
	case k < 89:
		size := g.world().size() + powercut.SectorSize*g.rnd.Int64N(60)
		if size > hotEnd {
			return nil
		}
		g.note("resize %d", size)
		return g.resize(size)
	case k < 93:
		g.note("wait")
		return g.waitJob()
	case k < 95:
		g.note("cancel")
		return g.cancel()
	case k < 96:
		g.note("delete unnamed")
		return g.deleteUnnamed()
	case k < 98:
		g.note("close")
		return g.reopen()
	default:
		g.note("compare")
		return g.compare()
	}
}
