package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/integration/guest"
	"varve/integration/harness"
	"varve/integration/patience"
	"varve/integration/turn"
)

// guestDisk is the size of the guest's disk in bytes.
const guestDisk = 192 << 20

// guestJobLimit is how long a delete or a flatten may take beside a guest under
// software emulation.
var guestJobLimit = patience.Hang

// baseKinds are the images that a guest's disk is mounted from. make gives the
// image to mount and the foreign files with their names in layers/, top first.
var baseKinds = []struct {
	name  string
	drive string // how QEMU opens disk.raw
	make  func(t *testing.T, raw string) (source string, layers []foreignLayer)
}{
	{"raw", "cache=none,aio=native", func(t *testing.T, raw string) (string, []foreignLayer) {
		return raw, []foreignLayer{{"base", raw, "raw"}}
	}},
	{"qcow2", "cache=writeback", func(t *testing.T, raw string) (string, []foreignLayer) {
		image := strings.TrimSuffix(raw, ".raw") + ".qcow2"
		harness.Convert(t, raw, "raw", image, "qcow2")
		return image, []foreignLayer{{"base", image, "qcow2"}}
	}},
	{"chain", "cache=none,aio=io_uring", func(t *testing.T, raw string) (string, []foreignLayer) {
		files := harness.ChainOfThree(t, raw, guestDisk)
		return files[0], []foreignLayer{
			{"adopted", files[0], "qcow2"}, {"layer-1", files[1], "qcow2"}, {"base", files[2], "qcow2"},
		}
	}},
}

// foreignLayer is a layer that varve must never write.
type foreignLayer struct{ name, file, format string }

// TestGuest boots a guest from disk.raw, snapshots it while it writes, goes
// back, branches off, deletes and flattens while it writes, and asks e2fsck,
// qemu-img and the guest itself what became of its files. The images that a disk is
// mounted from take turns; make test-long has them all.
func TestGuest(t *testing.T) {
	kinds := baseKinds
	if !harness.Long() {
		at := turn.Of(0, len(baseKinds))
		kinds = baseKinds[at : at+1]
	}
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			raw := filepath.Join(t.TempDir(), "vm.raw")
			guest.Image(t, raw, guestDisk)
			source, foreign := kind.make(t, raw)
			s := &scenario{T: t, drive: kind.drive, foreign: foreign, reference: map[string]string{}}
			for _, layer := range foreign {
				harness.Guard(t, layer.file)
				view := filepath.Join(t.TempDir(), layer.name+".raw")
				harness.Convert(t, layer.file, layer.format, view, "raw")
				s.reference[layer.name] = view
			}
			s.mount(source)
			for _, step := range []struct {
				name string
				run  func()
			}{
				{"snapshot while writing", s.snapshotWhileWriting},
				{"revert and branch", s.revertAndBranch},
				{"delete and flatten while writing", s.deleteAndFlattenWhileWriting},
				{"boot once more", s.bootOnceMore},
			} {
				began := time.Now()
				step.run()
				t.Logf("%s: %.1f s", step.name, time.Since(began).Seconds())
			}
		})
	}
}

// scenario is what the steps of TestGuest share.
type scenario struct {
	*testing.T
	drive     string
	foreign   []foreignLayer
	reference map[string]string // layer name: a raw file equal to its view, read without varve
	m         *harness.Mount
	one       []guest.File // fsynced before snapshot one
	later     []guest.File // written after it
	present   []guest.File // what disk.raw must have
}

func (s *scenario) mount(source string) {
	s.Helper()
	s.m = harness.MountDisk(s.T, source)
	s.viewsHold()
}

func (s *scenario) boot() *guest.Guest {
	s.Helper()
	return guest.Boot(s.T, guest.Options{Disk: s.m.Raw(), Drive: s.drive})
}

// settle ends a step: the disk is judged on its unmounted files and mounted again.
func (s *scenario) settle() {
	s.Helper()
	s.viewsHold()
	views := s.m.SaveViews()
	s.m.Unmount()
	harness.Judge(s.T, s.m.Disk, views)
	if s.Failed() {
		s.FailNow()
	}
	s.m = harness.MountDisk(s.T, s.m.Disk)
}

// viewsHold compares every view whose content is known with what it must be.
func (s *scenario) viewsHold() {
	s.Helper()
	for name, file := range s.reference {
		if r := harness.Try(s.T, "cmp", file, s.m.Layer(name)); r.Code != 0 {
			s.Errorf("layers/%s.raw is not what it was: %s%s", name, r.Stdout, r.Stderr)
		}
	}
}

// remember keeps what a frozen layer's view is now, for viewsHold.
func (s *scenario) remember(name string) {
	s.Helper()
	view := filepath.Join(s.TempDir(), name+".raw")
	harness.Run(s.T, "cp", "--sparse=always", s.m.Layer(name), view)
	s.reference[name] = view
}

// snapshotWhileWriting: the guest writes, and writes on after snapshot one.
func (s *scenario) snapshotWhileWriting() {
	g := s.boot()
	g.Run("put big.one 8192")
	g.StartWriter("a")
	g.WaitFsynced(6)
	s.one = g.Fsynced()
	s.m.Do("snapshot", "one")
	g.Run("true") // what was reported so far has arrived
	taken := g.Fsynced()
	s.remember("one")
	g.WaitFsynced(6)
	g.StopWriter()
	g.Run("put big.later 4096")
	g.Verify()
	all := g.Fsynced()
	g.PowerOff()
	// The first of them may have been under way when the snapshot was taken.
	s.later = without(all, taken)[1:]

	guest.Fsck(s.T, s.m.Raw(), "-r")
	guest.Contains(s.T, "disk.raw", guest.Data(s.T, s.m.Raw()), all)
	// A view that was frozen under a running guest has a journal to replay.
	data := guest.Data(s.T, guest.FsckCrashed(s.T, s.m.Layer("one")))
	guest.Contains(s.T, "layers/one.raw", data, s.one)
	s.lacks("layers/one.raw", data, s.later)
	guest.Fsck(s.T, s.m.Layer("base"), "-r")
	s.settle()
}

// revertAndBranch: the disk is as it was at snapshot one, and a branch goes on
// from there.
func (s *scenario) revertAndBranch() {
	s.m.Do("revert", "one")
	harness.Run(s.T, "cmp", s.m.Raw(), s.m.Layer("one"))
	s.settle()

	g := s.boot()
	for _, file := range s.one {
		g.Run("[ -e /data/" + file.Name + " ]")
	}
	for _, file := range s.later {
		g.Run("[ ! -e /data/" + file.Name + " ]")
	}
	g.Verify()
	g.Run("put big.two 20480")
	g.StartWriter("b")
	g.WaitFsynced(4)
	s.m.Do("snapshot", "two")
	// As much on each side: whichever way the delete merges, it takes a while.
	g.Run("put big.three 20480")
	s.m.Do("snapshot", "three")
	s.remember("two")
	s.remember("three")
	g.WaitFsynced(4)
	g.StopWriter()
	g.Verify()
	s.present = append(slices.Clone(s.one), g.Fsynced()...)
	g.PowerOff()

	guest.Fsck(s.T, s.m.Raw(), "-r")
	data := guest.Data(s.T, s.m.Raw())
	guest.Contains(s.T, "disk.raw", data, s.present)
	s.lacks("disk.raw", data, s.later)
	s.settle()
}

// deleteAndFlattenWhileWriting: the middle snapshot goes, and the leaf gets all
// that it needs, under a guest that writes.
func (s *scenario) deleteAndFlattenWhileWriting() {
	g := s.boot()
	g.StartWriter("c")
	g.WaitFsynced(2)
	s.m.Do("delete", "two")
	delete(s.reference, "two")
	if _, err := os.Stat(s.m.Layer("two")); !os.IsNotExist(err) {
		s.Errorf("layers/two.raw after its delete: %v", err)
	}
	s.finishJob(g)
	s.viewsHold()
	g.WaitFsynced(2)
	s.m.Do("flatten", "leaf")
	s.finishJob(g)
	s.viewsHold()
	g.WaitFsynced(2)
	g.StopWriter()
	g.Verify()
	s.present = append(s.present, g.Fsynced()...)
	g.PowerOff()

	status := s.m.Status()
	for _, layer := range status.Layers {
		if layer.ID == status.Leaf && layer.Parent != nil {
			s.Errorf("the leaf was flattened and has the parent %s", *layer.Parent)
		}
	}
	guest.Fsck(s.T, s.m.Raw(), "-r")
	guest.Contains(s.T, "disk.raw", guest.Data(s.T, s.m.Raw()), s.present)
	s.settle()
}

// finishJob waits for the job that was just started, while the guest writes.
func (s *scenario) finishJob(g *guest.Guest) {
	s.Helper()
	began, before := time.Now(), len(g.Fsynced())
	job := s.m.WaitJob(guestJobLimit)
	if job == nil || job.State != "done" || job.TotalBytes < 16<<20 {
		s.Fatalf("the job, which must have 16 MiB to copy: %+v", job)
	}
	s.Logf("%s: %d of %d bytes in %v; the guest fsynced %d files meanwhile", job.Kind,
		job.DoneBytes, job.TotalBytes, time.Since(began).Round(time.Millisecond), len(g.Fsynced())-before)
}

// bootOnceMore: the guest's own checksums hold after all that.
func (s *scenario) bootOnceMore() {
	g := s.boot()
	g.Verify()
	for _, file := range s.present {
		g.Run("[ -e /data/" + file.Name + " ]")
	}
	g.PowerOff()
	s.settle()
}

// lacks fails the test when a view's /data has one of the files.
func (s *scenario) lacks(view string, data map[string]string, files []guest.File) {
	s.Helper()
	if len(files) == 0 {
		s.Errorf("%s: no later files: the test proves nothing", view)
	}
	for _, file := range files {
		if _, ok := data[file.Name]; ok {
			s.Errorf("%s has %s, which was written later", view, file.Name)
		}
	}
}

// without gives the files of a that are not in b.
func without(a, b []guest.File) []guest.File {
	return slices.DeleteFunc(slices.Clone(a), func(f guest.File) bool { return slices.Contains(b, f) })
}

// TestGuestOfAnotherUser runs QEMU as a user who is not the one that mounted,
// as libvirt does: a guest in the way whose turn it is, qemu-io in the other one.
func TestGuestOfAnotherUser(t *testing.T) {
	const nobody = 65534
	for i, way := range []struct {
		name  string
		flags []string
		chown bool
	}{
		{"uid", []string{"--allow-other", "--uid", fmt.Sprint(nobody), "--gid", fmt.Sprint(nobody)}, false},
		{"chown", []string{"--allow-other", "--umask", "022"}, true},
	} {
		t.Run(way.name, func(t *testing.T) {
			raw := filepath.Join(t.TempDir(), "vm.raw")
			guest.Image(t, raw, guestDisk)
			harness.Guard(t, raw)
			m := harness.MountDisk(t, raw, way.flags...)
			if way.chown {
				if err := os.Chown(m.Raw(), nobody, nobody); err != nil {
					t.Fatal(err)
				}
			}
			if !harness.Long() && i != turn.Of(0, 2) {
				uid := fmt.Sprint(nobody)
				harness.Run(t, "setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "--",
					"qemu-io", "-f", "raw", "-t", "none", "-c", "write -P 0x5a 150M 1M", "-c", "flush", "-c", "read -P 0x5a 150M 1M", m.Raw())
				views := m.SaveViews()
				m.Unmount()
				harness.Judge(t, m.Disk, views)
				return
			}
			g := guest.Boot(t, guest.Options{Disk: m.Raw(), Drive: "cache=none,aio=native", User: nobody})
			g.StartWriter("a")
			g.WaitFsynced(3)
			m.Do("snapshot", "one")
			g.WaitFsynced(3)
			g.StopWriter()
			g.Verify()
			files := g.Fsynced()
			g.PowerOff()
			guest.Fsck(t, m.Raw(), "-r")
			guest.Contains(t, "disk.raw", guest.Data(t, m.Raw()), files)
			views := m.SaveViews()
			m.Unmount()
			harness.Judge(t, m.Disk, views)
		})
	}
}
