package chain

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/chain/manifest"
	"varve/overlay/hostfs"
)

// TestCheck damages a disk in one way at a time, checks it, repairs it, and
// checks what is left.
func TestCheck(t *testing.T) {
	words := func(c *checkedDisk, id string, change func(w *imageWords)) {
		w := openWords(c.t, hostfs.OS(), c.path(id))
		change(w)
		w.close()
	}
	tests := []struct {
		name   string
		do     func(c *checkedDisk)
		errors int64
		leaks  int64
		says   []string // in the findings
		// After a repair. left are the errors and leaks that stay, and what the
		// findings then say; with broken the disk cannot be opened, and the views
		// are not compared.
		left     int64
		leftSays string
		broken   bool
	}{
		{name: "nothing", do: func(*checkedDisk) {}},
		{name: "killed", do: (*checkedDisk).kill, leaks: -1,
			says: []string{"note 000005 000005.qcow2: the disk was not unmounted cleanly", "after a crash that is to be expected"}},
		{name: "leak in a frozen layer", do: func(c *checkedDisk) {
			words(c, idOne, (*imageWords).leak)
			c.accept(idOne)
		}, leaks: 1, says: []string{"leak 000002", "1 leaked cluster of 128 KiB", "--repair mends it"}},
		{name: "leak in the leaf", do: func(c *checkedDisk) {
			words(c, idLeaf, (*imageWords).leak)
			c.accept(idLeaf)
		}, leaks: 1, says: []string{"leak 000005"}},
		{name: "leak in the leaf by another program", do: func(c *checkedDisk) { words(c, idLeaf, (*imageWords).leak) }, leaks: 1,
			says: []string{"leak 000005", "the leaf was changed by another program"}},
		{name: "refcount too low", do: func(c *checkedDisk) {
			words(c, idTwo, (*imageWords).lower)
			c.accept(idTwo)
		}, errors: 1, says: []string{"error 000003", "refcount 0, used once", "--repair mends it"}},
		{name: "refcount too low in the leaf", do: func(c *checkedDisk) {
			words(c, idLeaf, (*imageWords).lower)
			c.accept(idLeaf)
		}, errors: 1, says: []string{"error 000005", "refcount 0, used once"}},
		{name: "broken L2 entry", do: func(c *checkedDisk) {
			words(c, idOne, func(w *imageWords) { w.write(w.word(w.h.L1Offset), 0x80, 0, 1) })
			c.accept(idOne)
		}, errors: 1, leaks: 1, says: []string{"is behind the end of the file", "put the file back from a backup"},
			left: 2, leftSays: "is behind the end of the file", broken: true},
		{name: "reserved bit in the L1 table", do: func(c *checkedDisk) {
			words(c, idOne, func(w *imageWords) { w.write(w.h.L1Offset, 0x81) })
			c.accept(idOne)
		}, errors: 1, says: []string{"L1 table: entry 0 has reserved bits", "put the file back from a backup"},
			left: 1, leftSays: "L1 table: entry 0 has reserved bits", broken: true},
		{name: "changed snapshot", do: func(c *checkedDisk) { must(c.t, os.Chtimes(c.path(idOne), now(), now())) }, errors: 1,
			says: []string{"error 000002", "it was changed: modification time", "affected: one, two, the leaf;", "varve accept", " one\n"},
			left: 1, leftSays: "it was changed"},
		{name: "changed base", do: func(c *checkedDisk) {
			must(c.t, os.WriteFile(c.path(idBase), []byte("something else"), 0o600))
		}, errors: 2, says: []string{"error 000001 base.raw: it was changed: size", "varve accept", " base\n", "is a disk of 14 bytes, chain.json says 4194304"},
			left: 2, broken: true},
		{name: "changed base and a leak", do: func(c *checkedDisk) {
			words(c, idLeaf, (*imageWords).leak)
			must(c.t, os.Chtimes(c.path(idBase), now(), now()))
		}, errors: 1, leaks: 1, says: []string{"it was changed"}, left: 2, leftSays: "nothing was mended", broken: true},
		{name: "no base", do: func(c *checkedDisk) { must(c.t, os.Remove(c.path(idBase))) }, errors: 1,
			says: []string{"error 000001 base.raw: the file is not there; put it back where it was"}, left: 1, broken: true},
		{name: "no layer", do: func(c *checkedDisk) { must(c.t, os.Remove(c.path(idTwo))) }, errors: 1,
			says: []string{"error 000003 000003.qcow2: the file is not there; put it back from a backup"}, left: 1, broken: true},
		{name: "no layers at all", do: func(c *checkedDisk) { must(c.t, os.RemoveAll(filepath.Join(c.dir, manifest.LayersDir))) }, errors: 5,
			says: []string{"the directory of the layers is not there"}, left: 5, broken: true},
		{name: "no image", do: func(c *checkedDisk) {
			must(c.t, os.WriteFile(c.path(idTwo), []byte("nothing"), 0o600))
			c.accept(idTwo)
		}, errors: 1,
			says: []string{"no qcow2 magic number"}, left: 1, broken: true},
		{name: "another backing name", do: func(c *checkedDisk) {
			qemuTool(c.t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "000099.qcow2", c.path(idTwo))
			c.accept(idTwo)
		}, errors: 1, says: []string{`its header names the backing file "000099.qcow2" (qcow2), chain.json "000002.qcow2" (qcow2)`}},
		{name: "no backing name in the leaf", do: func(c *checkedDisk) {
			qemuTool(c.t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "", c.path(idLeaf))
			c.accept(idLeaf)
		}, errors: 1, says: []string{`its header names the backing file "" (), chain.json "000002.qcow2" (qcow2)`}},
		{name: "size", do: func(c *checkedDisk) { c.edit(func(m *manifest.Manifest) { m.Layer(idOne).Size = 5 << 20 }) }, errors: 1,
			says: []string{"the file is a disk of 4194304 bytes, chain.json says 5242880; put the file back", "varve accept"}, left: 1, leftSays: "5242880"},
		{name: "strays", do: func(c *checkedDisk) {
			must(c.t, os.WriteFile(filepath.Join(c.dir, "layers/000099.qcow2"), nil, 0o600))
			must(c.t, os.WriteFile(filepath.Join(c.dir, "chain.json.tmp"), nil, 0o600))
		}, says: []string{"note  000099.qcow2: a crash left the file of a layer that never came to be", "note  chain.json.tmp: a crash left"}},
		{name: "a file that was to be removed", do: func(c *checkedDisk) {
			c.edit(func(m *manifest.Manifest) { m.Next = 20; m.Removing = []string{"layers/000010.qcow2"} })
			must(c.t, os.WriteFile(filepath.Join(c.dir, "layers/000010.qcow2"), nil, 0o600))
		}, says: []string{"note  000010.qcow2: the file of a layer that is gone was not removed yet"}},
		{name: "files of others", do: func(c *checkedDisk) {
			c.edit(func(m *manifest.Manifest) { m.Next = 20 })
			must(c.t, os.WriteFile(filepath.Join(c.dir, "layers/000010.qcow2"), nil, 0o600))
			must(c.t, os.WriteFile(filepath.Join(c.dir, "layers/notes.txt"), nil, 0o600))
		}, says: []string{"000010.qcow2: no layer owns this file", "notes.txt: it is no file of varve's"}, leftSays: "000010.qcow2: no layer owns this file"},
		{name: "a job for nothing", do: func(c *checkedDisk) {
			c.edit(func(m *manifest.Manifest) { m.Job = &manifest.Job{ID: "7", Kind: DeleteJob, Layer: idOne} })
		}, says: []string{"job 7 (delete of one) has nothing to do"}},
		{name: "a job", do: func(c *checkedDisk) {
			c.edit(func(m *manifest.Manifest) { m.Job = &manifest.Job{ID: "7", Kind: FlattenJob, Layer: idTwo} })
			words(c, idLeaf, (*imageWords).leak)
		}, leaks: 1, says: []string{"job 7 (flatten of two) is not finished; it goes on at the next mount"}, leftSays: "job 7 (flatten of two) is not finished"},
		{name: "corrupt chain.json", do: func(c *checkedDisk) {
			must(c.t, os.WriteFile(filepath.Join(c.dir, manifest.FileName), []byte(`{"version":1}`), 0o600))
		}, errors: 1, says: []string{"chain.json is corrupt", "put the newest chain.json back"}, left: 1, broken: true},
		{name: "one file twice", do: func(c *checkedDisk) {
			must(c.t, os.Remove(c.path(idTwo)))
			must(c.t, os.Link(c.path(idAside), c.path(idTwo)))
		}, errors: 3, says: []string{"it is the same file as that of"}, left: 3, broken: true},
		{name: "leaf of another tool", do: func(c *checkedDisk) {
			qemuTool(c.t, "qemu-img", "bitmap", "--add", c.path(idLeaf), "b")
		}, says: []string{"the next mount keeps it as a frozen layer and puts a new leaf on top"}, leftSays: "varve only reads it"},
	}
	// Each disk is made like this one, from which the views are; what of it stays as it is
	// qemu-img has judged here.
	first := newCheckedDisk(t)
	first.judge()
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newPlainDisk(t)
			c.views, c.known = maps.Clone(first.views), first.digests()
			test.do(c)
			before := c.state()
			r, lines := c.check(false)
			if r.Errors != test.errors || r.Leaks != test.leaks && (test.leaks >= 0 || r.Leaks == 0) {
				t.Errorf("%d errors, %d leaks, want %d, %d:\n%s", r.Errors, r.Leaks, test.errors, test.leaks, lines)
			}
			for _, s := range test.says {
				if !strings.Contains(lines, s) {
					t.Errorf("it does not say %q:\n%s", s, lines)
				}
			}
			if len(test.says) == 0 && lines != "" {
				t.Errorf("findings:\n%s", lines)
			}
			if after := c.state(); after != before {
				t.Errorf("the check changed something:\n%s\nwas\n%s", after, before)
			}
			base := fileStateIfThere(t, filepath.Join(filepath.Dir(c.dir), "base.raw"))
			found := r
			r, lines = c.check(true)
			if r.Errors+r.Leaks != test.left || !strings.Contains(lines, test.leftSays) || test.left == 0 && test.leftSays == "" && lines != "" {
				t.Errorf("after the repair %d errors, %d leaks, want %d and %q:\n%s", r.Errors, r.Leaks, test.left, test.leftSays, lines)
			}
			if now := fileStateIfThere(t, filepath.Join(filepath.Dir(c.dir), "base.raw")); now != base {
				t.Errorf("the base was changed: %s, was %s", now, base)
			}
			if left := len(r.Findings); !test.broken && len(r.Mended) != len(found.Findings)-left {
				t.Errorf("mended are %+v of %+v, left %s", r.Mended, found.Findings, lines)
			}
			if test.broken {
				return
			}
			if test.left == 0 { // it can be used
				d, err := Open(c.dir, OpenOptions{HoldJob: true})
				must(t, err)
				must(t, d.Close())
			}
			c.judge()
		})
	}
}

func fileStateIfThere(t *testing.T, path string) string {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		return "not there"
	}
	return fileState(t, path)
}

// A repair does not move the time of the last write.
func TestRepairKeepsModTime(t *testing.T) {
	c := newCheckedDisk(t)
	w := openWords(t, hostfs.OS(), c.path(idLeaf))
	w.leak()
	w.close()
	before := mustLoad(t, c.dir).Modified
	if r, _ := c.check(true); r.Leaks != 0 {
		t.Error(r)
	}
	if after := mustLoad(t, c.dir).Modified; !after.Equal(before) {
		t.Errorf("modified %v, was %v", after, before)
	}
}

// TestCheckRefuses: what is no disk, what is in use, what is newer.
func TestCheckRefuses(t *testing.T) {
	ctx := context.Background()
	_, err := Check(ctx, t.TempDir(), CheckOptions{Repair: true})
	wantError(t, err, os.ErrNotExist, "not a disk directory")
	_, err = Check(ctx, filepath.Join(t.TempDir(), "none"), CheckOptions{})
	wantError(t, err, os.ErrNotExist)

	c := newCheckedDisk(t)
	d, err := Open(c.dir, OpenOptions{Mountpoint: "/mnt/somewhere"})
	must(t, err)
	for _, repair := range []bool{false, true} {
		_, err = Check(ctx, c.dir, CheckOptions{Repair: repair})
		wantError(t, err, ErrInUse, "/mnt/somewhere", fmt.Sprint(os.Getpid()))
	}
	must(t, d.Close())
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	_, err = Check(cancelled, c.dir, CheckOptions{})
	wantError(t, err, context.Canceled)
	must(t, os.WriteFile(filepath.Join(c.dir, manifest.FileName), []byte(`{"version":2}`), 0o600))
	_, err = Check(ctx, c.dir, CheckOptions{})
	wantError(t, err, manifest.ErrNewer)
}

// A layer that is open for writing elsewhere is an error with the holder.
func TestCheckOfALayerInUse(t *testing.T) {
	c := newCheckedDisk(t)
	f, err := hostfs.OS().Open(c.path(idLeaf), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	must(t, f.Lock(hostfs.LockWritable))
	r, lines := c.check(false)
	if r.Errors != 1 || !strings.Contains(lines, "error 000005") || !strings.Contains(lines, "open for writing in this process") {
		t.Errorf("%s", lines)
	}
}

// On a read-only medium a check works and writes nothing; a repair is refused.
func TestCheckOnReadOnlyMedium(t *testing.T) {
	c := newCheckedDisk(t)
	dir := t.TempDir()
	must(t, unix.Mount(filepath.Dir(c.dir), dir, "", unix.MS_BIND, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	must(t, unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	disk := filepath.Join(dir, filepath.Base(c.dir))
	r, err := Check(context.Background(), disk, CheckOptions{})
	must(t, err)
	if r.Errors+r.Leaks != 0 || len(r.Layers) != 5 {
		t.Errorf("%+v", r)
	}
	_, err = Check(context.Background(), disk, CheckOptions{Repair: true})
	wantError(t, err, ErrReadOnly)
}

// Progress goes up to the sum of what the files occupy, and not further.
func TestCheckProgress(t *testing.T) {
	c := newCheckedDisk(t)
	last, total := int64(0), int64(0)
	_, err := Check(context.Background(), c.dir, CheckOptions{Progress: func(done, sum int64) {
		if done < last || done > sum {
			t.Errorf("%d of %d after %d", done, sum, last)
		}
		last, total = done, sum
	}})
	must(t, err)
	if last != total || total < 4<<20 {
		t.Errorf("ended at %d of %d", last, total)
	}
}

// A layer with many errors: all are counted, the first are listed.
func TestCheckManyErrors(t *testing.T) {
	c := newCheckedDisk(t)
	w := openWords(t, hostfs.OS(), c.path(idOne))
	l2 := w.word(w.h.L1Offset)
	for i := range int64(maxLayerFindings + 80) {
		w.write(l2+(i+100)*16, 0x80, 0, 1)
	}
	w.close()
	c.accept(idOne)
	r, lines := c.check(false)
	if all := int64(maxLayerFindings + 80); r.Errors != all || len(r.Findings) != maxLayerFindings+1 || !strings.Contains(lines, "80 more errors") || r.Layers[1].Errors != all {
		t.Errorf("%d errors, %d findings, %+v", r.Errors, len(r.Findings), r.Layers)
	}
}
