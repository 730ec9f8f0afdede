package chain

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"varve/chain/manifest"
	"varve/chain/view"
)

// checkFrees compares what status says of deletes with the tables, region by region.
func checkFrees(t *testing.T, d *Disk, st Status, when string) {
	t.Helper()
	m, nodes := d.tree()
	host := map[string]int64{}
	for _, l := range st.Layers {
		host[l.ID] = l.HostBytes
	}
	for _, l := range st.Layers {
		del := m.DeletionOf(l.ID)
		want := int64(0)
		for _, id := range del.Files {
			want += host[id]
		}
		if del.Merged != "" {
			c, hidden := nodes[del.Into], int64(0)
			for at := int64(0); at < nodes[del.Merged].Size(); at += view.RegionSize {
				bytes, err := c.HiddenIn(&d.readers, at)
				must(t, err)
				hidden += bytes
			}
			want += min(hidden, host[del.Merged])
		}
		switch {
		case l.Frees == nil:
			t.Errorf("%s: what a delete of %s frees is not known", when, l.ID)
		case *l.Frees != want:
			t.Errorf("%s: a delete of %s frees %d bytes, status says %d", when, l.ID, want, *l.Frees)
		}
	}
}

// layersOnHost is what the files of the disk's own layers take.
func layersOnHost(t *testing.T, dir string) (total int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, manifest.LayersDir, "*"))
	must(t, err)
	for _, file := range files {
		f, err := os.Open(file)
		must(t, err)
		must(t, f.Sync()) // blocks are given out late
		must(t, f.Close())
		info, err := OpenOptions{}.withDefaults().FS.Stat(file)
		must(t, err)
		total += info.Blocks
	}
	return total
}

// freesOf is what status says of a layer's delete.
func freesOf(t *testing.T, d *Disk, name string) int64 {
	t.Helper()
	must(t, d.Flush())
	must(t, d.CountAll(t.Context()))
	st, err := d.Status()
	must(t, err)
	for _, l := range st.Layers {
		if l.Name == name {
			if l.Frees == nil {
				t.Fatalf("what a delete of %s frees is not known", name)
			}
			return *l.Frees
		}
	}
	t.Fatalf("no layer %s", name)
	return 0
}

// metadataSlack is what tables of the files that come and go may add to either side.
const metadataSlack = 320 << 10

func deleteAndMeasure(t *testing.T, d *Disk, name string) {
	t.Helper()
	said := freesOf(t, d, name)
	before := layersOnHost(t, d.Dir())
	id, err := d.Delete(name)
	for err == nil && id != "" {
		finish(t, d, id, nil)
		next := d.lastJob()
		if next.id == id {
			break
		}
		id = next.id // the one that it queued
	}
	must(t, err)
	must(t, d.Flush())
	got := before - layersOnHost(t, d.Dir())
	t.Logf("%s: said %d KiB, freed %d KiB", name, said>>10, got>>10)
	if got < said-metadataSlack || got > said+metadataSlack {
		t.Errorf("a delete of %s was said to free %d bytes and freed %d", name, said, got)
	}
}

// scribble writes, overwrites and discards here and there in a part of the disk.
func scribble(t *testing.T, d *Disk, random *rand.Rand, times int) {
	t.Helper()
	for i := range times {
		off := random.Int64N((d.Size()-2<<20)/4096) * 4096
		if i%6 == 5 {
			must(t, d.Discard(off, 4096*(1+random.Int64N(256))))
			continue
		}
		put(t, d, byte(i+1), off, 4096*(1+random.Int64N(384)))
	}
}

// What status says that deletes give back is what they give back, judged by the blocks
// of the files.
func TestFreesIsWhatADeleteGivesBack(t *testing.T) {
	for seed := range uint64(3) {
		random := rand.New(rand.NewPCG(seed, 11))
		d, _ := testDisk(t, 64<<20)
		var names []string
		for i := range 5 {
			scribble(t, d, random, 40)
			names = append(names, fmt.Sprint("s", i))
			must(t, d.Snapshot(names[i]))
		}
		scribble(t, d, random, 40)
		random.Shuffle(len(names), func(i, k int) { names[i], names[k] = names[k], names[i] })
		for _, name := range names {
			deleteAndMeasure(t, d, name)
		}
		must(t, d.Close())
	}
}

// A layer on which several stand frees nothing, and with the last but one of them it
// goes too.
func TestFreesOfBranches(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 12))
	d, _ := testDisk(t, 64<<20)
	scribble(t, d, random, 40)
	must(t, d.Snapshot("fork"))
	scribble(t, d, random, 40)
	must(t, d.Snapshot("one"))
	must(t, d.Revert("fork"))
	scribble(t, d, random, 60)
	must(t, d.Snapshot("other"))
	if frees := freesOf(t, d, "fork"); frees != 0 {
		t.Errorf("a layer with two on it frees %d bytes", frees)
	}
	if frees := freesOf(t, d, "base"); frees != 0 {
		t.Errorf("the base frees %d bytes", frees)
	}
	deleteAndMeasure(t, d, "fork")
	// What hides data of "fork" is not "one" but "other": the merge comes on top.
	own := int64(0)
	for _, l := range d.Layers() {
		if l.Name == "one" {
			info, err := OpenOptions{}.withDefaults().FS.Stat(l.File)
			must(t, err)
			own = info.Blocks
		}
	}
	if frees := freesOf(t, d, "one"); frees <= own {
		t.Errorf("a delete of one frees %d bytes, its own file's %d among them", frees, own)
	}
	deleteAndMeasure(t, d, "one")
	// A leaf that was set aside: forgetting it frees its file.
	must(t, d.Snapshot("last"))
	scribble(t, d, random, 20)
	must(t, d.Flush())
	must(t, d.Revert("last"))
	must(t, d.CountAll(t.Context()))
	st, err := d.Status()
	must(t, err)
	i := slices.IndexFunc(st.Layers, func(l LayerStatus) bool { return l.SetAside })
	if i < 0 || st.Layers[i].Frees == nil || *st.Layers[i].Frees != st.Layers[i].HostBytes || st.Layers[i].HostBytes == 0 {
		t.Errorf("the leaf that was set aside: %+v", st.Layers)
	}
	must(t, d.Close())
}

// What a layer hides is kept in chain.json: a disk that is opened again knows it
// without a pass over the tables.
func TestFreesIsKept(t *testing.T) {
	d, _ := testDisk(t, 64<<20)
	dir := d.Dir()
	put(t, d, 1, 0, 8<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 4<<20, 2<<20)
	must(t, d.Snapshot("two"))
	put(t, d, 3, 0, 4096)
	if frees := freesOf(t, d, "one"); frees != 2<<20 {
		t.Errorf("one frees %d bytes", frees)
	}
	must(t, d.Close())
	m := readManifest(t, dir)
	if two := m.ByName("two"); two.Counts == nil || two.Counts.Hides != 2<<20 {
		t.Fatalf("stored of two: %+v", two.Counts)
	}
	// An older varve's chain.json has no such figure: it is counted once.
	m.ByName("two").Counts.Hides = -1
	must(t, m.Commit(OpenOptions{}.withDefaults().FS, dir))
	d = openDisk(t, dir)
	two := d.nodes[m.ByName("two").ID]
	if _, known, _ := d.figures.Hidden(two.Parent(), two); known {
		t.Error("a figure that is not there is believed")
	}
	if frees := freesOf(t, d, "one"); frees != 2<<20 {
		t.Errorf("counted anew, one frees %d bytes", frees)
	}
	must(t, d.Close())
	if two := readManifest(t, dir).ByName("two"); two.Counts == nil || two.Counts.Hides != 2<<20 {
		t.Errorf("stored of two afterwards: %+v", two.Counts)
	}
}
