package chain

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Jobs stop at the damage, with its place, and leave every view as it is: no copy of
// zeros, and nothing that shows through.
func TestJobsStopAtDamage(t *testing.T) {
	for _, c := range []struct {
		name, damaged string
		entry         int64
		job           func(d *Disk) (string, error)
		fails         bool
	}{
		{"up, needed", "s2", 40, func(d *Disk) (string, error) { return d.Delete("s2") }, true},
		{"up or down, in the upper layer", "", 55, func(d *Disk) (string, error) { return d.Delete("s2") }, true},
		{"down into the lower layer", "s1", 40, func(d *Disk) (string, error) { return d.Delete("s1") }, true},
		{"beside what is moved", "s1", 5, func(d *Disk) (string, error) { return d.Delete("s1") }, false},
		{"flatten", "s1", 5, func(d *Disk) (string, error) { return d.Flatten("s2") }, true},
		{"flatten, where nothing else is", "s1", 200, func(d *Disk) (string, error) { return d.Flatten("s2") }, true},
		{"flatten, hidden", "s1", 40, func(d *Disk) (string, error) { return d.Flatten("s2") }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir, want := damagedWorld(t)
			path := fileOf(t, dir, c.damaged)
			_, _, _, l2 := tablesAt(t, path)
			flip(t, path, l2+16*c.entry+6, 1<<4)
			d := openDisk(t, dir)
			place := [2]int64{c.entry * damagedCluster, (c.entry + 1) * damagedCluster}
			var lost [][2]int64
			if d.ReadAt(make([]byte, 512), place[0]) != nil {
				lost = append(lost, place)
			}
			id, err := c.job(d)
			must(t, err)
			ctx, cancel := context.WithTimeout(context.Background(), hangLimit)
			defer cancel()
			st, err := d.WaitJobs(ctx)
			must(t, err)
			if c.fails {
				if st.State != JobFailed || !strings.Contains(st.Error, fmt.Sprintf("guest offset 0x%x", place[0])) || !strings.Contains(st.Error, "every view is as it was") {
					t.Errorf("job %s: %+v", id, st)
				}
			} else if st.State != JobDone {
				t.Errorf("job %s: %+v", id, st)
			}
			judgeDamage(t, d, d.ReadAt, want, lost...)
			must(t, d.Close())
			d = openDisk(t, dir)
			judgeDamage(t, d, d.ReadAt, want, lost...)
		})
	}
}

// What is damaged in one view and not in another is told by diff.
func TestDiffTellsOfDamage(t *testing.T) {
	dir, _ := damagedWorld(t)
	path := fileOf(t, dir, "s2")
	_, _, _, l2 := tablesAt(t, path)
	flip(t, path, l2+16*40+6, 1<<4)
	d := openDisk(t, dir)
	x, err := d.Diff(context.Background(), "s1", "s2", Opener{})
	must(t, err)
	defer x.Close()
	var list []Difference
	for more := true; more; {
		list, more, err = x.Next(list, time.Now().Add(hangLimit))
		must(t, err)
	}
	id := readManifest(t, dir).ByName("s2").ID
	want := Difference{Start: 40 * damagedCluster, Length: damagedCluster, A: readManifest(t, dir).ByName("s1").ID, B: InDamage + id}
	if !slices.Contains(list, want) {
		t.Errorf("got %+v, want %+v in it", list, want)
	}
}

// Counts of damaged layers are not kept in chain.json: the next mount finds the damage
// again, where nothing else has to be counted.
func TestDamageIsFoundAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vm.varve")
	_, err := Create(dir, CreateOptions{Size: 256 << 20})
	must(t, err)
	d := openDisk(t, dir)
	put(t, d, 1, 100<<20, 1<<20)
	must(t, d.Snapshot("s1"))
	put(t, d, 2, 0, 1<<20)
	must(t, d.Close())
	path := fileOf(t, dir, "s1")
	_, _, _, l2 := tablesAt(t, path)
	flip(t, path, l2+16*800+6, 1<<4)
	must(t, Accept(dir, "s1", OpenOptions{})) // what was counted before is not believed
	for range 2 {
		d := openDisk(t, dir)
		must(t, d.CountAll(context.Background()))
		if got := damageOf(t, d, "s1"); len(got) != 1 {
			t.Errorf("status lists %v", got)
		}
		must(t, d.Close())
	}
}

// What lies below a damaged entry is not given back as hidden by it: nobody knows
// whether it is.
func TestDamageHidesNothing(t *testing.T) {
	dir, _ := damagedWorld(t)
	path := fileOf(t, dir, "s2")
	_, _, _, l2 := tablesAt(t, path)
	flip(t, path, l2+16*40+6, 1<<4)
	d := openDisk(t, dir)
	m, nodes := d.tree()
	hidden, err := d.hiddenExtents(nil, nodes[m.ByName("s1").ID], nodes[m.ByName("s2").ID], 0, 8<<20)
	must(t, err)
	var total int64
	for _, e := range hidden {
		total += e.Length
		if e.Start < 41*damagedCluster && e.End() > 40*damagedCluster {
			t.Errorf("%+v would be given back", e)
		}
	}
	if want := int64(4<<20 - damagedCluster); total != want {
		t.Errorf("%d bytes are hidden, want %d", total, want)
	}
}
