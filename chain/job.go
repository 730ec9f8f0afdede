package chain

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"

	"varve/chain/manifest"
	"varve/overlay/qcow2"
)

var (
	errCancelled = errors.New("cancelled")
	errClosing   = errors.New("the disk is being closed")
)

// job is a delete or flatten under way, or the last one. It follows layers by
// their ids: a snapshot may freeze the leaf that it writes.
type job struct {
	id    string
	kind  JobKind
	layer string
	ctx   context.Context
	stop  context.CancelCauseFunc
	done  chan struct{} // closed when it no longer runs
	speed *jobPace

	// covered is the size up to which a merge upwards surely looked; its own.
	covered int64
	// hasSteps: it was given the room that is kept for merges; its own.
	hasSteps bool

	doneBytes  atomic.Int64
	totalBytes atomic.Int64
	outcome    atomic.Pointer[jobOutcome] // nil while it runs
	writes     atomic.Pointer[[]string]   // ids of the layers that it writes
}

type jobOutcome struct {
	state JobState
	err   string
}

func (j *job) status() JobStatus {
	s := JobStatus{ID: j.id, Kind: j.kind, Layer: j.layer, State: JobRunning, TotalBytes: j.totalBytes.Load()}
	s.DoneBytes = min(j.doneBytes.Load(), s.TotalBytes)
	s.Rate = j.speed.rate()
	s.RateLimit, _ = j.speed.pacer.get()
	if o := j.outcome.Load(); o != nil {
		s.State, s.Error = o.state, o.err
	}
	if s.State == JobRunning {
		s.SecondsLeft = j.speed.left(s.DoneBytes, s.TotalBytes)
	}
	return s
}

func (j *job) running() bool { return j != nil && j.outcome.Load() == nil }

// progress counts bytes of the source that are dealt with.
func (j *job) progress(n int64) { j.doneBytes.Add(n) }

// lastJob is the job under way or the last one, nil for none.
func (d *Disk) lastJob() *job {
	d.jobMu.Lock()
	defer d.jobMu.Unlock()
	return d.job
}

// jobBusy refuses what cannot go on beside a job.
func (d *Disk) jobBusy() error {
	if j := d.lastJob(); j.running() {
		return fmt.Errorf("%w: job %s (%s) is running; wait for it or cancel it", ErrBusy, j.id, j.kind)
	}
	return nil
}

// jobWrites says whether the job under way writes a layer.
func (d *Disk) jobWrites(id string) bool {
	j := d.lastJob()
	if !j.running() {
		return false
	}
	if w := j.writes.Load(); w != nil {
		for _, other := range *w {
			if other == id {
				return true
			}
		}
	}
	return false
}

// startJob begins a job whose record is committed, or only remembers it when
// the disk was opened with HoldJob or is being closed. Called with opMu held.
func (d *Disk) startJob(rec *manifest.Job) {
	j := &job{id: rec.ID, kind: rec.Kind, layer: rec.Layer, done: make(chan struct{}), speed: newJobPace(d.pacer)}
	j.ctx, j.stop = context.WithCancelCause(context.Background())
	d.jobMu.Lock()
	d.job = j
	hold := d.holdJob || d.closing
	d.jobMu.Unlock()
	if hold {
		close(j.done)
		return
	}
	d.log.Info("job started", "job", j.id, "kind", j.kind, "layer", j.layer)
	go d.runJob(j)
}

// resumeJob goes on with the job that chain.json records (D10).
func (d *Disk) resumeJob() {
	d.opMu.Lock()
	defer d.opMu.Unlock()
	if d.manifest.Job != nil {
		d.startJob(d.manifest.Job)
	}
}

// stopJob stops the job for Close, and lets none begin any more: not one that a
// control operation records meanwhile, and not one that this job queues. Its
// record stays.
func (d *Disk) stopJob() {
	d.jobMu.Lock()
	d.closing = true
	j := d.job
	d.jobMu.Unlock()
	if j != nil {
		j.stop(errClosing)
		<-j.done
	}
}

func (d *Disk) runJob(j *job) {
	defer close(j.done)
	err := d.workOn(j)
	defer d.takeSteps(j)
	j.speed.end()
	switch {
	case err == nil:
		d.log.Info("job done", "job", j.id)
		d.measures.jobEnded(j.kind, JobDone)
	case errors.Is(err, errClosing):
		d.log.Info("job stopped; it goes on at the next mount", "job", j.id)
		j.outcome.CompareAndSwap(nil, &jobOutcome{state: JobRunning})
	case errors.Is(err, errCancelled):
		d.log.Info("job cancelled", "job", j.id)
		d.measures.jobEnded(j.kind, JobCancelled)
		d.endJob(j, jobOutcome{state: JobCancelled})
	default:
		if qcow2.IsDamage(err) {
			err = fmt.Errorf("%w; it stops at this damage, and every view is as it was", err)
		}
		d.log.Error("job failed", "job", j.id, "error", err)
		d.measures.jobEnded(j.kind, JobFailed)
		d.endJob(j, jobOutcome{state: JobFailed, err: d.tooFull(err).Error()})
	}
}

func (d *Disk) workOn(j *job) error {
	return d.survive(j, func() error {
		switch j.kind {
		case FlattenJob:
			return d.flattenLayer(j)
		case DeleteJob:
			return d.mergeLayer(j)
		}
		return fmt.Errorf("no job is a %s", j.kind)
	})
}

// survive does a part of a job. A bug in it fails the job; the guest goes on.
func (d *Disk) survive(j *job, work func() error) (err error) {
	defer func() {
		if bug := recover(); bug != nil {
			d.log.Error("a job failed by a bug in varve; please report it", "job", j.id, "panic", bug, "stack", string(debug.Stack()))
			err = fmt.Errorf("a bug in varve: %v", bug)
		}
	}()
	return work()
}

// endJob takes a job that did not finish out of chain.json and settles what it
// wrote. Every view is right as it is (D11). When that cannot be written, the next
// Open takes the job up again.
func (d *Disk) endJob(j *job, o jobOutcome) {
	d.opMu.Lock()
	defer d.opMu.Unlock()
	if d.closed { // the directory may be somebody else's by now
		j.outcome.CompareAndSwap(nil, &jobOutcome{state: JobRunning})
		return
	}
	m := d.edit()
	m.Job = nil
	if err := d.stopAbsorbing(m); err != nil {
		d.log.Error("what an unfinished merge has moved cannot be written back", "job", j.id, "error", err)
	}
	if w := j.writes.Load(); w != nil {
		for _, id := range *w {
			if rec := m.Layer(id); rec != nil && rec.Writing {
				if err := d.withReserve(func() error { return d.restore(m, rec) }); err != nil {
					d.log.Warn("a layer that a job wrote could not be brought to rest; the next mount tries again", "layer", rec.Label(), "error", err)
				}
			}
		}
	}
	if err := d.commit(m); err != nil {
		d.log.Error("cannot record the end of a job", "job", j.id, "error", err)
	} else {
		d.install(m, nil)
	}
	j.outcome.CompareAndSwap(nil, &o)
}

// restore gives a layer that a job wrote the backing name that chain.json says,
// for the job may have been about to change both, and settles it unless it is
// the leaf.
func (d *Disk) restore(m *manifest.Manifest, rec *manifest.Layer) error {
	if d.isAstray(m, rec) {
		// Settled already, if the job came as far as its last commit.
		o, err := d.thaw(d.nodes[rec.ID])
		if err != nil {
			return err
		}
		if err := o.SetBacking(m.Layer(rec.Parent).BackingName()); err != nil {
			return err
		}
	}
	if rec.ID == m.Leaf {
		return nil
	}
	return d.settle(rec)
}

// finished notes a job's success after its last commit, and starts the job
// that this commit queued. Called with opMu held.
func (d *Disk) finished(j *job, m *manifest.Manifest) {
	j.doneBytes.Store(j.totalBytes.Load())
	// In this order nobody who waits for all of a delete sees none under way between
	// two merges.
	if m.Job != nil {
		d.startJob(m.Job)
	}
	j.outcome.CompareAndSwap(nil, &jobOutcome{state: JobDone})
}

// Cancel stops the job with that id and returns when it has stopped;
// ErrNotExist when no such job runs.
func (d *Disk) Cancel(id string) error {
	if d.readOnly {
		return fmt.Errorf("%s: %w", d.dir, ErrReadOnly)
	}
	j := d.lastJob()
	if !j.running() || j.id != id {
		return fmt.Errorf("job %s: %w: it is not running", id, ErrNotExist)
	}
	if d.holdJob {
		d.endJob(j, jobOutcome{state: JobCancelled})
		return nil
	}
	j.stop(errCancelled)
	<-j.done
	return nil
}
