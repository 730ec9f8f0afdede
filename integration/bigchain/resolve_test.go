package bigchain

import (
	"fmt"
	"path/filepath"
	"testing"

	"varve/chain"
)

// BenchmarkResolve is the first touch of 16 MiB: a read of 4 KiB where nothing is
// remembered. In "silent" no layer but the lowest says anything there.
func BenchmarkResolve(b *testing.B) {
	for _, layers := range []int{1, 128, 1000} {
		for name, o := range map[string]Options{
			"contiguous": {Mapped: 64 << 20, Run: 1 << 20, Placement: Random},
			"fragmented": {Mapped: 16 << 20, Run: 4 << 10, Placement: Random},
			"silent":     {Mapped: 0},
		} {
			b.Run(fmt.Sprintf("%s/%d", name, layers), func(b *testing.B) {
				o.Layers, o.Size, o.Base = layers, 4<<30, true
				dir := filepath.Join(b.TempDir(), "disk.varve")
				if err := Disk(dir, o); err != nil {
					b.Fatal(err)
				}
				// A cache of a byte keeps the last region only.
				d, err := chain.Open(dir, chain.OpenOptions{ReadOnly: true, CacheBytes: 1})
				if err != nil {
					b.Fatal(err)
				}
				defer d.Close()
				p := make([]byte, 4<<10)
				at := int64(0)
				b.ReportAllocs()
				for b.Loop() {
					if err := d.ReadAt(p, at); err != nil {
						b.Fatal(err)
					}
					at = (at + 16<<20) % o.Size
				}
			})
		}
	}
}
