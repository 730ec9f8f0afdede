package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/chain/manifest"
	"varve/integration/patience"
	"varve/integration/powercut"
	"varve/overlay"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// hangLimit is far above what any input takes.
var hangLimit = patience.Hang

// Files of the hostile disks, in memory.
const (
	hostileDir  = "/home/vm.varve"
	hostileBase = "/images/base.raw"
	hostileTop  = "/images/top.qcow2"
	hostileSize = 20<<20 + 512
)

// settled gives a host of its own with the same files, all durable.
func settled(h *powercut.Host) *powercut.Host {
	c := h.Clone()
	c.Settle()
	return c
}

// content is the file at a path.
func content(tb testing.TB, fs hostfs.FS, path string) []byte {
	tb.Helper()
	f, err := fs.Open(path, os.O_RDONLY, 0)
	must(tb, err)
	defer f.Close()
	info, err := f.Stat()
	must(tb, err)
	p := make([]byte, info.Size)
	if _, err := f.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
		tb.Fatal(err)
	}
	return p
}

// putFile gives a file another content.
func putFile(tb testing.TB, h *powercut.Host, path string, data []byte) {
	tb.Helper()
	f, err := h.Open(path, os.O_RDWR, 0)
	must(tb, err)
	must(tb, f.Truncate(int64(len(data))))
	_, err = f.WriteAt(data, 0)
	must(tb, err)
	must(tb, f.Close())
	h.Settle()
}

// hostileDisks are disks on a chain of two foreign images: one that was closed,
// one that was killed, one with a job to go on with.
func hostileDisks(tb testing.TB) []*powercut.Host {
	tb.Helper()
	do := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	fs := powercut.NewHost("/home", "/images")
	base, err := fs.Open(hostileBase, os.O_RDWR|os.O_CREATE, 0)
	do(err)
	_, err = base.WriteAt([]byte(strings.Repeat("the base\n", 10000)), 0)
	do(errors.Join(err, base.Truncate(hostileSize)))
	do(overlay.Create(fs, hostileTop, overlay.CreateOptions{Size: hostileSize, Backing: hostileBase, BackingFormat: formatRaw}))
	top, err := overlay.OpenOverlay(fs, hostileTop, overlay.OverlayOptions{})
	do(err)
	do(top.WriteAt([]byte(strings.Repeat("the top\n", 1000)), 8192, nil))
	do(errors.Join(top.Settle(), top.Close()))
	_, err = Create(hostileDir, CreateOptions{FS: fs, Base: hostileTop})
	do(err)

	d, err := Open(hostileDir, OpenOptions{FS: fs, HoldJob: true})
	do(err)
	write := func(text string, off int64) { do(d.WriteAt([]byte(strings.Repeat(text, 1000)), off)) }
	write("one\n", 4096)
	do(d.Snapshot("one"))
	write("two\n", 0)
	do(d.Snapshot("two"))
	write("aside\n", 64<<10)
	do(d.Revert("one"))
	write("leaf\n", hostileSize-8192)
	do(d.Snapshot("three"))
	write("last\n", 1<<20)
	do(d.Flush())
	killed := settled(fs)
	_, err = d.Delete("three")
	do(err)
	withJob := settled(fs)
	do(d.Close())
	closed := settled(killed)
	d, err = Open(hostileDir, OpenOptions{FS: closed})
	do(err)
	do(d.Close())
	return []*powercut.Host{closed, killed, withJob}
}

// guardedFS fails the test when anything is opened that chain.json does not
// name, anything foreign for writing, or anything outside the disk is changed.
type guardedFS struct {
	*powercut.Host
	t       *testing.T
	foreign []string
}

func (w *guardedFS) ours(path string) bool {
	return path == hostileDir || strings.HasPrefix(path, hostileDir+"/")
}

func (w *guardedFS) Open(path string, flag int, perm os.FileMode) (hostfs.File, error) {
	switch {
	case slices.Contains(w.foreign, path) && !w.ours(path):
		if flag != os.O_RDONLY {
			w.t.Errorf("%s is opened with flags 0x%x", path, flag)
		}
	case w.ours(path):
		relative := strings.TrimPrefix(path, hostileDir+"/")
		_, layer := manifest.LayerFileNumber(relative)
		if !layer && relative != manifest.FileName && relative != manifest.TempName && relative != reserveName {
			w.t.Errorf("%s is opened", path)
		}
	default:
		w.t.Errorf("%s is opened, which nothing names", path)
	}
	return w.Host.Open(path, flag, perm)
}

func (w *guardedFS) Remove(path string) error {
	if !w.ours(path) {
		w.t.Errorf("%s is removed", path)
	}
	return w.Host.Remove(path)
}

func (w *guardedFS) Rename(from, to string) error {
	if !w.ours(from) || !w.ours(to) {
		w.t.Errorf("%s is renamed to %s", from, to)
	}
	return w.Host.Rename(from, to)
}

// hostileValues are what a value of chain.json is changed to.
var hostileValues = []any{
	nil, true, false, "", "base", "leaf", "000001", "000002", "000003", "000004", "000005", "999999", "000000", "x",
	0, 1, -1, 7, 100, 1 << 20, 1 << 53, 1e300, "raw", "qcow2", "vmdk",
	"layers/000001.qcow2", "layers/000003.qcow2", "layers/000004.qcow2", "layers/000099.qcow2", "layers/../chain.json", "layers/", "../base.raw",
	hostileBase, hostileTop, "/etc/shadow", "/images/../images/base.raw", hostileDir + "/layers/000003.qcow2", "json:{}", "nbd:localhost:1",
	"delete", "flatten", "merge", "up", "down", "2026-11-22T18:30:00Z", "9999-12-31T23:59:59-23:59",
	[]any{}, map[string]any{}, []any{nil}, []any{"layers/000003.qcow2"}, []any{"layers/000003.qcow2", "layers/000003.qcow2"},
	strings.Repeat("n", 1024), "two words", "\u00e4", "a\nb",
}

// changeJSON changes values of a JSON document as a script says: which value,
// counted through the whole document, and what to. 0xff takes it away.
func changeJSON(data, script []byte) []byte {
	for ; len(script) >= 3; script = script[3:] {
		var document any
		if json.Unmarshal(data, &document) != nil {
			return data
		}
		left := int(script[0])<<8 | int(script[1])
		count := countValues(document)
		left %= count
		document = setValue(document, &left, script[2])
		changed, err := json.Marshal(document)
		if err != nil {
			return data
		}
		data = changed
	}
	return data
}

func countValues(v any) int {
	n := 1
	switch v := v.(type) {
	case map[string]any:
		for _, child := range v {
			n += countValues(child)
		}
	case []any:
		for _, child := range v {
			n += countValues(child)
		}
	}
	return n
}

func setValue(v any, left *int, to byte) any {
	if *left == 0 {
		*left = -1
		return hostileValues[int(to)%len(hostileValues)]
	}
	*left--
	switch v := v.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			if here := *left == 0; here && to == 0xff {
				*left = -1
				delete(v, name)
			} else if *left >= 0 {
				v[name] = setValue(v[name], left, to)
			}
		}
	case []any:
		for i := range v {
			if *left >= 0 {
				v[i] = setValue(v[i], left, to)
			}
		}
	}
	return v
}

// FuzzOpenDisk opens disks whose chain.json is any text, or a right one with
// values changed, and whose layers are damaged: pairs of a place and a byte in
// the file of one layer. Nothing is opened that chain.json does not name,
// nothing foreign is written; what opens can be read, written, closed, and
// opened again.
func FuzzOpenDisk(f *testing.F) {
	disks := hostileDisks(f)
	for which := range byte(len(disks)) {
		for mode := range byte(4) {
			f.Add(which, mode, []byte{}, []byte{}, byte(0), []byte{})
		}
		for value := range byte(len(hostileValues)) {
			f.Add(which, value%4, []byte{}, []byte{0, value * 7, value, 0, value, value + 1}, byte(0), []byte{})
		}
		for layer := range byte(6) {
			f.Add(which, layer%2, []byte{}, []byte{}, layer, []byte{0, 0, 8, 0xff, 0x80, 0, 0, 1})
		}
	}
	for place := range byte(140) {
		for value, v := range hostileValues {
			if v == "../base.raw" || v == hostileBase || v == true {
				f.Add(byte(0), byte(0), []byte{}, []byte{0, place, byte(value)}, byte(0), []byte{})
			}
		}
	}
	data, err := os.ReadFile("manifest/testdata/chain.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(byte(0), byte(0), data, []byte{}, byte(0), []byte{})
	f.Add(byte(0), byte(0), []byte(`{"version":1,"layers":[null]}`), []byte{}, byte(0), []byte{})
	f.Fuzz(func(t *testing.T, which, mode byte, text, script []byte, layer byte, damage []byte) {
		if len(script) > 60 || len(damage) > 200 || len(text) > 64<<10 {
			return
		}
		timer := time.AfterFunc(hangLimit, func() { panic("hang: this input takes more than " + hangLimit.String()) })
		defer timer.Stop()
		host := settled(disks[int(which)%len(disks)])
		path := filepath.Join(hostileDir, manifest.FileName)
		if len(text) == 0 {
			text = content(t, host, path)
		}
		text = changeJSON(text, script)
		putFile(t, host, path, text)
		if files, _ := host.ReadDir(filepath.Join(hostileDir, manifest.LayersDir)); len(damage) >= 4 {
			file := filepath.Join(hostileDir, manifest.LayersDir, files[int(layer)%len(files)])
			content := content(t, host, file)
			for ; len(damage) >= 4; damage = damage[4:] {
				// Tables stand at the start of clusters: whole clusters, then
				// some bytes.
				at := int(damage[0])*len(content)/256&^(1<<14-1) + int(damage[1])<<8 + int(damage[2])
				if at < len(content) {
					content[at] ^= damage[3]
				}
			}
			putFile(t, host, file, content)
		}
		openHostile(t, host, text, mode&1 != 0, mode&2 != 0)
	})
}

func openHostile(t *testing.T, host *powercut.Host, text []byte, readOnly, holdJob bool) {
	t.Helper()
	fs := &guardedFS{Host: host, t: t}
	m, parseErr := manifest.Parse(text)
	if parseErr == nil {
		for _, l := range m.Layers {
			if l.Foreign {
				fs.foreign = append(fs.foreign, l.File)
			}
		}
	}
	before := host.Versions()
	judge := func(what string, ours bool) {
		t.Helper()
		after := host.Versions()
		for path, version := range before {
			if (ours || !fs.ours(path)) && after[path] != version {
				t.Errorf("%s: %s was changed", what, path)
			}
		}
	}
	examined, err := Examine(context.Background(), hostileDir, fs)
	if err != nil {
		t.Fatalf("examine: %v", err)
	}
	if corrupt := strings.Contains(troubleLines(examined), "problem chain-json"); corrupt != (parseErr != nil) {
		t.Errorf("chain.json: %v, examined:\n%s", parseErr, troubleLines(examined))
	}
	judge("examine", true)
	o := OpenOptions{FS: fs, ReadOnly: readOnly, HoldJob: holdJob, CacheBytes: 1 << 20}
	d, err := Open(hostileDir, o)
	defer judge("in the end", false)
	if err == nil && parseErr != nil {
		t.Fatalf("opened, but chain.json is refused: %v", parseErr)
	}
	if err != nil {
		if d != nil {
			t.Error("a disk and an error")
		}
		return
	}
	look(t, d)
	if !readOnly {
		hostileWork(t, d)
	}
	if err := d.Close(); err != nil {
		if !damaged(err) {
			t.Fatalf("close: %v", err)
		}
		return
	}
	if readOnly {
		judge("read-only", true)
		return
	}
	d, err = Open(hostileDir, o)
	if err != nil {
		if !damaged(err) {
			t.Fatalf("it was closed in order and cannot be opened again: %v", err)
		}
		return
	}
	look(t, d)
	if err := d.Close(); err != nil && !damaged(err) {
		t.Fatalf("close: %v", err)
	}
}

// damaged says whether an error is one that a damaged layer may cause at any
// time.
func damaged(err error) bool {
	return errors.Is(err, qcow2.ErrCorrupt) || errors.Is(err, overlay.ErrNotPlain) || errors.Is(err, overlay.ErrFailed)
}

// look reads some of all views.
func look(t *testing.T, d *Disk) {
	t.Helper()
	if _, err := d.Status(); err != nil && !damaged(err) {
		t.Fatalf("status: %v", err)
	}
	p := make([]byte, 128<<10)
	read := func(what string, size int64, read func(p []byte, off int64) error) {
		for _, off := range []int64{0, 1 << 20, size - int64(len(p))} {
			if off < 0 || off+int64(len(p)) > size {
				continue
			}
			if err := read(p, off); err != nil && !damaged(err) {
				t.Fatalf("read %s at %d: %v", what, off, err)
			}
		}
	}
	read("the disk", d.Size(), d.ReadAt)
	for _, l := range d.Layers() {
		if l.State == "leaf" {
			continue
		}
		v, err := d.OpenView(context.Background(), l.ID, Opener{})
		if err != nil {
			continue // it was deleted
		}
		read("layer "+l.ID, v.Size(), v.ReadAt)
		v.Close()
	}
}

// hostileWork writes and takes a snapshot.
func hostileWork(t *testing.T, d *Disk) {
	t.Helper()
	fine := func(what string, err error) bool {
		t.Helper()
		if err != nil && !damaged(err) && !errors.Is(err, ErrBusy) && !errors.Is(err, ErrExist) && !errors.Is(err, ErrInvalid) {
			t.Fatalf("%s: %v", what, err)
		}
		return err == nil
	}
	mark := []byte(fmt.Sprintf("%-512s", "written"))
	if d.Size() < 512 || !fine("write", d.WriteAt(mark, 0)) || !fine("flush", d.Flush()) {
		return
	}
	got := make([]byte, 512)
	if fine("read", d.ReadAt(got, 0)) && string(got) != string(mark) {
		t.Fatalf("it reads %.20q, %.20q was written", got, mark)
	}
	fine("snapshot", d.Snapshot("hostile"))
	fine("read", d.ReadAt(got, 0))
}
