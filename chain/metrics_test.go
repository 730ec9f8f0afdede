package chain

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/manifest"
	"varve/chain/view"
	"varve/integration/powercut"
)

// movement is what changed between two looks.
type movement struct {
	clusters, allocated, discarded, punched int64
	flushes, flushErrors, stalls            int64
	hits, misses                            int64
	deletesDone, flattensDone, flattensOff  int64
}

func moved(before, after Metrics) movement {
	end := func(kind JobKind, state JobState) int64 {
		return after.Jobs[JobEnd{kind, state}] - before.Jobs[JobEnd{kind, state}]
	}
	return movement{
		after.Clusters - before.Clusters, after.Allocated - before.Allocated, after.Discarded - before.Discarded, after.Punched - before.Punched,
		after.Flushes.Count() - before.Flushes.Count(), after.FlushErrors - before.FlushErrors, after.Stalls.Count() - before.Stalls.Count(),
		after.Cache.Hits - before.Cache.Hits, after.Cache.Misses - before.Cache.Misses,
		end(DeleteJob, JobDone), end(FlattenJob, JobDone), end(FlattenJob, JobCancelled),
	}
}

// Each figure moves when what it counts is done, by how much was done, and not
// otherwise.
func TestMetricsMove(t *testing.T) {
	d, _ := testDisk(t, 64<<20)
	// Nothing happens of itself.
	d.background.stop()
	d.background = nil
	const sub = 4 << 10
	cluster := d.leaf.Load().Layer().Over().ClusterSize()
	for _, step := range []struct {
		what string
		do   func()
		want movement
	}{
		{"nothing", func() {}, movement{}},
		{"a first write", func() { put(t, d, 1, 0, sub) }, movement{clusters: 1, allocated: sub}},
		{"a write in place", func() { put(t, d, 2, 0, sub) }, movement{}},
		{"beside it", func() { put(t, d, 2, sub, sub) }, movement{allocated: sub}},
		{"a byte, completed from below", func() { put(t, d, 3, 20<<20+5, 1) }, movement{clusters: 1, allocated: sub, misses: 1, hits: 1}},
		{"over a cluster's end", func() { put(t, d, 4, cluster*9-sub, 2*sub) }, movement{clusters: 2, allocated: 2 * sub}},
		{"a read of the leaf", func() { at(t, d, 0) }, movement{}},
		{"a first read from below", func() { at(t, d, 40<<20) }, movement{misses: 1}},
		{"another one", func() { at(t, d, 40<<20+sub) }, movement{hits: 1}},
		{"a flush", func() { must(t, d.Flush()) }, movement{flushes: 1}},
		{"a flush of nothing", func() { must(t, d.Flush()) }, movement{}},
		{"a discard of data", func() { must(t, d.Discard(0, sub)) }, movement{discarded: sub}},
		{"a discard of zeros", func() { must(t, d.Discard(0, sub)) }, movement{}},
		{"the punch after it", func() { must(t, d.Flush()); d.punchLeaf() }, movement{flushes: 1, punched: sub}},
		{"a reservation", func() { must(t, d.Reserve(50<<20, 1)) }, movement{clusters: 1}},
		// Of the frozen layer; to settle it there is nothing left.
		{"a snapshot", func() { must(t, d.Snapshot("one")) }, movement{stalls: 1, flushes: 1}},
	} {
		before := d.Metrics()
		step.do()
		if got := moved(before, d.Metrics()); got != step.want {
			t.Errorf("%s: %+v, want %+v", step.what, got, step.want)
		}
	}
	startBackground(d)
}

// What a merge has moved is given back to the host, either way.
func TestMergeMetrics(t *testing.T) {
	for direction, lower := range map[manifest.Direction]int64{manifest.Up: 1 << 20, manifest.Down: 8 << 20} {
		d, _ := testDisk(t, 64<<20)
		put(t, d, 1, 0, lower)
		must(t, d.Snapshot("one"))
		put(t, d, 2, 16<<20, 9<<20-lower)
		must(t, d.Snapshot("two"))
		before := d.Metrics()
		id, err := d.Delete("one")
		finish(t, d, id, err)
		if got := moved(before, d.Metrics()); got.punched != 1<<20 {
			t.Errorf("%s: %d bytes punched, want %d", direction, got.punched, 1<<20)
		}
	}
}

// Jobs are counted when they end, and told of while they run.
func TestJobMetrics(t *testing.T) {
	d, _ := testDisk(t, 64<<20)
	put(t, d, 1, 0, 8<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 0, 1<<20)
	must(t, d.Snapshot("two"))
	before := d.Metrics()
	id, err := d.Delete("one")
	finish(t, d, id, err)
	if got := moved(before, d.Metrics()); got.deletesDone != 1 || got.flattensDone != 0 || got.flattensOff != 0 {
		t.Errorf("after a delete: %+v", got)
	}
	if m := d.Metrics(); m.Job == nil || m.Job.Kind != DeleteJob || m.Job.State != JobDone {
		t.Errorf("%+v", m.Job)
	}
	must(t, d.SetJobRate(1)) // it does not end before the cancel
	id, err = d.Flatten("two")
	must(t, err)
	for m := d.Metrics(); m.Job.TotalBytes == 0; m = d.Metrics() {
		time.Sleep(time.Millisecond)
	}
	if m := d.Metrics(); m.Job.State != JobRunning || m.Job.RateLimit != 1 || m.Job.Kind != FlattenJob {
		t.Errorf("%+v", m.Job)
	}
	must(t, d.Cancel(id))
	if got := moved(before, d.Metrics()); got.deletesDone != 1 || got.flattensOff != 1 {
		t.Errorf("after a cancelled flatten: %+v", got)
	}
}

// A snapshot's stall is how long it kept writers out: from when it asks for the
// gate until the writes in flight are done and the leaf is swapped.
func TestSnapshotStall(t *testing.T) {
	d, _ := testDisk(t, 64<<20)
	d.gate.RLock() // a write in flight
	ended := make(chan error, 1)
	go func() { ended <- d.Snapshot("one") }()
	for d.gate.TryRLock() { // until it waits
		d.gate.RUnlock()
		time.Sleep(time.Millisecond)
	}
	const held = 40 * time.Millisecond
	time.Sleep(held)
	d.gate.RUnlock()
	must(t, <-ended)
	if s := d.Metrics().Stalls; s.Count() != 1 || s.Sum < held {
		t.Errorf("%d stalls of %v, want one of %v at least", s.Count(), s.Sum, held)
	}
	must(t, d.Revert("one")) // stalls nobody: disk.raw is not open
	if n := d.Metrics().Stalls; n.Count() != 1 {
		t.Errorf("%d stalls after a revert", n.Count())
	}
}

func TestFlushErrorsAreCounted(t *testing.T) {
	g := newSimGuest(t, onRaw, 1)
	g.open()
	put(t, g.d, 1, 0, 1<<20)
	before := g.d.Metrics()
	g.host.SetHook(false, func(op powercut.Op) error {
		if op.Kind == powercut.Datasync {
			return unix.EIO
		}
		return nil
	})
	if err := g.d.Flush(); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	g.host.SetHook(false, nil)
	m := g.d.Metrics()
	if got := moved(before, m); got.flushErrors != 1 || got.flushes != 1 || !m.Failed || before.Failed {
		t.Errorf("%+v, failed %v before and %v after", got, before.Failed, m.Failed)
	}
	_ = g.d.Close() // it says so too
}

// What layers hold is told once it was counted, and is then what status says.
func TestLayerMetrics(t *testing.T) {
	d, _ := testDisk(t, 64<<20)
	put(t, d, 1, 0, 1<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 4<<20, 2<<20)
	must(t, d.Snapshot("two"))
	put(t, d, 3, 0, 64<<10)
	must(t, d.CountAll(t.Context()))
	check := func() {
		t.Helper()
		st, err := d.Status()
		must(t, err)
		m := d.Metrics()
		if len(m.Layers) != len(st.Layers) {
			t.Fatalf("%d layers, status has %d", len(m.Layers), len(st.Layers))
		}
		for i, l := range m.Layers {
			s := st.Layers[i]
			if l.ID != s.ID || l.Name != s.Name || l.State != s.State || l.Depth != s.Depth || l.SetAside != s.SetAside {
				t.Errorf("%+v, status has %+v", l, s)
			}
			if l.Own == nil || *l.Own != s.OwnBytes || l.Host == nil || *l.Host != s.HostBytes {
				t.Errorf("%s: own %v, host %v; status has %d and %d", l.ID, l.Own, l.Host, s.OwnBytes, s.HostBytes)
			}
			if (l.Frees == nil) != (s.Frees == nil) || l.Frees != nil && *l.Frees != *s.Frees {
				t.Errorf("%s: frees %v, status has %v", l.ID, l.Frees, s.Frees)
			}
		}
	}
	check()
	put(t, d, 4, 30<<20, 1<<20) // what changed in the leaf is looked at again
	m := d.Metrics()
	if own := m.Layers[len(m.Layers)-1].Own; own == nil || *own != 1<<20+64<<10 {
		t.Errorf("the leaf has %v", own)
	}
	must(t, d.Revert("one"))
	must(t, d.CountAll(t.Context()))
	check()
	aside := 0
	for _, l := range d.Metrics().Layers {
		if l.SetAside {
			aside++
		}
	}
	if aside != 1 {
		t.Errorf("%d layers are set aside", aside)
	}
}

// Looking counts nothing that nobody has asked for.
func TestMetricsCountNothing(t *testing.T) {
	d, _ := testDisk(t, 64<<20)
	for range 3 {
		for _, l := range d.Metrics().Layers {
			if l.State == "base" && l.Own != nil {
				t.Errorf("the base was counted: %d", *l.Own)
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	if d.figures.Counting() {
		t.Error("a pass was begun")
	}
}

func TestOpenAndCacheMetrics(t *testing.T) {
	d, _ := testDisk(t, 64<<20)
	must(t, d.Snapshot("one"))
	must(t, d.Close())
	d, err := Open(d.Dir(), OpenOptions{CacheBytes: 1}) // there is room for one region
	must(t, err)
	defer d.Close()
	who := Opener{PID: 1}
	h, err := d.OpenDisk(context.Background(), who, true)
	must(t, err)
	defer h.Close()
	r, err := d.OpenDisk(context.Background(), who, false)
	must(t, err)
	defer r.Close()
	v, err := d.OpenView(context.Background(), "000001", who)
	must(t, err)
	defer v.Close()
	if m := d.Metrics(); m.OpenWriting != 1 || m.OpenRead != 1 || m.OpenLayers != 1 {
		t.Errorf("%+v", m)
	}
	for i := range int64(4) {
		at(t, d, i*view.RegionSize)
	}
	c := d.Metrics().Cache
	if c.Misses != 4 || c.Evictions != 3 || c.Bytes <= 0 || c.Limit != 1 {
		t.Errorf("%+v", c)
	}
}
