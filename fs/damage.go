package fs

import (
	"fmt"

	"varve/chain"
	"varve/fs/partition"
	"varve/overlay/extent"
)

// NameDamage fills in of each damaged place of a disk's layers in which partition it
// lies. read reads a layer's view by its id, "" for the leaf's; what it cannot read has
// no partitions.
func NameDamage(st *chain.Status, read func(id string, p []byte, off int64) error) {
	for i := range st.Layers {
		l := &st.Layers[i]
		if len(l.Damage) == 0 {
			continue
		}
		id, size := "", st.Size // a layer without a name is seen in the leaf
		if l.Name != "" || l.State == chain.StateBase {
			id, size = l.ID, l.Size
		}
		table := PartitionsOf(func(p []byte, off int64) error { return read(id, p, off) }, size)
		for k := range l.Damage {
			l.Damage[k].Partition = table.At(l.Damage[k].Start)
		}
	}
}

// Partitions are those of a disk.
type Partitions []partition.Partition

// PartitionsOf reads a disk's partition table; none where it has none, or that cannot
// be read. read is io.ReaderAt without the count.
func PartitionsOf(read func(p []byte, off int64) error, size int64) Partitions {
	list, err := partition.Read(partition.ReadFunc(read), extent.WholeSectors(size))
	if err != nil {
		return nil
	}
	return list
}

// At is the partition in which an offset lies, as the mount names it; "" for none.
func (t Partitions) At(off int64) string {
	for _, p := range t {
		if p.Start <= off && off < p.Start+p.Length {
			return fmt.Sprintf("p%d", p.Number)
		}
	}
	return ""
}

// peekView is read of NameDamage for a mounted disk.
func (f *fileSystem) peekView(id string, p []byte, off int64) error {
	if id == "" {
		return f.disk.ReadAt(p, off)
	}
	return f.disk.PeekView(id, p, off)
}
