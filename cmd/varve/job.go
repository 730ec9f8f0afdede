package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"varve/chain"
	"varve/cmd/varve/internal/progress"
	"varve/cmd/varve/internal/waiting"
)

// A waiting command looks how far its job is after nextPoll, between firstPoll and
// jobPoll.
const (
	firstPoll = 5 * time.Millisecond
	jobPoll   = 200 * time.Millisecond
)

// nextPoll is a twentieth of how long the job has taken, so that its end is noticed
// soon, and ten times what asking cost, so that asking does not hold it up.
func nextPoll(elapsed, asking time.Duration) time.Duration {
	return min(max(firstPoll, elapsed/20, 10*asking), jobPoll)
}

// job is a command whose work goes on in the background.
type job struct {
	command string // the control file
	line    string
	direct  func(*chain.Disk) (id string, err error)
}

// rateFlag is --rate of a command that starts a job. On a mounted disk it is
// what control/rate is, for the jobs after it too.
type rateFlag struct {
	value rateValue
	flags *pflag.FlagSet
}

func (r *rateFlag) register(f *pflag.FlagSet) {
	r.flags = f
	f.Var(&r.value, "rate", "copy `RATE` bytes per second at most, with K, M, G; 0 for no limit; of a mounted disk until it is set anew")
}

func (r rateFlag) given() bool  { return r.flags != nil && r.flags.Changed("rate") }
func (r rateFlag) line() string { return strconv.FormatInt(int64(r.value), 10) }

// interruptible is the command's context, see waiting.Interruptible.
func interruptible(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	parent := cmd.Context()
	if parent == nil {
		parent = context.Background()
	}
	return waiting.Interruptible(parent)
}

// runJob starts a job on the disk that arg names and waits for it, or with
// background leaves it to run.
func runJob(cmd *cobra.Command, arg string, j job, background bool, rate rateFlag) error {
	ctx, stop := interruptible(cmd)
	defer stop()
	t, err := findTarget(arg)
	if err == nil {
		w := waiter{target: t, title: cmd.Name() + " " + t.name(), out: cmd.ErrOrStderr(), rate: rate}
		if t.mountpoint != "" {
			err = w.mounted(ctx, j, background)
		} else {
			err = w.direct(ctx, j, background)
		}
	}
	return wrapped(cmd, arg, err)
}

// waiter waits for a job and shows how far it is.
type waiter struct {
	target target
	title  string
	out    io.Writer
	rate   rateFlag
}

func (w waiter) mounted(ctx context.Context, j job, background bool) error {
	if w.rate.given() {
		if _, err := w.target.control("rate", w.rate.line()); err != nil {
			return err
		}
	}
	id, err := w.target.control(j.command, j.line)
	if err != nil {
		return err
	}
	if id == "" { // nothing had to be copied
		progress.New(w.out, w.title).Finish(0)
		return nil
	}
	if background {
		say(w.out, "%s: job %s runs in the background; \"varve status %s\" shows how far it is", w.title, id, chain.ShellWord(w.target.arg))
		return nil
	}
	bar := progress.New(w.out, w.title)
	interrupted := func() error {
		return fmt.Errorf("interrupted; job %s goes on in the background, \"varve cancel %s %s\" stops it", id, chain.ShellWord(w.target.arg), id)
	}
	leaves := func() (forget func()) {
		return waiting.Leaves(strings.TrimPrefix(interrupted().Error(), "interrupted; "))
	}
	forget := leaves()
	defer func() { forget() }()
	for start := time.Now(); ; {
		asked := time.Now()
		_, st, err := w.target.document()
		if err != nil {
			bar.Clear()
			return fmt.Errorf("job %s can no longer be followed: %w; \"varve status %s\" shows how far it is, and a job that has not ended goes on, at the next mount if the disk was unmounted", id, err, chain.ShellWord(w.target.arg))
		}
		switch {
		case st.Job == nil || st.Job.ID != id:
			// It has ended and another one took its place: the next merge of several.
			if st.Job != nil && st.Job.Kind == chain.DeleteJob && j.command != "flatten" {
				id = st.Job.ID // also when that has ended: it may have failed
				forget()
				forget = leaves()
				continue
			}
			bar.Finish(0)
			return nil
		case st.Job.State != chain.JobRunning:
			return w.ended(bar, *st.Job)
		}
		bar.Update(st.Job.DoneBytes, st.Job.TotalBytes)
		select {
		case <-time.After(nextPoll(asked.Sub(start), time.Since(asked))):
		case <-ctx.Done():
			bar.Clear()
			return interrupted()
		}
	}
}

func (w waiter) direct(ctx context.Context, j job, background bool) error {
	d, err := w.target.open(chain.OpenOptions{Log: warnings(w.out), HoldJob: background, JobRate: int64(w.rate.value)})
	if err != nil {
		return err
	}
	begun := waiting.For(pathWait(w.target.dir))
	id, err := j.direct(d)
	begun()
	if err == nil && id != "" && !background {
		err = w.follow(ctx, d)
	}
	if err := errors.Join(err, d.Close()); err != nil {
		return err
	}
	switch {
	case id == "":
		progress.New(w.out, w.title).Finish(0)
	case background:
		say(w.out, "%s: job %s is recorded; the disk is not mounted, so it goes on at the next mount", w.title, id)
	}
	return nil
}

// follow waits for the jobs that run in this process.
func (w waiter) follow(ctx context.Context, d *chain.Disk) error {
	bar := progress.New(w.out, w.title)
	for {
		wait, cancel := context.WithTimeout(ctx, jobPoll)
		st, err := d.WaitJobs(wait)
		cancel()
		switch {
		case err == nil:
			return w.ended(bar, st)
		case ctx.Err() != nil:
			bar.Clear()
			return fmt.Errorf("interrupted; job %s was stopped in good order and goes on when the disk is next mounted or worked on", st.ID)
		case errors.Is(err, context.DeadlineExceeded):
			bar.Update(st.DoneBytes, st.TotalBytes)
		default:
			bar.Clear()
			return err
		}
	}
}

func (w waiter) ended(bar *progress.Reporter, st chain.JobStatus) error {
	switch st.State {
	case chain.JobDone:
		bar.Finish(st.TotalBytes)
		return nil
	case chain.JobCancelled:
		bar.Clear()
		if st.Kind == chain.DeleteJob {
			return fmt.Errorf("job %s was cancelled; \"varve delete %s --unnamed\" goes on with it", st.ID, chain.ShellWord(w.target.arg))
		}
		return fmt.Errorf("job %s was cancelled", st.ID)
	default:
		bar.Clear()
		return fmt.Errorf("job %s has %s: %s", st.ID, st.State, st.Error)
	}
}
