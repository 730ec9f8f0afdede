package main

import (
	"errors"
	"fmt"
	"time"
)

// flattenLoad is how long the load runs, at least, beside which a flatten runs.
const flattenLoad = 10

// loadRow is a load on the disk while a snapshot of it is flattened, with and
// without a limit: how much the load loses, and how long the flatten takes.
func (b *bench) loadRow() row {
	limit := fmt.Sprintf("--job-rate=%dM", max(16, b.sizeMiB/4))
	return row{name: "flatten-load", unit: "/s beside a flatten", do: loadWhileFlattening,
		contestants: []contestant{{kind: varveMount, depth: 1, fresh: true}, {kind: varveMount, depth: 1, fresh: true, flags: limit}},
		before: func(b *bench, s *server) error {
			return errors.Join(beforeFlatten(b, s), b.fill(s.file), settle(b, s))
		}}
}

func loadWhileFlattening(b *bench, s *server) (sample, error) {
	j := fioJob{rw: "randrw", block: 4096, depth: 8, seconds: flattenLoad}
	without, err := b.latenciesAlone(s, j)
	if err != nil {
		return sample{}, err
	}
	if err := settle(b, s); err != nil {
		return sample{}, err
	}
	var job float64
	log, ran, err := b.beside(s, j, 1, func(int) (time.Duration, error) {
		start := time.Now()
		_, err := doFlatten(b, s)
		job = time.Since(start).Seconds()
		return time.Since(start), err
	})
	if err != nil {
		return sample{}, err
	}
	if len(log) == 0 {
		return sample{}, errors.New("the load did nothing")
	}
	// A flatten can outlast the load.
	w := ran[0]
	if last := time.UnixMilli(log[len(log)-1].at); last.Before(w.to) {
		w.to = last
	}
	with := within(log, []window{w})
	seconds := w.to.Sub(w.from).Seconds()
	if len(with) < 100 || len(without) < 100 || seconds <= 0 {
		return sample{}, fmt.Errorf("%d requests beside the flatten and %d without, too few", len(with), len(without))
	}
	beside, alone := float64(len(with))/seconds, float64(len(without))/aloneSeconds
	return sample{beside, map[string]float64{
		"/s alone": alone, "% lost": 100 * (1 - beside/alone), "flatten s": job,
		"p99.9 ms with": share(with, 0.999), "p99.9 ms without": share(without, 0.999),
		"longest ms with": share(with, 1), "longest ms without": share(without, 1),
	}}, nil
}

// aloneSeconds are compared of a load without a flatten, from untilFirst on.
const aloneSeconds = 5

// latenciesAlone are those of a load with nothing beside it, sorted.
func (b *bench) latenciesAlone(s *server, j fioJob) ([]int64, error) {
	log, ran, err := b.beside(s, j, 1, func(int) (time.Duration, error) { return aloneSeconds * time.Second, nil })
	if err != nil {
		return nil, err
	}
	return within(log, ran), nil
}
