package chain

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/chain/manifest"
	"varve/integration/turn"
)

// hostBlocks is what the files of a disk's layers take on the host.
func hostBlocks(t *testing.T, d *Disk) (total int64) {
	t.Helper()
	m, _ := d.tree()
	for _, l := range m.Layers {
		if !l.Foreign {
			info, err := d.fs.Stat(d.path(l))
			must(t, err)
			total += info.Blocks
		}
	}
	return total
}

// waitJobs waits for the job under way and those that it begins, and gives what they
// copied.
func waitJobs(t *testing.T, d *Disk) (copied int64) {
	t.Helper()
	for j := d.lastJob(); j != nil; {
		<-j.done
		if o := j.outcome.Load(); o == nil || o.state != JobDone {
			t.Fatalf("job %s: %+v", j.id, o)
		}
		copied += j.speed.bytes
		next := d.lastJob()
		if next == j {
			break
		}
		j = next
	}
	return copied
}

// randomChain writes at random into layers that differ in size, with discards.
func randomChain(t *testing.T, d *Disk, rnd *rand.Rand, layers int) (names []string) {
	t.Helper()
	for n := range layers {
		for range 1 + rnd.IntN(60) {
			off, length := rnd.Int64N(d.Size()-600_000), 1+rnd.Int64N(300_000)
			if rnd.IntN(5) == 0 {
				must(t, d.Discard(off&^0xffff, length))
				continue
			}
			put(t, d, byte(1+rnd.IntN(255)), off, length)
		}
		if n < layers-1 {
			names = append(names, fmt.Sprint("s", n))
			must(t, d.Snapshot(names[n]))
		}
	}
	must(t, d.Flush())
	return names
}

// What a plan says is what then happens: the layers that go, the bytes that are
// copied, the host's blocks that come free. Of one snapshot and of several.
func TestPlanOfADelete(t *testing.T) {
	// Four of twelve seeds have their turn.
	seeds, first := 4, turn.Window(4, 12)
	switch {
	case os.Getenv("VARVE_LONG") != "":
		seeds, first = 12, 0
	case testing.Short():
		seeds = 2
	}
	for i := range seeds {
		seed := uint64(first + i)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 3))
			d, _ := testDisk(t, 40<<20)
			names := randomChain(t, d, rnd, 4+rnd.IntN(4))
			rnd.Shuffle(len(names), func(i, k int) { names[i], names[k] = names[k], names[i] })
			names = names[:1+rnd.IntN(len(names))]
			p, err := d.Plan(OpDelete, names)
			must(t, err)
			var planned []string
			for _, l := range p.Gone {
				planned = append(planned, l.Name)
			}
			slices.Sort(planned)
			if want := slices.Sorted(slices.Values(names)); !slices.Equal(planned, want) {
				t.Errorf("%v go, want %v", planned, want)
			}
			must(t, d.CountAll(t.Context()))
			before, content := hostBlocks(t, d), make([]byte, d.Size())
			must(t, d.ReadAt(content, 0))
			_, err = d.Delete(names...)
			must(t, err)
			copied := waitJobs(t, d)
			must(t, d.Flush())
			d.punchLeaf()
			freed := before - hostBlocks(t, d)
			// Whole clusters of 64 KiB at the edges, and tables.
			const slack = 6 << 20
			if p.FreedBytes > freed+slack || p.FreedBytes < freed-slack {
				t.Errorf("%d bytes came free, the plan said %d", freed, p.FreedBytes)
			}
			if p.CopyBytes > copied+slack || p.CopyBytes < copied-slack {
				t.Errorf("%d bytes were copied, the plan said %d", copied, p.CopyBytes)
			}
			if len(p.After) != 1 || !slices.Equal(p.After[0], chainLabels(d)) {
				t.Errorf("the chain is %v, the plan said %v", chainLabels(d), p.After)
			}
			again := make([]byte, len(content))
			must(t, d.ReadAt(again, 0))
			if !slices.Equal(content, again) {
				t.Error("the leaf's content changed")
			}
			checkDisk(t, d)
		})
	}
}

func chainLabels(d *Disk) []string {
	m, _ := d.tree()
	var labels []string
	for _, l := range m.Chain(m.Leaf) {
		label := l.Name
		if l.ID == m.Leaf {
			label = manifest.LeafName
		}
		labels = append(labels, label)
	}
	return labels
}

// Layers on each other are merged into the largest of them, whose bytes are not copied
// at all, and the others' once.
func TestDeleteCopiesOnce(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		name  string
		sizes []int64 // MiB that each layer writes, the leaf last, next to each other
		most  int64   // MiB that may be copied
	}{
		{"the lowest is the largest", []int64{20, 1, 1, 1, 1}, 4},
		{"the highest is the largest", []int64{1, 1, 1, 20, 1}, 4},
		{"one between", []int64{2, 3, 20, 2, 1}, 8},
		{"the leaf is the largest", []int64{1, 2, 3, 4, 20}, 10},
		{"the leaf is not worth moving", []int64{3, 3, 3, 3, 3}, 12},
		{"all alike but one", []int64{3, 3, 4, 3, 1}, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, _ := testDisk(t, 40*mib)
			var names []string
			at := int64(0)
			for n, size := range c.sizes {
				put(t, d, byte(n+1), at*mib, size*mib)
				at += size
				if n < len(c.sizes)-1 {
					names = append(names, fmt.Sprint("s", n))
					must(t, d.Snapshot(names[n]))
				}
			}
			must(t, d.CountAll(t.Context()))
			p, err := d.Plan(OpDelete, names)
			must(t, err)
			_, err = d.Delete(names...)
			must(t, err)
			copied := waitJobs(t, d)
			if copied > c.most*mib || p.CopyBytes != copied {
				t.Errorf("%d MiB were copied, the plan said %d; want %d at most", copied/mib, p.CopyBytes/mib, c.most)
			}
			at = 0
			for n, size := range c.sizes {
				p := make([]byte, size*mib)
				must(t, d.ReadAt(p, at*mib))
				if slices.ContainsFunc(p, func(b byte) bool { return b != byte(n+1) }) {
					t.Errorf("layer %d reads wrong", n)
				}
				at += size
			}
			checkDisk(t, d)
		})
	}
}

func TestPlanOfAFlatten(t *testing.T) {
	d, _ := testDisk(t, 40<<20)
	names := randomChain(t, d, rand.New(rand.NewPCG(1, 4)), 4)
	for _, name := range []string{names[1], manifest.LeafName} {
		p, err := d.Plan(OpFlatten, []string{name})
		must(t, err)
		before := hostBlocks(t, d)
		_, err = d.Flatten(name)
		must(t, err)
		waitJobs(t, d)
		const slack = 6 << 20
		if used := hostBlocks(t, d) - before; used > -p.FreedBytes+slack || used < -p.FreedBytes-slack || p.ExtraBytes < used-slack || p.CopyBytes == 0 {
			t.Errorf("%s took %d bytes more, the plan said %d, and %d at the worst moment", name, used, -p.FreedBytes, p.ExtraBytes)
		}
	}
	if p, err := d.Plan(OpFlatten, []string{manifest.LeafName}); err != nil || p.CopyBytes != 0 || len(p.Before)+len(p.After) != 0 {
		t.Errorf("of a flat leaf: %+v %v", p, err)
	}
}

func TestPlanOfARevert(t *testing.T) {
	d, _ := testDisk(t, 8<<20)
	put(t, d, 1, 0, 1<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 0, 2<<20)
	must(t, d.Revert("one"))
	old := asideOf(d)
	put(t, d, 3, 0, 3<<20)
	leaf := d.manifest.Leaf
	p, err := d.Plan(OpRevert, []string{manifest.BaseName})
	must(t, err)
	if p.SetAside == nil || p.SetAside.ID != leaf || p.SetAside.OwnBytes != 3<<20 || len(p.Gone) != 1 || p.Gone[0].ID != old || p.FreedBytes < 2<<20 {
		t.Errorf("%+v", p)
	}
	if got := fmt.Sprint(p.Before, p.After); got != fmt.Sprintf("[[leaf one base] [(set aside %s) one base]] [[leaf base] [(set aside %s) one base]]", old, leaf) {
		t.Error(got)
	}
	must(t, d.Revert(manifest.BaseName))
	if asideOf(d) != leaf || d.manifest.Layer(old) != nil {
		t.Error("the revert did something else")
	}
	// A layer that several stand on waits.
	p, err = d.Plan(OpDelete, []string{"one"})
	must(t, err)
	if len(p.Waiting) != 0 || len(p.Gone) != 1 {
		t.Errorf("%+v", p)
	}
	must(t, d.Revert("one"))
	put(t, d, 3, 0, 10)
	must(t, d.Snapshot("two"))
	must(t, d.Revert("one"))
	put(t, d, 3, 0, 10)
	p, err = d.Plan(OpDelete, []string{"one"})
	must(t, err)
	if len(p.Waiting) != 1 || p.Waiting[0].Name != "one" || len(p.Gone) != 0 || p.CopyBytes != 0 {
		t.Errorf("%+v", p)
	}
}

func TestPlanRefused(t *testing.T) {
	d, _ := testDisk(t, 1<<20)
	must(t, d.Snapshot("one"))
	for _, c := range []struct {
		operation Operation
		name      string
		want      error
	}{
		{"delete", "base", ErrInvalid}, {"delete", "none", ErrNotExist}, {"flatten", "base", ErrInvalid},
		{"flatten", "none", ErrNotExist}, {"revert", "none", ErrNotExist}, {"rename", "one", ErrInvalid},
	} {
		_, err := d.Plan(c.operation, []string{c.name})
		wantError(t, err, c.want)
	}
}

// An operation for which the host has not the room is refused before it begins, and one
// that frees space is not.
func TestNoRoom(t *testing.T) {
	dir := smallHost(t, 64)
	path := filepath.Join(dir, "base.raw")
	must(t, os.WriteFile(path, []byte(strings.Repeat("base data ", 3<<20)), 0o600))
	disk := filepath.Join(dir, "vm.varve")
	if _, err := Create(disk, CreateOptions{Base: path}); err != nil {
		t.Fatal(err)
	}
	d := openDisk(t, disk)
	put(t, d, 1, 0, 4<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 0, 4<<20)
	must(t, d.Flush())
	fill := filepath.Join(dir, "fill")
	free, _ := d.hostFree()
	f, err := os.Create(fill)
	must(t, err)
	must(t, unix.Fallocate(int(f.Fd()), 0, 0, free-10<<20))
	must(t, f.Close())
	before := string(read(t, filepath.Join(disk, manifest.FileName)))
	_, err = d.Flatten(manifest.LeafName)
	wantError(t, err, unix.ENOSPC, "bytes free on the host at least", disk, "deleting one would give back most")
	if got := string(read(t, filepath.Join(disk, manifest.FileName))); got != before {
		t.Error("chain.json was written")
	}
	p, err := d.Plan(OpFlatten, []string{manifest.LeafName})
	must(t, err)
	if p.ExtraBytes <= p.HostFree || p.HostFree <= 0 {
		t.Errorf("%+v", p)
	}
	id, err := d.Delete("one") // wholly hidden: it is only given back
	finish(t, d, id, err)
	must(t, os.Remove(fill))
	checkDisk(t, d)
}

// On a host without a free block a delete that only gives back is not refused.
func TestDeleteOnAFullHost(t *testing.T) {
	dir := smallHost(t, 64)
	path := filepath.Join(dir, "base.raw")
	must(t, os.WriteFile(path, []byte(strings.Repeat("base data ", 1<<20)), 0o600))
	disk := filepath.Join(dir, "vm.varve")
	if _, err := Create(disk, CreateOptions{Base: path}); err != nil {
		t.Fatal(err)
	}
	d := openDisk(t, disk)
	put(t, d, 1, 0, 4<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 0, 4<<20)
	must(t, d.Snapshot("two"))
	must(t, d.Flush())
	p, err := d.Plan(OpDelete, []string{"one"})
	must(t, err)
	if p.ExtraBytes != 0 || p.CopyBytes != 0 {
		t.Errorf("%+v", p)
	}
	fillUp(t, dir)
	id, err := d.Delete("one")
	finish(t, d, id, err)
	if at(t, d, 0) != 2 {
		t.Error("wrong content")
	}
	checkDisk(t, d)
}
