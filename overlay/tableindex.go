package overlay

import (
	"math/bits"
	"sync/atomic"
)

// tableIndex says which L1 entries name an L2 table, so that a walk over guest space
// goes from one table to the next, however many empty entries lie between them. At the
// largest L1 table that qcow2 allows, of 4 Mi entries, a look reads 1,024 words at most.
// One at a time may set bits, while others look.
type tableIndex struct {
	entries int
	words   []atomic.Uint64 // a bit for each L1 entry
	summary []atomic.Uint64 // a bit for each word that is not 0
}

func newTableIndex(entries int) *tableIndex {
	words := (entries + 63) / 64
	return &tableIndex{entries: entries, words: make([]atomic.Uint64, words), summary: make([]atomic.Uint64, (words+63)/64)}
}

// grown is a copy with room for more entries. Nobody may set bits meanwhile.
func (x *tableIndex) grown(entries int) *tableIndex {
	g := newTableIndex(entries)
	for i := range x.words {
		g.words[i].Store(x.words[i].Load())
	}
	for i := range x.summary {
		g.summary[i].Store(x.summary[i].Load())
	}
	return g
}

func (x *tableIndex) set(i int) {
	x.words[i/64].Or(1 << (i % 64))
	x.summary[i/64/64].Or(1 << (i / 64 % 64))
}

// next is the first entry at or behind i that names a table; ok is false when none
// does.
func (x *tableIndex) next(i int64) (at int64, ok bool) {
	if i >= int64(x.entries) {
		return 0, false
	}
	w := i / 64
	if word := x.words[w].Load() >> (i % 64); word != 0 {
		return i + int64(bits.TrailingZeros64(word)), true
	}
	if w = nextBit(x.summary, w+1); w < 0 {
		return 0, false
	}
	// The word's bit was set before that of the summary.
	return w*64 + int64(bits.TrailingZeros64(x.words[w].Load())), true
}

// nextBit is the first bit at or behind i that is set; -1 when none is.
func nextBit(words []atomic.Uint64, i int64) int64 {
	for w := i / 64; w < int64(len(words)); w++ {
		word := words[w].Load()
		if w == i/64 {
			word &= ^uint64(0) << (i % 64)
		}
		if word != 0 {
			return w*64 + int64(bits.TrailingZeros64(word))
		}
	}
	return -1
}

// Next implements Layer. Of a qcow2 image it looks at the L1 table in memory, and so
// gives where the reach of an L2 table begins; of a raw one it asks the host once.
func (im *Image) Next(off int64) (int64, error) {
	if off >= im.size {
		return im.size, nil
	}
	if im.header == nil {
		start, _, err := im.nextRawStart(off, im.size)
		return start, err
	}
	next := nextReach(im.index, off, im.size, im.header.l2Bits()+im.header.ClusterBits)
	if im.hidden.Length > 0 && off < im.hidden.End() { // zeros, which no table says
		next = min(next, max(off, im.hidden.Start))
	}
	return next, nil
}

// Next implements Layer: it looks at the L1 table in memory.
func (o *Overlay) Next(off int64) (int64, error) {
	size := o.Size()
	if off >= size {
		return size, nil
	}
	return nextReach(o.index.Load(), off, size, o.tableBits+o.clusterBits), nil
}

// nextTable is where, behind the reach in which off lies and which has no table, that of
// a table begins; end when none does before. A table comes into the index before it is
// there.
func (o *Overlay) nextTable(off, end int64) int64 {
	span := o.tableBits + o.clusterBits
	if behind := (off>>span + 1) << span; behind < end {
		return nextReach(o.index.Load(), behind, end, span)
	}
	return end
}

// nextReach is where, at or behind off, the reach of a table begins or goes on; span
// is how many bits of a guest offset lie within it.
func nextReach(x *tableIndex, off, size int64, span uint32) int64 {
	i, ok := x.next(off >> span)
	if !ok {
		return size
	}
	return min(max(off, i<<span), size)
}
