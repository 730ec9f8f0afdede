package powercut

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// SectorSize is the unit in which a View knows a disk, in bytes.
const SectorSize = 512

// View is what a disk may show: for each sector that was written what it may
// have, the last one being what was written last, the others what may be there
// after a power cut. A value fills a sector; 0 is zeros. It knows only some
// ranges of the disk, in which all writes are.
type View struct {
	Size   int64 // bytes
	larger int64 // bytes of a growth under way; 0 for none
	ranges [][2]int64
	base   func(sector int64) uint64

	sectors map[int64][]Stamp
	loose   map[int64]bool // sectors with more than one value
}

// Stamp is a value that was written to a sector, and the number of the write.
type Stamp struct {
	Write, Value uint64
	failed       bool // the write failed, and may have happened or not
}

func (s Stamp) String() string {
	if s.failed {
		return fmt.Sprintf("%x (failed)", s.Value)
	}
	return fmt.Sprintf("%x", s.Value)
}

// Reader reads a disk as a View checks it; past its end are zeros.
type Reader func(p []byte, off int64) error

// NewView gives a disk of some bytes that shows base until it is written. Ranges
// are [from, to) in bytes, of whole sectors.
func NewView(size int64, ranges [][2]int64, base func(sector int64) uint64) *View {
	return &View{
		Size: size, ranges: ranges, base: base,
		sectors: map[int64][]Stamp{}, loose: map[int64]bool{},
	}
}

// Clone gives a view that knows the same.
func (v *View) Clone() *View {
	c := *v
	c.sectors, c.loose = maps.Clone(v.sectors), maps.Clone(v.loose)
	return &c
}

func (v *View) get(sector int64) []Stamp {
	if s, ok := v.sectors[sector]; ok {
		return s
	}
	return []Stamp{{Value: v.base(sector)}}
}

// May says whether a sector may have a value.
func (v *View) May(sector int64, value uint64) bool {
	if s, ok := v.sectors[sector]; ok {
		return slices.ContainsFunc(s, func(s Stamp) bool { return s.Value == value })
	}
	return v.base(sector) == value
}

// Write notes a write that begins.
func (v *View) Write(from, n int64, s Stamp) {
	for at := from; at < from+n; at++ {
		v.sectors[at] = append(slices.Clip(slices.Clone(v.get(at))), s)
		v.loose[at] = true
	}
}

// Failed notes that the last write failed: it may have happened or not, until a
// later one is durable.
func (v *View) Failed(from, n int64, s Stamp) {
	for at := from; at < from+n; at++ {
		have := slices.Clone(v.sectors[at]) // clones of the view share it
		if last := len(have) - 1; last >= 0 && have[last].Write == s.Write {
			have[last].failed = true
			v.sectors[at] = have
		}
	}
}

// Durable notes a completed flush that began when the write with that number had
// been completed.
func (v *View) Durable(write uint64) {
	for at := range v.loose {
		have := v.sectors[at]
		first := len(have) - 1
		for first > 0 && (have[first].Write > write || have[first].failed) {
			first--
		}
		v.sectors[at] = have[first:]
		if first == len(have)-1 {
			delete(v.loose, at)
		}
	}
}

// Loose gives the sectors that may have more than one value.
func (v *View) Loose() []int64 { return slices.Collect(maps.Keys(v.loose)) }

// Settle takes what read gives as the only value of every loose sector.
func (v *View) Settle(read Reader) error {
	var p [SectorSize]byte
	for at := range v.loose {
		if err := read(p[:], at*SectorSize); err != nil {
			return err
		}
		v.sectors[at] = []Stamp{{Value: SectorValue(p[:])}}
	}
	clear(v.loose)
	return nil
}

// MayGrow notes a growth that begins, Grown how it ended: that it failed leaves
// it open whether a power cut finds it done. A view of one layer needs them; a
// disk under an operation has two views instead.
func (v *View) MayGrow(size int64) { v.larger = size }

// Grown ends what MayGrow began.
func (v *View) Grown(happened bool) {
	if happened {
		v.Grow(v.larger)
		v.larger = 0
	}
}

// Of gives the view of a disk that has a size; an error when it must not.
func (v *View) Of(size int64) (*View, error) {
	switch size {
	case v.Size:
		return v, nil
	case v.larger:
		grown := v.Clone()
		grown.Grow(size)
		return grown, nil
	}
	return nil, fmt.Errorf("it has %d bytes, not %d", size, v.Size)
}

// Last takes a value that is read now as the one that was written last: what was
// written later went elsewhere. Earlier ones may still be there after a power cut.
func (v *View) Last(sector int64, value uint64) {
	have := v.get(sector)
	for i := len(have) - 1; i >= 0; i-- {
		if have[i].Value == value {
			v.sectors[sector] = have[:i+1]
			break
		}
	}
}

// Grow makes the disk larger, with zeros.
func (v *View) Grow(size int64) {
	for _, r := range v.ranges {
		for at := (max(r[0], v.Size) + SectorSize - 1) / SectorSize; at < min(r[1], size)/SectorSize; at++ {
			v.sectors[at] = []Stamp{{}}
		}
	}
	v.Size = size
}

// Check compares what read gives with what may be there, or, exactly, with what
// was written last.
func (v *View) Check(read Reader, exact bool) error {
	for _, r := range v.ranges {
		at, end := r[0], min(r[1], v.Size)
		if at >= end {
			continue
		}
		p := make([]byte, end-at)
		if err := read(p, at); err != nil {
			return err
		}
		for ; len(p) >= SectorSize; p, at = p[SectorSize:], at+SectorSize {
			sector, got := at/SectorSize, SectorValue(p)
			for i := 8; i < SectorSize; i += 8 {
				if other := binary.BigEndian.Uint64(p[i:]); other != got {
					return fmt.Errorf("sector %d is torn: %x and %x", sector, got, other)
				}
			}
			want := v.get(sector)
			if exact && want[len(want)-1].Value != got || !exact && !v.May(sector, got) {
				return fmt.Errorf("sector %d (offset 0x%x) has %x, may have %v", sector, at, got, want)
			}
		}
	}
	return nil
}

// FillSectors fills whole sectors with a value.
func FillSectors(p []byte, value uint64) {
	for i := 0; i < len(p); i += 8 {
		binary.BigEndian.PutUint64(p[i:], value)
	}
}

// SectorValue is the value at the start of a sector.
func SectorValue(p []byte) uint64 { return binary.BigEndian.Uint64(p) }
