package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// bench is one run: its scratch directory, its images and what is mounted.
type bench struct {
	options
	ctx     context.Context
	images  map[string]string // finished images by name
	running map[contestant]*server
	started []*server  // in order
	numbers int        // of scratch names
	orders  *rand.Rand // of the turns
	xfs     *bench     // see onXFS
	small   *bench     // see quarter
	within  bool       // is another's xfs or quarter
}

func newBench(ctx context.Context, o options) (*bench, error) {
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return nil, err
	}
	if o.dir, err = os.MkdirTemp(dir, "varve-bench-"); err != nil {
		return nil, err
	}
	return &bench{options: o, ctx: ctx, images: map[string]string{}, running: map[contestant]*server{}, orders: rand.New(rand.NewPCG(1, 1))}, nil
}

// close ends every contestant, last first, and removes the scratch files.
func (b *bench) close() error {
	var errs []error
	for _, other := range []*bench{b.small, b.xfs} {
		if other != nil {
			errs = append(errs, other.close())
		}
	}
	for i := len(b.started) - 1; i >= 0; i-- {
		errs = append(errs, b.started[i].stop())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w (the scratch files stay in %s)", err, b.dir)
	}
	if b.within {
		return nil // goes with the other's directory
	}
	if b.keep {
		fmt.Println("The scratch files are in", b.dir)
		return nil
	}
	return os.RemoveAll(b.dir)
}

// scratch is a new path in the scratch directory.
func (b *bench) scratch(name string) string {
	b.numbers++
	return filepath.Join(b.dir, fmt.Sprintf("%s-%d", name, b.numbers))
}

func (b *bench) size() int64 { return b.sizeMiB << 20 }

// row is one job that several contestants do in turn.
type row struct {
	name        string
	unit        string // of the values
	lowerBetter bool
	xfs         bool // on a host file system that shares extents
	contestants []contestant
	before      func(b *bench, s *server) error // each turn, not measured
	do          func(b *bench, s *server) (sample, error)
}

// sample is one turn of one contestant.
type sample struct {
	Value float64            `json:"value"`
	More  map[string]float64 `json:"more,omitempty"` // by name with unit
}

// measure gives each contestant its turns. What fails is a failure of the row,
// and the others go on.
func (b *bench) measure(r row) *rowResult {
	result := &rowResult{Name: r.name, Unit: r.unit, LowerBetter: r.lowerBetter, Samples: map[string][]sample{}}
	if r.xfs {
		x, err := b.onXFS()
		if err != nil {
			result.Errors = append(result.Errors, fmt.Sprintf("xfs: %v", err))
			return result
		}
		r.xfs = false
		return x.measure(r)
	}
	broken := map[contestant]bool{}
	for range b.rounds {
		// Nobody always comes first, nor always after the same one.
		for _, i := range b.orders.Perm(len(r.contestants)) {
			c := r.contestants[i]
			if b.ctx.Err() != nil {
				return result
			}
			if broken[c] {
				continue
			}
			s, err := b.turn(r, c)
			if err != nil {
				broken[c] = true
				result.Errors = append(result.Errors, fmt.Sprintf("%s: %v", c, err))
				continue
			}
			result.Samples[c.String()] = append(result.Samples[c.String()], s)
		}
	}
	for _, c := range r.contestants {
		result.Order = append(result.Order, c.String())
	}
	return result
}

// quarter is a bench of its own whose disk has a quarter of the size. It ends with
// this one.
func (b *bench) quarter() (_ *bench, err error) {
	if b.small != nil {
		return b.small, nil
	}
	o := b.options
	o.sizeMiB /= 4
	o.dir = b.dir
	if b.small, err = newBench(b.ctx, o); err != nil {
		return nil, err
	}
	b.small.within = true
	return b.small, nil
}

func (b *bench) turn(r row, c contestant) (_ sample, err error) {
	if c.quarter {
		q, err := b.quarter()
		if err != nil {
			return sample{}, err
		}
		c.quarter = false
		return q.turn(r, c)
	}
	s, err := b.server(c)
	if err != nil {
		return sample{}, fmt.Errorf("start: %w", err)
	}
	if c.fresh {
		defer func() { err = errors.Join(err, b.end(c)) }()
	}
	if r.before != nil {
		if err := r.before(b, s); err != nil {
			return sample{}, fmt.Errorf("prepare: %w", err)
		}
	}
	cpu, err := s.cpu()
	if err != nil {
		return sample{}, err
	}
	got, err := r.do(b, s)
	if err != nil {
		return sample{}, err
	}
	if len(s.pids) > 0 {
		after, err := s.cpu()
		if err != nil {
			return sample{}, err
		}
		peak, err := s.memory("VmHWM")
		if err != nil {
			return sample{}, err
		}
		if got.More == nil {
			got.More = map[string]float64{}
		}
		if ops := got.More["operations"]; ops > 0 {
			got.More["daemon us/operation"] = float64((after-cpu)/time.Nanosecond) / 1000 / ops
		}
		got.More["daemon peak MiB"] = peak
	}
	return got, nil
}

// server is the running contestant, started when it is first wanted.
func (b *bench) server(c contestant) (*server, error) {
	if s := b.running[c]; s != nil {
		return s, nil
	}
	s, err := b.start(c)
	if err != nil {
		return nil, err
	}
	b.running[c] = s
	if c.written {
		err = b.fill(s.file)
	} else if !c.fresh {
		err = b.readThrough(s.file)
	}
	if err != nil {
		return nil, errors.Join(err, b.end(c))
	}
	return s, nil
}

// end stops a contestant and removes what it wrote.
func (b *bench) end(c contestant) error {
	s := b.running[c]
	if s == nil {
		return nil
	}
	delete(b.running, c)
	if err := s.stop(); err != nil {
		return err
	}
	for i := range b.started {
		if b.started[i] == s {
			b.started = append(b.started[:i], b.started[i+1:]...)
			break
		}
	}
	if s.dir == "" || !strings.HasPrefix(s.dir, b.dir+"/") {
		return nil
	}
	return os.RemoveAll(s.dir)
}
