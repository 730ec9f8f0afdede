package doctor

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/mounts"
	"varve/integration/patience"
)

// fakeDisk is a disk of files that no daemon serves: what a VM is given is told
// by names. It stands for a mounted one unless the test takes the mount away.
func fakeDisk(t *testing.T) *Scope {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"d.varve/layers", "mnt/layers"} {
		if err := os.MkdirAll(at(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, raw := range []string{"base.raw", "mnt/disk.raw", "mnt/layers/one.raw"} {
		if err := os.WriteFile(at(raw), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// No backing files: QEMU opens what it is told to, and nothing else.
	for _, file := range []string{"d.varve/layers/000001.qcow2", "d.varve/layers/000002.qcow2"} {
		if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", at(file), "1M").CombinedOutput(); err != nil {
			t.Fatalf("qemu-img: %v\n%s", err, out)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(at("mnt"), &st); err != nil {
		t.Fatal(err)
	}
	return &Scope{
		Subject: at("d.varve"), Directory: at("d.varve"), machine: newMachine("/"),
		Layers: []Layer{
			{ID: "000000", Name: "base", State: "base", Format: "raw", File: at("base.raw"), Foreign: true},
			{ID: "000001", Name: "one", State: "frozen", Format: "qcow2", File: at("d.varve/layers/000001.qcow2")},
			{ID: "000002", State: "leaf", Format: "qcow2", File: at("d.varve/layers/000002.qcow2")},
		},
		Mounts: []mounts.Mount{{Mountpoint: at("mnt"), Source: at("d.varve"), UID: os.Getuid(), Device: st.Dev}},
	}
}

// startQEMU starts a VM that does not run, as a user of its own would: no KVM,
// nothing but a disk. The end of the test ends it.
func startQEMU(t *testing.T, cwd string, args ...string) int {
	t.Helper()
	dir, err := os.MkdirTemp("", "qmp") // t.TempDir has the test's name, which may have a comma
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	monitor := filepath.Join(dir, "qmp")
	cmd := exec.Command("qemu-system-x86_64", append([]string{"-M", "pc", "-S", "-display", "none", "-nodefaults", "-m", "32",
		"-qmp", "unix:" + monitor + ",server=on,wait=off"}, args...)...)
	cmd.Dir = cwd
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
	})
	// The monitor greets early, and answers when everything is set up.
	for deadline := time.Now().Add(patience.Hang); ; time.Sleep(10 * time.Millisecond) {
		if answersAt(monitor) {
			return cmd.Process.Pid
		}
		select {
		case <-ended:
			t.Fatalf("QEMU %q: %s", args, stderr.String())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal("QEMU does not come up")
		}
	}
}

func answersAt(monitor string) bool {
	c, err := net.Dial("unix", monitor)
	if err != nil {
		return false
	}
	defer c.Close()
	if _, err := fmt.Fprintln(c, `{"execute":"qmp_capabilities"}`); err != nil {
		return false
	}
	for s := bufio.NewScanner(c); s.Scan(); {
		if strings.Contains(s.Text(), `"return"`) {
			return true
		}
	}
	return false
}

// summary is a finding without its words for the way out.
func summary(list []Finding) []string {
	var all []string
	for _, f := range list {
		all = append(all, fmt.Sprintf("%s %s: %s", f.Severity, f.Check, f.What))
	}
	return all
}

// hostChecks makes all checks of this side of one disk.
func hostChecks(t *testing.T, s *Scope) []Finding {
	t.Helper()
	var list []Finding
	for _, c := range checks() {
		if c.id == vmLayer || c.id == vmOptions || c.id == vmAccess || c.id == vmLost || c.id == "open-files" {
			for _, f := range c.look(context.Background(), s) {
				if f.Check == "" {
					f.Check = c.id
				}
				list = append(list, f)
			}
		}
	}
	return list
}

// TestRealVMs has a real QEMU open each file of a disk: what is found is told
// once, and nothing else is found.
func TestRealVMs(t *testing.T) {
	tests := []struct {
		name, drive string // MNT, DIR: the mount, the directory around it
		unmounted   bool
		want        []string // PID
	}{
		{"disk.raw", "file=MNT/disk.raw,format=raw,cache=none,aio=native", false,
			[]string{"note open-files: disk.raw is open: pid PID qemu-system-x86 to write, with QEMU's lock"}},
		{"a relative path", "file=mnt/disk.raw,format=raw", false,
			[]string{"note open-files: disk.raw is open: pid PID qemu-system-x86 to write, with QEMU's lock"}},
		{"a layer as a second disk", "file=MNT/layers/one.raw,format=raw,readonly=on", false,
			[]string{"note open-files: layers/one.raw is open: pid PID qemu-system-x86 read only"}},
		{"unsafe", "file=MNT/disk.raw,format=raw,cache=unsafe", false, []string{
			"warning vm-options: VM v (pid PID qemu-system-x86) ignores the guest's flushes (cache=unsafe): a power cut takes what the guest believes to be safe",
			"note open-files: disk.raw is open: pid PID qemu-system-x86 to write, with QEMU's lock"}},
		{"no format", "file=MNT/disk.raw", false, []string{
			"warning vm-options: VM v (pid PID qemu-system-x86) has disk.raw without a format: QEMU guesses it from what the guest has written",
			"note open-files: disk.raw is open: pid PID qemu-system-x86 to write, with QEMU's lock"}},
		{"no lock", "file=MNT/disk.raw,format=raw,file.locking=off", false, []string{
			"warning vm-options: VM v (pid PID qemu-system-x86) has disk.raw without a lock (locking=off): a second VM could write it too",
			"note open-files: disk.raw is open: pid PID qemu-system-x86 to write"}},
		{"the base", "file=DIR/base.raw,format=raw", false, []string{
			"problem vm-layer: VM v (pid PID qemu-system-x86) has the base, DIR/base.raw, to write: every write changes what the layers above show"}},
		{"the base by a link", "file=DIR/link.raw,format=raw", true, []string{
			"problem vm-layer: VM v (pid PID qemu-system-x86) has the base, DIR/base.raw, to write: every write changes what the layers above show"}},
		{"the base by another name", "file=DIR/hard.raw,format=raw", true, []string{
			"problem vm-layer: VM v (pid PID qemu-system-x86) has the base, DIR/base.raw, to write: every write changes what the layers above show"}},
		{"the base nested", "file.driver=file,file.filename=DIR/base.raw,driver=raw", false, []string{
			"problem vm-layer: VM v (pid PID qemu-system-x86) has the base, DIR/base.raw, to write: every write changes what the layers above show"}},
		{"the base read only", "file=DIR/base.raw,format=raw,readonly=on", false, []string{
			"note vm-layer: VM v (pid PID qemu-system-x86) reads the base, DIR/base.raw and does not write it"}},
		{"a snapshot's file", "file=DIR/d.varve/layers/000001.qcow2,format=qcow2", false, []string{
			"problem vm-layer: VM v (pid PID qemu-system-x86) has the file of the snapshot one, DIR/d.varve/layers/000001.qcow2, to write: every write changes what the layers above show"}},
		{"the leaf's file", "file=DIR/d.varve/layers/000002.qcow2,format=qcow2", false, []string{
			"problem vm-layer: VM v (pid PID qemu-system-x86) has the leaf's file, DIR/d.varve/layers/000002.qcow2, to write, past the mount: two writers destroy it"}},
		{"the leaf's file without a mount", "file=DIR/d.varve/layers/000002.qcow2,format=qcow2", true, []string{
			"warning vm-layer: VM v (pid PID qemu-system-x86) has the leaf's file, DIR/d.varve/layers/000002.qcow2, to write: while it runs the disk cannot be mounted"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := fakeDisk(t)
			mnt, dir := s.Mounts[0].Mountpoint, filepath.Dir(s.Directory)
			if test.unmounted {
				s.Mounts = nil
			}
			if err := os.Symlink("base.raw", filepath.Join(dir, "link.raw")); err != nil {
				t.Fatal(err)
			}
			if err := os.Link(filepath.Join(dir, "base.raw"), filepath.Join(dir, "hard.raw")); err != nil {
				t.Fatal(err)
			}
			if found := hostChecks(t, s); len(found) != 0 {
				t.Errorf("without a VM: %q", summary(found))
			}
			s.machine = newMachine("/")
			names := strings.NewReplacer("MNT", mnt, "DIR", dir)
			pid := startQEMU(t, dir, "-name", "v", "-drive", names.Replace(test.drive)+",if=virtio")
			found := hostChecks(t, s)
			var want []string
			for _, line := range test.want {
				want = append(want, strings.ReplaceAll(names.Replace(line), "PID", fmt.Sprint(pid)))
			}
			if got := summary(found); !slices.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			for _, f := range found {
				if f.Severity != Note && f.Fix == "" {
					t.Errorf("no way out: %+v", f)
				}
			}
		})
	}
}
