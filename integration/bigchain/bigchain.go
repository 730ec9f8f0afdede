// Package bigchain makes disks of any size with any number of layers in
// seconds: it writes the metadata of layers as varve writes them, and lets their
// data be holes of sparse files, which read as zeros. Measurements and tests use
// it for disks that no test machine has room for.
package bigchain

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"varve/chain"
	"varve/overlay"
)

// Placement says where in the disk a layer's runs lie.
type Placement int

const (
	// Spread: at equal distances, a little elsewhere in each layer.
	Spread Placement = iota
	// Random: anywhere. Runs may follow each other.
	Random
	// Clustered: in some pieces of 1 GiB, each half full, others in each layer: as
	// a guest's files lie.
	Clustered
)

// Options say what a chain is like. Sizes are bytes.
type Options struct {
	Layers    int
	Size      int64 // of the disk, a multiple of Run
	Mapped    int64 // by each layer, a multiple of Run and at most Size
	Run       int64 // what lies together, a multiple of 4 KiB; 0 for 1 MiB
	Placement Placement
	Seed      uint64 // the same options give the same runs
	// Base puts a raw base of Size below the layers, one hole.
	Base bool
}

const (
	subcluster = 4 << 10
	area       = 1 << 30 // see Clustered
)

func (o Options) withDefaults() (Options, error) {
	if o.Run == 0 {
		o.Run = 1 << 20
	}
	switch {
	case o.Layers < 1:
		return o, fmt.Errorf("bigchain: %d layers", o.Layers)
	case o.Run < subcluster || o.Run%subcluster != 0:
		return o, fmt.Errorf("bigchain: runs of %d bytes", o.Run)
	case o.Size <= 0 || o.Size%o.Run != 0:
		return o, fmt.Errorf("bigchain: a disk of %d bytes with runs of %d", o.Size, o.Run)
	case o.Mapped < 0 || o.Mapped > o.Size || o.Mapped%o.Run != 0:
		return o, fmt.Errorf("bigchain: layers of %d bytes on a disk of %d with runs of %d", o.Mapped, o.Size, o.Run)
	}
	return o, nil
}

// Runs are the guest offsets of the runs that a layer maps, in order; layers are
// numbered from 0, the lowest. Each is o.Run bytes long.
func (o Options) Runs(layer int) ([]int64, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(o.Seed, uint64(layer)))
	slots, n := o.Size/o.Run, o.Mapped/o.Run
	runs := make([]int64, 0, n)
	switch o.Placement {
	case Spread:
		shift := random.Int64N(slots)
		for i := range n {
			runs = append(runs, (i*slots/n+shift)%slots*o.Run)
		}
	case Random:
		for _, slot := range pick(random, slots, n) {
			runs = append(runs, slot*o.Run)
		}
	case Clustered:
		perArea := min(slots, max(1, area/o.Run))
		for _, a := range random.Perm(int((slots + perArea - 1) / perArea)) {
			first := int64(a) * perArea
			here := min(perArea, slots-first)
			// The whole of it where half of everything would not do.
			take := min(n-int64(len(runs)), here)
			if 2*n <= slots {
				take = min(take, (here+1)/2)
			}
			for _, slot := range pick(random, here, take) {
				runs = append(runs, (first+slot)*o.Run)
			}
		}
	default:
		return nil, fmt.Errorf("bigchain: no placement %d", o.Placement)
	}
	slices.Sort(runs)
	return runs, nil
}

// pick chooses n of the numbers below of, each at most once (Floyd's algorithm).
func pick(random *rand.Rand, of, n int64) []int64 {
	taken := make(map[int64]bool, n)
	list := make([]int64, 0, n)
	for i := of - n; i < of; i++ {
		x := random.Int64N(i + 1)
		if taken[x] {
			x = i
		}
		taken[x] = true
		list = append(list, x)
	}
	return list
}

// Chain writes a chain of plain files into a directory, and gives their paths,
// bottom first: base.raw where there is a base, then NNNNNN.qcow2 by their place. Each
// names the one below it by its bare name.
func Chain(dir string, o Options) ([]string, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	var files []string
	create := overlay.CreateOptions{Size: o.Size}
	if o.Base {
		base := filepath.Join(dir, "base.raw")
		if err := makeHole(base, o.Size); err != nil {
			return nil, err
		}
		files = append(files, base)
		create.Backing, create.BackingFormat = filepath.Base(base), "raw"
	}
	for i := range o.Layers {
		runs, err := o.Runs(i)
		if err != nil {
			return nil, err
		}
		// The number that the layer's id in a disk directory has too.
		file := filepath.Join(dir, fmt.Sprintf("%06d.qcow2", len(files)+1))
		if err := writeLayer(file, create, runs, o.Run); err != nil {
			return nil, fmt.Errorf("bigchain: %s: %w", file, err)
		}
		files = append(files, file)
		create.Backing, create.BackingFormat = filepath.Base(file), "qcow2"
	}
	return files, nil
}

// LayerName is what Disk calls a layer, numbered from 0.
func LayerName(layer int) string { return fmt.Sprintf("s%d", layer) }

// Disk makes a disk directory with o.Layers frozen layers, named by LayerName, and
// an empty leaf. A base stands beside it, under its name plus ".raw".
func Disk(dir string, o Options) (err error) {
	o, err = o.withDefaults()
	if err != nil {
		return err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return err
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), "bigchain")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	files, err := Chain(temp, o)
	if err != nil {
		return err
	}
	// Adopting the chain takes the fingerprints. Then the files become the disk's
	// own, and the next open makes the headers say so.
	if _, err := chain.Create(dir, chain.CreateOptions{Base: files[len(files)-1], Format: "qcow2"}); err != nil {
		return err
	}
	if o.Base {
		if err := os.Rename(files[0], dir+".raw"); err != nil {
			return err
		}
		files = files[1:]
	}
	if err := takeOver(dir, files, o); err != nil {
		return err
	}
	d, err := chain.Open(dir, chain.OpenOptions{})
	if err != nil {
		return err
	}
	return d.Close()
}

func makeHole(file string, size int64) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return cmp.Or(f.Truncate(size), f.Close())
}
