package chain

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"varve/overlay/extent"
	"varve/overlay/hostfs"
)

// witness says what a test has it say.
type witness struct {
	formats []string          // of every file
	states  map[string]string // names of snapshots, by path
}

func (w witness) Formats(string) []Claim {
	var claims []Claim
	for _, format := range w.formats {
		claims = append(claims, Claim{Format: format, By: "libvirt's domain " + format})
	}
	return claims
}

func (w witness) States(files []string) (states []SnapshotState, notes []string) {
	for _, file := range files {
		s := SnapshotState{Name: w.states[file]}
		if s.Name != "" {
			s.By = "libvirt's snapshot " + s.Name
		}
		states = append(states, s)
	}
	return states, []string{"a note"}
}

// TestAdoptedNames: a layer is called after the snapshot whose state it is, and never after
// its file; what virsh knows as a snapshot and is the base is a snapshot too. qemu-img says
// that each of them is that state.
func TestAdoptedNames(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	at := func(name string) string { return filepath.Join(root, name) }
	qcow2On(t, at("vm.qcow2"), "", "", 1)
	qcow2On(t, at("vm.s1"), "vm.qcow2", "qcow2", 2)
	qcow2On(t, at("vm.s2"), "vm.s1", "qcow2", 3)
	qcow2On(t, at("vm.s3"), "vm.s2", "qcow2", 4)
	for n, test := range []struct {
		states map[string]string
		want   string // names and files, top first
		says   string
	}{
		{nil, "adopted vm.s3, layer-2 vm.s2, layer-1 vm.s1, base vm.qcow2", "no layer is called after its file"},
		{map[string]string{"vm.qcow2": "s1", "vm.s1": "s2", "vm.s2": "s3"}, "adopted vm.s3, s3 vm.s2, s2 vm.s1, base vm.qcow2, s1 vm.qcow2", ""},
		{map[string]string{"vm.s1": "s2"}, "adopted vm.s3, layer-2 vm.s2, s2 vm.s1, base vm.qcow2", ""},
		{map[string]string{"vm.qcow2": "base", "vm.s1": "before upgrade", "vm.s2": "adopted"}, "adopted-2 vm.s3, adopted vm.s2, before-upgrade vm.s1, base vm.qcow2, base-2 vm.qcow2",
			`libvirt's snapshot before upgrade is before-upgrade here, since no layer can be called "before upgrade"`},
		{map[string]string{"vm.qcow2": "x!", "vm.s2": "x-"}, "adopted vm.s3, x--2 vm.s2, layer-1 vm.s1, base vm.qcow2, x- vm.qcow2", "x- is x--2 here"},
	} {
		states := map[string]string{}
		for file, name := range test.states {
			states[at(file)] = name
		}
		dir := at(strings.Repeat("d", n+1) + ".varve")
		created, err := Create(dir, CreateOptions{Base: at("vm.s3"), Format: formatQcow2, Witness: witness{states: states}})
		must(t, err)
		if !slices.Contains(created.Notes, "a note") || !strings.Contains(strings.Join(created.Notes, "\n"), test.says) {
			t.Errorf("notes: %q", created.Notes)
		}
		m := mustLoad(t, dir)
		var got []string
		for _, f := range created.Files {
			got = append(got, f.Layer+" "+filepath.Base(f.Path))
			if f.Layer != "base" && m.ByName(f.Layer).File != f.Path {
				t.Errorf("%s is %s", f.Layer, m.ByName(f.Layer).File)
			}
		}
		for _, l := range m.Children(m.Base) {
			if l.Foreign {
				continue
			}
			got = append(got, l.Name+" vm.qcow2")
			qemuTool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", l.Path(dir), at("vm.qcow2"))
			qemuTool(t, "qemu-img", "check", "-q", l.Path(dir))
		}
		if strings.Join(got, ", ") != test.want {
			t.Errorf("got  %s\nwant %s", strings.Join(got, ", "), test.want)
		}
		if r, err := Check(t.Context(), dir, CheckOptions{}); err != nil || r.Errors+r.Leaks > 0 {
			t.Errorf("check: %+v, %v", r.Findings, err)
		}
		d, err := OpenForeign(at("vm.s3"), formatQcow2, OpenOptions{Witness: witness{states: states}})
		must(t, err)
		for i, f := range d.Adopted().Files {
			if f.Layer != created.Files[i].Layer {
				t.Errorf("shown read-only %s is %s", f.Path, f.Layer)
			}
		}
		must(t, d.Close())
	}
}

// TestGoBackToABaseThatWasASnapshot: the snapshot that is the base is one like any other,
// also on an image whose size is no whole number of sectors.
func TestGoBackToABaseThatWasASnapshot(t *testing.T) {
	root := t.TempDir()
	at := func(name string) string { return filepath.Join(root, name) }
	must(t, os.WriteFile(at("a.raw"), randomBytes(unevenSize), 0o600))
	qemuTool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", at("a.raw"), at("vm.qcow2"))
	setHeaderSize(t, hostfs.OS(), at("vm.qcow2"), unevenSize)
	qemuTool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "vm.qcow2", "-F", "qcow2", at("vm.s1"), "2M")
	qemuTool(t, "qemu-io", "-f", "qcow2", "-c", "write -P 5 0 64k", at("vm.s1"))
	_, err := Create(at("vm.varve"), CreateOptions{Base: at("vm.s1"), Format: formatQcow2, Witness: witness{states: map[string]string{at("vm.qcow2"): "s1"}}})
	must(t, err)
	content, err := os.ReadFile(at("a.raw"))
	must(t, err)
	want := make([]byte, extent.WholeSectors(unevenSize))
	copy(want, content)
	d := openDisk(t, at("vm.varve"))
	must(t, d.Revert("s1"))
	sameBytes(t, "disk.raw at s1", leafOf(t, d), want)
	must(t, d.Close())
	sameBytes(t, "qemu-img's leaf at s1", qemuReads(t, layerOf(t, at("vm.varve"), "")), want)
	sameBytes(t, "qemu-img's s1", qemuReads(t, layerOf(t, at("vm.varve"), "s1")), want)
	d = openDisk(t, at("vm.varve"))
	must(t, d.Revert("adopted"))
	_, err = d.Delete("s1")
	must(t, err)
	waitJobs(t, d)
	checkDisk(t, d)
}

// TestGuestsQcow2: a guest that has written a qcow2 into its raw disk, in order in all its
// parts and naming a file of the host, never has it opened as one: not by what is in the
// file, however well that fits. The definition of the VM is what tells.
func TestGuestsQcow2(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	at := func(name string) string { return filepath.Join(root, name) }
	rawImage(t, at("secret"), 1<<20)
	// The guest's disk: the overlay, and behind it the rest of a raw disk of 4 MiB.
	qcow2On(t, at("overlay"), "secret", "raw", 3)
	forged, err := os.ReadFile(at("overlay"))
	must(t, err)
	forged = append(forged, make([]byte, 4<<20-len(forged))...)
	for _, test := range []struct {
		name, said string
		formats    []string
		want       string // the format; "" for refused
		says       string // in the note or the error
	}{
		{"vm.s1", "", nil, "", `begins like a qcow2 on "secret" but is not named .qcow2, and no libvirt domain says what it is`},
		{"vm.img", "", []string{"raw"}, formatRaw, "is read as raw, as libvirt's domain raw has it, although it begins like a qcow2 image"},
		{"vm.img", "", []string{"raw", "raw"}, formatRaw, "is read as raw"},
		{"vm.img", "", []string{"qcow2", "raw"}, "", "to VMs as qcow2 (libvirt's domain qcow2) and as raw (libvirt's domain raw)"},
		{"vm.img", "", []string{"raw", "qcow2"}, "", "say with --format which one is right"},
		{"vm.qcow2", "", []string{"raw"}, "", "is named .qcow2 and begins like one, but libvirt's domain raw uses it as raw"},
		{"vm.img", "", []string{"vmdk"}, "", "begins like a qcow2"},
		{"vm.img", formatRaw, []string{"qcow2"}, formatRaw, ""},
		// What is one in truth.
		{"vm.s1", "", []string{"qcow2"}, formatQcow2, "is read as a qcow2, as libvirt's domain qcow2 has it"},
		{"vm.qcow2", "", []string{"qcow2"}, formatQcow2, ""},
		{"vm.s1", formatQcow2, nil, formatQcow2, ""},
	} {
		must(t, os.WriteFile(at(test.name), forged, 0o600))
		fs := &recordingFS{FS: hostfs.OS()}
		o := CreateOptions{FS: fs, Base: at(test.name), Format: test.said, Witness: witness{formats: test.formats}}
		created, err := Create(at("d.varve"), o)
		says := strings.Join(created.Notes, "\n")
		if err != nil {
			says = err.Error()
		}
		if (err == nil) != (test.want != "") || err != nil && !errors.Is(err, ErrInvalid) || !strings.Contains(says, test.says) {
			t.Errorf("%s, %q, %q: %v, %q", test.name, test.said, test.formats, err, created.Notes)
		}
		if err == nil && created.Files[0].Format != test.want {
			t.Errorf("%s, %q: read as %s", test.name, test.formats, created.Files[0].Format)
		}
		if opened := slices.Contains(fs.opened, at("secret")); opened != (test.want == formatQcow2) {
			t.Errorf("%s, %q, %q: the secret was opened: %v", test.name, test.said, test.formats, opened)
		}
		e, err := ExamineImage(t.Context(), at(test.name), o.Witness, nil)
		must(t, err)
		if test.said == "" && slices.Contains(test.formats, formatRaw) && len(e.Layers) != 1 {
			t.Errorf("%s, %q: doctor follows the guest's header: %+v", test.name, test.formats, e.Layers)
		}
		must(t, errors.Join(os.RemoveAll(at("d.varve")), os.Remove(at(test.name))))
	}
}
