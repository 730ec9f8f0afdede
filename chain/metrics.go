package chain

import (
	"maps"
	"sync"

	"varve/chain/view"
	"varve/overlay"
	"varve/overlay/measure"
)

// measures is what a disk counts since it was opened.
type measures struct {
	activity overlay.Activity
	stall    measure.Histogram

	mu   sync.Mutex
	jobs map[JobEnd]int64
}

// JobEnd is how jobs of a kind ended.
type JobEnd struct {
	Kind  JobKind
	State JobState // one of an end
}

// JobEnds lists all there are.
func JobEnds() []JobEnd {
	var list []JobEnd
	for _, kind := range []JobKind{DeleteJob, FlattenJob} {
		for _, state := range []JobState{JobDone, JobCancelled, JobFailed} {
			list = append(list, JobEnd{kind, state})
		}
	}
	return list
}

func (m *measures) jobEnded(kind JobKind, state JobState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.jobs == nil {
		m.jobs = make(map[JobEnd]int64)
	}
	m.jobs[JobEnd{kind, state}]++
}

func (m *measures) endedJobs() map[JobEnd]int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.jobs)
}

// Metrics are a disk's figures at a moment. Counts begin with its Open.
type Metrics struct {
	Size     int64 // guest bytes
	ReadOnly bool
	Failed   bool // it takes no writes until it is opened again

	Cache     CacheMetrics
	Clusters  int64 // host clusters given to guest clusters, by writes and by jobs
	Allocated int64 // bytes of subclusters that became data of a layer
	Discarded int64 // bytes of subclusters that were data and became zeros
	Punched   int64 // bytes given back to the host

	Flushes     measure.Distribution // of layers that had something to make durable
	FlushErrors int64
	Unflushed   int64 // bytes of the leaf's tables that wait for a flush

	// Stalls are how long writers were kept out by a snapshot.
	Stalls measure.Distribution

	Job  *JobStatus // the one under way or the last one, nil for none
	Jobs map[JobEnd]int64

	Layers                []LayerMetrics // in the order of their ids
	OpenWriting, OpenRead int            // opens of disk.raw
	OpenLayers            int            // opens of layers and partitions
}

// CacheMetrics are those of the resolved regions: what was found in all layers but
// the leaf.
type CacheMetrics = view.CacheMetrics

// LayerMetrics are a layer's. Own is nil where nobody has counted it yet, Host where
// the file cannot be asked, Frees as in LayerStatus.
type LayerMetrics struct {
	ID, Name         string
	State            State
	Depth            int
	SetAside         bool
	Own, Host, Frees *int64
	Damaged          int64 // bytes of the disk that cannot be read from it, as far as somebody has looked
}

// Metrics gives a disk's figures. It counts nothing but what the guest has changed
// in the leaf since somebody counted it, and that for a moment only.
func (d *Disk) Metrics() Metrics {
	a := &d.measures.activity
	m := Metrics{
		Size: d.Size(), ReadOnly: d.readOnly,
		Cache:    d.cache.Metrics(),
		Clusters: a.Clusters.Load(), Allocated: a.Allocated.Load(), Discarded: a.Discarded.Load(), Punched: a.Punched.Load(),
		Flushes: a.Flushes.Load(), FlushErrors: a.FlushErrors.Load(),
		Stalls: d.measures.stall.Load(),
		Jobs:   d.measures.endedJobs(),
		Layers: d.layerMetrics(),
	}
	if l := d.leaf.Load().Layer(); l != nil {
		if o := l.Over(); o != nil {
			m.Unflushed, m.Failed = o.DirtyBytes(), o.Failed() != nil
		}
	}
	if j := d.lastJob(); j != nil {
		status := j.status()
		m.Job = &status
	}
	for _, h := range d.handles.list() {
		switch {
		case h.id != "":
			m.OpenLayers++
		case h.write:
			m.OpenWriting++
		default:
			m.OpenRead++
		}
	}
	return m
}

func (d *Disk) layerMetrics() []LayerMetrics {
	layers := d.Layers()
	m, nodes := d.tree()
	list := make([]LayerMetrics, len(layers))
	for i := range layers {
		l := &layers[i]
		list[i] = LayerMetrics{ID: l.ID, Name: l.Name, State: l.State, Depth: l.Depth, SetAside: l.SetAside, Damaged: l.DamagedBytes()}
		n := nodes[l.ID]
		if n == nil || n.Layer() == nil {
			continue
		}
		host, err := d.hostBytes(n)
		if err != nil {
			continue // it was deleted a moment ago
		}
		l.HostBytes, list[i].Host = host, &host
		if own, ok := d.figures.OwnKnown(n); ok {
			list[i].Own = &own
		}
	}
	d.tellFrees(m, nodes, layers)
	for i := range layers {
		if list[i].Host != nil {
			list[i].Frees = layers[i].Frees
		}
	}
	return list
}
