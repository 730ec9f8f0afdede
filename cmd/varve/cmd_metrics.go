package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"varve/chain/mounts"
	"varve/cmd/varve/internal/aside"
	"varve/cmd/varve/internal/claim"
	"varve/cmd/varve/internal/doctor"
	"varve/cmd/varve/internal/output"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/where"
	"varve/fs/prom"
)

func newMetricsCommand() *cobra.Command {
	var all bool
	var out string
	c := &cobra.Command{
		Use:   "metrics (DISK... | --all)",
		Short: "Print figures of mounted disks for Prometheus",
		Long: `Prints what the file "metrics" in each mount says: requests, bytes, durations,
cache, allocation, flushes, snapshots, jobs, layers, in Prometheus' text form,
labelled with the disk and the mountpoint. varve_up is 0 for a mount that does
not answer, and 1 for the others; where it was named, the exit code is 1 then.

With --all these are the mounts of this host, as far as this user may read them.
With -o the file is replaced whole or not at all, and anybody may read it: it is
meant for the folder of node_exporter's textfile collector, which
varve-metrics.timer keeps up to date.`,
		Example: `  varve metrics /mnt/vm1
  varve metrics --all -o /var/lib/prometheus/node-exporter/varve.prom`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case all && len(args) > 0:
				return wrongUse(cmd, "name disks, or give --all")
			case !all && len(args) == 0:
				return wrongUse(cmd, "DISK is missing; --all means every mount of this host")
			case cmd.Flags().Changed("output") && out == "":
				return wrongUse(cmd, "--output is empty")
			}
			for _, arg := range args {
				if arg == "" {
					return wrongUse(cmd, "DISK is empty")
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			// What is begun is ended: no part of a file is left behind.
			ctx, stop := interruptible(cmd)
			defer stop()
			list, err := metricsTargets(cmd, args)
			if err != nil {
				return err
			}
			page, silent, err := askMetrics(cmd.ErrOrStderr(), list, all)
			switch {
			case err != nil:
				return err
			case out != "" && out != output.Stdout:
				err = wrapped(cmd, out, writeMetricsFile(ctx, out, page))
			default:
				_, err = cmd.OutOrStdout().Write(page)
			}
			if err == nil && silent && !all {
				err = reportedError{exitFailed}
			}
			return err
		},
	}
	c.Flags().BoolVar(&all, "all", false, "of every varve mount of this host")
	c.Flags().StringVarP(&out, "output", "o", "", "write to `FILE` instead of standard output; an older one is replaced")
	return c
}

// metricsTarget is a mount to be asked.
type metricsTarget struct {
	where.Target
	source string // as the mount table names the disk; of another user's mount as claim does
}

// metricsTargets finds the mounts of the named disks, or all.
func metricsTargets(cmd *cobra.Command, args []string) ([]metricsTarget, error) {
	var list []metricsTarget
	if len(args) == 0 {
		table, err := mounts.Read()
		if err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
		elsewhere, err := mounts.Elsewhere()
		if err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
		for _, m := range table.List() {
			if m.Reachable() {
				list = append(list, metricsTarget{where.Target{Arg: m.Mountpoint}.At(m), m.Source})
			}
		}
		for _, place := range where.OnlyElsewhere(table, elsewhere) {
			if m, err := place.Reach(); err == nil { // else this user may not look there
				list = append(list, metricsTarget{where.Target{Arg: m.Mountpoint}.At(m), m.Source})
			}
		}
		return list, nil
	}
	seen := map[string]bool{}
	for _, arg := range args {
		t, err := findMetricsTarget(arg)
		if err == nil && t.Mountpoint == "" {
			err = errors.New("it is not mounted, and only a mount has metrics; \"varve status\" shows the disk")
		}
		if err != nil {
			return nil, wrapped(cmd, arg, err)
		}
		if seen[t.Mountpoint] {
			continue // the same sample twice would be wrong
		}
		seen[t.Mountpoint] = true
		list = append(list, metricsTarget{t, t.Mount.Source})
	}
	return list, nil
}

// findMetricsTarget is where.Find for a disk whose file system may hang. A mountpoint
// is known by the mount table alone.
func findMetricsTarget(arg string) (where.Target, error) {
	abs, err := filepath.Abs(arg)
	if err != nil {
		return where.Target{}, err
	}
	slow, err := mounts.Remote()
	if err != nil {
		return where.Target{}, err
	}
	path := mounts.ResolveUpTo(abs, slow)
	if m, ok, err := mounts.At(path); err != nil {
		return where.Target{}, err
	} else if ok {
		if main, ok, err := mounts.Main(m.Device); err == nil && ok && m.Whole() {
			m = main // the same sample twice would be wrong
		}
		switch {
		case !m.Whole():
			return where.Target{}, where.PartOf(m)
		case !m.Reachable():
			return where.Target{}, where.Hidden(m)
		}
		return where.Target{Arg: arg}.At(m), nil
	}
	if _, err := doctor.StatSoon(path); errors.Is(err, aside.ErrNoAnswer) {
		return where.Target{}, where.Target{}.Explain(err)
	}
	return where.Find(arg)
}

// askMetrics asks all mounts at once and merges what they say. Of all mounts those
// that belong to others are left out; of named ones that is an error. silent says that
// a mount gave no answer, of which stderr is told.
func askMetrics(stderr io.Writer, list []metricsTarget, all bool) (page []byte, silent bool, err error) {
	pages, failures := make([]*prom.Page, len(list)), make([]error, len(list))
	var asked sync.WaitGroup
	for i, t := range list {
		asked.Go(func() {
			believed := claim.BelievedSoon(context.Background(), t.Mount, where.AnswerTime)
			list[i].source = claim.Words(t.Mount, believed)
			pages[i], failures[i] = list[i].metrics()
		})
	}
	asked.Wait()
	var text prom.Text
	up := text.Family("varve_up", prom.Gauge, "1 where the mount answers, 0 where it does not.")
	answers := fitting(list, pages, failures)
	for i, t := range list {
		err := failures[i]
		switch {
		case err == nil:
		case errors.Is(err, os.ErrPermission) && all:
			continue
		case errors.Is(err, os.ErrPermission):
			return nil, false, fmt.Errorf("metrics %s: %w", t.Arg, err)
		default:
			silent = true
			tell.Line(stderr, "metrics %s: %v", t.Arg, err)
		}
		up.Bool(err == nil, t.labels()...)
	}
	ups, err := text.Page()
	if err != nil {
		return nil, false, err
	}
	return prom.Merge(append([]*prom.Page{ups}, answers...)...), silent, nil
}

// fitting gives the pages that can be merged, and notes an error for the others. What another
// user's mount says must not spoil the page of all: root's own and the caller's come first.
func fitting(list []metricsTarget, pages []*prom.Page, failures []error) []*prom.Page {
	var fit []*prom.Page
	kinds := prom.Kinds{}
	for _, others := range []bool{false, true} {
		for i, t := range list {
			if failures[i] != nil || others != (t.Owner != 0 && t.Owner != os.Geteuid()) {
				continue
			}
			if failures[i] = kinds.Fit(pages[i]); failures[i] == nil {
				fit = append(fit, pages[i])
			}
		}
	}
	return fit
}

func (t metricsTarget) labels() []prom.Label {
	return []prom.Label{{Name: "disk", Value: t.source}, {Name: "mountpoint", Value: t.Mountpoint}}
}

// metrics reads a mount's metrics; a daemon of before there were any has none.
func (t metricsTarget) metrics() (*prom.Page, error) {
	text, err := t.ReadSoon("metrics")
	if errors.Is(err, os.ErrNotExist) {
		text, err = nil, nil
	}
	if err != nil {
		return nil, err
	}
	page, err := prom.Parse(text, t.labels()...)
	if err != nil {
		return nil, err
	}
	for _, name := range page.Names() {
		// Whoever collects the page knows other names from elsewhere.
		if !strings.HasPrefix(name, "varve_") || name == "varve_up" {
			return nil, fmt.Errorf("not understood as metrics: %.100q", name)
		}
	}
	return page, nil
}

// writeMetricsFile replaces a file of metrics, which anybody may read whatever the
// umask is. A device or a pipe is written as it stands.
func writeMetricsFile(ctx context.Context, out string, page []byte) error {
	place, err := output.Find(out)
	switch {
	case err != nil:
		return err
	case place.Direct():
		return output.Write(ctx, place, page, 0)
	}
	path := place.Path
	dir, err := mounts.Resolve(filepath.Dir(path))
	if err != nil {
		return err
	}
	m, inside, err := mounts.Around(dir)
	if err != nil {
		return err
	}
	if inside {
		return where.Target{Mountpoint: m.Mountpoint}.RefuseInside(dir, path)
	}
	for _, above := range []string{dir, filepath.Dir(dir)} {
		if where.IsDiskDirectory(above) {
			return where.Target{Dir: above}.RefuseInside(dir, path)
		}
	}
	if err := checkMetricsFile(path); err != nil {
		return err
	}
	return output.Replace(path, page, 0o644)
}

// largestPage is more than a page of metrics takes, which is 20 KiB for each mount,
// and less than a disk.
const largestPage = 1<<20 - 1

// checkMetricsFile refuses to replace what holds no metrics: a disk's image, say.
func checkMetricsFile(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().IsRegular() && info.Size() == 0: // of no mounts
		return nil
	}
	const begin = "# HELP varve_"
	if info.Mode().IsRegular() {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		head := make([]byte, len(begin))
		if _, err := io.ReadFull(f, head); err == nil && string(head) == begin {
			return nil
		}
		// What a power cut may leave of a page. A disk's image is larger.
		if info.Size() <= largestPage {
			if text, err := io.ReadAll(io.NewSectionReader(f, 0, largestPage)); err == nil && len(bytes.Trim(text, "\x00")) == 0 {
				return nil
			}
		}
	}
	return fmt.Errorf("%s exists already and holds no metrics of varve; name another file", path)
}
