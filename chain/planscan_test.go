package chain

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"varve/chain/view"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
)

// The sums of a scan are what one gets by looking at each sector for each run.
func TestScanAgainstSectors(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 5))
			d, _ := testDisk(t, 40<<20)
			randomChain(t, d, rnd, 3+rnd.IntN(5))
			if rnd.IntN(2) == 0 {
				must(t, d.Resize(52<<20))
				put(t, d, 7, 50<<20, 100_000)
			}
			const sector = 512
			sectors := int(d.Size() / sector)
			var units [][]*view.Node
			var kinds [][]extent.Kind // of each unit, by sector
			for n := d.leaf.Load(); n.Parent() != nil; n = n.Parent() {
				size := min(n.Size(), d.Size())
				extents, err := n.Alone().Map(nil, 0, size)
				must(t, err)
				if len(units) == 0 || rnd.IntN(4) > 0 {
					units = append(units, nil)
					kinds = append(kinds, make([]extent.Kind, sectors))
				}
				u := len(units) - 1
				units[u] = append(units[u], n)
				for _, e := range extents {
					for k := e.Start / sector; k < e.End()/sector; k++ {
						if kinds[u][k] == extent.Unallocated {
							kinds[u][k] = e.Kind
						}
					}
				}
			}
			scan, err := d.scanUnits(units)
			must(t, err)
			for i := range units {
				for k := i; k < len(units); k++ {
					var mapped, data, below int64
					for s := range sectors {
						top, under := extent.Unallocated, extent.Unallocated
						for j := i; j <= k; j++ {
							if top == extent.Unallocated {
								top = kinds[j][s]
							}
							if j > i && under == extent.Unallocated {
								under = kinds[j][s]
							}
						}
						if top != extent.Unallocated {
							mapped += sector
						}
						if top == extent.Data {
							data += sector
						}
						if kinds[i][s] == extent.Data && under == extent.Unallocated {
							below += sector
						}
					}
					run := planRun{scan, i, k}
					if run.mapped() != mapped || run.data() != data {
						t.Errorf("units %d to %d map %d bytes, %d of data, want %d and %d", i, k, run.mapped(), run.data(), mapped, data)
					}
					if got := scan.below[scan.cell(i, k)]; k > i && got != below {
						t.Errorf("%d bytes of unit %d are not in %d to %d, want %d", got, i, i+1, k, below)
					}
				}
			}
		})
	}
}

// A plan of a prune reads each layer's tables once or twice, however many there are.
func TestPlanReadsTablesOnce(t *testing.T) {
	reads := func(layers int) int64 {
		host := &lookingFS{FS: hostfs.OS()}
		dir := filepath.Join(t.TempDir(), "vm.varve")
		_, err := Create(dir, CreateOptions{Size: 1 << 30})
		must(t, err)
		d, err := Open(dir, OpenOptions{FS: host})
		must(t, err)
		defer func() { must(t, d.Close()) }()
		var names []string
		for i := range layers {
			for k := range int64(4) {
				put(t, d, byte(1+i), (k<<28+int64(i)*90_000)&^0xfff, 8192)
			}
			names = append(names, fmt.Sprint("s", i))
			must(t, d.Snapshot(names[i]))
		}
		must(t, d.CountAll(t.Context()))
		before := host.looks.Load()
		p, err := d.Plan(OpDelete, names[:layers-1])
		must(t, err)
		if len(p.Gone) != layers-1 {
			t.Errorf("%d layers go, want %d", len(p.Gone), layers-1)
		}
		return host.looks.Load() - before
	}
	few, many := reads(10), reads(40)
	t.Logf("%d reads for 10 layers, %d for 40", few, many)
	if many > 5*few {
		t.Errorf("a plan of 40 merges reads %d times, one of 10 merges %d times", many, few)
	}
}
