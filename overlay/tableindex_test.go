package overlay

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// Before what Next says a layer holds nothing, and it does not say that it holds
// nothing more where it does; written, closed and opened as an image, and larger.
func TestNextAgainstMap(t *testing.T) {
	const size = int64(40) << 40
	path := filepath.Join(t.TempDir(), "layer.qcow2")
	if err := Create(hostfs.OS(), path, CreateOptions{Size: size}); err != nil {
		t.Fatal(err)
	}
	o, err := OpenOverlay(hostfs.OS(), path, OverlayOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	var places []int64
	write := func(n int, within int64) {
		for range n {
			at := rnd.Int64N(within>>16) << 16
			places = append(places, at)
			if err := o.WriteAt([]byte("data"), at, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func(l Layer) {
		t.Helper()
		for range 200 {
			from := rnd.Int64N(l.Size())
			if rnd.IntN(2) == 0 {
				from = max(0, places[rnd.IntN(len(places))]-rnd.Int64N(2<<30))
			}
			next, err := l.Next(from)
			if err != nil || next < from || next > l.Size() {
				t.Fatalf("from %d on: %d, %v", from, next, err)
			}
			for _, at := range places {
				if at >= from && at < next {
					t.Fatalf("from %d on %d is next, and there is data at %d", from, next, at)
				}
			}
			if next == from {
				continue
			}
			extents, err := l.Map(nil, from, next-from)
			if err != nil || len(extents) != 1 || extents[0].Kind != extent.Unallocated {
				t.Fatalf("before %d: %v, %v", next, extents, err)
			}
		}
		if next, err := l.Next(l.Size()); err != nil || next != l.Size() {
			t.Errorf("at the end: %d, %v", next, err)
		}
	}
	write(30, size)
	check(o)
	if err := o.Grow(2*size, nil); err != nil {
		t.Fatal(err)
	}
	check(o)
	write(10, 2*size)
	check(o)
	if err := o.Settle(); err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	im, err := qcow2.OpenImage(hostfs.OS(), path, "qcow2", hostfs.LockNone)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	check(im)
}

// Marks of changes stay when the layer grows, also those that are set meanwhile, and no
// others come but that of the old end.
func TestChangesOutliveGrowth(t *testing.T) {
	path := filepath.Join(t.TempDir(), "layer.qcow2")
	const size = int64(3)<<40 + 5<<20
	if err := Create(hostfs.OS(), path, CreateOptions{Size: size}); err != nil {
		t.Fatal(err)
	}
	o, err := OpenOverlay(hostfs.OS(), path, OverlayOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	marked := []int64{0, 7 * qcow2.ChangeSpan, 2<<40 + 64*qcow2.ChangeSpan}
	for _, at := range marked {
		o.MarkChanged(at+5, 1)
	}
	words := o.changed.word(1)
	if err := o.Grow(9<<40, nil); err != nil {
		t.Fatal(err)
	}
	words.Or(1 << 1) // by somebody who looked it up before
	o.MarkChanged(8<<40, 1)
	want := []int64{0, qcow2.ChangeSpan, 7 * qcow2.ChangeSpan, 2<<40 + 64*qcow2.ChangeSpan, 3 << 40, 8 << 40}
	for i, at := int(0), int64(0); ; i++ {
		start, ok := o.NextChanged(at)
		if ok != (i < len(want)) || ok && start != want[i] {
			t.Fatalf("mark %d is at %d, %v; want %v", i, start, ok, want)
		}
		if !ok {
			break
		}
		if !o.TakeChanged(start) || o.TakeChanged(start) {
			t.Errorf("the mark at %d is not taken once", start)
		}
		at = start
	}
}

// A stream is interrupted in the middle of a hole.
func TestStreamIsInterruptedInAHole(t *testing.T) {
	ctx, stop := context.WithCancelCause(t.Context())
	written := 0
	err := Export{Source: endless{}, Size: 1 << 60}.Stream(ctx, writerFunc(func(p []byte) (int, error) {
		if written += len(p); written > 1<<20 {
			stop(context.Canceled)
		}
		return len(p), nil
	}))
	if err != context.Canceled {
		t.Errorf("the stream ends with %v after %d bytes", err, written)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// endless is a hole.
type endless struct{}

func (endless) Map(dst []extent.Extent, off, length int64) ([]extent.Extent, error) {
	return append(dst, extent.Extent{Start: off, Length: length, Kind: extent.Zero}), nil
}
func (endless) ReadAt(p []byte, _ int64) error { clear(p); return nil }
func (endless) Next(int64) (int64, error)      { return 1 << 62, nil }

// Who finds a table finds it in the index too: what is written through it by then must be
// seen by a walk that begins later.
func TestTableComesAfterItsIndex(t *testing.T) {
	const tables = 12000 // the wrong order shows in some of them
	path := filepath.Join(t.TempDir(), "layer.qcow2")
	o := CreateOptions{Size: 1 << 40, ClusterBits: 14}
	if err := Create(hostfs.OS(), path, o); err != nil {
		t.Fatal(err)
	}
	l, err := OpenOverlay(hostfs.OS(), path, OverlayOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked, made := make(chan int64), make(chan error)
	go func() {
		for i := range asked {
			made <- l.makeTable(i)
		}
		close(made)
	}()
	missed := 0
	for i := range int64(tables) {
		asked <- i
		for l.findTable(i<<l.tableBits) == nil {
		}
		if at, ok := l.index.Load().Next(i); !ok || at != i {
			missed++
		}
		if err := <-made; err != nil {
			t.Fatal(err)
		}
	}
	close(asked)
	if missed > 0 {
		t.Errorf("%d of %d tables were found before the index had them", missed, tables)
	}
}
