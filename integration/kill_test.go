package integration

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/integration/harness"
	"varve/integration/patience"
	"varve/integration/stamps"
	"varve/integration/turn"
)

var (
	killCount = flag.Int("kill.count", 0, "how often TestKill kills the daemon; 0 for the default")
	killSeed  = flag.Uint64("kill.seed", 1, "seed of TestKill")
)

// Where what is on the disks of TestKill.
const (
	killDisk   = 64<<20 + 3*512
	stampArea  = 0 // three writers, in a process of their own
	stampBytes = 2 << 20
	fioArea    = 2 << 20 // fio, a slot after the other
	fioBytes   = 512 << 10
	fioSlots   = 4
	bulkArea   = 8 << 20 // what snapshots, deletes and flattens have to work on
	bulkBytes  = 48 << 20
)

// TestKill kills the daemon, again and again, while three writers and fio write
// and fsync and while a snapshot, a delete or a flatten is under way. After each
// kill the files are judged as they lie there, then the disk is mounted again,
// its job ends, and everything is judged once more:
//
//   - every sector has what was acknowledged by a completed fsync (or by a write
//     with RWF_DSYNC), or a newer value that was issued, and never a third;
//   - what fio had written and fsynced passes its own checksums;
//   - qemu-img check finds leaks in the layers at worst;
//   - every frozen view is what it was, and a new one is of its moment;
//   - what a control write had reported as done is done.
//
// One in three of the moments has its turn in one run.
func TestKill(t *testing.T) {
	kills, first := 4, turn.Window(4, 12)
	if harness.Long() {
		kills, first = 102, 0
	}
	if *killCount != 0 {
		kills = *killCount
	}
	for i, kind := range killKinds {
		t.Run(kind.name, func(t *testing.T) {
			dir := t.TempDir()
			shown := filepath.Join(dir, "first.raw")
			r := &killRun{
				T: t, rnd: rand.New(rand.NewPCG(*killSeed+uint64(first), uint64(i))), first: shown,
				views: map[string]string{}, seen: map[string]int{},
			}
			r.source = kind.make(t, dir, *killSeed)
			convert(t, r.source, shown)
			r.views["base"] = kind.base(t, dir)
			r.start()
			for n := range (kills + len(killKinds) - 1 - i) / len(killKinds) {
				r.once(first + n*len(killKinds) + i)
				if t.Failed() {
					t.Fatalf("kill %d; again with -kill.seed %d -kill.count %d and the same turn", n, *killSeed, kills)
				}
			}
			r.end()
		})
	}
}

// killKinds are the disks of TestKill. make gives what is mounted; base is a
// copy of the view at the base, read without varve, "" where there is none.
var killKinds = []struct {
	name string
	make func(t *testing.T, dir string, seed uint64) string
	base func(t *testing.T, dir string) string
}{
	{"raw base", func(t *testing.T, dir string, seed uint64) string {
		base := filepath.Join(dir, "base.raw")
		save(t, base, noise(seed, killDisk))
		harness.Guard(t, base)
		return base
	}, func(t *testing.T, dir string) string { return filepath.Join(dir, "base.raw") }},
	{"blank", func(t *testing.T, dir string, _ uint64) string {
		disk := filepath.Join(dir, "blank.varve")
		harness.Run(t, harness.Varve(), "create", disk, "--size", fmt.Sprint(killDisk))
		return disk
	}, func(*testing.T, string) string { return "" }},
	{"adopted chain", func(t *testing.T, dir string, seed uint64) string {
		raw := filepath.Join(dir, "vm.raw")
		save(t, raw, noise(seed, killDisk))
		files := harness.ChainOfThree(t, raw, killDisk)
		harness.Guard(t, files...)
		return files[0]
	}, func(t *testing.T, dir string) string {
		base := filepath.Join(dir, "base.out")
		harness.Convert(t, filepath.Join(dir, "base.qcow2"), "qcow2", base, "raw")
		return base
	}},
}

// convert writes what a disk shows at first to a raw file, without varve.
func convert(t *testing.T, source, to string) {
	t.Helper()
	switch {
	case strings.HasSuffix(source, ".qcow2"):
		harness.Convert(t, source, "qcow2", to, "raw")
	case strings.HasSuffix(source, ".raw"):
		harness.Run(t, "cp", "--sparse=always", source, to)
	default: // blank
		harness.Run(t, "truncate", "-s", fmt.Sprint(killDisk), to)
	}
}

// killRun is one disk of TestKill.
type killRun struct {
	*testing.T
	rnd    *rand.Rand
	source string // what is mounted
	first  string // a copy of what the disk had at first
	disk   string // the disk directory
	area   stamps.Area
	bulk   []byte            // what the bulk area has; it was fsynced
	views  map[string]string // copies of frozen views by name
	taken  []*snapshot       // since the last kill
	gone   map[string]bool   // names that were being deleted: true when it was reported done
	slots  [fioSlots]*fioSlot
	passes uint64
	names  int
	m      *harness.Mount
	seen   map[string]int // what was under way at the kills
}

// snapshot is one that was asked for.
type snapshot struct {
	name          string
	before, after stamps.Mark
	returned      bool
}

// start mounts the disk for the first time.
func (r *killRun) start() {
	r.m = harness.MountDisk(r.T, r.source)
	r.disk = r.m.Disk
	r.area = stamps.Area{Record: r.TempDir(), First: stampArea / stamps.Sector, Count: stampBytes / stamps.Sector, Writers: 3}
	r.bulk = load(r.T, r.first)[bulkArea : bulkArea+bulkBytes]
	if r.views["base"] == "" {
		delete(r.views, "base")
	}
	for _, l := range harness.ReadManifest(r.T, r.disk).Layers {
		if l.Foreign && l.Name != "base" {
			r.keep(l)
		}
	}
}

// fillSlots has fio write, undisturbed, the slots that hold no whole pass.
func (r *killRun) fillSlots() {
	r.Helper()
	for slices.Contains(r.slots[:], nil) {
		r.passes = uint64(slices.Index(r.slots[:], nil)) + (r.passes/fioSlots+1)*fioSlots
		if code := r.fioPass(); code != 0 {
			r.Fatalf("fio writes to %s: exit code %d", r.m.Raw(), code)
		}
	}
}

// keep copies a layer's view from its file, with qemu-img.
func (r *killRun) keep(l harness.ManifestLayer) string {
	r.Helper()
	r.views[l.Name] = filepath.Join(r.TempDir(), l.Name+".view")
	harness.Convert(r.T, l.File, l.Format, r.views[l.Name], "raw")
	return r.views[l.Name]
}

// aims are what is under way when the daemon is killed. prepare makes the layers
// for it (the sizes, in MiB, of those below and of the leaf); strike is done
// while the writers write, and the kill comes within the time after its start or
// after chain.json has the job.
var aims = []struct {
	name   string
	layers []int
	strike func(r *killRun, names []string)
	within time.Duration
}{
	{"snapshots", nil, (*killRun).strikeSnapshots, 400 * time.Millisecond},
	{"delete, up", []int{16, 40, 1}, (*killRun).strikeDelete, 40 * time.Millisecond},
	{"delete, down", []int{40, 16, 1}, (*killRun).strikeDelete, 40 * time.Millisecond},
	{"flatten a snapshot", []int{30, 1, 1}, (*killRun).strikeFlatten, 80 * time.Millisecond},
	{"delete, up into the leaf", []int{24, 30}, (*killRun).strikeDelete, 40 * time.Millisecond},
	{"delete, down from the leaf", []int{46, 14}, (*killRun).strikeDelete, 40 * time.Millisecond},
	{"flatten the leaf", []int{30, 1}, (*killRun).strikeFlattenLeaf, 80 * time.Millisecond},
	{"writes", nil, func(*killRun, []string) {}, 800 * time.Millisecond},
	{quiet, []int{1, 1}, (*killRun).strikeSnapshotAlone, 0},
}

// quiet is the aim at which nobody else writes, and nobody fsyncs: what is there
// after the kill is what the snapshot itself made durable.
const quiet = "a snapshot that returned"

// once prepares, kills, judges and mounts again.
func (r *killRun) once(n int) {
	aim := aims[n/len(killKinds)%len(aims)]
	if harness.Long() || *killCount > len(aims) {
		aim = aims[r.rnd.IntN(len(aims))]
	} else if n/len(killKinds) < len(aims) {
		aim = aims[n%len(aims)] // each once over all the disks
	}
	began := time.Now()
	r.fillSlots()
	names := r.prepare(aim.layers)
	r.taken, r.gone = nil, map[string]bool{}

	var delay time.Duration
	if aim.name == quiet {
		aim.strike(r, names)
		r.m.Kill()
	} else {
		writer := r.startWriters(uint64(n))
		stop := make(chan struct{})
		var others sync.WaitGroup
		others.Go(func() { r.runFio(stop) })
		r.waitForWrites()
		others.Go(func() { aim.strike(r, names) })
		if aim.layers != nil && r.rnd.IntN(4) > 0 {
			r.waitForJob()
		}
		delay = time.Duration(r.rnd.Int64N(int64(aim.within)))
		time.Sleep(delay)
		r.m.Kill()
		close(stop)
		others.Wait()
		writer.gone(r.T)
	}

	manifest := harness.ReadManifest(r.T, r.disk)
	under := "no job"
	if j := manifest.Job; j != nil {
		under = strings.TrimSpace(j.Kind + " " + j.Direction)
		if strings.HasSuffix(aim.name, "the leaf") {
			under += " at the leaf"
		}
	}
	r.seen[under]++
	leaf, verdict := r.judgeFiles(manifest)
	if r.Failed() {
		return
	}
	if n%2 == 0 {
		r.m = r.m.Mend()
	} else {
		r.m.Clear()
		r.m = harness.MountDisk(r.T, r.disk)
	}
	verified := r.judgeMount(leaf)
	if err := r.area.Settle(verdict); err != nil {
		r.Fatal(err)
	}
	r.Logf("kill %d, %q, after %v; under way: %s; %d sectors written, %d of them newer than acknowledged; %d snapshots; fio verified %d slots; %.1f s",
		n, aim.name, delay.Round(time.Millisecond), under, verdict.Written, verdict.Newer, len(r.views), verified, time.Since(began).Seconds())
	r.prune()
}

// waitForJob waits a moment for the job to be recorded: it may be over by then.
func (r *killRun) waitForJob() {
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
		if harness.ReadManifest(r.T, r.disk).Job != nil {
			return
		}
	}
}

func (r *killRun) newName() string {
	r.names++
	return fmt.Sprintf("s%d", r.names)
}

// prepare writes each of the layers, and freezes all but the last. It gives the
// names of those.
func (r *killRun) prepare(sizes []int) (names []string) {
	r.Helper()
	f, err := os.OpenFile(r.m.Raw(), os.O_RDWR, 0)
	if err != nil {
		r.Fatal(err)
	}
	defer f.Close() // synced below
	for i, mib := range sizes {
		length := int64(mib) << 20
		off := r.rnd.Int64N(bulkBytes - length + 1)
		copy(r.bulk[off:], noise(r.rnd.Uint64(), int(length)))
		if _, err := f.WriteAt(r.bulk[off:off+length], bulkArea+off); err != nil {
			r.Fatal(err)
		}
		if i == len(sizes)-1 {
			break
		}
		name := r.newName()
		r.m.Do("snapshot", name)
		names = append(names, name)
		r.views[name] = filepath.Join(r.TempDir(), name)
		harness.Run(r.T, "cp", "--sparse=always", r.m.Layer(name), r.views[name])
	}
	if err := f.Sync(); err != nil {
		r.Fatal(err)
	}
	return names
}

// try writes to a control file of a daemon that may be killed meanwhile. Any
// other error than its end is one.
func (r *killRun) try(command, line string) (done bool) {
	err := r.m.Control(command, line)
	if err != nil && !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
		r.Errorf("%s %q: %v", command, line, err)
	}
	return err == nil
}

func (r *killRun) strikeSnapshots([]string) {
	for range 6 {
		s := &snapshot{name: r.newName()}
		var err error
		if s.before, err = stamps.MarkNow(r.area.Record, r.area.Writers); err != nil {
			r.Error(err)
			return
		}
		r.taken = append(r.taken, s)
		s.returned = r.try("snapshot", s.name)
		if s.after, err = stamps.MarkNow(r.area.Record, r.area.Writers); err != nil {
			r.Error(err)
		}
		if !s.returned {
			return
		}
	}
}

// strikeSnapshotAlone writes, without fsync, what only the snapshot makes durable.
func (r *killRun) strikeSnapshotAlone([]string) {
	f, err := os.OpenFile(r.m.Raw(), os.O_WRONLY, 0)
	if err != nil {
		r.Fatal(err)
	}
	defer f.Close() // nothing is held back until then
	const length = 3 << 20
	off := r.rnd.Int64N(bulkBytes - length)
	copy(r.bulk[off:], noise(r.rnd.Uint64(), length))
	if _, err := f.WriteAt(r.bulk[off:off+length], bulkArea+off); err != nil {
		r.Fatal(err)
	}
	s := &snapshot{name: r.newName(), returned: true}
	if s.before, err = stamps.MarkNow(r.area.Record, r.area.Writers); err != nil {
		r.Fatal(err)
	}
	s.after = s.before
	r.m.Do("snapshot", s.name)
	r.taken = append(r.taken, s)
}

func (r *killRun) strikeDelete(names []string) {
	r.gone[names[0]] = false
	r.gone[names[0]] = r.try("delete", names[0])
}

func (r *killRun) strikeFlatten(names []string) { r.try("flatten", names[1]) }

func (r *killRun) strikeFlattenLeaf([]string) { r.try("flatten", "leaf") }

// runFio writes one slot after the other until the disk is gone.
func (r *killRun) runFio(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		if code := r.fioPass(); code != 0 {
			return // the kill
		}
	}
}

// fioPass writes the next slot and gives fio's exit code.
func (r *killRun) fioPass() int {
	i := int(r.passes) % fioSlots
	r.passes++
	s := &fioSlot{off: fioArea + int64(i)*fioBytes, size: fioBytes, seed: r.passes, block: []string{"4k", "512", "16k", "2k"}[i]}
	r.slots[i] = nil
	result := s.write(r.T, r.m.Raw())
	if result.Code == 0 {
		r.slots[i] = s
	}
	return result.Code
}

func (r *killRun) startWriters(seed uint64) *writerProcess {
	r.Helper()
	r.area.File = r.m.Raw()
	return startWriters(r.T, r.area, *killSeed<<32+seed)
}

// waitForWrites waits until the writers are at work.
func (r *killRun) waitForWrites() {
	r.Helper()
	begin, err := stamps.MarkNow(r.area.Record, r.area.Writers)
	if err != nil {
		r.Fatal(err)
	}
	harness.Eventually(r.T, time.Minute, func() error {
		now, err := stamps.MarkNow(r.area.Record, r.area.Writers)
		if err != nil {
			return err
		}
		for i := range now {
			if now[i] < begin[i]+2000 {
				return fmt.Errorf("writer %d has recorded %d bytes", i, now[i]-begin[i])
			}
		}
		return nil
	})
}

// prune deletes what is more than a few snapshots of ours.
func (r *killRun) prune() {
	r.Helper()
	const most = 5
	var ours []string
	for _, l := range harness.ReadManifest(r.T, r.disk).Layers {
		if l.Name != "" && !l.Foreign {
			ours = append(ours, l.Name)
		}
	}
	for len(ours) > most {
		i := r.rnd.IntN(len(ours))
		r.m.Do("delete", ours[i])
		delete(r.views, ours[i])
		ours = slices.Delete(ours, i, i+1)
		r.m.FinishJob(patience.Hang)
	}
}

// end unmounts, judges the files of the clean disk, and tells what was hit.
func (r *killRun) end() {
	views := r.m.SaveViews()
	r.m.Unmount()
	harness.Judge(r.T, r.disk, views)
	r.Logf("under way at the kills: %v", r.seen)
}
