package fs

import (
	"log/slog"
	"sync"
	"time"
)

// quietFor is how long one and the same error of one operation is counted
// instead of written again: a guest that retries a bad sector must not fill
// the log.
const quietFor = time.Second

// repeatFilter writes errors to the log. It is safe for concurrent use.
type repeatFilter struct {
	mu      sync.Mutex // guards all below; held for no call but time.Now
	what    string
	text    string
	since   time.Time
	dropped int
}

func (r *repeatFilter) report(log *slog.Logger, what string, err error) {
	dropped, write := r.pass(what, err.Error(), time.Now())
	if !write {
		return
	}
	if dropped > 0 {
		log.Error(what+" failed", "error", err, "repeated", dropped)
		return
	}
	log.Error(what+" failed", "error", err)
}

// pass says whether a message is to be written, and how many like the last one
// were not.
func (r *repeatFilter) pass(what, text string, now time.Time) (dropped int, write bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if what == r.what && text == r.text && now.Sub(r.since) < quietFor {
		r.dropped++
		return 0, false
	}
	dropped = r.dropped
	r.what, r.text, r.since, r.dropped = what, text, now, 0
	return dropped, true
}
