package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// A turn writes for loadSeconds without a snapshot and again with one in every
// second second. The requests that complete within a second from the beginning of
// a snapshot are compared with those of the same seconds without.
const (
	loadSeconds = 7
	snapshots   = 3
	untilFirst  = 1500 * time.Millisecond // until the first snapshot, from fio's start
	between     = 2 * time.Second
)

func (b *bench) snapshotRows() []row {
	if b.suite == "quick" {
		return nil
	}
	list := []contestant{
		{kind: varveMount, depth: 1, fresh: true}, {kind: varveMount, depth: 128, fresh: true}, {kind: qsd, depth: 1, fresh: true},
	}
	filled := func(b *bench, s *server) error { return errors.Join(b.fill(s.file), settle(b, s)) }
	full := fioJob{rw: "randwrite", block: 4096, depth: 32, seconds: loadSeconds}
	steady := full
	steady.rate = 8000 // well below what the slowest of them can do
	return []row{
		{name: "snapshot-rewrite-q32", unit: "ms stall", lowerBetter: true, contestants: list, before: filled, do: stall(full)},
		{name: "snapshot-rewrite-8000", unit: "ms stall", lowerBetter: true, contestants: list, before: filled, do: stall(steady)},
		{name: "snapshot-touch-8000", unit: "ms stall", lowerBetter: true, contestants: list, before: settle, do: stall(steady)},
	}
}

// stall is how much longer the slowest thousandth of the writes takes around
// snapshots, in ms; at least 0.
func stall(j fioJob) func(*bench, *server) (sample, error) {
	return func(b *bench, s *server) (sample, error) {
		without, _, err := b.latencies(s, j, func(int) (time.Duration, error) { return 0, nil })
		if err != nil {
			return sample{}, err
		}
		with, took, err := b.latencies(s, j, b.snapshotter(s))
		if err != nil {
			return sample{}, err
		}
		ms := func(list []int64, share float64) float64 {
			return float64(list[int(share*float64(len(list)-1))]) / 1e6
		}
		slices.Sort(took)
		return sample{max(0, ms(with, 0.999)-ms(without, 0.999)), map[string]float64{
			"p99.9 ms with": ms(with, 0.999), "p99.9 ms without": ms(without, 0.999),
			"longest ms with": ms(with, 1), "longest ms without": ms(without, 1),
			"writes with":    float64(len(with)),
			"writes without": float64(len(without)),
			"command ms":     took[len(took)/2].Seconds() * 1000,
			"command worst":  took[len(took)-1].Seconds() * 1000,
		}}, nil
	}
}

// snapshotter takes snapshot number n and gives the time until the command
// returned.
func (b *bench) snapshotter(s *server) func(n int) (time.Duration, error) {
	active := "q"
	return func(n int) (time.Duration, error) {
		if s.monitor == "" {
			start := time.Now()
			err := os.WriteFile(filepath.Join(s.mountpoint, "control", "snapshot"), fmt.Appendf(nil, "bench%d", n), 0)
			return time.Since(start), err
		}
		next := fmt.Sprintf("s%d", n)
		took, err := qmp(s.monitor, "blockdev-snapshot-sync", map[string]any{
			"node-name": active, "snapshot-node-name": next, "format": "qcow2",
			"snapshot-file": filepath.Join(s.dir, next+".qcow2"),
		})
		active = next
		return took, err
	}
}

// latencies runs a load and does something several times beside it. It gives the
// sorted completion latencies (ns) of the requests in the seconds after each, and
// how long each took.
func (b *bench) latencies(s *server, j fioJob, do func(n int) (time.Duration, error)) ([]int64, []time.Duration, error) {
	j.latency = filepath.Join(s.dir, "latency")
	defer func() {
		logs, _ := filepath.Glob(j.latency + "*.log")
		for _, log := range logs {
			_ = os.Remove(log)
		}
	}()
	ended := make(chan error, 1)
	go func() { _, err := b.fio(s.file, j); ended <- err }()
	var starts []time.Time
	var took []time.Duration
	var failed error
	wait := untilFirst
	for n := range snapshots {
		select {
		case <-time.After(wait):
		case err := <-ended:
			return nil, nil, errors.Join(errors.New("fio ended early"), err)
		}
		wait = between
		starts = append(starts, time.Now())
		d, err := do(n)
		failed = errors.Join(failed, err)
		took = append(took, d)
	}
	if err := errors.Join(failed, <-ended); err != nil {
		return nil, nil, err
	}
	logs, err := filepath.Glob(j.latency + "_clat*.log")
	if err != nil || len(logs) != 1 {
		return nil, nil, fmt.Errorf("fio wrote %d latency logs, want 1", len(logs))
	}
	list, err := inSeconds(logs[0], starts)
	return list, took, err
}

// inSeconds reads the latencies of a log that completed in the seconds from
// given moments on, sorted.
func inSeconds(log string, starts []time.Time) ([]int64, error) {
	f, err := os.Open(log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var list []int64
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var at, latency int64 // ms since 1970, ns
		if _, err := fmt.Sscanf(lines.Text(), "%d, %d", &at, &latency); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", log, lines.Text(), err)
		}
		for _, start := range starts {
			if at >= start.UnixMilli() && at < start.UnixMilli()+1000 {
				list = append(list, latency)
				break
			}
		}
	}
	if len(list) < 1000 {
		return nil, fmt.Errorf("%d requests around the snapshots, too few for their slowest thousandth", len(list))
	}
	slices.Sort(list)
	return list, nil
}
