package overlay

import (
	"math/bits"
	"sync/atomic"
)

// ChangeSpan is the unit, in guest bytes, in which TakeChanged tells where
// entries have changed. No cluster crosses it.
const ChangeSpan = 16 << 20

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
	for need := size/ChangeSpan/chunkSpans + 1; int64(len(chunks)) < need; {
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
	for i := off / ChangeSpan; i*ChangeSpan < off+length; i++ {
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
	i := off / ChangeSpan
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
	i := off / ChangeSpan
	for w := o.changed.word(i); w != nil; w = o.changed.word(i) {
		if word := w.Load() >> (i % 64); word != 0 {
			return (i + int64(bits.TrailingZeros64(word))) * ChangeSpan, true
		}
		i = i&^63 + 64
	}
	return 0, false
}

// MarkChanged makes TakeChanged say so for a range: the view through this layer
// changes there without an entry of its own.
func (o *Overlay) MarkChanged(off, length int64) { o.changed.mark(off, length) }
