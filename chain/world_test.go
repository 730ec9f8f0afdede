package chain

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

const simSector = 512

// stamp is a value that was written to a sector, 0 for zeros, and the number
// of the write.
type stampedValue struct{ write, value uint64 }

// contents are what a view may hold: for each sector that was written what it
// may be, the last one being what was written last, the others what may be
// there after a power cut.
type contents struct {
	size    int64 // bytes
	base    func(sector int64) uint64
	sectors map[int64][]stampedValue
	loose   map[int64]bool // sectors with more than one value
	unsure  map[int64]bool // those of a write that failed, and may have happened
}

func newContents(size int64, base func(sector int64) uint64) *contents {
	return &contents{size: size, base: base, sectors: map[int64][]stampedValue{}, loose: map[int64]bool{}, unsure: map[int64]bool{}}
}

func (c *contents) clone() *contents {
	return &contents{size: c.size, base: c.base, sectors: maps.Clone(c.sectors), loose: maps.Clone(c.loose), unsure: maps.Clone(c.unsure)}
}

func (c *contents) get(sector int64) []stampedValue {
	if v, ok := c.sectors[sector]; ok {
		return v
	}
	return []stampedValue{{value: c.base(sector)}}
}

func (c *contents) may(sector int64, value uint64) bool {
	if v, ok := c.sectors[sector]; ok {
		return slices.ContainsFunc(v, func(s stampedValue) bool { return s.value == value })
	}
	return c.base(sector) == value
}

func (c *contents) write(from, n int64, s stampedValue) {
	for at := from; at < from+n; at++ {
		c.sectors[at] = append(slices.Clip(slices.Clone(c.get(at))), s)
		c.loose[at] = true
	}
}

// durable notes a completed flush that began after the write with that number.
func (c *contents) durable(write uint64) {
	for at := range c.loose {
		if c.unsure[at] {
			continue
		}
		v := c.sectors[at]
		first := len(v) - 1
		for first > 0 && v[first].write > write {
			first--
		}
		c.sectors[at] = v[first:]
		if len(v)-first == 1 {
			delete(c.loose, at)
		}
	}
}

// settle takes what read gives as the only value of every sector.
func (c *contents) settle(read reader) error {
	var p [simSector]byte
	for at := range c.loose {
		if err := read(p[:], at*simSector); err != nil {
			return err
		}
		c.sectors[at] = []stampedValue{{value: binary.BigEndian.Uint64(p[:])}}
	}
	clear(c.loose)
	clear(c.unsure)
	return nil
}

// grow makes the disk larger, with zeros.
func (c *contents) grow(size int64) {
	for at := (c.size + simSector - 1) / simSector; at < min(size, hotEnd)/simSector; at++ {
		c.sectors[at] = []stampedValue{{}}
	}
	c.size = size
}

type reader func(p []byte, off int64) error

func fillSector(p []byte, v uint64) {
	for i := 0; i < len(p); i += 8 {
		binary.BigEndian.PutUint64(p[i:], v)
	}
}

// check compares what read gives with what may be there, or, exactly, with what
// was written last.
func (c *contents) check(read reader, exact bool) error {
	for _, h := range hotRanges {
		end := min(h[1], c.size)
		if h[0] >= end {
			continue
		}
		p := make([]byte, end-h[0])
		if err := read(p, h[0]); err != nil {
			return err
		}
		for len(p) >= simSector {
			sector := h[0] / simSector
			got := binary.BigEndian.Uint64(p)
			for i := 8; i < simSector; i += 8 {
				if v := binary.BigEndian.Uint64(p[i:]); v != got {
					return fmt.Errorf("sector %d is torn: %x and %x", sector, got, v)
				}
			}
			want := c.get(sector)
			if exact && want[len(want)-1].value != got || !exact && !c.may(sector, got) {
				return fmt.Errorf("sector %d (offset 0x%x) has %x, may have %x", sector, h[0], got, want)
			}
			p, h[0] = p[simSector:], h[0]+simSector
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

func (w world) names() []string { return slices.Sorted(maps.Keys(w)) }

func (w world) size() int64 { return w[""].size }

// worlds are the state of a disk that a test knows, and behind it, while an
// operation is under way, the one to which that leads.
type worlds []world

// write notes one that begins. A snapshot under way may have it or not.
func (ws worlds) write(from, n int64, s stampedValue) {
	for i, w := range ws {
		w[""].write(from, n, s)
		for name, c := range w {
			if i > 0 && ws[0][name] == nil {
				c.write(from, n, s)
			}
		}
	}
}

// unsure notes whether a write failed: then it may have happened or not, in each
// view that has it, until the sector is written again.
func (ws worlds) unsure(from, n int64, s stampedValue, failed bool) {
	for _, w := range ws {
		for _, c := range w {
			for at := from; at < from+n; at++ {
				if v := c.sectors[at]; len(v) == 0 || v[len(v)-1].write != s.write {
					continue
				}
				if failed {
					c.unsure[at] = true
				} else {
					delete(c.unsure, at)
				}
			}
		}
	}
}

func (ws worlds) durable(write uint64) {
	for _, w := range ws {
		for _, c := range w {
			c.durable(write)
		}
	}
}

// any says whether a disk shows one of them.
func (ws worlds) any(d *Disk) error {
	var last error
	for _, w := range ws {
		err := w.check(d, false)
		if err == nil {
			return nil
		}
		if last == nil {
			last = err
		} else {
			last = fmt.Errorf("%w; and %w", last, err)
		}
	}
	return last
}

// simView is a view as check and adopt read it.
func simView(d *Disk, name string) (read reader, size int64) {
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

// adopt takes what the disk has now as what was written last.
func (w world) adopt(d *Disk) error {
	for name, v := range w {
		read, _ := simView(d, name)
		if err := v.settle(read); err != nil {
			return err
		}
	}
	return nil
}
