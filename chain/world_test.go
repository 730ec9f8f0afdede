package chain

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// contents are what a view may hold: for each sector the values, the last one
// being what was written last, the others what may be there after a crash. A
// value fills a sector; 0 is zeros.
type contents struct {
	size    int64
	sectors map[int64][]uint64
	loose   map[int64]bool // sectors with more than one value
	unsure  map[int64]bool // those of a write that failed, and may have happened
}

func newContents(size int64) *contents {
	return &contents{size: size, sectors: map[int64][]uint64{}, loose: map[int64]bool{}, unsure: map[int64]bool{}}
}

func (c *contents) clone() *contents {
	return &contents{size: c.size, sectors: maps.Clone(c.sectors), loose: maps.Clone(c.loose), unsure: maps.Clone(c.unsure)}
}

func baseValue(sector int64) uint64 {
	at := sector * simSector
	for _, h := range hotRanges {
		if at >= h[0] && at < h[1] && at < simSize && at>>15%3 != 0 {
			return uint64(sector) | 0xba5e<<48
		}
	}
	return 0
}

func (c *contents) get(sector int64) []uint64 {
	if v, ok := c.sectors[sector]; ok {
		return v
	}
	return []uint64{baseValue(sector)}
}

func (c *contents) write(from, n int64, value uint64) {
	for s := from; s < from+n; s++ {
		old := c.get(s)
		c.sectors[s] = append(slices.Clip(slices.Clone(old)), value)
		c.loose[s] = true
	}
}

func (c *contents) durable() {
	for s := range c.loose {
		if v := c.sectors[s]; !c.unsure[s] {
			c.sectors[s] = v[len(v)-1:]
			delete(c.loose, s)
		}
	}
}

// check compares what read gives with what may be there, or with what was
// written last.
func (c *contents) check(read func(p []byte, off int64) error, exact bool) error {
	for _, h := range hotRanges {
		end := min(h[1], c.size)
		if h[0] >= end {
			continue
		}
		p := make([]byte, end-h[0])
		if err := read(p, h[0]); err != nil {
			return err
		}
		for at := int64(0); at < int64(len(p)); at += simSector {
			sector := (h[0] + at) / simSector
			got := binary.BigEndian.Uint64(p[at:])
			for i := int64(8); i < simSector; i += 8 {
				if v := binary.BigEndian.Uint64(p[at+i:]); v != got {
					return fmt.Errorf("sector %d is torn: %x and %x", sector, got, v)
				}
			}
			want := c.get(sector)
			if exact {
				want = want[len(want)-1:]
			}
			if !slices.Contains(want, got) {
				return fmt.Errorf("sector %d (offset 0x%x) has %x, may have %x", sector, sector*simSector, got, want)
			}
		}
	}
	return nil
}

// world is the state of a disk that a test knows: the leaf ("") and the named
// views.
type world map[string]*contents

func (w world) clone() world {
	c := world{}
	for name, v := range w {
		c[name] = v.clone()
	}
	return c
}

func (w world) names() []string {
	var names []string
	for n := range w {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// simView is a view as check and adopt read it.
func simView(d *Disk, name string) (read func(p []byte, off int64) error, size int64) {
	if name == "" {
		return d.ReadAt, d.Size()
	}
	m, nodes := d.tree()
	n := nodes[m.byName(name).ID]
	return func(p []byte, off int64) error {
		section := d.readers.enter()
		defer d.readers.exit(section)
		return n.ReadAt(p, off)
	}, n.size()
}

// adopt takes what the disk has now as what was written last.
func (w world) adopt(d *Disk) error {
	for name, v := range w {
		read, _ := simView(d, name)
		var p [simSector]byte
		for s := range v.loose {
			if err := read(p[:], s*simSector); err != nil {
				return err
			}
			v.sectors[s] = []uint64{binary.BigEndian.Uint64(p[:])}
		}
		clear(v.loose)
		clear(v.unsure)
	}
	return nil
}

func (w world) check(d *Disk, exact bool) error {
	m, _ := d.tree()
	have := []string{""}
	for _, l := range m.Layers {
		if l.Name != "" && l.Name != baseName {
			have = append(have, l.Name)
		}
	}
	slices.Sort(have)
	if !slices.Equal(have, w.names()) {
		return fmt.Errorf("there are the views %q, not %q", have, w.names())
	}
	for name, v := range w {
		read, size := simView(d, name)
		if size != v.size {
			return fmt.Errorf("the view %q has %d bytes, not %d", name, size, v.size)
		}
		if err := v.check(read, exact); err != nil {
			return fmt.Errorf("the view %q: %w", name, err)
		}
	}
	return nil
}

func (w world) size() int64 { return w[""].size }
