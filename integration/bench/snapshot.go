package main

import (
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
	loadSeconds = 10 // each command may take a second under full load
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
		b.snapshotBigRow(steady),
	}
}

// stall is how much longer the slowest thousandth of the writes takes around
// snapshots, in ms; at least 0.
func stall(j fioJob) func(*bench, *server) (sample, error) {
	return func(b *bench, s *server) (sample, error) {
		j.offset = s.hot
		without, _, err := b.latencies(s, j, func(int) (time.Duration, error) { return 0, nil })
		if err != nil {
			return sample{}, err
		}
		if err := settle(b, s); err != nil { // both begin with nothing dirty
			return sample{}, err
		}
		with, took, err := b.latencies(s, j, b.snapshotter(s))
		if err != nil {
			return sample{}, err
		}
		slices.Sort(took)
		return sample{max(0, share(with, 0.999)-share(without, 0.999)), map[string]float64{
			"p99.9 ms with": share(with, 0.999), "p99.9 ms without": share(without, 0.999),
			"longest ms with": share(with, 1), "longest ms without": share(without, 1),
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
		if s.mountpoint == "" && s.monitor == "" {
			return 0, nil // a raw file has none
		}
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
	log, ran, err := b.beside(s, j, snapshots, do)
	if err != nil {
		return nil, nil, err
	}
	var seconds []window
	var took []time.Duration
	for _, w := range ran {
		seconds = append(seconds, window{w.from, w.from.Add(time.Second)})
		took = append(took, w.to.Sub(w.from))
	}
	list := within(log, seconds)
	if len(list) < 1000 {
		return nil, nil, fmt.Errorf("%d requests around the snapshots, too few for their slowest thousandth", len(list))
	}
	return list, took, nil
}
