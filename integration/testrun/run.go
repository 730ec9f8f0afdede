package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

type options struct {
	exec    string        // the command that go test -exec is to use, "" for none
	dir     string        // of the module, "" for the working directory
	watcher string        // path of this program
	still   time.Duration // without output is a hang
	lanes   int
	slowest int
}

// runner runs parts, some at a time.
type runner struct {
	options
	display *display
	began   time.Time

	mu      sync.Mutex // guards what follows
	total   int
	ended   int
	running []*running
	closing []string
	failed  []string // tests, or parts that failed without one
	times   []testTime
	ran     int
	skipped int
	cpu     time.Duration
}

// running is a part under way. Its results are guarded by the runner's mu.
type running struct {
	part
	began   time.Time
	results *results
}

func newRunner(o options, d *display) *runner {
	return &runner{options: o, display: d, began: time.Now()}
}

// run runs the parts, first those that others may run beside, then the others one
// after the other, and says whether all passed.
func (r *runner) run(ctx context.Context, parts []part) bool {
	r.total = len(parts)
	var beside, alone []part
	for _, p := range parts {
		if p.alone {
			alone = append(alone, p)
		} else {
			beside = append(beside, p)
		}
	}
	stop := make(chan struct{})
	var ticking sync.WaitGroup
	ticking.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				r.display.say(r.status())
			}
		}
	})
	r.lane(ctx, beside, r.lanes)
	r.lane(ctx, alone, 1)
	close(stop)
	ticking.Wait()
	r.display.say("")
	return r.conclude(ctx)
}

// lane runs parts, some at a time, until all have ended or ctx is done.
func (r *runner) lane(ctx context.Context, parts []part, atATime int) {
	next := make(chan part)
	var lanes sync.WaitGroup
	for range min(atATime, len(parts)) {
		lanes.Go(func() {
			for p := range next {
				r.runPart(ctx, p)
			}
		})
	}
	for _, p := range parts {
		if ctx.Err() == nil {
			next <- p
		}
	}
	close(next)
	lanes.Wait()
}

// goTest gives the arguments of the go command.
func (r *runner) goTest(p part) []string {
	args := []string{"test", "-json", "-vet=off", "-count=1", "-timeout=0", "-p=1", "-exec", r.watchedExec()}
	args = append(args, p.flags...)
	args = append(args, p.packages...)
	if len(p.testFlags) > 0 {
		args = append(append(args, "-args"), p.testFlags...)
	}
	return args
}

func (r *runner) runPart(ctx context.Context, p part) {
	run := &running{part: p, began: time.Now(), results: newResults()}
	r.mu.Lock()
	r.running = append(r.running, run)
	r.mu.Unlock()
	if r.display.width == nil {
		r.display.print(fmt.Sprintf("[%s] begins: %s", clock(time.Since(r.began)), p.title))
	}

	cmd := exec.CommandContext(ctx, "go", r.goTest(p)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Dir, cmd.Env = r.dir, append(os.Environ(), p.env...)
	err := r.follow(cmd, run)

	r.mu.Lock()
	closing, failed := run.results.closing()
	var cpu time.Duration
	if cmd.ProcessState != nil {
		cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	var complaint string
	switch {
	case ctx.Err() != nil:
		failed, complaint = true, "it was interrupted"
	case err != nil && !failed:
		failed, complaint = true, "go test: "+err.Error()
	case err == nil && run.results.ran == 0:
		failed, complaint = true, "no test ran"
	}
	r.closing = append(r.closing, closing...)
	r.times = append(r.times, run.results.times...)
	r.failed = append(r.failed, run.results.failed...)
	r.ran, r.skipped, r.cpu = r.ran+run.results.ran, r.skipped+run.results.skipped, r.cpu+cpu
	if failed && len(run.results.failed) == 0 {
		r.failed = append(r.failed, p.title)
	}
	r.ended++
	r.running = slices.DeleteFunc(r.running, func(other *running) bool { return other == run })
	verdict := "passed"
	if failed {
		verdict = "FAILED"
	}
	line := fmt.Sprintf("[%s] %s: %s, in %s (processor time, with building, %s); %d of %d parts are left",
		clock(time.Since(r.began)), verdict, p.title, clock(time.Since(run.began)), clock(cpu), r.total-r.ended, r.total)
	r.mu.Unlock()
	if complaint != "" {
		r.display.print(fmt.Sprintf("testrun: %s: %s", p.title, complaint))
	}
	r.display.print(line)
}

// follow runs go test to its end.
func (r *runner) follow(cmd *exec.Cmd, run *running) error {
	events, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	// What the go command itself says, about modules that it fetches for example.
	cmd.Stderr = lineWriter{r.display}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := r.read(events, run)
	return errors.Join(cmd.Wait(), readErr)
}

func (r *runner) read(events io.Reader, run *running) error {
	lines := bufio.NewReader(events)
	for {
		text, err := lines.ReadString('\n')
		if text != "" {
			var e event
			if json.Unmarshal([]byte(text), &e) != nil || e.Action == "" {
				r.display.print(text)
			} else {
				r.mu.Lock()
				show := run.results.take(e)
				r.mu.Unlock()
				r.display.print(show)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// lineWriter prints what is written to it.
type lineWriter struct{ display *display }

func (w lineWriter) Write(p []byte) (int, error) {
	w.display.print(string(p))
	return len(p), nil
}

// status is a line about what is going on.
func (r *runner) status() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	doing := make([]string, 0, len(r.running))
	for _, run := range r.running {
		what := "building"
		if name, began := run.results.longest(); name != "" {
			what = fmt.Sprintf("%s %s", name, clock(now.Sub(began)))
		} else if run.results.ran > 0 {
			what = "between tests"
		}
		doing = append(doing, fmt.Sprintf("%s, %s: %s", run.title, clock(now.Sub(run.began)), what))
	}
	return fmt.Sprintf("[%s] %d of %d parts are left | %s", clock(now.Sub(r.began)), r.total-r.ended, r.total, strings.Join(doing, " | "))
}

// conclude prints the end and says whether everything passed.
func (r *runner) conclude(ctx context.Context) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortStableFunc(r.times, func(a, b testTime) int { return cmp.Compare(b.took, a.took) })
	for _, t := range r.times[:min(r.slowest, len(r.times))] {
		r.display.print(fmt.Sprintf("%7.1f s  %s", t.took.Seconds(), t.name))
	}
	r.display.print(fmt.Sprintf("%d tests in %s, %d skipped; processor time, with building, %s",
		r.ran, clock(time.Since(r.began)), r.skipped, clock(r.cpu)))
	for _, name := range r.failed {
		r.display.print("failed: " + name)
	}
	if ctx.Err() != nil {
		r.display.print("interrupted")
	}
	for _, line := range r.closing {
		r.display.print(line)
	}
	if len(r.failed) > 0 || ctx.Err() != nil {
		r.display.print("FAIL")
		return false
	}
	return true
}
