package chain

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"
)

// pacer holds a job to a rate, and measures what it reaches. The limit is the
// disk's and may change at any time, also while the job waits.
//
// A job copies a piece first and waits for it afterwards, so a piece is what it
// may be ahead of its rate.
type pacer struct {
	mu      sync.Mutex
	limit   int64         // bytes per second; 0 for none
	changed chan struct{} // closed when the limit changes
}

func newPacer(limit int64) *pacer {
	return &pacer{limit: limit, changed: make(chan struct{})}
}

func (p *pacer) get() (limit int64, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.limit, p.changed
}

func (p *pacer) set(limit int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = limit
	close(p.changed)
	p.changed = make(chan struct{})
}

// JobRate is the limit of jobs in bytes per second, 0 for none.
func (d *Disk) JobRate() int64 {
	limit, _ := d.pacer.get()
	return limit
}

// SetJobRate limits how many bytes per second jobs copy, from now on until the
// disk is closed; 0 takes the limit away. A job under way follows it at once.
// ErrInvalid for a negative one.
func (d *Disk) SetJobRate(bytes int64) error {
	if d.readOnly {
		return fmt.Errorf("%s: %w", d.dir, ErrReadOnly)
	}
	if bytes < 0 {
		return fmt.Errorf("%w: a rate of %d bytes per second", ErrInvalid, bytes)
	}
	d.pacer.set(bytes)
	return nil
}

// jobPace is what one job has copied, and when.
type jobPace struct {
	pacer *pacer

	mu       sync.Mutex
	started  time.Time
	bytes    int64
	recent   []paceMark // of the last rateSpan, oldest first
	finished time.Time  // zero while it runs
	due      float64    // seconds that the job had to wait, still, at last; the job's own
	last     time.Time
}

type paceMark struct {
	at    time.Time
	bytes int64
}

const (
	// rateSpan is the time over which the rate of a running job is measured.
	rateSpan = 5 * time.Second
	rateStep = 250 * time.Millisecond
)

func newJobPace(p *pacer) *jobPace {
	now := time.Now()
	return &jobPace{pacer: p, started: now, last: now}
}

// pace counts bytes that were copied and waits until they may have been. Its
// error is why the job is to stop. Called without locks and outside of grace
// sections.
func (j *job) pace(copied int64) error { return j.speed.wait(j.ctx, copied) }

func (s *jobPace) wait(ctx context.Context, copied int64) error {
	s.count(copied)
	owed := float64(copied)
	for ctx.Err() == nil {
		limit, changed := s.pacer.get()
		now := time.Now()
		if limit == 0 {
			s.due, s.last = 0, now
			return nil
		}
		// Time that the copying itself took counts, for this piece; what a job did
		// not use because it is slower than it might be is not saved up.
		price := owed / float64(limit)
		s.due = max(-price, s.due-now.Sub(s.last).Seconds()) + price
		s.last, owed = now, 0
		if s.due <= 0 {
			return nil
		}
		timer := time.NewTimer(time.Duration(min(s.due, maxPause.Seconds()) * float64(time.Second)))
		select {
		case <-timer.C:
			if s.due <= maxPause.Seconds() {
				return nil
			}
		case <-changed:
			// What is still to be waited for was bytes at the old rate.
			now := time.Now()
			owed = max(0, s.due-now.Sub(s.last).Seconds()) * float64(limit)
			s.due, s.last = 0, now
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return context.Cause(ctx)
}

// maxPause bounds one wait, so that the slowest rate overflows nothing.
const maxPause = time.Hour

func (s *jobPace) count(copied int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.bytes += copied
	if n := len(s.recent); n == 0 || now.Sub(s.recent[n-1].at) >= rateStep {
		s.recent = append(s.recent, paceMark{now, s.bytes})
	}
	for len(s.recent) > 1 && now.Sub(s.recent[0].at) > rateSpan {
		s.recent = s.recent[1:]
	}
}

// end stops the clock.
func (s *jobPace) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished.IsZero() {
		s.finished = time.Now()
	}
}

// rate is bytes per second: of the last seconds while the job runs, of all its
// time when it has ended.
func (s *jobPace) rate() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, from := time.Now(), paceMark{at: s.started}
	if !s.finished.IsZero() {
		now = s.finished
	} else if len(s.recent) > 0 && s.recent[0].at.Sub(s.started) > rateSpan {
		from = s.recent[0]
	}
	took := now.Sub(from.at).Seconds()
	if took <= 0 {
		return 0
	}
	return int64(float64(s.bytes-from.bytes) / took)
}

// left is how many seconds a running job still needs, of done and total bytes of the
// source; nil when nothing tells. What it copies may be less than what it deals with.
func (s *jobPace) left(done, total int64) *int64 {
	rate, limit := s.rate(), int64(0)
	if limit, _ = s.pacer.get(); limit > 0 {
		rate = min(rate, limit)
	}
	s.mu.Lock()
	copied, took := s.bytes, time.Since(s.started).Seconds()
	s.mu.Unlock()
	if total <= 0 || done > total {
		return nil
	}
	rest := float64(total - done)
	var seconds float64
	switch {
	case copied > 0 && rate > 0 && done > 0:
		// A region is done when all of it is copied, so copied runs ahead at first.
		seconds = rest * min(1, float64(copied)/float64(done)) / float64(rate)
	case copied > 0 && rate > 0:
		seconds = rest / float64(rate)
	case done > 0 && took >= 1:
		seconds = rest / (float64(done) / took)
	default:
		return nil
	}
	if seconds >= maxLeft {
		return nil
	}
	whole := int64(math.Ceil(seconds))
	return &whole
}

// maxLeft bounds what is told, in seconds: a hundred years are as good as unknown.
const maxLeft = 100 * 365 * 24 * 3600
