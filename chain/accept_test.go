package chain

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/dirlock"
	"varve/chain/manifest"
	"varve/integration/faulty"
	"varve/integration/imagetest"
	"varve/overlay"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// adopted makes a disk on a chain of two foreign images and a frozen layer of
// its own called one.
func adopted(t testing.TB) (dir string, m *manifest.Manifest) {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	rawImage(t, filepath.Join(root, "ubuntu.raw"), 4<<20)
	qcow2On(t, filepath.Join(root, "snap.qcow2"), "ubuntu.raw", "raw", 7)
	dir = filepath.Join(root, "vm1.varve")
	if _, err := Create(dir, CreateOptions{Base: filepath.Join(root, "snap.qcow2")}); err != nil {
		t.Fatal(err)
	}
	fs := hostfs.OS()
	m = mustLoad(t, dir)
	one := m.Layer(m.Leaf)
	one.Name, one.Frozen, one.Size = "one", time.Now().UTC(), 4<<20
	number := m.NewNumber()
	m.Leaf = manifest.LayerID(number)
	m.Add(&manifest.Layer{ID: m.Leaf, Parent: one.ID, Format: formatQcow2, File: manifest.LayerFile(number), Created: one.Frozen})
	err = overlay.Create(fs, m.Layer(m.Leaf).Path(dir), overlay.CreateOptions{Size: 4 << 20, Backing: "000003.qcow2", BackingFormat: formatQcow2})
	if err := errors.Join(err, m.Commit(fs, dir)); err != nil {
		t.Fatal(err)
	}
	return dir, m
}

func TestAccept(t *testing.T) {
	for _, layer := range []string{"base", "adopted", "one", "000001", "000003"} {
		t.Run(layer, func(t *testing.T) {
			dir, m := adopted(t)
			l := m.ByName(layer)
			if l == nil {
				l = m.Layer(layer)
			}
			text, err := json.Marshal(l.Fingerprint)
			must(t, err)
			must(t, json.Unmarshal([]byte(`{"note":"kept",`+string(text[1:])), l.Fingerprint))
			if err := m.Commit(hostfs.OS(), dir); err != nil {
				t.Fatal(err)
			}
			path := l.Path(dir)
			qemuTool(t, "qemu-io", "-f", l.Format, "-c", "write -P 0x77 1M 4k", path)
			state := fileState(t, path)
			changed := func() []string {
				m := mustLoad(t, dir)
				changes, _ := m.Layer(l.ID).Fingerprint.Compare(fingerprintAt(t, path, l.Format))
				return changes
			}
			if len(changed()) == 0 {
				t.Fatal("the change is not seen: this test shows nothing")
			}
			if err := Accept(dir, layer, OpenOptions{}); err != nil {
				t.Fatal(err)
			}
			if changes := changed(); len(changes) != 0 {
				t.Errorf("still changed: %q", changes)
			}
			if text, err := json.Marshal(mustLoad(t, dir).Layer(l.ID).Fingerprint); err != nil || !strings.Contains(string(text), `"note":"kept"`) {
				t.Error("an unknown field of the fingerprint is lost")
			}
			if now := fileState(t, path); now != state {
				t.Errorf("the file was changed: %s → %s", state, now)
			}
			if _, _, held, err := dirlock.Holder(dir); held || err != nil {
				t.Errorf("still locked: %v, %v", held, err)
			}
		})
	}
}

func TestAcceptTakesTheSize(t *testing.T) {
	dir, m := adopted(t)
	base := m.Layer(m.Base)
	if err := os.Truncate(base.File, 5<<20); err != nil {
		t.Fatal(err)
	}
	if err := Accept(dir, "base", OpenOptions{}); err != nil {
		t.Fatal(err)
	}
	if size := mustLoad(t, dir).Layer(m.Base).Size; size != 5<<20 {
		t.Errorf("%d guest bytes", size)
	}
}

func TestAcceptRefuses(t *testing.T) {
	fs := hostfs.OS()
	tests := []struct {
		what  string
		layer string
		o     OpenOptions
		edit  func(t *testing.T, dir string, m *manifest.Manifest)
		want  error
		line  string
	}{
		{what: "the leaf by id", layer: "000004", want: ErrInvalid, line: "the leaf"},
		{what: "the leaf", layer: "leaf", want: ErrInvalid, line: "the leaf"},
		{what: "no such layer", layer: "two", want: ErrNotExist, line: `"two"`},
		{what: "the empty name", layer: "", want: ErrNotExist, line: `""`},
		{what: "read-only", layer: "base", o: OpenOptions{ReadOnly: true}, want: ErrReadOnly},
		{what: "not settled", layer: "one", want: ErrBusy, line: "was not yet written to its end", edit: func(t *testing.T, dir string, m *manifest.Manifest) {
			m.ByName("one").Writing = true
			if err := m.Commit(fs, dir); err != nil {
				t.Fatal(err)
			}
		}},
		{what: "a missing file", layer: "base", want: os.ErrNotExist, line: "ubuntu.raw", edit: func(t *testing.T, dir string, m *manifest.Manifest) {
			if err := os.Remove(m.Layer(m.Base).File); err != nil {
				t.Fatal(err)
			}
		}},
		{what: "an empty file", layer: "base", want: ErrInvalid, line: "is empty", edit: func(t *testing.T, dir string, m *manifest.Manifest) {
			if err := os.Truncate(m.Layer(m.Base).File, 0); err != nil {
				t.Fatal(err)
			}
		}},
		{what: "a fifo", layer: "base", want: ErrInvalid, line: "neither a file", edit: func(t *testing.T, dir string, m *manifest.Manifest) {
			path := m.Layer(m.Base).File
			if err := errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)); err != nil {
				t.Fatal(err)
			}
		}},
		{what: "another backing file", layer: "adopted", want: ErrInvalid, line: "now stands on", edit: func(t *testing.T, dir string, m *manifest.Manifest) {
			qemuTool(t, "qemu-img", "rebase", "-u", "-b", "other.raw", "-F", "raw", m.ByName("adopted").File)
		}},
		{what: "no backing file any more", layer: "adopted", want: ErrInvalid, line: "now stands on", edit: func(t *testing.T, dir string, m *manifest.Manifest) {
			qemuTool(t, "qemu-img", "rebase", "-u", "-b", "", m.ByName("adopted").File)
		}},
		{what: "a truncated qcow2", layer: "adopted", want: qcow2.ErrCorrupt, line: "snap.qcow2", edit: func(t *testing.T, dir string, m *manifest.Manifest) {
			if err := os.Truncate(m.ByName("adopted").File, 100); err != nil {
				t.Fatal(err)
			}
		}},
		{what: "open for writing", layer: "base", want: hostfs.ErrLocked, line: "qemu-io", edit: func(t *testing.T, dir string, m *manifest.Manifest) {
			holdOpen(t, m.Layer(m.Base).File, formatRaw)
		}},
		{what: "mounted", layer: "base", want: ErrInUse, line: "has it mounted at /mnt/vm1", edit: func(t *testing.T, dir string, m *manifest.Manifest) {
			lock, err := lockDir(fs, dir, true, "/mnt/vm1", 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { lock.Unlock() })
		}},
	}
	for _, test := range tests {
		t.Run(test.what, func(t *testing.T) {
			dir, m := adopted(t)
			if test.edit != nil {
				test.edit(t, dir, m)
			}
			before := fileState(t, filepath.Join(dir, manifest.FileName))
			err := Accept(dir, test.layer, test.o)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.line) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v", err)
			}
			if now := fileState(t, filepath.Join(dir, manifest.FileName)); now != before {
				t.Error("chain.json was written")
			}
		})
	}
	dir := t.TempDir()
	if err := Accept(dir, "base", OpenOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no disk directory: %v", err)
	}
	if left := names(t, dir); len(left) != 0 {
		t.Errorf("a directory that is none of ours got %q", left)
	}
}

// TestAcceptFaults fails each host call in turn: the old fingerprint stays, or
// the error says that this is unknown.
func TestAcceptFaults(t *testing.T) {
	dir, m := adopted(t)
	before := m.Layer(m.Base).Fingerprint.Digest
	imagetest.PatchUnseen(t, m.Layer(m.Base).File, 0, []byte("changed"))
	for at := 1; ; at++ {
		fs := &faulty.FS{FS: hostfs.OS(), FailAt: at}
		err := Accept(dir, "base", OpenOptions{FS: fs})
		if fs.Failed == "" {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		taken := mustLoad(t, dir).Layer(m.Base).Fingerprint.Digest != before
		if taken != (err == nil) && !errors.Is(err, manifest.ErrUnknown) && fs.Failed != "close" {
			t.Errorf("call %d, a failed %s: taken %v, %v", at, fs.Failed, taken, err)
		}
		if err := m.Commit(hostfs.OS(), dir); err != nil {
			t.Fatal(err)
		}
	}
}
