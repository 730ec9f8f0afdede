package chain

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"varve/chain/manifest"
	"varve/chain/view"
)

// slowCounts counts layer by layer and region by region, through what reads see.
func slowCounts(t *testing.T, d *Disk) (own, views map[string]int64) {
	t.Helper()
	own, views = map[string]int64{}, map[string]int64{}
	m, nodes := d.tree()
	for _, l := range m.Layers {
		n := nodes[l.ID]
		var err error
		own[l.ID], err = n.Layer().OwnBytes()
		must(t, err)
		for at := int64(0); at < n.Size(); at += view.RegionSize {
			bytes, err := n.RegionBytes(&d.readers, at>>view.RegionBits, n.Size())
			must(t, err)
			views[l.ID] += bytes
		}
	}
	return own, views
}

func checkCounts(t *testing.T, d *Disk, when string) {
	t.Helper()
	must(t, d.CountAll(t.Context()))
	own, view := slowCounts(t, d)
	st, err := d.Status()
	must(t, err)
	for _, l := range st.Layers {
		if l.OwnBytes != own[l.ID] || !l.Counted {
			t.Errorf("%s: layer %s maps %d bytes, counted %v; status says %d", when, l.ID, own[l.ID], l.Counted, l.OwnBytes)
		}
		if got, counted, err := d.LayerAllocatedBytes(l.ID); err != nil || got != view[l.ID] || !counted {
			t.Errorf("%s: of the view of %s %d bytes are data, not %d (counted %v, %v)", when, l.ID, view[l.ID], got, counted, err)
		}
	}
	checkFrees(t, d, st, when)
}

// storedIn says how many layers of a chain.json have counts that are believed.
func storedIn(t *testing.T, dir string) (stored, frozen int) {
	t.Helper()
	m := readManifest(t, dir)
	in := m.CountedIn()
	for _, l := range m.Layers {
		if l.ID != m.Leaf {
			frozen++
			if l.Counts != nil && l.Counts.Of == in[l.ID] {
				stored++
			}
		}
	}
	return stored, frozen
}

func readManifest(t *testing.T, dir string) *manifest.Manifest {
	t.Helper()
	m, err := manifest.Load(OpenOptions{}.withDefaults().FS, dir)
	must(t, err)
	return m
}

// What is told of bytes is what a slow count gives, after every kind of operation,
// and of a disk that is opened again, from chain.json.
func TestCounts(t *testing.T) {
	d, _ := testDisk(t, 100<<20+4096)
	dir := d.Dir()
	random := rand.New(rand.NewPCG(1, 2))
	step := func(when string) {
		t.Helper()
		for i := range 20 {
			off := random.Int64N(100<<20/512) * 512
			if i%3 == 0 {
				must(t, d.Discard(off, min(random.Int64N(1<<20), d.Size()-off)))
			} else {
				put(t, d, byte(i+1), off, 512+random.Int64N(20<<10)%(d.Size()-off))
			}
			if i == 10 {
				checkCounts(t, d, when+", half way")
			}
		}
		checkCounts(t, d, when)
	}
	step("writes")
	for i := range 4 {
		must(t, d.Snapshot(fmt.Sprint("s", i)))
		step(fmt.Sprint("snapshot ", i))
	}
	if stored, frozen := storedIn(t, dir); stored < frozen {
		t.Errorf("%d of %d frozen layers have their counts in chain.json", stored, frozen)
	}
	id, err := d.Delete("s1")
	finish(t, d, id, err)
	step("delete")
	id, err = d.Flatten("s2")
	finish(t, d, id, err)
	step("flatten")
	must(t, d.Revert("s0"))
	step("revert")
	id, err = d.Delete("s0")
	finish(t, d, id, err)
	step("delete below the leaf")
	must(t, d.Resize(200<<20))
	step("growth")
	must(t, d.Close())

	if stored, frozen := storedIn(t, dir); stored < frozen {
		t.Errorf("closed: %d of %d frozen layers have their counts in chain.json", stored, frozen)
	}
	d = openDisk(t, dir)
	m, nodes := d.tree()
	for _, l := range m.Layers {
		if _, ok, err := d.figures.View(nodes[l.ID], time.Time{}); err != nil || l.ID != m.Leaf && !ok {
			t.Errorf("the stored count of %s is not used", l.ID)
		}
	}
	checkCounts(t, d, "opened again")
	must(t, d.Close())
}

// Counts that were made of other files than those that are there are not believed,
// neither of the file's layer nor of those on it.
func TestCountsOfAChangedLayer(t *testing.T) {
	d, _ := testDisk(t, 40<<20)
	dir := d.Dir()
	put(t, d, 1, 0, 8192)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 20<<20, 8192)
	must(t, d.Snapshot("two"))
	must(t, d.CountAll(t.Context()))
	must(t, d.Close())
	m := readManifest(t, dir)
	for _, l := range m.Layers {
		if l.Name == "one" || l.Name == "two" {
			l.Counts.Own, l.Counts.View = 1, 1 // would be seen
		}
	}
	one := m.ByName("one")
	must(t, m.Commit(OpenOptions{}.withDefaults().FS, dir))
	now := readManifest(t, dir).Layer(one.ID)
	if now.Counts == nil || now.Counts.View != 1 {
		t.Fatalf("stored: %+v", now.Counts)
	}
	path := filepath.Join(dir, one.File)
	info, err := os.Stat(path)
	must(t, err)
	must(t, os.Chtimes(path, info.ModTime(), info.ModTime().Add(1e9)))
	must(t, Accept(dir, "one", OpenOptions{}))
	d = openDisk(t, dir)
	checkCounts(t, d, "accepted")
	must(t, d.Close())
}

// A daemon that is killed leaves counts in chain.json that are right or are not
// believed: the directory as it stands between two operations is opened anew. And
// while a job runs, what is told as counted of a view is what it was before: no
// view changes.
func TestCountsAfterAKillAndBesideAJob(t *testing.T) {
	d, _ := testDisk(t, 64<<20)
	random := rand.New(rand.NewPCG(5, 6))
	writes := func() {
		for i := range 30 {
			off := random.Int64N(60<<20/4096) * 4096
			if i%4 == 0 {
				must(t, d.Discard(off, 256<<10))
			} else {
				put(t, d, byte(i+1), off, 4096+random.Int64N(64<<10))
			}
		}
	}
	killed := func(when string) {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "killed.varve")
		must(t, exec.Command("cp", "-a", d.Dir(), dir).Run()) // with times: fingerprints have them
		again := openDisk(t, dir)
		checkCounts(t, again, when)
		must(t, again.Close())
	}
	for i := range 3 {
		writes()
		must(t, d.CountAll(t.Context()))
		must(t, d.Snapshot(fmt.Sprint("s", i)))
		writes()
		must(t, d.Flush())
		killed(fmt.Sprint("written after snapshot ", i))
	}
	must(t, d.CountAll(t.Context()))
	for _, begin := range []func() (string, error){
		func() (string, error) { return d.Delete("s1") },
		func() (string, error) { return d.Flatten("s2") },
	} {
		_, before := slowCounts(t, d)
		must(t, d.SetJobRate(1)) // a byte a second, for the first looks
		id, err := begin()
		must(t, err)
		looks := 0
		for running := true; running; looks++ {
			if looks == 2 {
				must(t, d.SetJobRate(16<<20))
			}
			select {
			case <-d.job.done:
				running = false
			case <-time.After(time.Millisecond):
			}
			m, _ := d.tree()
			for _, l := range m.Layers {
				if l.Name == "" && l.ID != m.Leaf {
					continue // a layer that is being merged away
				}
				bytes, counted, err := d.LayerAllocatedBytes(l.ID)
				must(t, err)
				if counted && bytes != before[l.ID] {
					t.Fatalf("beside job %s: the view of %s is told to have %d bytes of data, and has %d", id, l.ID, bytes, before[l.ID])
				}
			}
		}
		if looks < 2 {
			t.Error("the job was over before anybody looked")
		}
		finish(t, d, id, nil)
		killed("after a job")
	}
}

// Of a raw base its holes are no bytes of its own, as host_bytes would have it.
func TestCountsOfASparseBase(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base.raw")
	must(t, os.WriteFile(base, make([]byte, 1<<20), 0o600)) // zeros that are data
	must(t, os.Truncate(base, 100<<20))
	disk := filepath.Join(dir, "vm.varve")
	_, err := Create(disk, CreateOptions{Base: base})
	must(t, err)
	d := openDisk(t, disk)
	put(t, d, 1, 50<<20, 8192)
	must(t, d.Snapshot("one"))
	checkCounts(t, d, "a sparse base")
	st, err := d.Status()
	must(t, err)
	if own := st.Layers[0].OwnBytes; own != 1<<20 {
		t.Errorf("the base is told to map %d bytes, not 1 MiB", own)
	}
}
