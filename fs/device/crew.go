package device

import (
	"runtime"
	"sync/atomic"
	"time"
)

// How many threads wait for requests matters: with one a second request waits for
// the first; with many the kernel wakes one of them for each request although
// another is about to ask, and they contend for the host file's lock. So there
// are a few, and more only as long as some are held up, by a slow disk, a flush,
// or a command in control/.
const (
	leastWorkers = 2
	mostBase     = 8    // more do not help one disk
	mostWorkers  = 1024 // held up at once; the kernel's own limit on guests' requests is far lower
	mostSpare    = 4
	watchTick    = time.Millisecond
	watchQuiet   = 10 // ticks without need, after which the watch sleeps
)

// turns counts a worker's requests: odd while it answers one.
type turns struct {
	n    atomic.Uint64
	seen uint64 // by the watch, in its last round
}

func (t *turns) begin() { t.n.Store(t.n.Load() + 1) }
func (t *turns) end()   { t.n.Store(t.n.Load() + 1) }

// heldUp says that it is still with the request of the watch's last round.
func (t *turns) heldUp() bool {
	now := t.n.Load()
	same := now == t.seen && now&1 == 1
	t.seen = now
	return same
}

func (w *crew) init() {
	w.base = int32(min(max(leastWorkers, runtime.NumCPU()), mostBase))
	w.alarm = make(chan struct{}, 1)
	w.gone = make(chan struct{})
	w.workers = make(map[*worker]struct{})
}

// run returns when the mount is gone and the last worker has ended, or when none
// could be started.
func (w *crew) run(c *Conn) {
	for range w.base {
		w.add(c)
	}
	if w.active.Load() == 0 {
		return
	}
	w.watch(c)
	w.done.Wait()
	for _, one := range w.spare {
		one.free()
	}
}

// add starts a worker.
func (w *crew) add(c *Conn) {
	if w.active.Add(1) > mostWorkers {
		w.active.Add(-1)
		return
	}
	one, err := w.take(c)
	if err != nil {
		w.active.Add(-1)
		c.log.Error("cannot start another thread for requests", "error", err)
		return
	}
	w.done.Go(func() {
		if one.work() {
			w.gone1.Do(func() { close(w.gone) })
		}
		w.giveBack(one)
	})
}

// take is a worker that has worked before, or a new one.
func (w *crew) take(c *Conn) (*worker, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var one *worker
	if n := len(w.spare); n > 0 {
		one, w.spare = w.spare[n-1], w.spare[:n-1]
	} else {
		var err error
		if one, err = c.newWorker(); err != nil {
			return nil, err
		}
	}
	w.workers[one] = struct{}{}
	return one, nil
}

// giveBack keeps a few buffers for the next time: workers come and go with each
// burst of flushes.
func (w *crew) giveBack(one *worker) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.workers, one)
	if len(w.spare) < mostSpare {
		w.spare = append(w.spare, one)
	} else {
		one.free()
	}
}

// took is called by a worker that has got a request. The watch looks after the
// next one when nobody waits for it.
func (w *crew) took() {
	if w.waiting.Add(-1) == 0 {
		w.wake()
	}
}

func (w *crew) wake() {
	if !w.watched.Load() && w.watched.CompareAndSwap(false, true) {
		w.alarm <- struct{}{}
	}
}

// hold is called before a request that may be held up for long: others are
// answered at once and not after the watch's next look. release ends it.
func (w *crew) hold(c *Conn) {
	if w.active.Load()-w.held.Add(1) < w.base {
		w.add(c)
	}
}

func (w *crew) release() { w.held.Add(-1) }

// leave says that a worker which has answered its request is one too many. One
// more than needed stays: flushes and questions come again and again.
func (w *crew) leave() bool {
	for {
		n := w.active.Load()
		if n <= w.base || w.waiting.Load() <= w.base {
			return false
		}
		if w.active.CompareAndSwap(n, n-1) {
			return true
		}
	}
}

// watch starts workers while nobody waits for requests because some are held
// up. It sleeps as long as somebody waits, and ends with the mount.
func (w *crew) watch(c *Conn) {
	tick := time.NewTicker(watchTick)
	defer tick.Stop()
	for {
		tick.Stop()
		select {
		case <-w.gone:
			return
		case <-w.alarm:
		}
		tick.Reset(watchTick)
		for quiet := 0; quiet < watchQuiet || !w.rest(); {
			select {
			case <-w.gone:
				return
			case <-tick.C:
			}
			if w.waiting.Load() > 0 {
				quiet++
				continue
			}
			quiet = 0
			for range int32(w.heldUp()) - (w.active.Load() - w.base) {
				w.add(c)
			}
		}
	}
}

// rest lets the next worker that takes the last place wake the watch; false when
// one has taken it just before that, and could not.
func (w *crew) rest() bool {
	w.watched.Store(false)
	return w.waiting.Load() > 0 || !w.watched.CompareAndSwap(false, true)
}

// heldUp counts the workers that have been with one request for a whole tick.
func (w *crew) heldUp() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for one := range w.workers {
		if one.turn.heldUp() {
			n++
		}
	}
	return n
}
