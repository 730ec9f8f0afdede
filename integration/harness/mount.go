package harness

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"

	"varve/chain"
	"varve/integration/patience"
)

// Mount is a disk that `varve mount` mounted.
type Mount struct {
	Point string // the mountpoint
	Disk  string // the disk directory
	PID   int    // the daemon
	t     testing.TB
	gone  bool
}

// MountDisk mounts an image or a disk directory on a new mountpoint, in the
// background as a user does, with further flags of `varve mount`. The end of
// the test unmounts it, and fails the test when that does not work.
func MountDisk(t testing.TB, source string, flags ...string) *Mount {
	t.Helper()
	point, err := os.MkdirTemp("", "mount-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(point, 0o755); err != nil {
		t.Fatal(err)
	}
	Run(t, Varve(), append(append([]string{"mount"}, flags...), source, point)...)
	return mounted(t, point)
}

// mounted is the mount that `varve mount` has made at a mountpoint.
func mounted(t testing.TB, point string) *Mount {
	t.Helper()
	m := &Mount{Point: point, t: t}
	t.Cleanup(m.cleanup)
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(point))
	if err != nil {
		t.Fatal(err)
	}
	if len(mounts) != 1 || mounts[0].FSType != "fuse.varve" {
		t.Fatalf("varve mount returned, and %s is no mount of type fuse.varve: %+v", point, mounts)
	}
	m.Disk = mounts[0].Source
	for _, p := range processesOf(os.Getenv(runVariable)) {
		if p.daemon && strings.Contains(p.command, point) {
			m.PID = p.pid
		}
	}
	if m.PID == 0 {
		t.Fatalf("no process serves %s", point)
	}
	return m
}

// Path is a path in the mount: m.Path("layers", "base.raw").
func (m *Mount) Path(elements ...string) string {
	return filepath.Join(append([]string{m.Point}, elements...)...)
}

// Raw is the path of disk.raw.
func (m *Mount) Raw() string { return m.Path("disk.raw") }

// Layer is the path of a layer's view.
func (m *Mount) Layer(name string) string { return m.Path("layers", name+".raw") }

// Unmount runs `varve umount`, and fails the test unless the mount and its
// daemon are gone when it returned. Calling it again does nothing.
func (m *Mount) Unmount() {
	m.t.Helper()
	if m.gone {
		return
	}
	Run(m.t, Varve(), "umount", m.Point)
	m.gone = true
	if mounted, err := mountinfo.Mounted(m.Point); err != nil || mounted {
		m.t.Fatalf("varve umount returned, and %s is still a mount (%v)", m.Point, err)
	}
	Eventually(m.t, patience.Hang, func() error {
		if running(m.PID) {
			return fmt.Errorf("the daemon (pid %d) still runs after varve umount", m.PID)
		}
		return nil
	})
	if err := os.Remove(m.Point); err != nil {
		m.t.Error(err)
	}
}

// cleanup unmounts at the end of the test. What it cannot unmount is a failure
// of the test; Main's sweep takes it away in the end.
func (m *Mount) cleanup() {
	if m.gone {
		return
	}
	r := Try(m.t, Varve(), "umount", m.Point)
	m.gone = true
	if r.Code != 0 {
		m.t.Errorf("varve umount %s: %s", m.Point, r.Stderr)
		return
	}
	_ = os.Remove(m.Point)
}

// Control writes one line to a control file, as `echo` in a shell does, and
// gives the errno that comes back.
func (m *Mount) Control(name, line string) error {
	f, err := os.OpenFile(m.Path("control", name), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// Do is Control that must succeed.
func (m *Mount) Do(name, line string) {
	m.t.Helper()
	if err := m.Control(name, line); err != nil {
		outcome, _ := os.ReadFile(m.Path("control", name))
		m.t.Fatalf("%s %q: %v\n%s", name, line, err, indent(string(outcome)))
	}
}

// Status reads status.json.
func (m *Mount) Status() chain.Status {
	m.t.Helper()
	data, err := os.ReadFile(m.Path("status.json"))
	if err != nil {
		m.t.Fatal(err)
	}
	return parseStatus(m.t, data)
}

// List runs `varve list --json` on a disk directory or a mountpoint.
func List(t testing.TB, disk string) chain.Status {
	t.Helper()
	return parseStatus(t, []byte(Run(t, Varve(), "list", "--json", disk)))
}

func parseStatus(t testing.TB, data []byte) chain.Status {
	t.Helper()
	var status chain.Status
	if err := json.Unmarshal(data, &status); err != nil {
		t.Fatalf("parse status: %v\n%s", err, data)
	}
	if status.Version != 1 || len(status.Layers) == 0 {
		t.Fatalf("status has version %d and %d layers:\n%s", status.Version, len(status.Layers), data)
	}
	return status
}

// WaitJob waits until the disk has no job that runs, and gives the last state
// of the one that did, or nil.
func (m *Mount) WaitJob(limit time.Duration) *chain.JobStatus {
	m.t.Helper()
	var job *chain.JobStatus
	Eventually(m.t, limit, func() error {
		job = m.Status().Job
		if job != nil && job.State == chain.JobRunning {
			return fmt.Errorf("job %s (%s) is at %d of %d bytes", job.ID, job.Kind, job.DoneBytes, job.TotalBytes)
		}
		return nil
	})
	return job
}

// FinishJob is WaitJob for a job that must not fail.
func (m *Mount) FinishJob(limit time.Duration) {
	m.t.Helper()
	if job := m.WaitJob(limit); job != nil && job.State != chain.JobDone {
		m.t.Fatalf("job %s (%s): %s: %s", job.ID, job.Kind, job.State, job.Error)
	}
}

// SaveViews copies what the mount shows of every layer that has a view, the
// leaf's disk.raw too, to raw files in a new directory; by layer id.
func (m *Mount) SaveViews() map[string]string {
	m.t.Helper()
	dir := m.t.TempDir()
	views := map[string]string{}
	status := m.Status()
	for _, layer := range status.Layers {
		source := m.Layer(layer.Name)
		switch {
		case layer.ID == status.Leaf:
			source = m.Raw()
		case layer.Name == "":
			continue
		}
		views[layer.ID] = filepath.Join(dir, layer.ID+".raw")
		Run(m.t, "cp", "--sparse=always", source, views[layer.ID])
	}
	return views
}
