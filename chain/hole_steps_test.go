package chain

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"varve/chain/manifest"
	"varve/chain/view"
	"varve/overlay"
	"varve/overlay/hostfs"
)

// lookingFS counts the calls with which tables are read and holes are looked for.
type lookingFS struct {
	hostfs.FS
	looks atomic.Int64
}

func (c *lookingFS) Open(path string, flag int, perm os.FileMode) (hostfs.File, error) {
	f, err := c.FS.Open(path, flag, perm)
	if err != nil {
		return nil, err
	}
	return lookingFile{f, &c.looks}, nil
}

type lookingFile struct {
	hostfs.File
	looks *atomic.Int64
}

func (f lookingFile) ReadAt(p []byte, off int64) (int, error) {
	f.looks.Add(1)
	return f.File.ReadAt(p, off)
}

func (f lookingFile) SeekData(off int64) (int64, error) {
	f.looks.Add(1)
	return f.File.SeekData(off)
}

func (f lookingFile) SeekHole(off int64) (int64, error) {
	f.looks.Add(1)
	return f.File.SeekHole(off)
}

// CloneRange is for files of the same host.
func (f lookingFile) CloneRange(src hostfs.File, srcOff, off, length int64) error {
	return f.File.CloneRange(src.(lookingFile).File, srcOff, off, length)
}

// holeSteps does everything that walks a view on a disk of some size, with as many
// extents whatever that is, and gives for each how often it looked at something.
func holeSteps(t *testing.T, size int64, raw bool) (names []string, steps map[string]int64) {
	dir, host := t.TempDir(), &lookingFS{FS: hostfs.OS()}
	o := CreateOptions{Size: size}
	const extents = 24
	place := func(i int) int64 { return size / extents * int64(i) &^ 0xfffff }
	if raw {
		base := filepath.Join(dir, "base.raw")
		f, err := os.Create(base)
		must(t, err)
		must(t, f.Truncate(size))
		for i := range extents {
			_, err := f.WriteAt([]byte("base"), place(i)+1<<19)
			must(t, err)
		}
		must(t, f.Close())
		o = CreateOptions{Base: base}
	}
	_, err := Create(filepath.Join(dir, "vm.varve"), o)
	must(t, err)
	d, err := Open(filepath.Join(dir, "vm.varve"), OpenOptions{FS: host})
	must(t, err)
	defer func() { must(t, d.Close()) }()
	for layer := range 4 {
		for i := layer; i < extents; i += 4 - layer { // the lowest layers have the most
			put(t, d, byte(1+layer), place(i), 70_000)
		}
		if layer < 3 {
			must(t, d.Snapshot(fmt.Sprint("s", layer)))
		}
	}
	must(t, d.Flush())
	m, nodes := d.tree()
	one := nodes[m.ByName("s1").ID]
	ctx := context.Background()
	steps = make(map[string]int64)
	do := func(name string, f func()) {
		before := d.cache.Steps() + host.looks.Load()
		f()
		names = append(names, name)
		steps[name] = d.cache.Steps() + host.looks.Load() - before
	}
	walk := func(n *view.Node, extents int) {
		found := 0
		for off := int64(0); ; found++ {
			at, err := n.Seek(&d.readers, off, true)
			if err == io.EOF {
				break
			}
			must(t, err)
			off, err = n.Seek(&d.readers, at, false)
			must(t, err)
		}
		if found < extents {
			t.Errorf("%d runs of data were found of %d", found, extents)
		}
	}
	job := func(_ string, err error) {
		must(t, err)
		waitJobs(t, d)
	}
	do("seek in the leaf", func() { walk(d.leaf.Load(), extents) })
	do("seek in a one", func() { walk(one, extents/2) })
	do("seek behind the last data", func() {
		for range 100 {
			if _, err := d.SeekData(size - 4096); err != io.EOF {
				t.Error(err)
			}
		}
	})
	do("is zero", func() {
		for i := range extents {
			from := place(i) + 1<<20
			if zero, err := one.IsZero(from, size/extents-2<<20); err != nil || !zero {
				t.Errorf("zero %v, %v", zero, err)
			}
		}
	})
	do("map of all", func() {
		_, err := one.Map(nil, 0, size)
		must(t, err)
	})
	do("count", func() { must(t, d.CountAll(ctx)) })
	do("status", func() {
		_, err := d.Status()
		must(t, err)
	})
	do("picture", func() {
		_, err := d.ExtentMap(ctx, 0)
		must(t, err)
	})
	do("data bytes", func() {
		_, _, err := d.DataBytes("", 0, size, time.Time{})
		must(t, err)
	})
	do("diff", func() {
		x, err := d.Diff(ctx, "s0", manifest.LeafName, Opener{})
		must(t, err)
		defer x.Close()
		for more := true; more; {
			_, more, err = x.Next(nil, time.Now().Add(time.Hour))
			must(t, err)
		}
	})
	do("export", func() {
		f, err := host.FS.Open(filepath.Join(dir, "out.qcow2"), os.O_RDWR|os.O_CREATE, 0o600)
		must(t, err)
		must(t, overlay.Export{Source: one, Size: size}.Qcow2(ctx, f, false))
		must(t, f.Close())
	})
	do("plan of a delete", func() {
		_, err := d.Plan(OpDelete, []string{"s0", "s1", "s2"})
		must(t, err)
	})
	do("plan of a flatten", func() {
		_, err := d.Plan(OpFlatten, []string{manifest.LeafName})
		must(t, err)
	})
	do("delete up", func() { job(d.Delete("s2")) })
	do("delete down", func() {
		must(t, d.Discard(place(1), 4<<20))
		job(d.Delete("s1"))
	})
	do("flatten", func() { job(d.Flatten(manifest.LeafName)) })
	do("status after it", func() {
		must(t, d.CountAll(ctx))
		_, err := d.Status()
		must(t, err)
	})
	do("discard", func() { must(t, d.Discard(0, size)) })
	do("growth", func() { must(t, d.Resize(size+size/2)) })
	do("status after growth", func() {
		must(t, d.CountAll(ctx))
		_, err := d.Status()
		must(t, err)
	})
	do("check", func() {
		must(t, d.Flush())
		checkDisk(t, d)
	})
	return names, steps
}

// What a walk costs goes by the tables that there are, not by how long the holes
// between them are: the same extents on a disk that is 32 times as large take the same
// number of looks, at regions, at tables and at the holes of files.
func TestStepsDoNotGrowWithAHole(t *testing.T) {
	for _, c := range []struct {
		name         string
		small, large int64
		raw          bool
	}{
		{"blank", 64 << 30, 2 << 40, false},
		{"over a raw base", 64 << 30, 2 << 40, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			names, small := holeSteps(t, c.small, c.raw)
			_, large := holeSteps(t, c.large, c.raw)
			for _, name := range names {
				t.Logf("%-26s %6d %6d", name, small[name], large[name])
				// A picture has 1,024 bins at most, and asks for each where a raw base has data.
				if large[name] > small[name]+small[name]/4+1200 {
					t.Errorf("%s: %d looks, and %d on the smaller disk", name, large[name], small[name])
				}
			}
		})
	}
}
