package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/chain/manifest"
	"varve/chain/view"
	"varve/overlay"
	"varve/overlay/hostfs"
)

// testDisk makes a disk over a raw base of some MiB that has data everywhere,
// and opens it.
func testDisk(t *testing.T, size int64) (d *Disk, base []byte) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "base.raw")
	base = bytes.Repeat([]byte("base data "), int(size/10)+1)[:size]
	if err := os.WriteFile(path, base, 0o600); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "vm.varve")
	if _, err := Create(disk, CreateOptions{Base: path}); err != nil {
		t.Fatal(err)
	}
	return openDisk(t, disk), base
}

func openDisk(t *testing.T, dir string) *Disk {
	t.Helper()
	d, err := Open(dir, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// put writes n bytes of one value.
func put(t *testing.T, d *Disk, value byte, off, n int64) {
	t.Helper()
	must(t, d.WriteAt(bytes.Repeat([]byte{value}, int(n)), off))
}

// at is the byte at an offset of the leaf's view.
func at(t *testing.T, d *Disk, off int64) byte {
	t.Helper()
	var p [1]byte
	must(t, d.ReadAt(p[:], off))
	return p[0]
}

func finish(t *testing.T, d *Disk, id string, err error) JobStatus {
	t.Helper()
	must(t, err)
	if id == "" {
		return JobStatus{}
	}
	s, err := d.WaitJob(context.Background(), id)
	must(t, err)
	if s.State != JobDone {
		t.Fatalf("job %s: %s: %s", id, s.State, s.Error)
	}
	return s
}

func wantError(t *testing.T, err, want error, words ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func states(d *Disk) string {
	var all []string
	for _, l := range d.Layers() {
		all = append(all, strings.TrimSpace(l.State.String()+" "+l.Name))
	}
	return strings.Join(all, ", ")
}

func TestNames(t *testing.T) {
	d, _ := testDisk(t, 1<<20)
	must(t, d.Snapshot("one"))
	wantError(t, d.Snapshot("one"), ErrExist, "one")
	for _, name := range []string{"", "base", "leaf", "a/b", ".x", "-x", "a b", strings.Repeat("x", 129)} {
		wantError(t, d.Snapshot(name), ErrInvalid)
		wantError(t, d.Rename("one", name), ErrInvalid)
	}
	must(t, d.Snapshot(strings.Repeat("x", 128)))
	wantError(t, d.Rename("two", "three"), ErrNotExist, "two")
	wantError(t, d.Rename("base", "three"), ErrInvalid, "base")
	wantError(t, d.Revert("two"), ErrNotExist)
	_, err := d.Delete("two")
	wantError(t, err, ErrNotExist)
	_, err = d.Delete("base")
	wantError(t, err, ErrInvalid, "base")
	_, err = d.Flatten("base")
	wantError(t, err, ErrInvalid, "base")
	wantError(t, d.Cancel("1"), ErrNotExist)
	wantError(t, d.Resize(1), ErrInvalid, "shrink")
	wantError(t, d.Resize(4<<50+1), ErrTooLarge, "can have (4503599627370496)")
	wantError(t, d.WriteAt(make([]byte, 10), d.Size()-5), ErrInvalid)
}

func TestRevertIsRefusedWhileOpen(t *testing.T) {
	d, _ := testDisk(t, 1<<20)
	must(t, d.Snapshot("one"))
	h, err := d.OpenDisk(context.Background(), Opener{PID: 4242, Command: "qemu"}, true)
	must(t, err)
	wantError(t, d.Revert("one"), ErrBusy, "disk.raw", "4242", "qemu", "stop the VM")
	// A close that is told late is waited for.
	time.AfterFunc(100*time.Millisecond, h.Close)
	must(t, d.Revert("one"))
}

func TestDeleteIsRefusedWhileOpen(t *testing.T) {
	d, _ := testDisk(t, 1<<20)
	put(t, d, 1, 0, 4096)
	must(t, d.Snapshot("one"))
	m, _ := d.tree()
	v, err := d.OpenView(context.Background(), m.ByName("one").ID, Opener{PID: 77, Command: "dd"})
	must(t, err)
	_, err = d.Delete("one")
	wantError(t, err, ErrBusy, "one.raw", "77", "dd")
	v.Close()
	id, err := d.Delete("one")
	finish(t, d, id, err)
	if _, err := d.OpenView(context.Background(), v.node.ID, Opener{}); !errors.Is(err, ErrNotExist) {
		t.Errorf("opening a deleted layer: %v", err)
	}
	if at(t, d, 0) != 1 {
		t.Error("the leaf lost what the deleted layer held")
	}
}

// A set-aside leaf is a child; a further revert removes it, but not for the
// sake of an empty leaf.
func TestSetAside(t *testing.T) {
	d, _ := testDisk(t, 1<<20)
	put(t, d, 1, 0, 4096)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 0, 4096)
	must(t, d.Revert("one"))
	if s := states(d); s != "base base, frozen one, unnamed, leaf" {
		t.Fatal(s)
	}
	m, _ := d.tree()
	aside := m.SetAside
	must(t, d.Revert("base")) // nothing was written since
	if m, _ := d.tree(); m.SetAside != aside {
		t.Errorf("an empty leaf took the place of the one set aside")
	}
	put(t, d, 3, 0, 4096)
	must(t, d.Revert("one"))
	m, _ = d.tree()
	if m.SetAside == aside || m.Layer(aside) != nil || m.SetAside == "" {
		t.Errorf("set aside is %q, the first one was %q", m.SetAside, aside)
	}
	if _, err := os.Stat(filepath.Join(d.Dir(), manifest.LayerFile(3))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of the forgotten layer is still there: %v", err)
	}
}

// A layer on which two others stand keeps, unnamed, until one is left.
func TestDeleteOfABranchingPoint(t *testing.T) {
	d, _ := testDisk(t, 1<<20)
	put(t, d, 1, 0, 4096)
	must(t, d.Snapshot("fork"))
	put(t, d, 2, 4096, 4096)
	must(t, d.Snapshot("left"))
	must(t, d.Revert("fork"))
	put(t, d, 3, 8192, 4096)
	must(t, d.Snapshot("right"))
	if id, err := d.Delete("fork"); id != "" || err != nil {
		t.Fatalf("job %q, %v; want none", id, err)
	}
	if s := states(d); s != "base base, unnamed, frozen left, frozen right, leaf" {
		t.Fatal(s)
	}
	must(t, d.Snapshot("fork")) // the name is free
	id, err := d.Delete("left") // the second-to-last child: the merge queues itself
	finish(t, d, id, err)
	if s := states(d); s != "base base, frozen right, frozen fork, leaf" {
		t.Fatal(s)
	}
	if at(t, d, 0) != 1 || at(t, d, 8192) != 3 || at(t, d, 4096) != 'b' && at(t, d, 4096) == 2 {
		t.Error("content is wrong after the merge")
	}
}

func TestBlankDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "blank.varve")
	if _, err := Create(dir, CreateOptions{Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	d := openDisk(t, dir)
	put(t, d, 1, 0, 4096)
	must(t, d.Snapshot("one"))
	must(t, d.Resize(2<<20))
	must(t, d.Revert("base"))
	if d.Size() != 1<<20 || at(t, d, 0) != 0 {
		t.Errorf("size %d, first byte %d after going back to blank", d.Size(), at(t, d, 0))
	}
	must(t, d.Revert("one"))
	if at(t, d, 0) != 1 {
		t.Error("the snapshot is gone")
	}
	id, err := d.Flatten("one") // has no backing already
	if id != "" || err != nil {
		t.Errorf("job %q, %v", id, err)
	}
}

// After a flatten, qemu-img needs nothing but the layer's own file.
func TestFlatten(t *testing.T) {
	for _, name := range []string{"leaf", "two"} {
		t.Run(name, func(t *testing.T) {
			d, base := testDisk(t, 3<<20)
			put(t, d, 1, 0, 4096)
			must(t, d.Snapshot("one"))
			put(t, d, 2, 1<<20, 4096)
			must(t, d.Snapshot("two"))
			id, err := d.Flatten(name)
			s := finish(t, d, id, err)
			if s.DoneBytes != s.TotalBytes || s.TotalBytes == 0 {
				t.Errorf("%d of %d bytes done", s.DoneBytes, s.TotalBytes)
			}
			var file string
			for _, l := range d.Layers() {
				if l.Name == name || l.State.String() == name {
					file = l.File
					if l.Parent != nil {
						t.Errorf("parent %s", *l.Parent)
					}
				}
			}
			must(t, d.Close())
			copied := filepath.Join(t.TempDir(), "alone.qcow2")
			p, err := os.ReadFile(file)
			must(t, err)
			must(t, os.WriteFile(copied, p, 0o600))
			raw := filepath.Join(t.TempDir(), "raw")
			qemuTool(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", copied, raw)
			got, err := os.ReadFile(raw)
			must(t, err)
			want := slices.Clone(base)
			copy(want, bytes.Repeat([]byte{1}, 4096))
			copy(want[1<<20:], bytes.Repeat([]byte{2}, 4096))
			if !bytes.Equal(got, want) {
				t.Error("the flattened layer alone has another content")
			}
		})
	}
}

// A job that was recorded goes on at the next open; a base that changed
// meanwhile can be accepted although the job is recorded.
func TestJobGoesOn(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	put(t, d, 1, 0, 1<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 2<<20, 4096)
	must(t, d.Close())

	held, err := Open(d.Dir(), OpenOptions{HoldJob: true})
	must(t, err)
	id, err := held.Delete("one")
	must(t, err)
	if j := held.lastJob(); !j.running() || j.id != id {
		t.Error("the recorded job is not shown")
	}
	wantError(t, held.Revert("base"), ErrBusy, "job "+id)
	must(t, held.Close())

	base := filepath.Join(filepath.Dir(d.Dir()), "base.raw")
	must(t, os.Chtimes(base, time.Time{}, time.Now().Add(time.Hour)))
	_, err = Open(d.Dir(), OpenOptions{})
	wantError(t, err, ErrChanged, "varve accept", base)
	must(t, Accept(d.Dir(), "base", OpenOptions{}))

	again := openDisk(t, d.Dir())
	finish(t, again, id, nil)
	if s := states(again); s != "base base, leaf" {
		t.Error(s)
	}
	if at(t, again, 0) != 1 || at(t, again, 2<<20) != 2 {
		t.Error("content is wrong after the merge")
	}
}

// A leaf that qemu-img has made smaller stays so when it moves down, and what lay behind
// its end does not come back.
func TestShrunkLeafMovesDown(t *testing.T) {
	d, _ := testDisk(t, 8<<20)
	put(t, d, 1, 0, 8<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 0, 4096)
	leaf := layerPath(d, "")
	must(t, d.Close())
	if out, err := exec.Command("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", leaf, "4M").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d = openDisk(t, d.Dir())
	id, err := d.Delete("one")
	finish(t, d, id, err)
	if d.Size() != 4<<20 {
		t.Errorf("after the delete the disk has %d bytes, had %d", d.Size(), 4<<20)
	}
	must(t, d.Resize(8<<20))
	if a, b, c := at(t, d, 100), at(t, d, 1<<20), at(t, d, 6<<20); a != 2 || b != 1 || c != 0 {
		t.Errorf("the disk reads %d, %d and %d, want 2, 1 and 0", a, b, c)
	}
}

// What another tool did to the leaf of an unmounted disk is kept (M17).
func TestLeafChangedByAnotherTool(t *testing.T) {
	for _, c := range []struct {
		what    string
		args    []string
		covered bool
	}{
		{"plain writes", []string{"qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 64k"}, false},
		{"an internal snapshot", []string{"qemu-img", "snapshot", "-c", "s"}, true},
		{"compressed clusters", []string{"qemu-io", "-f", "qcow2", "-c", "write -c -P 9 1M 128k"}, true},
		{"a bitmap", []string{"qemu-img", "bitmap", "--add", "-f", "qcow2"}, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			d, _ := testDisk(t, 4<<20)
			put(t, d, 1, 0, 4096)
			must(t, d.Close())
			m, _ := d.tree()
			leaf := m.Layer(m.Leaf).Path(d.Dir())
			args := append(slices.Clone(c.args), leaf)
			if c.what == "a bitmap" {
				args = append(args, "b0")
			}
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v\n%s", args, err, out)
			}
			again := openDisk(t, d.Dir())
			want := byte('b')
			if strings.Contains(strings.Join(c.args, " "), "write") {
				want = 9
			}
			if at(t, again, 0) != 1 || at(t, again, 1<<20+5) != want && want == 9 {
				t.Errorf("got %d at 0 and %d at 1M", at(t, again, 0), at(t, again, 1<<20+5))
			}
			if covered := strings.Contains(states(again), "unnamed"); covered != c.covered {
				t.Errorf("layers are %s", states(again))
			}
			put(t, again, 3, 1<<20, 4096)
			must(t, again.Close())
			m, _ = again.tree()
			qemuTool(t, "qemu-img", "check", "-f", "qcow2", m.Layer(m.Leaf).Path(d.Dir()))
		})
	}
}

func TestHolesAndBlocks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "blank.varve")
	if _, err := Create(dir, CreateOptions{Size: 100 << 20}); err != nil {
		t.Fatal(err)
	}
	d := openDisk(t, dir)
	count := func(want int64) {
		t.Helper()
		if got, counted, err := d.AllocatedBytes(); err != nil || got != want || !counted {
			t.Errorf("%d bytes allocated, want %d (%v)", got, want, err)
		}
	}
	count(0)
	if _, err := d.SeekData(0); err != io.EOF {
		t.Errorf("data in a blank disk: %v", err)
	}
	put(t, d, 1, 40<<20, 8192)
	count(8192)
	put(t, d, 1, 80<<20+100, 10)
	count(3 * 4096)
	must(t, d.Discard(40<<20, 4096))
	count(2 * 4096)
	if off, err := d.SeekData(0); off != 40<<20+4096 || err != nil {
		t.Errorf("data at %d (%v)", off, err)
	}
	if off, err := d.SeekHole(40<<20 + 4096); off != 40<<20+8192 || err != nil {
		t.Errorf("hole at %d (%v)", off, err)
	}
	if off, err := d.SeekHole(d.Size() - 1); off != d.Size()-1 || err != nil {
		t.Errorf("hole at %d (%v)", off, err)
	}
	if _, err := d.SeekHole(d.Size()); err != io.EOF {
		t.Errorf("a hole past the end: %v", err)
	}
	must(t, d.Snapshot("one"))
	count(2 * 4096)
	put(t, d, 2, 0, 4096)
	count(3 * 4096)
	must(t, d.Resize(200<<20))
	put(t, d, 2, 199<<20, 4096)
	count(4 * 4096)
	m, _ := d.tree()
	if got, counted, err := d.LayerAllocatedBytes(m.ByName("one").ID); got != 2*4096 || err != nil || !counted {
		t.Errorf("the view has %d bytes (%v)", got, err)
	}
}

// Readers see one content, whichever way and however often a layer is merged
// under them, and writers what they wrote.
func TestReadersDuringMerges(t *testing.T) {
	const size = 40 << 20
	for _, big := range []string{"lower", "upper"} {
		t.Run(big+" layer is large", func(t *testing.T) {
			d, base := testDisk(t, size)
			fill := func(value byte, step int64) {
				for off := int64(0); off+65536 <= size; off += step {
					put(t, d, value, off, 65536)
				}
			}
			fill(1, map[string]int64{"lower": 65536 * 2, "upper": 65536 * 16}[big])
			must(t, d.Snapshot("gone"))
			fill(2, map[string]int64{"lower": 65536 * 16, "upper": 65536 * 2}[big])
			want := make([]byte, size)
			must(t, d.ReadAt(want, 0))

			stop := make(chan struct{})
			failed := make(chan error, 8)
			for range 2 {
				go func() {
					p := make([]byte, 1<<20)
					for off := int64(0); ; off = (off + 777<<10) % (size - 1<<20) {
						select {
						case <-stop:
							failed <- nil
							return
						default:
						}
						if err := d.ReadAt(p, off); err != nil || !bytes.Equal(p, want[off:off+1<<20]) {
							failed <- fmt.Errorf("read at %d: %v, or another content", off, err)
							return
						}
					}
				}()
			}
			id, err := d.Delete("gone")
			finish(t, d, id, err)
			close(stop)
			for range 2 {
				must(t, <-failed)
			}
			if s := states(d); s != "base base, leaf" {
				t.Error(s)
			}
			_ = base
		})
	}
}

// A disk that is shown read-only is not written, and neither is an image that
// has no disk directory.
func TestReadOnly(t *testing.T) {
	d, base := testDisk(t, 1<<20)
	put(t, d, 1, 0, 4096)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 0, 4096)
	must(t, d.Close())
	ro, err := Open(d.Dir(), OpenOptions{ReadOnly: true})
	must(t, err)
	if at(t, ro, 0) != 2 {
		t.Error("another content")
	}
	wantError(t, ro.WriteAt([]byte{1}, 0), ErrReadOnly)
	wantError(t, ro.Snapshot("x"), ErrReadOnly)
	wantError(t, ro.Discard(0, 1), ErrReadOnly)
	must(t, ro.Close())

	image, err := OpenForeign(filepath.Join(filepath.Dir(d.Dir()), "base.raw"), "", OpenOptions{})
	must(t, err)
	got := make([]byte, len(base))
	must(t, image.ReadAt(got, 0))
	if !bytes.Equal(got, base) {
		t.Error("another content")
	}
	wantError(t, image.WriteAt([]byte{1}, 0), ErrReadOnly)
	if _, err := image.Status(); err != nil {
		t.Error(err)
	}
	must(t, image.Close())
}

// The time of the last write is kept, also when varve was killed after it.
func TestModTime(t *testing.T) {
	d, _ := testDisk(t, 1<<20)
	put(t, d, 1, 0, 4096)
	first := d.ModTime()
	must(t, d.Close())
	d = openDisk(t, d.Dir())
	if !d.ModTime().Equal(first) {
		t.Errorf("%v after a close, want %v", d.ModTime(), first)
	}
	time.Sleep(20 * time.Millisecond)
	put(t, d, 2, 0, 4096)
	second := d.ModTime()
	must(t, d.Flush())
	(&diskTarget{t: t, d: d}).kill()
	d = openDisk(t, d.Dir())
	if got := d.ModTime(); got.Before(first.Add(10*time.Millisecond)) || got.After(second.Add(time.Second)) {
		t.Errorf("%v after a kill, want about %v", got, second)
	}
}

// keepingFS does not unlink layers, as a crash right after the commit does not.
type keepingFS struct{ hostfs.FS }

func (k keepingFS) Remove(path string) error {
	if strings.HasSuffix(path, ".qcow2") {
		return errors.New("kept")
	}
	return k.FS.Remove(path)
}

// A crash between the commit that takes a layer out and the unlinking of its
// file leaves nothing for ever.
func TestRemovalAfterCrash(t *testing.T) {
	d, _ := testDisk(t, 1<<20)
	must(t, d.Snapshot("one"))
	must(t, d.Close())
	k, err := Open(d.Dir(), OpenOptions{FS: keepingFS{hostfs.OS()}})
	must(t, err)
	id, err := k.Delete("one")
	finish(t, k, id, err)
	must(t, k.Close())
	files := func() int {
		entries, err := os.ReadDir(filepath.Join(d.Dir(), manifest.LayersDir))
		must(t, err)
		return len(entries)
	}
	if n := files(); n != 2 {
		t.Fatalf("%d files, want the removed one to be there still", n)
	}
	again := openDisk(t, d.Dir())
	if n := files(); n != 1 {
		t.Errorf("%d files after the next open, want 1", n)
	}
	must(t, again.Snapshot("two"))
	if m, _ := again.tree(); len(m.Removing) != 0 {
		t.Errorf("still to be removed: %v", m.Removing)
	}
}

var _ overlay.Backing = (*view.Node)(nil)
