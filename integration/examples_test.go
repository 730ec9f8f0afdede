package integration

import (
	"encoding/xml"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/integration/harness"
)

// TestExamples makes docs/tree.txt, docs/status.txt and docs/map.svg anew, by the
// commands that they show, and compares their form with what is there: what stands
// where, not how many bytes it is or when it was. With VARVE_EXAMPLES=write they are
// written instead.
func TestExamples(t *testing.T) {
	dir, err := os.MkdirTemp("", "examples-")
	if err != nil {
		t.Fatal(err)
	}
	m := exampleDisk(t, dir)
	shown := strings.NewReplacer(dir, "/srv", m.Point, "/mnt/vm1").Replace

	// A job that goes on for a while, to be seen. It hides nothing of the tree.
	tree := harness.Run(t, "env", "LC_ALL=C.UTF-8", harness.Varve(), "tree", m.Point)
	picture := harness.Run(t, harness.Varve(), "map", m.Point)
	m.Do("rate", "8M")
	m.Do("delete", "nightly-1")
	status := ""
	harness.Eventually(t, time.Minute, func() error {
		if status = harness.Run(t, "cat", m.Path("status")); !strings.Contains(status, " left") {
			return errors.New("no time is told:\n" + status)
		}
		return nil
	})
	m.Do("rate", "max")
	harness.Eventually(t, time.Minute, func() error {
		if job := m.Status().Job; job.State == "running" {
			return errors.New("the job goes on")
		}
		return nil
	})

	file := filepath.Join(dir, "map.svg")
	if err := os.WriteFile(file, []byte(picture), 0o600); err != nil {
		t.Fatal(err)
	}
	harness.Run(t, "xmllint", "--noout", file)
	if mounted, err := os.ReadFile(m.Path("map.svg")); err != nil || len(mounted) < 1000 {
		t.Errorf("map.svg in the mount: %d bytes, %v", len(mounted), err)
	}

	for name, example := range map[string]struct {
		text string
		form func(*testing.T, string) string
	}{
		"tree.txt":   {"$ varve tree /mnt/vm1\n" + shown(tree), textForm},
		"status.txt": {"$ cat /mnt/vm1/status\n" + shown(status), textForm},
		"map.svg":    {shown(picture), pictureForm},
	} {
		path := filepath.Join(harness.Checkout(t), "docs", name)
		if os.Getenv("VARVE_EXAMPLES") == "write" {
			if err := os.WriteFile(path, []byte(example.text), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		there, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := example.form(t, string(there)), example.form(t, example.text); got != want {
			t.Errorf("docs/%s has another form than the commands give now; VARVE_EXAMPLES=write makes it anew\ngot\n%s\nwant\n%s", name, got, want)
		}
	}
}

// exampleDisk is a disk after some weeks: a base, snapshots, a branch, and a leaf that a
// revert set aside. A program has it open.
func exampleDisk(t *testing.T, dir string) *harness.Mount {
	t.Helper()
	const size = 2 << 30
	base := filepath.Join(dir, "ubuntu.raw")
	f, err := os.Create(base)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	w := guestWrites{t, f, rand.New(rand.NewPCG(1, 2))}
	w.here(0, 48<<20, 1)
	w.here(48<<20, 420<<20, 0.85)
	w.here(900<<20, 1100<<20, 0.3)
	w.here(2000<<20, size, 0.2)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	m := harness.MountDisk(t, base)
	raw, err := os.OpenFile(m.Raw(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.f = raw
	w.here(420<<20, 460<<20, 0.6)
	w.here(1100<<20, 1140<<20, 0.5)
	m.Do("snapshot", "before-upgrade")
	w.here(60<<20, 300<<20, 0.12)
	w.here(460<<20, 580<<20, 0.7)
	w.discard(1000<<20, 60<<20)
	m.Do("snapshot", "after-upgrade")
	w.here(580<<20, 620<<20, 0.4)
	w.here(100<<20, 180<<20, 0.1)
	m.Do("snapshot", "try-nginx")
	w.here(620<<20, 640<<20, 0.5)
	w.close()
	m.Do("revert", "after-upgrade")
	raw, err = os.OpenFile(m.Raw(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.f = raw
	w.here(580<<20, 700<<20, 0.3)
	w.here(1140<<20, 1180<<20, 0.5)
	m.Do("snapshot", "nightly-1")
	w.here(600<<20, 720<<20, 0.2)
	w.here(1400<<20, 1440<<20, 0.5)
	m.Do("snapshot", "nightly-2")
	w.here(120<<20, 160<<20, 0.1)
	w.here(1420<<20, 1500<<20, 0.3)
	w.discard(640<<20, 40<<20)
	w.close()

	pid := filepath.Join(dir, "vm.pid")
	harness.Run(t, "qemu-system-x86_64", "-S", "-display", "none", "-daemonize", "-pidfile", pid,
		"-drive", "file="+m.Raw()+",format=raw,if=virtio")
	t.Cleanup(func() {
		harness.Shell(t, "pid=$(cat '"+pid+"'); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.05; done")
	})
	return m
}

// guestWrites writes as a guest's file system does: pieces here and there.
type guestWrites struct {
	t      *testing.T
	f      *os.File
	random *rand.Rand
}

// here writes about that share of a range.
func (w guestWrites) here(from, to int64, share float64) {
	w.t.Helper()
	const piece = 256 << 10
	data := make([]byte, piece)
	for i := range data {
		data[i] = byte(i*7 + 1)
	}
	for at := from; at < to; at += piece {
		if w.random.Float64() < share {
			if _, err := w.f.WriteAt(data, at); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

func (w guestWrites) discard(from, length int64) {
	w.t.Helper()
	if err := unix.Fallocate(int(w.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, length); err != nil {
		w.t.Fatal(err)
	}
}

func (w guestWrites) close() {
	w.t.Helper()
	if err := w.f.Sync(); err != nil {
		w.t.Fatal(err)
	}
	if err := w.f.Close(); err != nil {
		w.t.Fatal(err)
	}
}

// textForm is a table without its figures.
func textForm(_ *testing.T, text string) string {
	for _, figure := range []struct{ what, as string }{
		{`,\n {6}`, ", "}, // a long line about the job
		{`\d{4}-\d\d-\d\d \d\d:\d\d`, "WHEN"},
		{`~?[0-9.]+ ([KMG]iB|B)`, "SIZE"},
		{`(\d+ (d|h|min|s) )+left`, "TIME left"},
		{`\d+ %`, "N %"},
		{`\(SIZE of SIZE\)(, SIZE/s)?`, "(SIZE of SIZE)"},
		{`(?m)^(disk\.raw +)\d+`, "${1}PID"},
		{` +`, " "},
	} {
		text = regexp.MustCompile(figure.what).ReplaceAllString(text, figure.as)
	}
	return text
}

// pictureForm is which elements a picture has, and their words, without its figures and
// what is drawn with them.
func pictureForm(t *testing.T, picture string) string {
	t.Helper()
	var form strings.Builder
	d := xml.NewDecoder(strings.NewReader(picture))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return form.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		switch x := token.(type) {
		case xml.StartElement:
			if x.Name.Local != "path" {
				form.WriteString("<" + x.Name.Local + ">\n")
			}
		case xml.CharData:
			if words := strings.TrimSpace(textForm(t, string(x))); words != "" {
				form.WriteString(words + "\n")
			}
		}
	}
}
