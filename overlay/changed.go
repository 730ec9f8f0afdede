package overlay

import "sync/atomic"

// ChangeSpan is the unit, in guest bytes, in which TakeChanged tells where
// entries have changed. No cluster crosses it.
const ChangeSpan = 16 << 20

// changedSpans has a bit for every span in which an entry changed.
type changedSpans struct {
	words atomic.Pointer[[]atomic.Uint64]
}

// resize makes room for a disk of size bytes; called while nobody marks what
// is past the old one.
func (c *changedSpans) resize(size int64) {
	words := make([]atomic.Uint64, size/ChangeSpan/64+1)
	if old := c.words.Load(); old != nil {
		if len(*old) >= len(words) {
			return
		}
		// A mark that is set in the old words meanwhile would be lost: count
		// everything again.
		for i := range words {
			words[i].Store(^uint64(0))
		}
	}
	c.words.Store(&words)
}

func (c *changedSpans) mark(off, length int64) {
	words := *c.words.Load()
	for i := off / ChangeSpan; i*ChangeSpan < off+length; i++ {
		if i/64 >= int64(len(words)) {
			return
		}
		if w := &words[i/64]; w.Load()>>(i%64)&1 == 0 {
			w.Or(1 << (i % 64))
		}
	}
}

// TakeChanged says whether an entry may have changed in the span that holds a
// guest offset since it was last asked, at first since the layer was opened.
func (o *Overlay) TakeChanged(off int64) bool {
	words := *o.changed.words.Load()
	i := off / ChangeSpan
	if i/64 >= int64(len(words)) {
		return true
	}
	bit := uint64(1) << (i % 64)
	return words[i/64].Load()&bit != 0 && words[i/64].And(^bit)&bit != 0
}

// MarkChanged makes TakeChanged say so for a range: the view through this layer
// changes there without an entry of its own.
func (o *Overlay) MarkChanged(off, length int64) { o.changed.mark(off, length) }
