// Package progress shows how far a job is: a bar on a terminal, a plain line
// from time to time elsewhere.
package progress

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"varve/fs/show"
)

// between is the least time between two plain lines.
const between = 5 * time.Second

// Reporter shows one job. It is not safe for concurrent use.
type Reporter struct {
	out      io.Writer
	title    string
	started  time.Time
	terminal bool
	bar      *progressbar.ProgressBar // made when the total is known
	total    int64
	last     time.Time // of the last plain line
	now      func() time.Time
}

// New shows a job under a title such as "flatten vm1".
func New(out io.Writer, title string) *Reporter {
	now := time.Now()
	return &Reporter{out: out, title: show.Printable(title), started: now, last: now, terminal: IsTerminal(out), now: time.Now}
}

// IsTerminal says whether out is a terminal on which a bar can be drawn.
func IsTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Update tells how far the job is, in bytes. A total of 0 is not known yet. It
// never shows more than all of it.
func (r *Reporter) Update(done, total int64) {
	if total <= 0 {
		return
	}
	done = min(max(done, 0), total)
	if r.terminal {
		r.draw(done, total)
		return
	}
	if now := r.now(); now.Sub(r.last) >= between {
		r.last = now
		fmt.Fprintf(r.out, "%s: %s of %s (%d %%)\n", r.title, show.Size(done), show.Size(total), Percent(done, total))
	}
}

func (r *Reporter) draw(done, total int64) {
	if r.bar == nil {
		r.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(r.out),
			progressbar.OptionSetDescription(r.title),
			progressbar.OptionShowBytes(true),
			progressbar.OptionShowCount(),
			progressbar.OptionUseIECUnits(true),
			progressbar.OptionShowTotalBytes(true),
			progressbar.OptionSetPredictTime(true),
			progressbar.OptionSetElapsedTime(false),
			progressbar.OptionSetWidth(20),
			progressbar.OptionThrottle(100*time.Millisecond),
		)
		r.total = total
	}
	if total != r.total {
		r.bar.ChangeMax64(total)
		r.total = total
	}
	// The bar ends itself at its maximum; Finish does that, when it is true.
	_ = r.bar.Set64(min(done, total-1))
}

// Clear takes the bar away, so that other words can be written.
func (r *Reporter) Clear() {
	if r.bar != nil {
		_ = r.bar.Clear()
	}
}

// Finish takes the bar away and says that the job is done. bytes is how much
// it had to copy.
func (r *Reporter) Finish(bytes int64) {
	r.Clear()
	took := r.now().Sub(r.started).Round(100 * time.Millisecond)
	if bytes > 0 {
		fmt.Fprintf(r.out, "%s: done, %s in %s\n", r.title, show.Size(bytes), took)
		return
	}
	fmt.Fprintf(r.out, "%s: done\n", r.title)
}

// Percent is how much of total done is, 100 only when it is all of it.
func Percent(done, total int64) int64 {
	if done >= total {
		return 100
	}
	return min(99, int64(float64(done)*100/float64(total)))
}
