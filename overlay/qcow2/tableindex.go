package qcow2

import (
	"math/bits"
	"sync/atomic"
)

// TableIndex says which L1 entries name an L2 table, so that a walk over guest space
// goes from one table to the next, however many empty entries lie between them. At the
// largest L1 table that qcow2 allows, of 4 Mi entries, a look reads 1,024 words at most.
// One at a time may set bits, while others look.
type TableIndex struct {
	entries int
	words   []atomic.Uint64 // a bit for each L1 entry
	summary []atomic.Uint64 // a bit for each word that is not 0
}

func NewTableIndex(entries int) *TableIndex {
	words := (entries + 63) / 64
	return &TableIndex{entries: entries, words: make([]atomic.Uint64, words), summary: make([]atomic.Uint64, (words+63)/64)}
}

// Grown is a copy with room for more entries. Nobody may set bits meanwhile.
func (x *TableIndex) Grown(entries int) *TableIndex {
	g := NewTableIndex(entries)
	for i := range x.words {
		g.words[i].Store(x.words[i].Load())
	}
	for i := range x.summary {
		g.summary[i].Store(x.summary[i].Load())
	}
	return g
}

func (x *TableIndex) Set(i int) {
	x.words[i/64].Or(1 << (i % 64))
	x.summary[i/64/64].Or(1 << (i / 64 % 64))
}

// Next is the first entry at or behind i that names a table; ok is false when none
// does.
func (x *TableIndex) Next(i int64) (at int64, ok bool) {
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

// NextReach is where, at or behind off, the reach of a table begins or goes on; span
// is how many bits of a guest offset lie within it.
func (x *TableIndex) NextReach(off, size int64, span uint32) int64 {
	i, ok := x.Next(off >> span)
	if !ok {
		return size
	}
	return min(max(off, i<<span), size)
}
