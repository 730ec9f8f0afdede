// Command bench measures varve beside its peers in one run: contestants take
// turns on the same files, and the ratios of their medians are printed next to
// the targets. Ratios hold where absolute figures drift with the machine.
//
//	go run ./integration/bench -varve bin/varve -suite targets
//
// It mounts, attaches loop devices and drops caches: root only. See
// docs/performance.md, "How it is measured".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

// options are the command line's.
type options struct {
	suite    string
	only     *regexp.Regexp
	rounds   int
	seconds  int // of one fio run
	sizeMiB  int64
	dir      string // scratch
	json     string
	markdown string
	plot     string
	disk     string // a disk directory to open
	varve    string // the binary
	keep     bool
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == loopbackCommand {
		os.Exit(report(serveLoopback(os.Args[2:])))
	}
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	os.Exit(report(run(o)))
}

func report(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&o.suite, "suite", "targets", "what to measure: quick, targets or full")
	only := flags.String("only", "", "only the rows whose name matches a regular expression")
	flags.IntVar(&o.rounds, "rounds", 3, "how often each contestant has its turn")
	flags.IntVar(&o.seconds, "seconds", 2, "of one fio run")
	flags.Int64Var(&o.sizeMiB, "size", 1024, "MiB of the disk, a multiple of 64")
	flags.StringVar(&o.dir, "dir", ".", "directory for scratch files, some six times the disk's size")
	flags.StringVar(&o.json, "json", "", "write all figures to a file")
	flags.StringVar(&o.markdown, "markdown", "", "write the tables as markdown to a file")
	flags.StringVar(&o.plot, "plot", "", "write read speed against depth to an SVG file")
	flags.StringVar(&o.disk, "disk", "", "also time the opening of this disk directory, such as one of 128 layers and 1 TiB")
	flags.StringVar(&o.varve, "varve", "bin/varve", "the varve binary")
	flags.BoolVar(&o.keep, "keep", false, "keep the scratch files")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if !isSuite(o.suite) {
		return o, fmt.Errorf("no suite %q: quick, targets or full", o.suite)
	}
	if o.rounds < 1 || o.seconds < 1 || o.sizeMiB < 64 || o.sizeMiB%64 != 0 {
		return o, errors.New("-rounds and -seconds are at least 1, -size a multiple of 64")
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return o, fmt.Errorf("-only: %w", err)
	}
	if o.varve, err = filepath.Abs(o.varve); err != nil {
		return o, err
	}
	if o.disk != "" {
		if o.disk, err = filepath.Abs(o.disk); err != nil {
			return o, err
		}
	}
	return o, nil
}

func run(o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("only root can mount, attach loop devices and drop caches")
	}
	if err := checkTools(o.varve); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()

	start := time.Now()
	failed := 0
	results := newResults(o)
	for _, r := range b.rows() {
		if !o.only.MatchString(r.name) {
			continue
		}
		result := b.measure(r)
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		failed += len(result.Errors)
		results.add(result)
		result.print(os.Stdout)
	}
	if len(results.Rows) == 0 {
		return fmt.Errorf("no row of suite %s matches -only", o.suite)
	}
	results.Seconds = time.Since(start).Round(time.Second).Seconds()
	missed := results.judge()
	results.printTargets(os.Stdout)
	if err := results.write(); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%d measurements failed; see above", failed)
	}
	if missed > 0 {
		fmt.Printf("%d targets were not reached.\n", missed)
	}
	return nil
}
