package overlay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"varve/integration/hostile"
	"varve/overlay/hostfs"
)

// ownSeeds are layers as varve makes them, settled and as a crash leaves them.
func ownSeeds(tb testing.TB) []hostile.Seed {
	tb.Helper()
	below := bytes.Repeat([]byte("what stands below\n"), 30000)[:400<<10]
	clear(below[64<<10 : 128<<10])
	var seeds []hostile.Seed
	for _, clusterBits := range []uint32{14, defaultClusterBits} {
		for _, backing := range []memory{nil, below} {
			for _, settle := range []bool{true, false} {
				dir := tb.TempDir()
				path := filepath.Join(dir, "layer.qcow2")
				// At 14 bits one table reaches over 16 MiB: four of them.
				o := CreateOptions{Size: 40<<20 + 512, ClusterBits: clusterBits}
				var under Backing
				if backing != nil {
					o.Backing, o.BackingFormat, under = "base.raw", "raw", backing
				}
				if err := Create(hostfs.OS(), path, o); err != nil {
					tb.Fatal(err)
				}
				layer, err := OpenOverlay(hostfs.OS(), path, OverlayOptions{})
				if err != nil {
					tb.Fatal(err)
				}
				do := func(err error) {
					tb.Helper()
					if err != nil {
						tb.Fatal(err)
					}
				}
				do(layer.WriteAt(bytes.Repeat([]byte{1}, 20<<10), 1000, under))
				do(layer.WriteAt(bytes.Repeat([]byte{2}, 5000), 20<<20, under))
				do(layer.Discard(4<<10, 8<<10, under))
				do(layer.Discard(100<<10, 100<<10, under))
				do(layer.WriteAt(bytes.Repeat([]byte{3}, 512), 40<<20, under))
				if settle {
					do(layer.Settle())
				} else {
					do(layer.Flush())
				}
				do(layer.Close())
				data, err := os.ReadFile(path)
				do(err)
				seeds = append(seeds, hostile.Seed{Name: fmt.Sprintf("%d bits, backing %v, settled %v", clusterBits, backing != nil, settle), Data: data, Backing: backing})
				if clusterBits == defaultClusterBits && settle { // as an earlier version made it
					uneven := bytes.Clone(data)
					binary.BigEndian.PutUint64(uneven[24:], 40<<20+300)
					seeds = append(seeds, hostile.Seed{Name: fmt.Sprintf("uneven, backing %v", backing != nil), Data: uneven, Backing: backing})
				}
			}
		}
	}
	return seeds
}
