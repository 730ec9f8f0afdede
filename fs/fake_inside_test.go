package fs

import (
	"context"
	"fmt"
	"time"

	"varve/chain"
)

func (d *fakeDisk) PeekView(id string, p []byte, off int64) error {
	if err := d.enter("PeekView " + id); err != nil {
		return err
	}
	for _, l := range d.layers() {
		if l.status.ID == id {
			clear(p)
			if off < int64(len(l.data)) {
				copy(p, l.data[off:])
			}
			return nil
		}
	}
	return chain.ErrNotExist
}

// DataBytes counts one block at a time once the time is over.
func (d *fakeDisk) DataBytes(id string, off, end int64, until time.Time) (bytes, at int64, err error) {
	if err := d.enter("DataBytes"); err != nil {
		return 0, off, err
	}
	layers := d.layers()
	d.mu.Lock()
	defer d.mu.Unlock()
	mapped, slow := d.mapped, d.slowCount
	for _, l := range layers {
		if l.status.ID == id {
			mapped = l.mapped
		}
	}
	for at = off; at < end; {
		next := min(end, (at/fakeBlock+1)*fakeBlock)
		if mapped[at/fakeBlock] {
			bytes += next - at
		}
		at = next
		if slow {
			break
		}
	}
	return bytes, at, nil
}

// fakeDiff gives what a test wants to be found, in pieces.
type fakeDiff struct {
	d      *fakeDisk
	a, b   chain.DiffView
	pieces [][]chain.Difference
	fail   error // instead of the last piece
	done   int64
}

func (d *fakeDisk) Diff(ctx context.Context, a, b string, who chain.Opener) (diff, error) {
	if err := d.enter(fmt.Sprintf("Diff %s %s", a, b)); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.diffs++
	return &fakeDiff{
		d: d, a: chain.DiffView{Name: a, ID: "000001", Size: int64(len(d.data))}, b: chain.DiffView{Name: b, ID: "000100", Size: int64(len(d.data))},
		pieces: d.pieces, fail: d.fail["Next"],
	}, nil
}

func (x *fakeDiff) Views() (a, b chain.DiffView) { return x.a, x.b }
func (x *fakeDiff) Done() int64                  { return x.done }

func (x *fakeDiff) Next(dst []chain.Difference, _ time.Time) ([]chain.Difference, bool, error) {
	if len(x.pieces) <= 1 && x.fail != nil {
		return dst, false, x.fail
	}
	if len(x.pieces) == 0 {
		return dst, false, nil
	}
	dst = append(dst, x.pieces[0]...)
	x.pieces = x.pieces[1:]
	x.done += 1000
	return dst, len(x.pieces) > 0, nil
}

func (x *fakeDiff) Close() {
	x.d.mu.Lock()
	defer x.d.mu.Unlock()
	x.d.diffs--
}
