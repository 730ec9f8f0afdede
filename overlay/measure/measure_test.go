package measure

import (
	"sync"
	"testing"
	"time"
	"unsafe"

	"varve/integration/patience"
)

func TestCounter(t *testing.T) {
	var c Counter
	var done sync.WaitGroup
	for range 16 {
		done.Go(func() {
			for range 1000 {
				c.Add(3)
				c.Inc()
			}
		})
	}
	done.Wait()
	if got := c.Load(); got != 16*4000 {
		t.Errorf("%d, want %d", got, 16*4000)
	}
}

func TestHistogram(t *testing.T) {
	for _, c := range []struct {
		d    time.Duration
		want int
	}{
		{-time.Second, 0}, {0, 0}, {10 * time.Microsecond, 0}, {10*time.Microsecond + 1, 1}, {time.Millisecond, 6},
		{10 * time.Second, Buckets - 2}, {10*time.Second + 1, Buckets - 1}, {time.Hour, Buckets - 1},
	} {
		var h Histogram
		h.Observe(c.d)
		d := h.Load()
		if d.Buckets[c.want] != 1 || d.Count() != 1 || d.Sum != max(0, c.d) {
			t.Errorf("%v: %+v, want bucket %d", c.d, d, c.want)
		}
	}
	for i := 1; i < Buckets-1; i++ {
		if Bound(i) <= Bound(i-1) {
			t.Errorf("bound %d is %v after %v", i, Bound(i), Bound(i-1))
		}
	}
}

// Durations that many goroutines count are all there, and a look meanwhile never
// sees a figure fall.
func TestHistogramConcurrent(t *testing.T) {
	var h Histogram
	var done sync.WaitGroup
	const goroutines, each = 8, 5000
	for g := range goroutines {
		done.Go(func() {
			for i := range each {
				h.Observe(time.Duration(g*each+i) * time.Microsecond)
			}
		})
	}
	stop := make(chan struct{})
	var looked sync.WaitGroup
	looked.Go(func() {
		var last Distribution
		for {
			now := h.Load()
			for i := range now.Buckets {
				if now.Buckets[i] < last.Buckets[i] {
					t.Errorf("bucket %d fell from %d to %d", i, last.Buckets[i], now.Buckets[i])
				}
			}
			last = now
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	done.Wait()
	close(stop)
	looked.Wait()
	const n = goroutines * each
	d := h.Load()
	if want := time.Duration(n*(n-1)/2) * time.Microsecond; d.Count() != n || d.Sum != want {
		t.Errorf("%d durations of %v, want %d of %v", d.Count(), d.Sum, n, want)
	}
}

// Places that several processors add to do not share a cache line.
func TestPlacesApart(t *testing.T) {
	var c Counter
	var h Histogram
	if n := unsafe.Sizeof(c.parts[0]); n%cacheLine != 0 {
		t.Errorf("a counter's place has %d bytes", n)
	}
	if n := unsafe.Sizeof(h.parts[0]); n%cacheLine != 0 {
		t.Errorf("a histogram's place has %d bytes", n)
	}
	seen := map[int]bool{}
	var mu sync.Mutex
	var done sync.WaitGroup
	held := make(chan struct{})
	for range 64 { // all alive at once, each with a stack of its own
		done.Go(func() {
			s := shard()
			mu.Lock()
			seen[s] = true
			mu.Unlock()
			<-held
		})
	}
	for deadline := time.Now().Add(patience.Hang); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		mu.Lock()
		n := len(seen)
		mu.Unlock()
		if n >= shards/2 {
			break
		}
	}
	close(held)
	done.Wait()
	for s := range seen {
		if s < 0 || s >= shards {
			t.Errorf("place %d", s)
		}
	}
	if len(seen) < shards/2 {
		t.Errorf("64 goroutines use %d places of %d", len(seen), shards)
	}
}

func TestCountingAllocatesNothing(t *testing.T) {
	var c Counter
	var h Histogram
	if n := testing.AllocsPerRun(100, func() {
		begun := Now()
		c.Inc()
		h.Observe(Now() - begun)
	}); n != 0 {
		t.Errorf("counting allocates %v times", n)
	}
}

// BenchmarkRequest is what is counted of a request: two looks at the clock, a
// duration and bytes.
func BenchmarkRequest(b *testing.B) {
	var c Counter
	var h Histogram
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			begun := Now()
			c.Add(4096)
			h.Observe(Now() - begun)
		}
	})
}
