package manifest

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/refusal"
	"varve/integration/faulty"
	"varve/overlay/hostfs"
)

// testDigest is a digest that a fingerprint may have.
var testDigest = digestPrefix + strings.Repeat("0a", 32)

// testManifest is a disk on a foreign base with a snapshot, a branch that a
// revert set aside, and a leaf.
func testManifest() *Manifest {
	at := time.Date(2026, 11, 22, 18, 30, 0, 123456789, time.UTC)
	print := func() *Fingerprint {
		return &Fingerprint{Size: 10, ModTime: 20, Digest: testDigest, Inode: 1<<64 - 1, Device: 40}
	}
	return &Manifest{
		Version: 1, Next: 6, Leaf: "000004", SetAside: "000003", Base: "000001", Modified: at, NextJob: 2,
		Layers: []*Layer{
			{ID: "000001", Name: "base", Format: "raw", File: "/images/ubuntu <1> & ü.raw", Foreign: true, Created: at, Frozen: at, Size: 10, Fingerprint: print()},
			{ID: "000002", Name: "one", Parent: "000001", Format: "qcow2", File: "layers/000002.qcow2", Created: at, Frozen: at, Size: 512, Fingerprint: print()},
			{ID: "000003", Parent: "000002", Format: "qcow2", File: "layers/000005.qcow2", Created: at, Frozen: at, Size: 512, Writing: true},
			{ID: "000004", Parent: "000002", Format: "qcow2", File: "layers/000004.qcow2", Created: at},
		},
		Job: &Job{ID: "1", Kind: DeleteJob, Layer: "000003", Into: "000002", Direction: Down},
	}
}

func TestManifestRoundTrip(t *testing.T) {
	for _, m := range []*Manifest{testManifest(), {
		Version: 1, Next: 2, Leaf: "000001", BlankSize: 1 << 30, NextJob: 1,
		Layers: []*Layer{{ID: "000001", Format: "qcow2", File: "layers/000001.qcow2"}},
	}} {
		data, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(data)
		if err != nil {
			t.Fatalf("%v\n%s", err, data)
		}
		if !reflect.DeepEqual(got, m) {
			t.Errorf("read back\n%+v\nwritten\n%+v\n%s", got, m, data)
		}
	}
}

// TestManifestBytes: what is written is, byte for byte, what earlier versions wrote.
func TestManifestBytes(t *testing.T) {
	want, err := os.ReadFile("testdata/chain.json")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := testManifest().encode(); err != nil || string(got) != string(want) {
		t.Errorf("%v, written\n%s\nnot\n%s", err, got, want)
	}
}

// TestManifestText holds what other programs and people rely on: a parent of
// null at the bottom, names in snake case, one field a line.
func TestManifestText(t *testing.T) {
	data, err := testManifest().encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"\n  \"set_aside\": \"000003\",\n", "\n      \"parent\": null,\n", "\n      \"parent\": \"000001\",\n",
		"\n      \"file\": \"/images/ubuntu <1> & ü.raw\",\n", "\n        \"mtime_ns\": 20,\n",
		"\n      \"frozen\": null,\n", "\"modified\": \"2026-11-22T18:30:00.123456789Z\"",
	} {
		if !strings.Contains(string(data), line) {
			t.Errorf("no %q in\n%s", line, data)
		}
	}
}

func TestManifestKeepsUnknownFields(t *testing.T) {
	data, err := testManifest().encode()
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for _, place := range []string{"{\n  \"version\"", "    {\n      \"id\": \"000002\"", "{\n        \"size\": 10", "{\n    \"id\": \"1\""} {
		unknown := `{ "LEAF": 12345678901234567890123, "held": {"by": ["<a>", null]}, `
		if !strings.Contains(text, place) {
			t.Fatalf("no %q in\n%s", place, text)
		}
		text = strings.Replace(text, place, unknown+place[strings.IndexByte(place, '{')+1:], 1)
	}
	m, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if m.Leaf != "000004" {
		t.Errorf("the unknown field LEAF was taken for the leaf: %q", m.Leaf)
	}
	again, err := m.Copy().encode()
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(again), "12345678901234567890123"); n != 4 {
		t.Errorf("%d of 4 unknown numbers kept:\n%s", n, again)
	}
	var want, got any
	if err := errors.Join(json.Unmarshal([]byte(text), &want), json.Unmarshal(again, &got)); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("rewritten as\n%s\nread from\n%s", again, text)
	}
}

func TestManifestRefusesNewerVersion(t *testing.T) {
	_, err := Parse([]byte(`{"version": 2, "layers": {"not": "a list"}}`))
	if !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("got %v", err)
	}
}

func TestManifestFaults(t *testing.T) {
	tests := []struct {
		fault string // what the line says
		edit  func(m *Manifest)
	}{
		{"version 0", func(m *Manifest) { m.Version = 0 }},
		{"next number 0", func(m *Manifest) { m.Next = 0 }},
		{"next job number -1", func(m *Manifest) { m.NextJob = -1 }},
		{"a layer is null", func(m *Manifest) { m.Layers[1] = nil }},
		{`"2" is no layer id`, func(m *Manifest) { m.Layers[1].ID = "2" }},
		{`"0000002" is no layer id`, func(m *Manifest) { m.Layers[1].ID = "0000002" }},
		{`"000000" is no layer id`, func(m *Manifest) { m.Layers[1].ID = "000000" }},
		{"000002 is not below the next number", func(m *Manifest) { m.Next = 2 }},
		{"000002 is listed twice", func(m *Manifest) { m.Layers[2].ID = "000002" }},
		{"same name", func(m *Manifest) { m.Layers[2].Name, m.SetAside = "one", "" }},
		{"same file", func(m *Manifest) { m.Layers[2].File = m.Layers[1].File }},
		{`stands on layer "000009"`, func(m *Manifest) { m.Layers[2].Parent = "000009" }},
		{"stands on itself", func(m *Manifest) { m.Layers[2].Parent = "000003" }},
		{"stands on itself", func(m *Manifest) { m.Layers[1].Parent, m.Layers[2].Parent = "000003", "000002" }},
		{`the leaf "000009" is not there`, func(m *Manifest) { m.Leaf = "000009" }},
		{"the leaf 000001 is a foreign file", func(m *Manifest) { m.Leaf = "000001" }},
		{"the leaf 000002 has a name", func(m *Manifest) { m.Leaf = "000002" }},
		{"stands on the leaf 000004", func(m *Manifest) { m.Layers[2].Parent = "000004" }},
		{"set aside, \"000009\", is not there", func(m *Manifest) { m.SetAside = "000009" }},
		{"also the one that was set aside", func(m *Manifest) { m.SetAside = "000004" }},
		{"set aside, 000002, has a name", func(m *Manifest) { m.SetAside = "000002" }},
		{"a blank disk of 0 bytes", func(m *Manifest) { m.Base = "" }},
		{"is foreign, but there is no base", func(m *Manifest) { m.Base, m.BlankSize = "", 1 }},
		{`the base "000009"`, func(m *Manifest) { m.Base = "000009" }},
		{"the base 000002 is not foreign", func(m *Manifest) { m.Base = "000002" }},
		{"the base 000001 stands on layer", func(m *Manifest) {
			m.Layers[0].Parent, m.Layers[0].Format = "000004", "qcow2"
			m.Leaf, m.Layers[1].Parent = "000003", ""
			m.SetAside = ""
		}},
		{`the base 000001 has the name "ubuntu"`, func(m *Manifest) { m.Layers[0].Name = "ubuntu" }},
		{"but also a base", func(m *Manifest) { m.BlankSize = 1 }},
		{`the name "leaf" is taken`, func(m *Manifest) { m.Layers[1].Name = "leaf" }},
		{`the name "a/b"`, func(m *Manifest) { m.Layers[1].Name = "a/b" }},
		{`unknown format "vmdk"`, func(m *Manifest) { m.Layers[0].Format = "vmdk" }},
		{"a size of -1", func(m *Manifest) { m.Layers[1].Size = -1 }},
		{"a raw file cannot stand", func(m *Manifest) {
			m.Layers[1].Format, m.Layers[1].Foreign, m.Layers[1].File = "raw", true, "/x"
		}},
		{"a foreign file stands on the disk's own", func(m *Manifest) {
			m.SetAside = ""
			m.Layers[2].Foreign, m.Layers[2].File, m.Layers[2].Fingerprint, m.Layers[2].Writing = true, "/x", m.Layers[1].Fingerprint, false
		}},
		{"a foreign bottom that is not the base", func(m *Manifest) {
			m.Layers[1].Foreign, m.Layers[1].File, m.Layers[1].Parent = true, "/x", ""
		}},
		{"marked as being written", func(m *Manifest) { m.Layers[0].Writing = true }},
		{"no absolute path", func(m *Manifest) { m.Layers[0].File = "x.raw" }},
		{"a line break", func(m *Manifest) { m.Layers[0].File = "/a\nb" }},
		{"a qcow2 header holds", func(m *Manifest) { m.Layers[0].File = "/" + strings.Repeat("x", maxNameLength) }},
		{"not one of layers/", func(m *Manifest) { m.Layers[1].File = "layers/../../x.qcow2" }},
		{"not one of layers/", func(m *Manifest) { m.Layers[1].File = "/layers/000002.qcow2" }},
		{"not one of layers/", func(m *Manifest) { m.Layers[1].File = "layers/00000002.qcow2" }},
		{"layers/000006.qcow2 is not below", func(m *Manifest) { m.Layers[1].File = "layers/000006.qcow2" }},
		{"has the format raw", func(m *Manifest) { m.Layers[1].Format, m.Layers[1].Parent = "raw", "" }},
		{"without a fingerprint", func(m *Manifest) { m.Layers[1].Fingerprint = nil }},
		{"with the digest", func(m *Manifest) { m.Layers[1].Fingerprint.Digest = "md5:00" }},
		{"with the digest", func(m *Manifest) { m.Layers[1].Fingerprint.Digest = digestPrefix + strings.Repeat("x", 64) }},
		{"fingerprint with a size", func(m *Manifest) { m.Layers[1].Fingerprint.Size = -1 }},
		{"a job without an id", func(m *Manifest) { m.Job.ID = "" }},
		{`unknown kind "sweep"`, func(m *Manifest) { m.Job.Kind = "sweep" }},
		{`unknown kind ""`, func(m *Manifest) { m.Job.Kind = "" }},
		{`unknown direction "left"`, func(m *Manifest) { m.Job.Direction = "left" }},
		{`about layer "000009"`, func(m *Manifest) { m.Job.Layer = "000009" }},
		{`writes layer "000009"`, func(m *Manifest) { m.Job.Into = "000009" }},
		{"writes the foreign layer", func(m *Manifest) { m.Job.Into = "000001" }},
	}
	if err := testManifest().validate(); err != nil {
		t.Fatal(err)
	}
	for _, test := range tests {
		m := testManifest()
		test.edit(m)
		err := m.validate()
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), test.fault) || strings.Contains(err.Error(), "\n") {
			t.Errorf("want %q, got %v", test.fault, err)
		}
		if m.Layers[1] == nil {
			continue
		}
		if err := m.Commit(hostfs.OS(), t.TempDir()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%q was committed: %v", test.fault, err)
		}
	}
}

func TestManifestRefusesWhatIsNoJSON(t *testing.T) {
	for _, text := range []string{"", "null", "[]", "{", `{"version": "1"}`, `{"version": 1, "layers": [null]}`,
		`{"version": 1, "modified": "9999-12-31T23:59:59-01:00"}`, strings.Repeat("[", 20000)} {
		if _, err := Parse([]byte(text)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%.40q: %v", text, err)
		}
	}
}

func TestManifestCloneIsDeep(t *testing.T) {
	m := testManifest()
	m.extra = extraFields{"a": json.RawMessage("1")}
	m.Layers[1].extra = extraFields{"a": json.RawMessage("1")}
	m.Layers[1].Fingerprint.extra = extraFields{"a": json.RawMessage("1")}
	m.Job.extra = extraFields{"a": json.RawMessage("1")}
	before, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	c := m.Copy()
	c.Layers[1].Name, c.Layers[1].Fingerprint.Size, c.Job.Kind = "other", 99, FlattenJob
	for _, extra := range []extraFields{c.extra, c.Layers[1].extra, c.Layers[1].Fingerprint.extra, c.Job.extra} {
		extra["a"] = json.RawMessage("2")
	}
	c.Add(&Layer{ID: LayerID(c.NewNumber())})
	c.Remove("000001")
	after, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	if string(after) != string(before) {
		t.Errorf("a change of the clone is seen in the original:\n%s", after)
	}
}

func TestManifestTree(t *testing.T) {
	m := testManifest()
	ids := func(layers []*Layer) string {
		var list []string
		for _, l := range layers {
			list = append(list, l.ID[5:])
		}
		return strings.Join(list, " ")
	}
	for _, test := range []struct{ what, got, want string }{
		{"chain of the leaf", ids(m.Chain("000004")), "4 2 1"},
		{"chain of nothing", ids(m.Chain("000009")), ""},
		{"children of one", ids(m.Children("000002")), "3 4"},
		{"bottoms", ids(m.Children("")), "1"},
		{"above base", ids(m.Above("000001")), "2 3 4"},
		{"above the leaf", ids(m.Above("000004")), ""},
	} {
		if test.got != test.want {
			t.Errorf("%s: %q, want %q", test.what, test.got, test.want)
		}
	}
	if l := m.ByName("one"); l == nil || l.ID != "000002" {
		t.Errorf("byName one: %v", l)
	}
	if l := m.ByName(""); l != nil {
		t.Errorf("the empty name is layer %s", l.ID)
	}
	m.Layers[1].Parent = "000003" // a loop, which validate would refuse
	if n := len(m.Chain("000004")); n != len(m.Layers) {
		t.Errorf("the chain of a loop has %d layers", n)
	}
}

func TestLayerFileNumber(t *testing.T) {
	for name, want := range map[string]int{
		"layers/000001.qcow2": 1, "layers/999999.qcow2": 999999, "layers/1000000.qcow2": 1000000,
		"layers/000000.qcow2": 0, "layers/0000001.qcow2": 0, "layers/1.qcow2": 0, "000001.qcow2": 0,
		"layers/-00001.qcow2": 0, "layers/000001.raw": 0, "layers/000001.qcow2~": 0, "layers/9999999999.qcow2": 0,
	} {
		if number, ok := LayerFileNumber(name); ok != (want > 0) || ok && number != want {
			t.Errorf("%s: %d, %v", name, number, ok)
		}
	}
}

func TestCommitAndLoad(t *testing.T) {
	defer unix.Umask(unix.Umask(0o777))
	unix.Umask(0)
	dir := t.TempDir()
	fs := hostfs.OS()
	if _, err := Load(fs, dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without chain.json: %v", err)
	}
	// A crash left this; it must neither stop nor enter the commit.
	stale := filepath.Join(dir, TempName)
	if err := os.WriteFile(stale, []byte(strings.Repeat("stale", 10000)), 0o444); err != nil {
		t.Fatal(err)
	}
	unix.Umask(0o777)
	m := testManifest()
	for range 2 {
		if err := m.Commit(fs, dir); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, FileName)); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := os.Stat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary file is still there: %v", err)
	}
	got, err := Load(fs, dir)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, m) {
		t.Errorf("read back %+v", got)
	}
	if err := os.Truncate(filepath.Join(dir, FileName), maxBytes+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(fs, dir); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("a huge chain.json: %v", err)
	}
}

func TestCommitRefusesWhatCannotBeReadAgain(t *testing.T) {
	m := testManifest()
	m.extra = extraFields{"big": json.RawMessage(`"` + strings.Repeat("x", maxBytes) + `"`)}
	if err := m.Commit(hostfs.OS(), t.TempDir()); !errors.Is(err, refusal.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

// TestCommitFaults fails each host call of a commit in turn: chain.json is the
// old one, or the error says that this is unknown; the next commit works.
func TestCommitFaults(t *testing.T) {
	for at := 1; ; at++ {
		dir := t.TempDir()
		host := hostfs.OS()
		old := testManifest()
		if err := old.Commit(host, dir); err != nil {
			t.Fatal(err)
		}
		edited := old.Copy()
		edited.Layers[1].Name = "renamed"
		fs := &faulty.FS{FS: host, FailAt: at}
		err := edited.Commit(fs, dir)
		if fs.Failed == "" {
			if err != nil {
				t.Fatal(err)
			}
			if at < 6 {
				t.Fatalf("a commit is only %d calls", at-1)
			}
			return
		}
		if err == nil && fs.Failed != "remove" { // there is no stale file to remove
			t.Errorf("a failed %s (call %d) was swallowed", fs.Failed, at)
		}
		got, loadErr := Load(host, dir)
		if loadErr != nil {
			t.Fatal(loadErr)
		}
		renamed := got.ByName("renamed") != nil
		if unknown := errors.Is(err, ErrUnknown); renamed && !unknown || unknown != (fs.Failed == "syncdir") {
			t.Errorf("after a failed %s chain.json is the new one: %v, and the error %v", fs.Failed, renamed, err)
		}
		if err := edited.Commit(host, dir); err != nil {
			t.Errorf("after a failed %s: %v", fs.Failed, err)
		}
	}
}

// TestCommitRenameUnknown: where a rename fails but has happened, as network
// file systems can do, the error must not claim that chain.json is the old one.
func TestCommitRenameUnknown(t *testing.T) {
	fs := &faulty.FS{FS: hostfs.OS(), FailAfterRename: true}
	if err := testManifest().Commit(fs, t.TempDir()); !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v", err)
	}
}

func FuzzParseManifest(f *testing.F) {
	data, err := testManifest().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"version":1,"next":2,"leaf":"000001","blank_size":4096,"layers":[{"id":"000001","format":"qcow2","file":"layers/000001.qcow2","x":{"<":[1e999]}}]}`))
	f.Add([]byte(`{"version":1,"next":2,"leaf":"000001","blank_size":9223372036854775807,"layers":[{"id":"000001","format":"qcow2","file":"layers/000001.qcow2","size":9223372036854775807}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{"version":1,"layers":[null]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse(data)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewer) {
				t.Fatalf("neither corrupt nor newer: %v", err)
			}
			return
		}
		for _, l := range m.Layers {
			m.Chain(l.ID)
			if number, ok := LayerFileNumber(l.File); !l.Foreign && (!ok || number >= m.Next) {
				t.Fatalf("%q is outside the disk directory", l.File)
			}
		}
		first, err := m.Copy().encode()
		if err != nil {
			t.Fatalf("cannot be written again: %v", err)
		}
		again, err := Parse(first)
		if err != nil {
			t.Fatalf("cannot be read again: %v\n%s", err, first)
		}
		second, err := again.encode()
		if err != nil {
			t.Fatal(err)
		}
		if string(second) != string(first) {
			t.Fatalf("written as\n%s\nthen as\n%s", first, second)
		}
	})
}

// What a chain.json is decoded to is bounded as its length is: a list of 16 MiB can have
// millions of objects, each of which becomes hundreds of bytes.
func TestManifestOfManyObjects(t *testing.T) {
	for _, one := range []string{"{}", "[]", "0", `""`} {
		text := `{"version":1,"layers":[` + strings.Repeat(one+",", (maxBytes-100)/(len(one)+1)) + one + `]}`
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Parse([]byte(text))
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; !errors.Is(err, ErrCorrupt) || took > 2*maxBytes {
			t.Errorf("%q: %d MiB, %v", one, took>>20, err)
		}
	}
}
