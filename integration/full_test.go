package integration

import (
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

	// Jobs do not begin: what they need is known before.
	for _, args := range [][]string{{"flatten", f.m.Point, "two"}, {"delete", f.m.Point, "one"}} {
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
		{"delete", f.m.Point, "one"}, {"snapshot", f.m.Point, "three"}, {"flatten", f.m.Point, "two"},
	} {
		harness.Run(f.T, harness.Varve(), args...)
		f.m.FinishJob(patience.Hang)
	}
	delete(f.views, "one")
	f.viewsHold()
	for _, l := range f.m.Status().Layers {
		if l.State == "unnamed" || l.Name == "two" && l.Parent != nil {
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
		b.WriteString(strings.Join([]string{l.ID, l.State, l.Name, parent, l.File}, " ") + "\n")
	}
	return b.String()
}
