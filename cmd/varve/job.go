package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"varve/cmd/varve/internal/client"
	"varve/cmd/varve/internal/flagvalue"
	"varve/cmd/varve/internal/progress"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/waiting"
	"varve/cmd/varve/internal/where"
)

// rateFlag is --rate of a command that starts a job. On a mounted disk it is
// what control/rate is, for the jobs after it too.
type rateFlag struct {
	value flagvalue.Rate
	flags *pflag.FlagSet
}

func (r *rateFlag) register(f *pflag.FlagSet) {
	r.flags = f
	f.Var(&r.value, "rate", "copy `RATE` bytes per second at most, with K, M, G; 0 for no limit; of a mounted disk until it is set anew")
}

// limit is the rate that was given; nil for none.
func (r rateFlag) limit() *int64 {
	if r.flags == nil || !r.flags.Changed("rate") {
		return nil
	}
	rate := int64(r.value)
	return &rate
}

// interruptible is the command's context, see waiting.Interruptible.
func interruptible(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	parent := cmd.Context()
	if parent == nil {
		parent = context.Background()
	}
	return waiting.Interruptible(parent)
}

// runJob begins a job on the disk that arg names and waits for it, or with
// background leaves it to run.
func runJob(cmd *cobra.Command, arg string, begin func(client.Disk) (client.Job, error), background bool, rate rateFlag) error {
	ctx, stop := interruptible(cmd)
	defer stop()
	t, err := where.Find(arg)
	if err == nil {
		err = followJob(ctx, cmd, t, begin, background, rate)
	}
	return wrapped(cmd, arg, err)
}

// errInterrupted is that an interrupt came before anything was begun.
var errInterrupted = errors.New("interrupted; nothing was done")

func followJob(ctx context.Context, cmd *cobra.Command, t where.Target, begin func(client.Disk) (client.Job, error), background bool, rate rateFlag) error {
	out, title := cmd.ErrOrStderr(), cmd.Name()+" "+t.Name()
	var job client.Job
	var left string
	copied, bar := int64(0), progress.New(out, title)
	o := client.Options{Log: tell.Warnings(out), HoldJob: background, JobRate: rate.limit()}
	err := on(t, o, func(d client.Disk) (err error) {
		if ctx.Err() != nil {
			return errInterrupted
		}
		if job, err = begin(d); err != nil || job.ID == "" {
			return err
		}
		bar = progress.New(out, title)
		if background {
			left = d.Background(job)
			return nil
		}
		copied, err = d.Wait(ctx, job, bar.Update)
		bar.Clear()
		return err
	})
	switch {
	case err != nil:
		return err
	case left != "":
		tell.Line(out, "%s: %s", title, left)
	default: // nothing had to be copied, or all is
		bar.Finish(copied)
	}
	return nil
}
