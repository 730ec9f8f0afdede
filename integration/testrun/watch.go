package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// watcher runs a test binary for go test -exec and ends it when it stands still:
// what it prints is the only sign of life that every test gives, since go test -json
// has a line printed when a test or subtest begins or ends, and for each t.Log.
type watcher struct {
	still time.Duration // without a line of output
	grace time.Duration // for printing the stacks
	out   io.Writer
}

// pipeDelay is how long a process that the test binary left behind may keep the
// output open.
const pipeDelay = 10 * time.Second

func watchMain(args []string) int {
	w := watcher{out: os.Stdout}
	flags := flag.NewFlagSet("testrun watch", flag.ContinueOnError)
	flags.DurationVar(&w.still, "still", 15*time.Minute, "")
	flags.DurationVar(&w.grace, "grace", time.Minute, "")
	if err := flags.Parse(args); err != nil || flags.NArg() == 0 {
		return exitUsage
	}
	return w.run(flags.Args())
}

// run gives the exit code of the command, which is 1 when a signal ended it.
func (w watcher) run(command []string) int {
	cmd := exec.Command(command[0], command[1:]...)
	alive := make(chan struct{}, 1)
	out := &noticed{to: w.out, alive: alive}
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = os.Stdin, out, out, pipeDelay

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(w.out, "testrun:", err)
		return exitFailed
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	timer := time.NewTimer(w.still)
	asked := false // for its stacks
	for {
		select {
		case err := <-ended:
			return exitCode(err)
		case s := <-signals:
			_ = cmd.Process.Signal(s) // an error says that it has ended
		case <-alive:
			if !asked {
				timer.Reset(w.still)
			}
		case <-timer.C:
			if asked {
				_ = cmd.Process.Kill()
				continue
			}
			asked = true
			// The stacks follow, on the test binary's standard error.
			fmt.Fprintf(out, "\ntestrun: %s has printed nothing for %v: it hangs; its goroutines:\n", command[0], w.still)
			_ = cmd.Process.Signal(syscall.SIGQUIT)
			timer.Reset(w.grace)
		}
	}
}

// exitCode is what go test is to see.
func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay):
		return 0
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode()
	}
	return exitFailed
}

// noticed hands on what is written, and says that something was.
type noticed struct {
	to    io.Writer
	alive chan<- struct{}
}

func (n *noticed) Write(p []byte) (int, error) {
	select {
	case n.alive <- struct{}{}:
	default: // it is known already
	}
	return n.to.Write(p)
}

// watchedExec is the value of go test's -exec flag.
func (o options) watchedExec() string {
	command := fmt.Sprintf("'%s' %s -still=%v", o.watcher, watchCommand, o.still)
	return strings.TrimSpace(o.exec + " " + command)
}
