package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// window is a stretch of time, its end excluded.
type window struct{ from, to time.Time }

// request is one of a load's: when it completed, in ms since 1970, and how long
// it took, in ns.
type request struct{ at, latency int64 }

// beside runs a load and does something several times beside it. It gives the
// load's requests, in the order of the log, and when each was done. What do gives
// is how long its time is to be taken for.
func (b *bench) beside(s *server, j fioJob, times int, do func(n int) (time.Duration, error)) ([]request, []window, error) {
	j.latency = filepath.Join(s.dir, "latency")
	defer func() {
		logs, _ := filepath.Glob(j.latency + "*.log")
		for _, log := range logs {
			_ = os.Remove(log)
		}
	}()
	ended := make(chan error, 1)
	go func() { _, err := b.fio(s.file, j); ended <- err }()
	var ran []window
	var failed error
	wait := untilFirst
	for n := range times {
		select {
		case <-time.After(wait):
		case err := <-ended:
			return nil, nil, errors.Join(errors.New("fio ended early"), err)
		}
		wait = between
		start := time.Now()
		took, err := do(n)
		failed = errors.Join(failed, err)
		ran = append(ran, window{start, start.Add(took)})
	}
	if err := errors.Join(failed, <-ended); err != nil {
		return nil, nil, err
	}
	logs, err := filepath.Glob(j.latency + "_clat*.log")
	if err != nil || len(logs) != 1 {
		return nil, nil, fmt.Errorf("fio wrote %d latency logs, want 1", len(logs))
	}
	f, err := os.Open(logs[0])
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = f.Close() }()
	list, err := readLatencies(f)
	return list, ran, err
}

// readLatencies reads a latency log of fio's.
func readLatencies(log io.Reader) ([]request, error) {
	var list []request
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		var r request
		if _, err := fmt.Sscanf(lines.Text(), "%d, %d", &r.at, &r.latency); err != nil {
			return nil, fmt.Errorf("latency log: %q: %w", lines.Text(), err)
		}
		list = append(list, r)
	}
	return list, lines.Err()
}

// within gives the latencies of the requests that completed in any of the windows,
// sorted.
func within(log []request, windows []window) []int64 {
	var list []int64
	for _, r := range log {
		for _, w := range windows {
			if r.at >= w.from.UnixMilli() && r.at < w.to.UnixMilli() {
				list = append(list, r.latency)
				break
			}
		}
	}
	slices.Sort(list)
	return list
}

// share is the latency in ms that a share of a sorted list does not exceed.
func share(list []int64, part float64) float64 {
	return float64(list[int(part*float64(len(list)-1))]) / 1e6
}
