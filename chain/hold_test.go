package chain

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/chain/manifest"
	"varve/overlay/hostfs"
)

func TestHold(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	put(t, d, 1, 0, 10)
	must(t, d.Snapshot("one"))
	wantError(t, d.Hold(manifest.LeafName), ErrInvalid, "the leaf cannot be held")
	wantError(t, d.Hold(manifest.BaseName), ErrInvalid, "never deleted")
	wantError(t, d.Hold("none"), ErrNotExist, "none")
	wantError(t, d.Release("one"), ErrInvalid, "is not held")
	must(t, d.Hold("one"))
	must(t, d.Hold("one"))
	must(t, d.Close())
	d = openDisk(t, d.Dir())
	_, err := d.Delete("one")
	wantError(t, err, ErrBusy, "one is held; release it first")
	must(t, d.Rename("one", "uno"))
	must(t, d.Revert("uno"))
	if l := d.Layers()[1]; !l.Held || l.Name != "uno" {
		t.Errorf("%+v", l)
	}
	must(t, d.Release("uno"))
	id, err := d.Delete("uno")
	finish(t, d, id, err)
	checkDisk(t, d)
}

// Of several names all are deleted or none.
func TestDeleteOfSeveralRefused(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	for _, name := range []string{"one", "two", "three"} {
		put(t, d, 1, 0, 10)
		must(t, d.Snapshot(name))
	}
	must(t, d.Hold("two"))
	before := states(d)
	for _, c := range []struct {
		names []string
		want  error
	}{
		{[]string{"one", "two"}, ErrBusy},
		{[]string{"one", "none"}, ErrNotExist},
		{[]string{"three", "base"}, ErrInvalid},
		{[]string{"one", "one"}, ErrInvalid},
		{[]string{"one", ""}, ErrInvalid},
	} {
		if _, err := d.Delete(c.names...); err == nil {
			t.Errorf("%v were deleted", c.names)
		} else {
			wantError(t, err, c.want)
		}
		if states(d) != before {
			t.Fatalf("%v: %s", c.names, states(d))
		}
	}
}

// cloned makes a disk with snapshots one and two and a clone of two.
func cloned(t *testing.T) (d *Disk, clone string) {
	t.Helper()
	d, _ = testDisk(t, 8<<20)
	put(t, d, 1, 0, 100_000)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 50_000, 100_000)
	must(t, d.Snapshot("two"))
	put(t, d, 3, 0, 200_000)
	clone = filepath.Join(filepath.Dir(d.Dir()), "clone.varve")
	created, err := d.Clone("two", clone)
	must(t, err)
	if len(created.Files) != 3 || created.Files[0].Layer != "two" || created.Files[1].Layer != "one" || created.Files[2].Layer != "base" {
		t.Fatalf("%+v", created)
	}
	return d, clone
}

// A clone has the snapshot's content and the names below it, takes writes of its own
// beside the disk that it was made from, and keeps that disk from changing its files.
func TestClone(t *testing.T) {
	d, path := cloned(t)
	c := openDisk(t, path)
	if at(t, c, 0) != 1 || at(t, c, 60_000) != 2 || states(c) != "base base, frozen one, frozen two, leaf" {
		t.Fatalf("the clone reads %d %d, %s", at(t, c, 0), at(t, c, 60_000), states(c))
	}
	if was, is := d.Layers()[2].Frozen, c.Layers()[2].Frozen; !was.Equal(is) {
		t.Errorf("frozen %v, in the clone %v", was, is)
	}
	put(t, c, 9, 0, 10)
	must(t, c.Snapshot("mine"))
	if at(t, d, 0) != 3 {
		t.Error("the disk shows what the clone wrote")
	}
	_, err := d.Delete("two")
	wantError(t, err, ErrBusy, path, "release the snapshot")
	wantError(t, d.Release("two"), ErrBusy, path, "remove that disk first")
	for _, name := range []string{"one", "two"} {
		_, err = d.Flatten(name)
		wantError(t, err, ErrBusy, "cloned")
	}
	files := map[string][]byte{}
	m, _ := d.tree()
	for _, l := range m.Chain(m.ByName("two").ID) {
		files[d.path(l)] = read(t, d.path(l))
	}
	// The name goes, its layer stays where the clone reads it.
	id, err := d.Delete("one")
	must(t, err)
	if id != "" || states(d) != "base base, unnamed, frozen two, leaf" {
		t.Errorf("job %q, %s", id, states(d))
	}
	must(t, d.Revert("two"))
	must(t, d.Close())
	if r, err := Check(t.Context(), d.Dir(), CheckOptions{Repair: true}); err != nil || r.Errors > 0 {
		t.Errorf("%v %+v", err, r)
	}
	for file, content := range files {
		if string(read(t, file)) != string(content) {
			t.Errorf("%s was changed", file)
		}
	}
	must(t, c.Close())
	c = openDisk(t, path) // its fingerprints hold

	// When the clone is independent, or gone, the layers are free.
	d = openDisk(t, d.Dir())
	wantError(t, d.Release("two"), ErrBusy)
	must(t, c.Close())
	must(t, os.RemoveAll(path))
	must(t, d.Release("two"))
	for j := d.lastJob(); j.running(); j = d.lastJob() { // the unnamed layer is merged
		<-j.done
	}
	if got := states(d); got != "base base, frozen two, leaf, unnamed" && got != "base base, frozen two, unnamed, leaf" {
		t.Errorf("after the release: %s", got)
	}
	id, err = d.Delete("two")
	finish(t, d, id, err)
	checkDisk(t, d)
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	p, err := os.ReadFile(path)
	must(t, err)
	return p
}

// Killed between its record and the new disk, a clone is one that is gone: nothing was
// deleted meanwhile, and release forgets it.
func TestCloneCutShort(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	put(t, d, 1, 0, 10)
	must(t, d.Snapshot("one"))
	must(t, d.Close())
	m := mustLoad(t, d.Dir())
	m.Clones = append(m.Clones, &manifest.Clone{Layer: m.ByName("one").ID, Disk: d.Dir() + "-none"})
	must(t, m.Commit(hostfs.OS(), d.Dir()))
	d = openDisk(t, d.Dir())
	_, err := d.Delete("one")
	wantError(t, err, ErrBusy, d.Dir()+"-none", "release the snapshot")
	must(t, d.Release("one"))
	id, err := d.Delete("one")
	finish(t, d, id, err)
	checkDisk(t, d)
}

// A repair leaves a layer alone that a clone reads: the clone knows it as it is.
func TestRepairOfAClonedLayer(t *testing.T) {
	d, clone := cloned(t)
	two := d.path(d.manifest.ByName("two"))
	must(t, d.Close())
	info, err := hostfs.OS().Stat(two)
	must(t, err)
	w := openWords(t, hostfs.OS(), two)
	w.leak()
	w.close()
	// As if the leak had been there when the clone was made.
	must(t, os.Chtimes(two, info.ModTime, info.ModTime))
	for _, dir := range []string{d.Dir(), clone} {
		must(t, Accept(dir, "two", OpenOptions{}))
	}
	before := read(t, two)
	r, err := Check(t.Context(), d.Dir(), CheckOptions{Repair: true})
	must(t, err)
	if r.Leaks != 1 || string(read(t, two)) != string(before) {
		t.Errorf("the cloned layer was written; %d leaks are left", r.Leaks)
	}
	openDisk(t, clone)
}

// A clone of a base or of an adopted layer pins nothing: nobody writes these.
func TestCloneOfTheBase(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	put(t, d, 1, 0, 10)
	path := filepath.Join(filepath.Dir(d.Dir()), "clone.varve")
	_, err := d.Clone(manifest.BaseName, path)
	must(t, err)
	if len(d.manifest.Clones) != 0 {
		t.Error("the base is pinned")
	}
	c := openDisk(t, path)
	if at(t, c, 0) == 1 || states(c) != "base base, leaf" {
		t.Errorf("%d, %s", at(t, c, 0), states(c))
	}
}

func TestCloneRefused(t *testing.T) {
	d, clone := cloned(t)
	for _, c := range []struct {
		name, dir string
		want      error
		words     string
	}{
		{"two", clone, ErrExist, clone},
		{"none", clone + "2", ErrNotExist, "none"},
		{manifest.LeafName, clone + "2", ErrInvalid, "take a snapshot and clone that"},
		{"two", "relative", ErrInvalid, "no absolute path"},
		{"two", filepath.Join(clone, "none", "x"), os.ErrNotExist, "none"},
		{"two", "/" + strings.Repeat("x", 2000), ErrInvalid, "bytes"},
	} {
		_, err := d.Clone(c.name, c.dir)
		wantError(t, err, c.want, c.words)
		if n := len(d.manifest.Clones); n != 1 {
			t.Errorf("%s: %d clones are recorded", c.dir, n)
		}
	}
	// A layer of a disk is no base for "create", which would not pin it.
	_, err := Create(clone+"2", CreateOptions{Base: d.path(d.manifest.ByName("two")), Format: formatQcow2})
	wantError(t, err, ErrInvalid, "varve clone")
}

// A clone of a clone pins what it reads in both.
func TestCloneOfAClone(t *testing.T) {
	d, path := cloned(t)
	c := openDisk(t, path)
	put(t, c, 7, 0, 10)
	must(t, c.Snapshot("mine"))
	_, err := c.Clone("mine", path+"2")
	must(t, err)
	e := openDisk(t, path+"2")
	if at(t, e, 0) != 7 || at(t, e, 60_000) != 2 {
		t.Error("wrong content")
	}
	_, err = c.Delete("mine")
	wantError(t, err, ErrBusy, path+"2")
	_, err = c.Flatten("mine")
	wantError(t, err, ErrBusy, "cloned")
	id, err := c.Flatten(manifest.LeafName)
	finish(t, c, id, err)
	wantError(t, d.Release("two"), ErrBusy, path)
}

func TestRebase(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	put(t, d, 1, 1<<20, 10)
	must(t, d.Snapshot("one"))
	base := d.manifest.Layer(d.manifest.Base).File
	must(t, d.Close())
	elsewhere := filepath.Join(t.TempDir(), "moved.raw")
	other := filepath.Join(t.TempDir(), "other.raw")
	content := read(t, base)
	must(t, os.WriteFile(other, append([]byte("x"), content[1:]...), 0o600))
	o := RebaseOptions{}
	must(t, os.Rename(base, elsewhere))
	if _, err := Open(d.Dir(), OpenOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("opened without its base: %v", err)
	}
	_, err := Rebase(d.Dir(), other, o)
	wantError(t, err, ErrChanged, other, "is not the file that base was")
	copied := filepath.Join(t.TempDir(), "copy.raw")
	must(t, os.WriteFile(copied, content, 0o600))
	_, err = Rebase(d.Dir(), copied, o)
	wantError(t, err, ErrChanged, "written at another time", "--accept")
	_, err = Rebase(d.Dir(), elsewhere+"x", o)
	wantError(t, err, os.ErrNotExist)
	files, err := Rebase(d.Dir(), elsewhere, o)
	must(t, err)
	if len(files) != 1 || files[0].Path != elsewhere {
		t.Errorf("%+v", files)
	}
	// QEMU follows too.
	m := mustLoad(t, d.Dir())
	qemuTool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", m.Layer(m.Leaf).Path(d.Dir()), m.ByName("one").Path(d.Dir()))
	d = openDisk(t, d.Dir())
	if at(t, d, 1<<20) != 1 {
		t.Error("wrong content")
	}
	_, err = Rebase(d.Dir(), elsewhere, o)
	wantError(t, err, ErrInUse)
	checkDisk(t, d)
	o.AcceptTime = true
	_, err = Rebase(d.Dir(), copied, o)
	must(t, err)
	d = openDisk(t, d.Dir())
	checkDisk(t, d)
}

// Killed when chain.json names the new place and no header does, a rebase is complete
// with the next mount.
func TestRebaseCutShort(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	put(t, d, 1, 1<<20, 10)
	must(t, d.Snapshot("one"))
	base := d.manifest.Layer(d.manifest.Base).File
	must(t, d.Close())
	moved := filepath.Join(t.TempDir(), "moved.raw")
	must(t, os.Rename(base, moved))
	m := mustLoad(t, d.Dir())
	_, err := rebase(hostfs.OS(), m, moved, false)
	must(t, err)
	must(t, m.Commit(hostfs.OS(), d.Dir()))
	d = openDisk(t, d.Dir())
	if at(t, d, 1<<20) != 1 {
		t.Error("wrong content")
	}
	checkDisk(t, d)
	one := m.ByName("one").Path(d.Dir())
	qemuTool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", m.Layer(m.Leaf).Path(d.Dir()), one)
	if out := qemuTool(t, "qemu-img", "info", one); !strings.Contains(out, moved) {
		t.Errorf("the header names another base:\n%s", out)
	}
}

// The files of an adopted chain move together; naming the one at the bottom says which
// to name.
func TestRebaseOfAnAdoptedChain(t *testing.T) {
	dir, m := adopted(t)
	d := openDisk(t, dir)
	must(t, d.Close())
	moved := filepath.Join(t.TempDir(), "moved")
	must(t, os.Mkdir(moved, 0o700))
	for _, name := range []string{"ubuntu.raw", "snap.qcow2"} {
		must(t, os.Rename(filepath.Join(filepath.Dir(dir), name), filepath.Join(moved, name)))
	}
	_, err := Rebase(dir, filepath.Join(moved, "ubuntu.raw"), RebaseOptions{})
	wantError(t, err, ErrInvalid, "adopted")
	_, err = Rebase(dir, filepath.Join(moved, "snap.qcow2"), RebaseOptions{})
	must(t, err)
	d = openDisk(t, dir)
	if f := d.manifest.Layer(m.Base).File; !strings.HasPrefix(f, moved) {
		t.Errorf("the base is %s", f)
	}
	checkDisk(t, d)
}

// A disk that moved with its base is found again by the clone that reads its layers.
func TestRebaseOfAClone(t *testing.T) {
	d, path := cloned(t)
	must(t, d.Close())
	_, err := Rebase(d.Dir(), d.manifest.Layer(d.manifest.Base).File, RebaseOptions{})
	wantError(t, err, ErrBusy, path)
	moved := d.Dir() + "-moved"
	must(t, os.Rename(d.Dir(), moved))
	if _, err := Open(path, OpenOptions{}); err == nil {
		t.Fatal("opened without the disk that it was cloned from")
	}
	two := filepath.Join(moved, d.manifest.ByName("two").File)
	_, err = Rebase(path, two, RebaseOptions{})
	must(t, err)
	c := openDisk(t, path)
	if at(t, c, 0) != 1 || at(t, c, 60_000) != 2 {
		t.Error("wrong content")
	}
	d = openDisk(t, moved)
	wantError(t, d.Release("two"), ErrBusy, path) // it is known to be the clone still
}

func TestRebaseOfABlankDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vm.varve")
	if _, err := Create(dir, CreateOptions{Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	_, err := Rebase(dir, "/none", RebaseOptions{})
	wantError(t, err, ErrInvalid, "no base")
}

// A clone is made of the files that the disk reads, and not of others at their paths.
func TestCloneOfAnotherFile(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	put(t, d, 1, 0, 10)
	must(t, d.Snapshot("one"))
	m, _ := d.tree()
	dir := filepath.Join(filepath.Dir(d.Dir()), "clone.varve")
	order, err := d.orderClone(m, m.ByName("one"), dir)
	must(t, err)
	order.Files[0].Inode++
	_, err = MakeClone(order)
	wantError(t, err, ErrChanged, "is not the file that the disk reads")
	_, err = MakeClone(CloneOrder{Disk: order.Disk, Dir: dir})
	wantError(t, err, ErrInvalid, "on a file at least")
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", dir, err)
	}
	order.Files[0].Inode--
	_, err = MakeClone(order)
	must(t, err)
	if c := openDisk(t, dir); at(t, c, 0) != 1 {
		t.Error("the clone has another content")
	}
}

// What is read for a disk is read with the rights of its directory's owner, whatever is at
// that path by then, and no link in another's place of chain.json is followed.
func TestOtherChainOfAnotherDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("gives files away: root only")
	}
	const owner = 61001
	home, err := os.MkdirTemp("", "varve-other-") // go test's own directory is root's alone
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(home) })
	must(t, os.Chmod(home, 0o755))
	secret := filepath.Join(home, "secret")
	must(t, os.WriteFile(secret, []byte("the secret"), 0o600))
	other := filepath.Join(home, "other")
	must(t, os.Mkdir(other, 0o755))
	must(t, os.Symlink(secret, filepath.Join(other, manifest.FileName)))
	for _, uid := range []int{0, owner} {
		dir := filepath.Join(home, fmt.Sprint("vm", uid))
		_, err := Create(dir, CreateOptions{Size: 1 << 20})
		must(t, err)
		must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, uid, uid))
		}))
		d, err := Open(dir, OpenOptions{ReadOnly: true})
		must(t, err)
		id, ok := d.DirectoryID()
		must(t, d.Close())
		if !ok {
			t.Fatal("it has no directory")
		}
		if text, err := ReadOtherChain(id, other); !errors.Is(err, os.ErrPermission) {
			t.Errorf("of uid %d: %q, %v", uid, text, err)
		}
		if text, err := ReadOtherChain(id, dir); err != nil || len(text) == 0 {
			t.Errorf("of uid %d, a chain.json: %q, %v", uid, text, err)
		}
		must(t, os.Rename(dir, dir+".moved"))
		must(t, os.Symlink(home, dir)) // root's
		if text, err := ReadOtherChain(id, dir+".moved"); !errors.Is(err, ErrChanged) {
			t.Errorf("of uid %d, moved: %q, %v", uid, text, err)
		}
		_, err = MakeClone(CloneOrder{Disk: id, Dir: filepath.Join(home, "clone"), Files: []CloneFile{{Path: secret, Format: "raw"}}})
		if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), "is not the disk's directory any more") {
			t.Errorf("of uid %d, a clone: %v", uid, err)
		}
	}
}

// unfinishedOutside makes a clone and is not there any more to say so.
type unfinishedOutside struct{ Outside }

func (unfinishedOutside) MakeClone(o CloneOrder) (Created, error) {
	if _, err := MakeClone(o); err != nil {
		return Created{}, err
	}
	return Created{}, ErrUnfinished
}

func (unfinishedOutside) ReadOtherChain(disk DirectoryID, other string) ([]byte, error) {
	return ReadOtherChain(disk, other)
}

func (unfinishedOutside) LockHolder(string, int64, int) string { return "" }

// A clone that may have been made counts as made: nothing writes the files that it reads.
func TestCloneThatMayStand(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	put(t, d, 1, 0, 10)
	must(t, d.Snapshot("one"))
	d.SetOutside(unfinishedOutside{})
	dir := filepath.Join(filepath.Dir(d.Dir()), "clone.varve")
	if _, err := d.Clone("one", dir); !errors.Is(err, ErrUnfinished) {
		t.Fatal(err)
	}
	_, err := d.Delete("one")
	wantError(t, err, ErrBusy, "clone.varve was cloned from")
	if err := d.Release("one"); err == nil || !strings.Contains(err.Error(), "was cloned from") {
		t.Errorf("it is released: %v", err)
	}
	must(t, os.RemoveAll(dir))
	must(t, d.Release("one"))
}
