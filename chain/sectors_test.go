package chain

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"varve/chain/manifest"
	"varve/integration/powercut"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

const (
	unevenSize = 1<<20 + 8192 + 700
	evenSize   = 1<<20 + 8192 + 1024
)

// setHeaderSize gives a qcow2 file another size: the field "size" of its header.
func setHeaderSize(t testing.TB, fs hostfs.FS, path string, size int64) {
	t.Helper()
	f, err := fs.Open(path, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt(binary.BigEndian.AppendUint64(nil, uint64(size)), 24)
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
}

// makeOld turns a disk, which is closed, into one of an earlier version, whose size was
// no whole number of sectors.
func makeOld(t testing.TB, fs hostfs.FS, dir string, size int64) {
	t.Helper()
	m, err := manifest.Load(fs, dir)
	must(t, err)
	for _, l := range m.Layers {
		if l.Format == formatRaw {
			continue
		}
		path := l.Path(dir)
		if !l.Foreign {
			setHeaderSize(t, fs, path, size)
		}
		if l.ID != m.Leaf {
			l.Size = size
		}
		l.Counts = nil
		l.Fingerprint, err = manifest.FingerprintFile(fs, path, l.Format)
		must(t, err)
	}
	if m.Base == "" {
		m.BlankSize = size
	}
	must(t, m.Commit(fs, dir))
}

// sizesInFiles gives the size in the header of each layer of ours, by name.
func sizesInFiles(t testing.TB, fs hostfs.FS, dir string) map[string]int64 {
	t.Helper()
	m, err := manifest.Load(fs, dir)
	must(t, err)
	sizes := map[string]int64{}
	for _, l := range m.Layers {
		if !l.Foreign {
			h, err := qcow2.ReadHeader(fs, l.Path(dir))
			must(t, err)
			sizes[l.Name] = h.Size
		}
	}
	return sizes
}

// layerOf is the file of a layer of a disk that is not open, "" for the leaf.
func layerOf(t testing.TB, dir, name string) string {
	t.Helper()
	m, err := manifest.Load(hostfs.OS(), dir)
	must(t, err)
	if name == "" {
		return m.Layer(m.Leaf).Path(dir)
	}
	return m.ByName(name).Path(dir)
}

func checked(t testing.TB, dir string) CheckReport {
	t.Helper()
	r, err := Check(t.Context(), dir, CheckOptions{})
	must(t, err)
	return r
}

// qemuReads is what qemu-img reads of a layer by its file alone.
func qemuReads(t testing.TB, path string) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "view.raw")
	qemuTool(t, "qemu-img", "check", path)
	qemuTool(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
	p, err := os.ReadFile(raw)
	must(t, err)
	return p
}

func sameBytes(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d bytes, want %d", what, len(got), len(want))
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%s: byte %d is %02x, want %02x", what, i, got[i], want[i])
			return
		}
	}
}

// whole is content with the zeros that its last sector lacks.
func whole(p []byte) []byte {
	return append(slices.Clone(p), make([]byte, extent.WholeSectors(int64(len(p)))-int64(len(p)))...)
}

// leafOf is the view of the leaf.
func leafOf(t testing.TB, d *Disk) []byte {
	t.Helper()
	p := make([]byte, d.Size())
	must(t, d.ReadAt(p, 0))
	return p
}

func randomBytes(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(p)
	return p
}

// oldDisk is a disk of an earlier version on a raw base: two snapshots and a leaf, of
// which "one" and the leaf have the last sector from below and "two" its own. Behind the
// end of "two" stand bytes that nobody may see. It gives each view's content.
func oldDisk(t *testing.T) (dir string, views map[string][]byte) {
	t.Helper()
	base := filepath.Join(t.TempDir(), "base.raw")
	content := randomBytes(unevenSize)
	must(t, os.WriteFile(base, content, 0o600))
	dir = filepath.Join(t.TempDir(), "vm.varve")
	made, err := Create(dir, CreateOptions{Base: base})
	must(t, err)
	if made.Size != evenSize || made.Given != unevenSize {
		t.Errorf("made with %d bytes, from %d", made.Size, made.Given)
	}
	d := openDisk(t, dir)
	views = map[string][]byte{manifest.BaseName: slices.Clone(content)}
	put(t, d, 5, 4096, 4096)
	copy(content[4096:], bytes.Repeat([]byte{5}, 4096))
	must(t, d.Snapshot("one"))
	views["one"] = slices.Clone(content)
	put(t, d, 7, unevenSize-100, evenSize-unevenSize+100)
	copy(content[unevenSize-100:], bytes.Repeat([]byte{7}, 100))
	must(t, d.Snapshot("two"))
	views["two"] = slices.Clone(content)
	must(t, d.Revert("one"))
	put(t, d, 9, 0, 512)
	views[""] = slices.Clone(views["one"])
	copy(views[""], bytes.Repeat([]byte{9}, 512))
	must(t, d.Close())
	makeOld(t, hostfs.OS(), dir, unevenSize)
	return dir, views
}

// A disk of an earlier version is shown in whole sectors, each byte as it was. check and
// doctor say what is wrong, and the next mount mends the files: qemu-img, which left out
// the last bytes, reads them all (M2, D15).
func TestOldDiskGetsWholeSectors(t *testing.T) {
	dir, views := oldDisk(t)
	if got := qemuReads(t, layerOf(t, dir, "")); len(got) != unevenSize-unevenSize%512 {
		t.Fatalf("qemu-img reads %d bytes of what is no whole number of sectors", len(got))
	}
	r := checked(t, dir)
	if !slices.ContainsFunc(r.Findings, func(f CheckFinding) bool {
		return f.Severity == SeverityError && strings.Contains(f.Text, fmt.Sprintf("%d bytes, no whole number of sectors of 512: QEMU leaves out the last 188", int64(unevenSize)))
	}) || r.Errors != 3 {
		t.Errorf("check: %d errors\n%s", r.Errors, findingLines(r))
	}
	e, err := Examine(t.Context(), dir, nil)
	must(t, err)
	if !strings.Contains(troubleLines(e), "no whole number of sectors") {
		t.Errorf("examine:\n%s", troubleLines(e))
	}
	compare := func(d *Disk) {
		t.Helper()
		sameBytes(t, "disk.raw", leafOf(t, d), whole(views[""]))
		for _, name := range []string{"one", "two"} {
			sameBytes(t, name, viewOf(t, d, name), whole(views[name]))
		}
		sameBytes(t, "the base", viewOf(t, d, manifest.BaseName), views[manifest.BaseName])
	}
	d, err := Open(dir, OpenOptions{ReadOnly: true})
	must(t, err)
	if d.Uneven() != unevenSize {
		t.Errorf("it says that the size was %d", d.Uneven())
	}
	compare(d)
	for name, want := range map[string]int64{"one": evenSize, manifest.LeafName: evenSize, manifest.BaseName: unevenSize} {
		if _, size, err := d.ExportSource(name); err != nil || size != want {
			t.Errorf("an export of %s has %d bytes, %v", name, size, err)
		}
	}
	must(t, d.Close())

	d = openDisk(t, dir)
	if d.Uneven() != unevenSize {
		t.Errorf("it says that the size was %d", d.Uneven())
	}
	compare(d)
	put(t, d, 3, evenSize-512, 512)
	views[""] = append(views[""][:evenSize-512], bytes.Repeat([]byte{3}, 512)...)
	compare(d)
	must(t, d.Close())
	for name, size := range sizesInFiles(t, hostfs.OS(), dir) {
		if size != evenSize {
			t.Errorf("the header of %q has %d bytes", name, size)
		}
	}
	for name, want := range views {
		if name != manifest.BaseName {
			sameBytes(t, "qemu-img's "+name, qemuReads(t, layerOf(t, dir, name)), whole(want))
		}
	}
	if r := checked(t, dir); r.Errors+r.Leaks > 0 {
		t.Errorf("check:\n%s", findingLines(r))
	}
	if d = openDisk(t, dir); d.Uneven() != 0 {
		t.Error("it is mended again")
	}
	compare(d)
}

// What a repair mends as well.
func TestRepairGivesWholeSectors(t *testing.T) {
	dir, views := oldDisk(t)
	r, err := Check(t.Context(), dir, CheckOptions{Repair: true})
	must(t, err)
	if r.Errors != 0 || len(r.Mended) != 3 {
		t.Errorf("%d errors are left, %d mended\n%s", r.Errors, len(r.Mended), findingLines(r))
	}
	sameBytes(t, "qemu-img's leaf", qemuReads(t, layerOf(t, dir, "")), whole(views[""]))
}

// The files of a clone's snapshot stay as they are: the clone knows them. What stands on
// them has its own copy of the last sector, for QEMU; when the clone is gone they are
// mended too.
func TestOldDiskWithAClone(t *testing.T) {
	dir, views := oldDisk(t)
	d := openDisk(t, dir)
	other := filepath.Join(t.TempDir(), "clone.varve")
	_, err := d.Clone("two", other)
	must(t, err)
	must(t, d.Snapshot("three")) // stands on "one", of the clone's chain, and is no part of it
	must(t, d.Close())
	makeOld(t, hostfs.OS(), dir, unevenSize)
	makeOld(t, hostfs.OS(), other, unevenSize)
	setHeaderSize(t, hostfs.OS(), layerOf(t, other, ""), unevenSize)

	d, clone := openDisk(t, dir), openDisk(t, other)
	sizes := sizesInFiles(t, hostfs.OS(), dir)
	if sizes["one"] != unevenSize || sizes["two"] != unevenSize || sizes[""] != evenSize {
		t.Errorf("sizes %v", sizes)
	}
	sameBytes(t, "disk.raw", leafOf(t, d), whole(views[""]))
	sameBytes(t, "the clone", leafOf(t, clone), whole(views["two"]))
	sameBytes(t, "qemu-img's three", qemuReads(t, layerOf(t, dir, "three")), whole(views[""]))
	must(t, clone.Close())
	sameBytes(t, "qemu-img's clone", qemuReads(t, layerOf(t, other, "")), whole(views["two"]))
	// A leaf that begins on such a layer.
	must(t, d.Revert("two"))
	sameBytes(t, "after a revert", leafOf(t, d), whole(views["two"]))
	must(t, d.Close())
	sameBytes(t, "qemu-img's leaf", qemuReads(t, layerOf(t, dir, "")), whole(views["two"]))
	if r := checked(t, dir); r.Errors > 0 {
		t.Errorf("check:\n%s", findingLines(r))
	}

	must(t, os.RemoveAll(other))
	d = openDisk(t, dir)
	must(t, d.Release("two"))
	// A job that comes before the next mount gives what it writes whole sectors.
	job, err := d.Flatten("two")
	finish(t, d, job, err)
	must(t, d.Close())
	if sizes := sizesInFiles(t, hostfs.OS(), dir); sizes["two"] != evenSize {
		t.Errorf("sizes %v after a flatten", sizes)
	}
	sameBytes(t, "qemu-img's two", qemuReads(t, layerOf(t, dir, "two")), whole(views["two"]))
	d = openDisk(t, dir)
	must(t, d.Close())
	for name, size := range sizesInFiles(t, hostfs.OS(), dir) {
		if size != evenSize {
			t.Errorf("the header of %q has %d bytes", name, size)
		}
	}
}

// Sizes that are asked for become whole sectors.
func TestSizesBecomeWholeSectors(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vm.varve")
	made, err := Create(dir, CreateOptions{Size: 100})
	must(t, err)
	if made.Size != 512 || made.Given != 100 {
		t.Errorf("made with %d bytes, from %d", made.Size, made.Given)
	}
	d := openDisk(t, dir)
	put(t, d, 1, 0, 512)
	must(t, d.Resize(511)) // that is its size
	must(t, d.Resize(1000))
	if d.Size() != 1024 {
		t.Errorf("%d bytes", d.Size())
	}
	must(t, d.Snapshot("one"))
	must(t, d.Revert(manifest.BaseName))
	if d.Size() != 512 || at(t, d, 0) != 0 {
		t.Errorf("the blank disk has %d bytes", d.Size())
	}
	must(t, d.Resize(1))
	must(t, d.Close())
	for name, size := range sizesInFiles(t, hostfs.OS(), dir) {
		if extent.Uneven(size) {
			t.Errorf("the header of %q has %d bytes", name, size)
		}
	}
}

// oldSim is a disk of an earlier version on a simulated host.
type oldSim struct {
	*simGuest
	want map[string][]byte // of each view, in the hot ranges
}

func newOldSim(t *testing.T, kind simKind) oldSim {
	t.Helper()
	g := newSimGuest(t, kind, 1)
	g.open()
	must(t, all(g.write(atEnd, 4, false), g.snapshot("one", 0), g.write(atStart, 9, false), g.write(atEnd+2, 6, false), g.snapshot("two", 0), g.revert("one"), g.write(atEdge, 9, false)))
	must(t, g.d.Close())
	makeOld(t, g.host, g.dir, simSize-200) // the rest of the last sector is zeros then
	g.host.Settle()
	s := oldSim{simGuest: g}
	s.want = s.views(g.host.Clone())
	return s
}

// views mounts the disk for a moment.
func (s oldSim) views(host *powercut.Host) map[string][]byte {
	s.t.Helper()
	d, err := openSim(host, s.dir, &powercut.LogJudge{Never: []string{"raised refcounts that were too low"}})
	must(s.t, err)
	got := map[string][]byte{}
	for _, name := range []string{"", "one", "two"} {
		read, size := simView(d, name)
		if size != simSize {
			s.t.Fatalf("%q has %d bytes", name, size)
		}
		for _, r := range hotRanges {
			p := make([]byte, r[1]-r[0])
			must(s.t, read(p, r[0]))
			got[name] = append(got[name], p...)
		}
	}
	must(s.t, d.Close())
	return got
}

// judge mounts a state that a power cut or a fault has left: each view is what it was,
// and the files are mended then.
func (s oldSim) judge(c *crashJudge, state *powercut.Host, what string) {
	s.t.Helper()
	must(s.t, c.checkImages(state, true))
	for name, p := range s.views(state) {
		if !bytes.Equal(p, s.want[name]) {
			s.t.Fatalf("%s: the view %q is another one", what, name)
		}
	}
	for name, n := range sizesInFiles(s.t, state, s.dir) {
		if n != simSize {
			s.t.Fatalf("%s: %q has %d bytes", what, name, n)
		}
	}
	must(s.t, c.checkImages(state, false))
}

// The power may be cut at any call of the mount that mends a disk of an earlier version,
// and any call may fail: no byte of any view changes, and the next mount ends it (M2,
// M16, D16).
func TestPowerCutOldDisk(t *testing.T) {
	t.Parallel()
	for i, kind := range []simKind{onRaw, blank} {
		if i > 0 && testing.Short() {
			break
		}
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			s := newOldSim(t, kind)
			before := s.host.Clone()
			s.host.Record()
			s.views(s.host)
			c := newCrashJudge(s.simGuest, 1)
			player, states := powercut.NewPlayer(before, s.host.Recorded()), 0
			// It is a short record.
			stride, faults := min(max(1, flags.Stride/12), 4), min(max(1, flags.FaultStride/8), 6)
			for {
				op, ok := player.Next()
				if !ok {
					break
				}
				if player.At()%stride != 0 {
					continue
				}
				for what, state := range player.States(c.rnd, 2) {
					states++
					s.judge(c, state, fmt.Sprintf("power cut after %v (%s)", op, what))
				}
			}
			for n := 1; ; n += faults {
				host, left, hit := before.Clone(), n, ""
				host.SetHook(false, func(op powercut.Op) error {
					if !op.Changes() {
						return nil
					}
					if left--; left != 0 {
						return nil
					}
					hit = op.String()
					return []error{errEIO, errENOSPC}[n%2]
				})
				if d, err := openSim(host, s.dir, &powercut.LogJudge{}); err == nil {
					_ = d.Close() // the fault may be its
				}
				if hit == "" {
					break
				}
				host.SetHook(false, nil)
				s.judge(c, host.Cut(c.rnd), "a fault at "+hit+", and a power cut")
				s.judge(c, host, "a fault at "+hit)
				states += 2
			}
			if states < 20 {
				t.Errorf("only %d states", states)
			}
			t.Logf("%d states", states)
		})
	}
}
