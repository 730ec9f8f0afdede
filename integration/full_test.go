package integration

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/integration/guest"
	"varve/integration/harness"
	"varve/integration/patience"
	"varve/integration/turn"
	"varve/overlay/hostfs"
)

// fullHosts are file systems that get full, as small as they can be.
var fullHosts = []struct {
	kind string
	size int64
	long bool // only where the long tests are asked for
}{
	{"ext4", 160 << 20, false},
	{"xfs", 320 << 20, true},
}

// TestGuestOnAFullHost fills the host's file system under a guest that writes:
// QEMU pauses the guest. While the host is full nothing that is asked of the disk
// does harm; when there is room again the guest goes on, and has lost nothing.
func TestGuestOnAFullHost(t *testing.T) {
	for _, host := range fullHosts {
		if host.long && !harness.Long() {
			continue
		}
		t.Run(host.kind, func(t *testing.T) {
			raw := filepath.Join(t.TempDir(), "vm.raw")
			guest.Image(t, raw, guestDisk)
			harness.Guard(t, raw)
			dir := harness.SmallHost(t, host.kind, host.size)
			m := harness.MountDisk(t, raw, "--disk", filepath.Join(dir, "vm.varve"))
			f := &fullHost{T: t, m: m, dir: dir}

			g := guest.Boot(t, guest.Options{Disk: m.Raw(), Drive: "cache=none,aio=native", Device: "werror=enospc,rerror=report"})
			g.Run("put first 4096")
			m.Do("snapshot", "one")
			g.Run("put second 6144")
			m.Do("snapshot", "two")
			f.remember("base", "one", "two")

			filler := harness.NewFiller(t, dir)
			filler.Fill(3 << 20)
			g.StartWriter("w")
			g.WaitState("io-error")
			filler.Fill(0)
			f.refuses()
			if state := g.State(); state != "io-error" {
				t.Errorf("the guest is %q while the host is full", state)
			}

			// A delete goes through. It gives back what it can: two stands on most of one,
			// so little more than tables.
			harness.Run(t, harness.Varve(), "delete", m.Point, "one")
			delete(f.views, "one")
			f.viewsHold()
			if free := f.free(); free == 0 {
				t.Error("the delete gave nothing back")
			}

			filler.Remove()
			g.Continue()
			g.WaitFsynced(10)
			if state := g.State(); state != "running" {
				t.Errorf("the guest is %q when there is room again", state)
			}
			g.StopWriter()
			g.Verify()
			files := g.Fsynced()
			g.PowerOff()
			f.viewsHold()
			guest.Fsck(t, m.Raw(), "-r")
			guest.Contains(t, "disk.raw", guest.Data(t, m.Raw()), files)

			f.finishes()
			guest.Contains(t, "disk.raw", guest.Data(t, m.Raw()), files)
			views := m.SaveViews()
			m.Unmount()
			harness.Judge(t, m.Disk, views)
		})
	}
}

// fullHost is a disk whose directory is on a file system that gets full.
type fullHost struct {
	*testing.T
	m     *harness.Mount
	dir   string
	views map[string]string // copies of frozen views, by name
}

// free is what the host has free.
func (f *fullHost) free() int64 {
	f.Helper()
	free, err := hostfs.OS().Free(f.dir)
	if err != nil {
		f.Fatal(err)
	}
	return free
}

// remember copies what frozen views show, for viewsHold.
func (f *fullHost) remember(names ...string) {
	f.Helper()
	f.views = map[string]string{}
	dir := f.TempDir()
	for _, name := range names {
		f.views[name] = filepath.Join(dir, name)
		harness.Run(f.T, "cp", "--sparse=always", f.m.Layer(name), f.views[name])
	}
}

func (f *fullHost) viewsHold() {
	f.Helper()
	for name, file := range f.views {
		if r := harness.Try(f.T, "cmp", file, f.m.Layer(name)); r.Code != 0 {
			f.Errorf("layers/%s.raw is not what it was: %s%s", name, r.Stdout, r.Stderr)
		}
	}
}

const noSpace = "no space left on device"

// refuses asks a full host for all that takes space. Each is refused with ENOSPC
// and in words, or done, as a whole.
func (f *fullHost) refuses() {
	f.Helper()
	before := tree(f.m.Status())

	// A new layer.
	if err := f.m.Control("snapshot", "three"); !errors.Is(err, unix.ENOSPC) {
		f.Errorf("snapshot by the control file: %v, want ENOSPC", err)
	}
	f.lastWords("snapshot", `"three": error ENOSPC: `)
	f.fails("snapshot", f.m.Point, "three")
	if after := tree(f.m.Status()); after != before {
		f.Errorf("a snapshot that was refused changed\n%s\nto\n%s", before, after)
	}
	f.viewsHold()

	// A flatten does not begin: what it needs is known before.
	for _, args := range [][]string{{"flatten", f.m.Point, "two"}} {
		f.fails(args...)
		if after := tree(f.m.Status()); after != before {
			f.Errorf("a %s that was refused changed\n%s\nto\n%s", args[0], before, after)
		}
		if job := f.m.Status().Job; job != nil {
			f.Errorf("the job is %+v", job)
		}
		f.viewsHold()
	}
}

// finishes does, with room, what was refused.
func (f *fullHost) finishes() {
	f.Helper()
	for _, args := range [][]string{
		{"snapshot", f.m.Point, "three"}, {"flatten", f.m.Point, "two"},
	} {
		harness.Run(f.T, harness.Varve(), args...)
		f.m.FinishJob(patience.Hang)
	}
	f.viewsHold()
	for _, l := range f.m.Status().Layers {
		if l.State == chain.StateUnnamed || l.Name == "two" && l.Parent != nil {
			f.Errorf("there is %+v", l)
		}
	}
}

// fails runs a command that must fail for want of space, and say so in one line.
func (f *fullHost) fails(args ...string) {
	f.Helper()
	r := harness.Try(f.T, harness.Varve(), args...)
	last := strings.TrimRight(r.Stderr, "\n")
	if i := strings.LastIndexByte(last, '\n'); i >= 0 {
		last = last[i+1:]
	}
	if r.Code != 1 || !strings.HasPrefix(last, "varve: "+args[0]+" ") || !strings.Contains(last, noSpace) {
		f.Errorf("varve %s on a full host: exit code %d, says %q", args[0], r.Code, r.Stderr)
	}
	f.Logf("%s", last)
}

// lastWords fails the test unless a control file says that of the last write.
func (f *fullHost) lastWords(control, want string) {
	f.Helper()
	text, err := os.ReadFile(f.m.Path("control", control))
	if err != nil {
		f.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "# last: ") {
			if !strings.Contains(line, want) || !strings.Contains(line, noSpace) {
				f.Errorf("control/%s says %q, lacks %q", control, line, want)
			}
			return
		}
	}
	f.Errorf("control/%s says nothing of the last write:\n%s", control, text)
}

// tree is the layers with their names and parents, as text.
func tree(s chain.Status) string {
	var b strings.Builder
	for _, l := range s.Layers {
		parent := "-"
		if l.Parent != nil {
			parent = *l.Parent
		}
		b.WriteString(strings.Join([]string{l.ID, l.State.String(), l.Name, parent, l.File}, " ") + "\n")
	}
	return b.String()
}

// TestDeletesOnAFullHost fills a host's file system by writes to disk.raw and by others,
// and deletes one snapshot after the other, mounted and unmounted, with the room that
// each has made taken again before the next. Every view stays as it was, and what wrote
// before can go on. Two of the file systems have their turn.
func TestDeletesOnAFullHost(t *testing.T) {
	type fillable struct {
		kind string
		size int64
		// whole has what is written to a layer lie in one extent, of which btrfs gives
		// nothing back before all of it is free.
		whole bool
	}
	hosts := []fillable{{"ext4", 100 << 20, false}, {"btrfs", 120 << 20, true}, {"xfs", 300 << 20, false}, {"btrfs mixed", 64 << 20, false}}
	if !harness.Long() {
		at := turn.Window(2, len(hosts))
		hosts = hosts[at : at+2]
	}
	for _, host := range hosts {
		t.Run(host.kind, func(t *testing.T) {
			t.Parallel()
			const mib = 1 << 20
			dir := harness.SmallHost(t, host.kind, host.size)
			disk := filepath.Join(dir, "vm.varve")
			harness.Run(t, harness.Varve(), "create", disk, "--size", "256M")
			m := harness.MountDisk(t, disk)
			f := &fullHost{T: t, m: m, dir: dir}
			write := func(value byte, from, to int64) error {
				raw, err := os.OpenFile(m.Raw(), os.O_WRONLY, 0)
				if err != nil {
					return err
				}
				p := bytes.Repeat([]byte{value, byte(from >> 20), 3, 5}, 16<<10)
				for off := from; off < to && err == nil; off += int64(len(p)) {
					if _, err = raw.WriteAt(p, off); err == nil && off%mib == 0 && !host.whole {
						err = raw.Sync()
					}
				}
				return errors.Join(err, raw.Sync(), raw.Close())
			}
			for i, name := range []string{"one", "two", "three"} {
				if err := write(byte(i+1), int64(i)*4*mib, int64(i+2)*4*mib); err != nil {
					t.Fatal(err)
				}
				m.Do("snapshot", name)
			}
			filler := harness.NewFiller(t, dir)
			filler.Fill(8 * mib)
			if err := write(9, 100*mib, 250*mib); !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("the host is not full: %v", err)
			}
			f.remember("one", "two", "three")
			leaf := filepath.Join(t.TempDir(), "leaf")
			harness.Run(t, "cp", "--sparse=always", m.Raw(), leaf)
			holds := func() {
				t.Helper()
				f.viewsHold()
				harness.Run(t, "cmp", leaf, m.Raw())
			}

			filler.Fill(0)
			harness.Run(t, harness.Varve(), "delete", m.Point, "two")
			delete(f.views, "two")
			holds()
			if host.whole {
				filler.Remove()
				filler = harness.NewFiller(t, dir)
				filler.Fill(8 * mib)
			} else if free := f.free(); free < 3*mib {
				t.Errorf("the delete of two gave back %d bytes", free)
			}
			// Who was stopped goes on.
			if err := write(7, 60*mib, 61*mib); err != nil {
				t.Errorf("a write after the delete: %v", err)
			}
			harness.Run(t, "cp", "--sparse=always", m.Raw(), leaf)
			filler.Fill(0)
			m.Unmount()
			filler.Fill(0)
			harness.Run(t, harness.Varve(), "delete", disk, "one")
			delete(f.views, "one")
			if free := f.free(); free < 3*mib && !host.whole {
				t.Errorf("the delete of one gave back %d bytes", free)
			}
			files, err := filepath.Glob(filepath.Join(disk, "layers", "*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				harness.Run(t, "qemu-img", "check", "-q", file)
			}
			m = harness.MountDisk(t, disk)
			f.m = m
			holds()
			m.Unmount()
		})
	}
}
