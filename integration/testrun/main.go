// Command testrun runs the tests of a checkout: what `make test`, `make check-fast`
// and `make test-long` call.
//
//	go build -o bin/testrun ./integration/testrun
//	bin/testrun [-exec COMMAND] [-still 15m] [-lanes 2] [-slowest 10] SUITE
//
// A suite is a list of parts (parts.go); a part is one `go test`. A few parts run
// at a time. No test has a time limit, for nobody knows how
// slow a machine is: a test binary is ended, with the stacks of all its goroutines,
// when it has printed nothing for -still (watch.go).
//
// On a terminal the last line says what is running; elsewhere a line a minute does.
// The output of a test is printed, whole, when it fails. The last lines are those of
// go test: "ok" or "FAIL" for each package, and FAIL when anything failed.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"varve/integration/turn"
)

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

// watchCommand is the first argument that makes this program watch a test binary.
const watchCommand = "watch"

func main() {
	if len(os.Args) > 1 && os.Args[1] == watchCommand {
		os.Exit(watchMain(os.Args[2:]))
	}
	os.Exit(runMain(os.Args[1:], os.Stderr))
}

func runMain(args []string, stderr io.Writer) int {
	var o options
	flags := flag.NewFlagSet("testrun", flag.ContinueOnError)
	flags.StringVar(&o.exec, "exec", "", "run the test binaries by this command, as go test does")
	flags.DurationVar(&o.still, "still", 15*time.Minute, "end a test binary that has printed nothing for this time")
	// Many tests wait, for a disk or for a program: one more than there are processors.
	flags.IntVar(&o.lanes, "lanes", runtime.NumCPU()+1, "how many parts run at a time")
	flags.IntVar(&o.slowest, "slowest", 0, "name that many of the slowest tests at the end")
	only := flags.String("only", "", "run only the parts whose title contains this text")
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "usage: testrun [flags] SUITE\nsuites: %s\n", strings.Join(suiteNames(), ", "))
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return exitUsage
	}
	parts, known := suites[flags.Arg(0)]
	if flags.NArg() != 1 || !known || o.still <= 0 || o.lanes < 1 {
		flags.Usage()
		return exitUsage
	}
	parts = titled(parts, *only)
	if len(parts) == 0 {
		fmt.Fprintf(stderr, "testrun: no part of %s has %q in its title\n", flags.Arg(0), *only)
		return exitUsage
	}
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(stderr, "testrun:", err)
		return exitFailed
	}
	o.watcher = self

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	setTurn()
	d := newDisplay(os.Stdout, terminalWidth(os.Stdout))
	if newRunner(o, d).run(ctx, parts) {
		return 0
	}
	return exitFailed
}

// setTurn has the tests try other places than yesterday, unless somebody has said which.
func setTurn() {
	value := os.Getenv(turn.Variable)
	if value == "" {
		value = fmt.Sprint(time.Now().Unix() / (24 * 60 * 60))
		os.Setenv(turn.Variable, value) // fails for bad names only
	}
	fmt.Printf("the same places again: %s=%s\n", turn.Variable, value)
}

// terminalWidth gives the columns of a terminal on each call; nil when f is none.
func terminalWidth(f *os.File) func() int {
	if !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return func() int {
		width, _, err := term.GetSize(int(f.Fd()))
		if err != nil || width < 20 {
			return 80
		}
		return width
	}
}
