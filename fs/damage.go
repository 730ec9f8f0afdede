package fs

import (
	"fmt"

	"varve/chain"
	"varve/fs/partition"
	"varve/overlay"
)

// mostDamagesShown is how many damaged places a table names of a layer.
const mostDamagesShown = 3

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
		if l.Name != "" || l.State == "base" {
			id, size = l.ID, l.Size
		}
		list, err := partition.Read(partition.ReadFunc(func(p []byte, off int64) error { return read(id, p, off) }), overlay.WholeSectors(size))
		if err != nil {
			continue // no table, or one that is damaged itself
		}
		for k := range l.Damage {
			d := &l.Damage[k]
			for _, p := range list {
				if p.Start <= d.Start && d.Start < p.Start+p.Length {
					d.Partition = fmt.Sprintf("p%d", p.Number)
				}
			}
		}
	}
}

// peekView is read of NameDamage for a mounted disk.
func (f *fileSystem) peekView(id string, p []byte, off int64) error {
	if id == "" {
		return f.disk.ReadAt(p, off)
	}
	return f.disk.PeekView(id, p, off)
}

// damageNotes say of a layer what of it cannot be read.
func damageNotes(l *chain.LayerStatus) (notes []string) {
	for i, d := range l.Damage {
		if i == mostDamagesShown {
			return append(notes, fmt.Sprintf("damaged: %d more places, see status.json", len(l.Damage)-i))
		}
		where := ""
		if d.Partition != "" {
			where = " (" + d.Partition + ")"
		}
		notes = append(notes, fmt.Sprintf("damaged: %s at %d%s cannot be read", HumanSize(d.Length), d.Start, where))
	}
	return notes
}
