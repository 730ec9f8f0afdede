package overlay

import (
	"math/bits"
	"sync/atomic"

	"varve/overlay/qcow2"
)

// changedSpans has a bit for every span in which an entry changed.
type changedSpans struct {
	chunks atomic.Pointer[[]*changedChunk]
}

const (
	chunkWords = 1024 // of 1 TiB of guest space
	chunkSpans = chunkWords * 64
)

type changedChunk [chunkWords]atomic.Uint64

// resize makes room for a disk of size bytes; called while nobody marks what
// is past the old one. What was there before stays where it is, so that no mark
// is lost that is set meanwhile.
func (c *changedSpans) resize(size int64) {
	var chunks []*changedChunk
	if old := c.chunks.Load(); old != nil {
		chunks = append(chunks, *old...)
	}
	for need := size/qcow2.ChangeSpan/chunkSpans + 1; int64(len(chunks)) < need; {
		chunks = append(chunks, new(changedChunk))
	}
	c.chunks.Store(&chunks)
}

// word is the word that has a span's bit; nil behind the end.
func (c *changedSpans) word(span int64) *atomic.Uint64 {
	chunks := *c.chunks.Load()
	if span/chunkSpans >= int64(len(chunks)) {
		return nil
	}
	return &chunks[span/chunkSpans][span%chunkSpans/64]
}

func (c *changedSpans) mark(off, length int64) {
	for i := off / qcow2.ChangeSpan; i*qcow2.ChangeSpan < off+length; i++ {
		w := c.word(i)
		if w == nil {
			return
		}
		if w.Load()>>(i%64)&1 == 0 {
			w.Or(1 << (i % 64))
		}
	}
}

// TakeChanged says whether an entry may have changed in the span that holds a
// guest offset since it was last asked, at first since the layer was opened.
func (o *Overlay) TakeChanged(off int64) bool {
	i := off / qcow2.ChangeSpan
	w := o.changed.word(i)
	if w == nil {
		return true
	}
	bit := uint64(1) << (i % 64)
	return w.Load()&bit != 0 && w.And(^bit)&bit != 0
}

// NextChanged is the start of the first span at or behind the one of a guest offset
// for which TakeChanged would say so; ok is false when there is none.
func (o *Overlay) NextChanged(off int64) (start int64, ok bool) {
	i := off / qcow2.ChangeSpan
	for w := o.changed.word(i); w != nil; w = o.changed.word(i) {
		if word := w.Load() >> (i % 64); word != 0 {
			return (i + int64(bits.TrailingZeros64(word))) * qcow2.ChangeSpan, true
		}
		i = i&^63 + 64
	}
	return 0, false
}

// MarkChanged makes TakeChanged say so for a range: the view through this layer
// changes there without an entry of its own.
func (o *Overlay) MarkChanged(off, length int64) { o.changed.mark(off, length) }

// Touched is Image.Touched; what changes meanwhile TakeChanged tells.
func (o *Overlay) Touched(off int64) (mask uint64, err error) {
	end := min(off+qcow2.TouchedBytes, o.Size())
	span := o.tableBits + o.clusterBits
	tables := *o.tables.Load()
	for i := off >> span; i<<span < end && i < int64(len(tables)); i++ {
		t := tables[i].Load()
		if t == nil {
			continue
		}
		// First what is in memory: a slice that is not was written back.
		const sliceSpan = sliceEntries
		for si := range t.slices {
			if t.slices[si].Load() != nil {
				start := i<<span + int64(si)*sliceSpan<<o.clusterBits
				mask |= qcow2.SpanMask(start-off, start-off+sliceSpan<<o.clusterBits)
			}
		}
		m, err := qcow2.TouchedTable(o.file, t.host, i<<span, qcow2.EntrySize, o.clusterBits, off)
		if err != nil {
			return 0, err
		}
		mask |= m
	}
	return mask & qcow2.SpanMask(0, end-off), nil
}
