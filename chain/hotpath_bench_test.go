package chain

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"varve/overlay/hostfs"
)

// hotDisk is a blank disk on the host's file system with 64 MiB of data in its
// leaf, or in a snapshot below it.
func hotDisk(b *testing.B, below bool) *Disk {
	b.Helper()
	dir := filepath.Join(b.TempDir(), "disk")
	if _, err := Create(dir, CreateOptions{Size: 1 << 30}); err != nil {
		b.Fatal(err)
	}
	d, err := Open(dir, OpenOptions{FS: hostfs.OS()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := d.Close(); err != nil {
			b.Error(err)
		}
	})
	p := make([]byte, 1<<20)
	for off := int64(0); off < 64<<20; off += int64(len(p)) {
		if err := d.WriteAt(p, off); err != nil {
			b.Fatal(err)
		}
	}
	if below {
		if err := d.Snapshot("one"); err != nil {
			b.Fatal(err)
		}
	}
	return d
}

// BenchmarkHotPath is what a request of 4 KiB costs inside varve once its place is
// known, with the host's system call.
func BenchmarkHotPath(b *testing.B) {
	p := make([]byte, 4096)
	place := func(random *rand.Rand) int64 { return random.Int64N(64<<20/4096) * 4096 }
	for _, c := range []struct {
		name  string
		below bool
		do    func(d *Disk, off int64) error
	}{
		{"read from the leaf", false, func(d *Disk, off int64) error { return d.ReadAt(p, off) }},
		{"read from below", true, func(d *Disk, off int64) error { return d.ReadAt(p, off) }},
		{"read of zeros", true, func(d *Disk, off int64) error { return d.ReadAt(p, off+128<<20) }},
		{"write in place", false, func(d *Disk, off int64) error { return d.WriteAt(p, off) }},
		{"look up in the leaf", false, func(d *Disk, off int64) error {
			_, err := d.leaf.Load().Layer().Over().Lookup(off, 4096)
			return err
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			d, random := hotDisk(b, c.below), rand.New(rand.NewPCG(1, 2))
			for range 20_000 { // every region and table is known
				if err := c.do(d, place(random)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := c.do(d, place(random)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	// Every write takes a host cluster of its own, 8,192 of them in each disk.
	b.Run("allocate", func(b *testing.B) {
		var d *Disk
		next := int64(1 << 30)
		b.ReportAllocs()
		for b.Loop() {
			if next >= 1<<30 {
				b.StopTimer()
				d, next = hotDisk(b, false), 64<<20
				b.StartTimer()
			}
			if err := d.WriteAt(p, next); err != nil {
				b.Fatal(err)
			}
			next += 128 << 10
		}
	})
}
