package harness

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Kill ends the daemon as a crash does. The mount stays, and answers nobody.
func (m *Mount) Kill() {
	m.t.Helper()
	if err := syscall.Kill(m.PID, syscall.SIGKILL); err != nil {
		m.t.Fatalf("kill the daemon (pid %d): %v", m.PID, err)
	}
	Eventually(m.t, time.Minute, func() error {
		if running(m.PID) {
			return fmt.Errorf("the daemon (pid %d) still runs after SIGKILL", m.PID)
		}
		return nil
	})
}

// Clear takes a mount away whose daemon was killed, as a user does.
func (m *Mount) Clear() {
	m.t.Helper()
	r := Try(m.t, Varve(), "umount", m.Point)
	if r.Code != 0 || !strings.Contains(r.Stderr, "its daemon was gone before") {
		m.t.Fatalf("varve umount of a dead mount: exit code %d, says %q", r.Code, r.Stderr)
	}
	m.gone = true
	if err := os.Remove(m.Point); err != nil {
		m.t.Error(err)
	}
}

// Mend mounts a disk whose daemon was killed again, at the same place, where the
// dead mount still is.
func (m *Mount) Mend() *Mount {
	m.t.Helper()
	r := Try(m.t, Varve(), "mount", m.Disk, m.Point)
	if r.Code != 0 || !strings.Contains(r.Stderr, "was a mount of this disk whose daemon was gone; unmounted it") {
		m.t.Fatalf("varve mount over a dead mount: exit code %d, says %q", r.Code, r.Stderr)
	}
	m.gone = true
	return mounted(m.t, m.Point)
}

// Manifest is what the tests need of chain.json, read without varve: of a disk
// whose daemon was killed nothing else tells the truth.
type Manifest struct {
	Leaf   string          `json:"leaf"`
	Layers []ManifestLayer `json:"layers"`
	Job    *ManifestJob    `json:"job"`
}

// ManifestLayer is a layer in chain.json.
type ManifestLayer struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Format  string `json:"format"`
	File    string `json:"file"`
	Foreign bool   `json:"foreign"`
}

// ManifestJob is the job that chain.json records.
type ManifestJob struct {
	ID        string `json:"id"`
	Kind      string `json:"kind"`
	Direction string `json:"direction"`
	Into      string `json:"into"`
}

// ReadManifest reads chain.json; the files' paths become absolute.
func ReadManifest(t testing.TB, disk string) Manifest {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(disk, "chain.json"))
	if err != nil {
		t.Fatal(err)
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatalf("parse chain.json of %s: %v", disk, err)
	}
	for i := range m.Layers {
		if l := &m.Layers[i]; !filepath.IsAbs(l.File) {
			l.File = filepath.Join(disk, l.File)
		}
	}
	return m
}
