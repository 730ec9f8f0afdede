package integration

import (
	"bytes"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/integration/harness"
	"varve/integration/patience"
)

// sharedLines is how many extents of a file have blocks in common with another one,
// and how many it has.
func sharedLines(t *testing.T, file string) (shared, all int) {
	t.Helper()
	for line := range strings.Lines(harness.Run(t, "filefrag", "-s", "-v", file)) {
		if strings.Count(line, ":") < 3 || strings.Contains(line, "logical_offset") {
			continue
		}
		all++
		if strings.Contains(line, "shared") {
			shared++
		}
	}
	return shared, all
}

// TestMountedExportShares exports snapshots of a mounted disk: where the host can share
// blocks it does, where it cannot, or may not, they are copied, and the content is the
// snapshot's.
func TestMountedExportShares(t *testing.T) {
	for kind, size := range map[string]int64{"xfs": 320 << 20, "btrfs": 320 << 20, "ext4": 320 << 20} {
		t.Run(kind, func(t *testing.T) {
			const disk = 48 << 20
			host := harness.SmallHost(t, kind, size)
			if err := os.Chmod(filepath.Dir(host), 0o755); err != nil {
				t.Fatal(err)
			}
			raw := filepath.Join(host, "vm.raw")
			random(t, raw, 0, disk, os.O_CREATE)
			m := harness.MountDisk(t, raw, "--allow-other", "--umask", "022")
			random(t, m.Raw(), 1<<20+512, 16<<20, 0)
			m.Do("snapshot", "one")
			random(t, m.Raw(), 20<<20, 1<<20, 0)
			m.Do("snapshot", "two")
			theirs := filepath.Join(host, "theirs")
			if err := errors.Join(os.Mkdir(theirs, 0o777), os.Chmod(theirs, 0o777)); err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct {
				name, out, format string
				as                []string
			}{
				{name: "one", out: "one.raw", format: "raw"},
				{name: "base", out: "base.raw", format: "raw"},
				{name: "two", out: "two.qcow2", format: "qcow2"},
				{name: "two", out: "theirs/two.raw", format: "raw", as: []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"}},
			} {
				before := used(t, host)
				out := filepath.Join(host, c.out)
				command := append(c.as, harness.Varve(), "export", m.Point, c.name, out, "--format", c.format)
				harness.Run(t, command[0], command[1:]...)
				harness.SameContent(t, out, c.format, m.Layer(c.name), "raw")
				grown := used(t, host) - before
				if shares := kind != "ext4" && c.as == nil; shares && grown > 4<<20 || !shares && grown < disk/2 {
					t.Errorf("%s took %d KiB of the host", c.out, grown>>10)
				}
				if err := os.Remove(out); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestMountedExportLooksTwice exports a snapshot below whose path another file stands
// than the one that the daemon has open: nothing of it is taken.
func TestMountedExportLooksTwice(t *testing.T) {
	host := harness.SmallHost(t, "xfs", 320<<20)
	raw := filepath.Join(host, "vm.raw")
	random(t, raw, 0, 16<<20, os.O_CREATE)
	m := harness.MountDisk(t, raw)
	random(t, m.Raw(), 0, 4<<20, 0)
	m.Do("snapshot", "one")
	file, id := "", ""
	for _, l := range m.Status().Layers {
		if l.Name == "one" {
			file, id = l.File, l.ID
		}
	}
	want := m.SaveViews()[id]
	for other, at := range map[string]int64{file: 2 << 20, raw: 8 << 20} {
		kept := other + ".kept"
		if err := os.Rename(other, kept); err != nil {
			t.Fatal(err)
		}
		harness.Run(t, "cp", kept, other)
		random(t, other, at, 1<<20, 0)
		out := filepath.Join(host, "out.raw")
		harness.Run(t, harness.Varve(), "export", m.Point, "one", out, "--force")
		harness.SameContent(t, out, "raw", want, "raw")
		if err := os.Rename(kept, other); err != nil {
			t.Fatal(err)
		}
	}
}

// exportWorld is a disk with snapshots whose content is known.
type exportWorld struct {
	t     *testing.T
	m     *harness.Mount
	rand  *rand.Rand
	model []byte
	next  int
	jobs  atomic.Int64 // deletes and flattens that were begun

	mu    sync.Mutex
	views map[string][]byte // guarded by mu
}

func (w *exportWorld) write() {
	f, err := os.OpenFile(w.m.Raw(), os.O_WRONLY, 0)
	if err != nil {
		w.t.Error(err)
		return
	}
	defer f.Close()
	for range w.rand.IntN(300) {
		n := 512 << w.rand.IntN(9)
		if w.rand.IntN(40) == 0 {
			n = 3 << 20
		}
		at := w.rand.IntN((len(w.model)-n)/512) * 512
		p := w.model[at : at+n]
		_, _ = crand.Read(p)
		if _, err := f.WriteAt(p, int64(at)); err != nil {
			w.t.Error(err)
		}
	}
}

// any is a snapshot's name, "" where there is none.
func (w *exportWorld) any() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	names := make([]string, 0, len(w.views))
	for name := range w.views {
		names = append(names, name)
	}
	if len(names) == 0 {
		return ""
	}
	return names[rand.IntN(len(names))]
}

// do changes the disk. What is refused since an export or a job is under way, is; a
// job that fails, or that an export keeps from beginning, is a failure.
func (w *exportWorld) do() {
	w.t.Helper()
	fresh := fmt.Sprintf("s%d", w.next)
	w.next++
	name := w.any()
	op, line := "snapshot", fresh
	switch k := w.rand.IntN(10); {
	case name == "" || len(w.views) < 3:
	case k < 4 || len(w.views) > 7:
		op, line = "delete", name
	case k == 4:
		op, line = "flatten", name
	case k == 5:
		op, line = "rename", name+" "+fresh
	case k == 6:
		op, line = "revert", name
	case k == 7:
		op, line = "flatten", "leaf"
	case k == 8:
		job := w.m.Status().Job
		if job == nil || job.State != "running" {
			return
		}
		op, line = "cancel", job.ID
	}
	w.mu.Lock() // nobody begins an export by a name that is about to mean something else
	defer w.mu.Unlock()
	err := w.m.Control(op, line)
	if errors.Is(err, unix.EBUSY) || op == "cancel" && errors.Is(err, unix.ENOENT) { // it is done
		return
	}
	if err != nil {
		w.t.Errorf("%s %s: %v", op, line, err)
		return
	}
	if op == "delete" || op == "flatten" {
		w.jobs.Add(1)
	}
	switch op {
	case "snapshot":
		w.views[fresh] = bytes.Clone(w.model)
	case "rename":
		w.views[fresh] = w.views[name]
		delete(w.views, name)
	case "delete":
		delete(w.views, name)
	case "revert":
		copy(w.model, w.views[name])
	}
}

// TestExportsDuringJobs exports snapshots while the disk is written, and snapshots are
// made, deleted in both directions (some jobs are cancelled), flattened and renamed: each export holds what its
// snapshot held, and no job fails.
func TestExportsDuringJobs(t *testing.T) {
	long := 4 * time.Second
	if harness.Long() {
		long = 2 * time.Minute
	}
	const disk = 64 << 20
	host := harness.SmallHost(t, "xfs", 2<<30)
	raw := filepath.Join(host, "vm.raw")
	random(t, raw, 0, disk, os.O_CREATE)
	model, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w := &exportWorld{t: t, m: harness.MountDisk(t, raw), rand: rand.New(rand.NewPCG(seed, 1)), model: model, views: map[string][]byte{}}
	until, late := time.Now().Add(long), time.Now().Add(long+patience.Hang)
	var exports sync.WaitGroup
	done := 0
	var shares atomic.Int64 // exports that share blocks; one there must be, and some jobs, however slow the machine is
	more := func() bool {
		now := time.Now()
		return now.Before(until) || (shares.Load() == 0 || w.jobs.Load() < 3) && now.Before(late) && !t.Failed()
	}
	exports.Go(func() {
		for i := 0; more(); i++ {
			name := w.any()
			if name == "" {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			w.mu.Lock()
			want := w.views[name]
			w.mu.Unlock()
			out, format := filepath.Join(host, "out.raw"), "raw"
			if i%3 == 0 {
				format = "qcow2"
			}
			r := harness.Try(t, harness.Varve(), "export", w.m.Point, name, out, "--force", "--format", format)
			if strings.Contains(r.Stderr, "does not exist") {
				continue
			}
			if r.Code != 0 {
				t.Errorf("export %s: %s", name, r.Stderr)
				return
			}
			if format == "qcow2" {
				harness.Run(t, "qemu-img", "check", "-q", out)
				harness.Convert(t, out, "qcow2", out+".plain", "raw")
				if err := os.Rename(out+".plain", out); err != nil {
					t.Error(err)
				}
			} else if shared, _ := sharedLines(t, out); shared > 0 {
				shares.Add(1)
			}
			got, err := os.ReadFile(out)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s holds something else than the snapshot %s (%v)", out, name, err)
				return
			}
			done++
		}
	})
	for more() && !t.Failed() {
		w.write()
		w.do()
	}
	exports.Wait()
	t.Logf("%d exports, of which %d share blocks; %d changes", done, shares.Load(), w.next)
	if shares.Load() == 0 {
		t.Error("no export shares blocks")
	}
	w.m.WaitJob(patience.Hang)
	w.m.Unmount()
	harness.Run(t, harness.Varve(), "check", w.m.Disk)
	log, err := os.ReadFile(filepath.Join(w.m.Disk, "varve.log"))
	if err != nil || bytes.Contains(log, []byte("job failed")) || !bytes.Contains(log, []byte("job done")) {
		t.Errorf("a job failed, or none was done (%v):\n%s", err, log)
	}
}
