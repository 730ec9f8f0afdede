package bigchain

import (
	"fmt"
	"path/filepath"
	"testing"

	"varve/chain"
)

// BenchmarkOpen opens and closes a disk whose files are in the page cache.
func BenchmarkOpen(b *testing.B) {
	for _, layers := range []int{1, 128, 1000} {
		b.Run(fmt.Sprint(layers), func(b *testing.B) {
			dir := filepath.Join(b.TempDir(), "disk.varve")
			o := Options{Layers: layers, Size: 1 << 40, Mapped: 1 << 30, Placement: Clustered, Base: true}
			if err := Disk(dir, o); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				d, err := chain.Open(dir, chain.OpenOptions{})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := d.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
