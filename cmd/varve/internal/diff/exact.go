package diff

import (
	"bytes"
	"errors"
	"strings"

	"varve/chain"
	"varve/cmd/varve/internal/client"
	"varve/overlay/qcow2"
)

// exactBlock is the unit, in bytes from the disk's start, in which an exact list
// says where views differ: that of most file systems. exactStep is how much is
// compared at a time, a whole number of it.
const (
	exactBlock = 4 << 10
	exactStep  = 1 << 20
)

// exact compares the data where views may differ.
type exact struct {
	client.Differences
	waiting   []chain.Difference // found by the tables, to be compared
	more      bool               // there are others behind them
	asked     bool
	done      int64
	pending   chain.Difference
	differing int64 // bytes
	list      []chain.Difference
	bufA      []byte
	bufB      []byte
}

// Next compares the next piece.
func (e *exact) Next() (list []chain.Difference, done int64, more bool, err error) {
	e.list = e.list[:0]
	if len(e.waiting) == 0 {
		if e.asked && !e.more {
			return e.flush(), e.done, false, nil
		}
		e.asked = true
		if e.waiting, e.done, e.more, err = e.Differences.Next(); err != nil {
			return nil, e.done, false, err
		}
		return nil, e.done, true, nil
	}
	x := &e.waiting[0]
	e.done = x.Start
	if x.A == chain.InEnd || x.B == chain.InEnd {
		e.differing += x.Length
	}
	if x.A == chain.InEnd || x.B == chain.InEnd || isDamaged(x.A) || isDamaged(x.B) {
		e.found(*x)
		e.waiting = e.waiting[1:]
		return e.list, e.done, true, nil
	}
	n := min(x.Length, exactStep-x.Start%exactStep)
	if err := e.compare(x.Start, n, x.A, x.B); err != nil {
		return nil, e.done, false, err
	}
	if x.Start, x.Length = x.Start+n, x.Length-n; x.Length == 0 {
		e.waiting = e.waiting[1:]
	}
	return e.list, e.done, true, nil
}

// compare reads a range of both views and notes the blocks that differ.
func (e *exact) compare(off, length int64, placeA, placeB string) error {
	a, b := e.Views()
	if e.bufA == nil {
		e.bufA, e.bufB = make([]byte, exactStep), make([]byte, exactStep)
	}
	ofA, ofB := e.bufA[:length], e.bufB[:length]
	errA, errB := e.Read(a, ofA, off), e.Read(b, ofB, off)
	if qcow2.IsDamage(errA) || qcow2.IsDamage(errB) { // a smaller piece may do
		if length > exactBlock-off%exactBlock {
			for n := int64(0); length > 0; off, length = off+n, length-n {
				n = min(length, exactBlock-off%exactBlock)
				if err := e.compare(off, n, placeA, placeB); err != nil {
					return err
				}
			}
			return nil
		}
		e.found(chain.Difference{Start: off, Length: length, A: unlessRead(placeA, errA), B: unlessRead(placeB, errB)})
		return nil
	}
	if err := errors.Join(errA, errB); err != nil {
		return err
	}
	for len(ofA) > 0 {
		n := min(int64(len(ofA)), exactBlock-off%exactBlock)
		if !bytes.Equal(ofA[:n], ofB[:n]) {
			for i, v := range ofA[:n] {
				if v != ofB[i] {
					e.differing++
				}
			}
			e.found(chain.Difference{Start: off, Length: n, A: placeA, B: placeB})
		}
		ofA, ofB, off = ofA[n:], ofB[n:], off+n
	}
	return nil
}

// isDamaged says whether a place of a Difference is a damaged one.
func isDamaged(place string) bool { return strings.HasPrefix(place, chain.InDamage) }

// unlessRead is a place, or that it is damaged where a read of it failed.
func unlessRead(place string, err error) string {
	if err == nil {
		return place
	}
	return chain.InDamage + place
}

// found adds a difference to the one before, when they touch.
func (e *exact) found(x chain.Difference) {
	if p := &e.pending; p.Length > 0 && p.End() == x.Start && p.A == x.A && p.B == x.B {
		p.Length += x.Length
		return
	}
	e.flush()
	e.pending = x
}

// flush gives what waits for more that touches it.
func (e *exact) flush() []chain.Difference {
	if e.pending.Length > 0 {
		e.list = append(e.list, e.pending)
		e.pending = chain.Difference{}
	}
	return e.list
}
