package chain

import (
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/chain/dirlock"
	"varve/chain/manifest"
	"varve/overlay/qcow2"
)

// troubleLines has a line for each trouble: severity, check, file, text, way out.
func troubleLines(e Examination) string {
	lines := ""
	for _, t := range e.Troubles {
		lines += fmt.Sprintf("%s %s %s: %s; %s\n", t.Severity, t.Check, filepath.Base(t.File), t.Text, t.WayOut)
	}
	return lines
}

// hasTrouble says that there is more than notes.
func hasTrouble(e Examination) bool {
	return slices.ContainsFunc(e.Troubles, func(t Trouble) bool { return t.Severity != TroubleNote })
}

// onlyTrouble checks that exactly one thing is found, and what is said of it.
func onlyTrouble(t *testing.T, e Examination, says ...string) {
	t.Helper()
	lines := troubleLines(e)
	if len(says) == 0 && lines != "" || len(says) > 0 && len(e.Troubles) != 1 {
		t.Errorf("got\n%s", lines)
	}
	for _, s := range says {
		if !strings.Contains(lines, s) {
			t.Errorf("%q is not said in\n%s", s, lines)
		}
	}
}

func examine(t *testing.T, dir string) Examination {
	t.Helper()
	e, err := Examine(context.Background(), dir, nil)
	must(t, err)
	return e
}

// patchFile overwrites bytes of a file and keeps its time.
func patchFile(t *testing.T, path string, at int64, p ...byte) {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt(p, at)
	must(t, err)
	must(t, f.Close())
	must(t, os.Chtimes(path, info.ModTime(), info.ModTime()))
}

// Each trouble of a disk is found, and nothing else; nothing is written.
func TestExamine(t *testing.T) {
	gone := func(path string) { must(t, os.Remove(path)) }
	kept := newPlainDisk(t)
	home := filepath.Dir(kept.dir)
	must(t, os.Rename(home, home+".kept"))
	for _, c := range []struct {
		name string
		do   func(c *checkedDisk)
		says []string // besides the leaf that is set aside
	}{
		{"nothing", func(*checkedDisk) {}, nil},
		{"changed base", func(c *checkedDisk) { must(t, os.Chtimes(c.path(idBase), now(), now())) },
			[]string{"problem changed-layer base.raw: base was changed since it was frozen: modification time", "affected: base, one, two, the leaf; put the file back", "varve accept "}},
		{"base that grew", func(c *checkedDisk) { must(t, os.Truncate(c.path(idBase), 8<<20)) }, []string{"problem changed-layer base.raw", "size 4194304"}},
		{"changed snapshot", func(c *checkedDisk) { must(t, os.Chtimes(c.path(idOne), now(), now())) }, []string{"problem changed-layer 000002.qcow2: one was"}},
		{"base gone", func(c *checkedDisk) { gone(c.path(idBase)) }, []string{"problem layer-file base.raw: the file of base is not there", "varve rebase"}},
		{"base is a directory", func(c *checkedDisk) { gone(c.path(idBase)); must(t, os.Mkdir(c.path(idBase), 0o700)) }, []string{"problem layer-file base.raw", "is a directory"}},
		{"snapshot gone", func(c *checkedDisk) { gone(c.path(idTwo)) }, []string{"problem layer-file 000003.qcow2: the file of two is not there; put it back from a backup"}},
		{"strange file", func(c *checkedDisk) {
			must(t, os.WriteFile(filepath.Join(c.dir, manifest.LayersDir, "000009.raw"), nil, 0o600))
		}, []string{"warning unowned-file 000009.raw: it is no file of varve's; move it elsewhere"}},
		{"file without an owner", func(c *checkedDisk) {
			c.edit(func(m *manifest.Manifest) { m.Next = 9 })
			must(t, os.WriteFile(filepath.Join(c.dir, manifest.LayersDir, "000007.qcow2"), make([]byte, 8192), 0o600))
		}, []string{"warning unowned-file 000007.qcow2: no layer owns this file; varve leaves it alone (8 KiB on the host); if nothing in it is missed, remove it"}},
		{"what a crash left", func(c *checkedDisk) {
			must(t, os.WriteFile(filepath.Join(c.dir, manifest.LayersDir, "000077.qcow2"), nil, 0o600))
			must(t, os.WriteFile(filepath.Join(c.dir, manifest.TempName), nil, 0o600))
		}, nil},
		{"killed", (*checkedDisk).kill, []string{"note unclean vm.varve: it was not unmounted in order", "varve check"}},
		{"killed at its lock", func(c *checkedDisk) { must(t, os.WriteFile(filepath.Join(c.dir, dirlock.Name), []byte("{}"), 0o600)) }, []string{"note unclean"}},
		{"no qcow2 any more", func(c *checkedDisk) { patchFile(t, c.path(idTwo), 0, 'X') }, []string{"problem image-header 000003.qcow2", "no qcow2 magic"}},
		{"marked corrupt", func(c *checkedDisk) { patchFile(t, c.path(idTwo), 79, 0x12) }, []string{"problem image-header 000003.qcow2", "marked corrupt"}},
		{"from the future", func(c *checkedDisk) { patchFile(t, c.path(idTwo), 78, 0x40) }, []string{"problem image-header", "unknown incompatible feature", "qemu-img convert"}},
		{"marked dirty", func(c *checkedDisk) { patchFile(t, c.path(idTwo), 79, 0x11); c.accept(idTwo) }, []string{"warning image-header 000003.qcow2: it is marked dirty"}},
		{"cut off", func(c *checkedDisk) {
			info, err := os.Stat(c.path(idTwo))
			must(t, err)
			must(t, os.Truncate(c.path(idTwo), info.Size()-256<<10))
			c.accept(idTwo)
		}, []string{"problem cut-off 000003.qcow2: the file was cut off", "varve check"}},
		{"other size", func(c *checkedDisk) { c.edit(func(m *manifest.Manifest) { m.Layer(idTwo).Size += 512 }) }, []string{"problem image-size 000003.qcow2: the file is a disk of 4194304 bytes, chain.json says 4194816"}},
		{"other backing file", func(c *checkedDisk) {
			qemuTool(t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", c.path(idBase), c.path(idTwo))
			c.accept(idTwo)
		}, []string{"problem backing-file 000003.qcow2: its header names the backing file", "chain.json"}},
		{"leaf used by qemu-img", func(c *checkedDisk) {
			qemuTool(t, "qemu-img", "snapshot", "-c", "internal", c.path(idLeaf))
			c.accept(idLeaf)
		}, []string{"note image-header 000005.qcow2: another program worked on the leaf", "internal snapshots", "puts a new leaf on top"}},
		{"leaf written by qemu-io", func(c *checkedDisk) { qemuTool(t, "qemu-io", "-c", "write 0 4k", c.path(idLeaf)) }, []string{"note changed-layer 000005.qcow2: the leaf was changed by another program"}},
		{"clone gone", func(c *checkedDisk) {
			c.edit(func(m *manifest.Manifest) { m.Clones = []*manifest.Clone{{Layer: idOne, Disk: "/nowhere/clone.varve"}} })
		}, []string{"warning lost-clone 000002.qcow2: one is kept for a clone, /nowhere/clone.varve, that is not there", "varve release", " one"}},
		{"corrupt chain.json", func(c *checkedDisk) {
			must(t, os.WriteFile(filepath.Join(c.dir, manifest.FileName), []byte(`{"version":1`), 0o600))
		}, []string{"problem chain-json chain.json", "chain.json is corrupt", "from a backup"}},
		{"newer chain.json", func(c *checkedDisk) {
			must(t, os.WriteFile(filepath.Join(c.dir, manifest.FileName), []byte(`{"version":99}`), 0o600))
		}, []string{"problem chain-json chain.json", "made by a newer varve", "use that version of varve"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			must(t, os.RemoveAll(home))
			qemuTool(t, "cp", "-a", home+".kept", home) // with its times
			disk := &checkedDisk{t: t, dir: kept.dir, views: map[string]string{}}
			before := examine(t, disk.dir)
			onlyTrouble(t, before, "note set-aside 000004.qcow2: it is the leaf that the last revert set aside, and is still there (", "varve undo --forget")
			if before.Size != 4<<20 || len(before.Layers) != 5 || before.Layers[4].State != "leaf" || !before.Layers[0].Foreign {
				t.Errorf("got %+v", before)
			}
			c.do(disk)
			state := disk.state()
			e := examine(t, disk.dir)
			if disk.state() != state {
				t.Errorf("it wrote something: before\n%s\nafter\n%s", state, disk.state())
			}
			e.Troubles = slices.DeleteFunc(e.Troubles, func(t Trouble) bool { return t.Check == examineSetAside })
			onlyTrouble(t, e, c.says...)
		})
	}
}

// A job that waits is told of, and a disk that is in use has nothing of that.
func TestExamineJob(t *testing.T) {
	d, _ := testDisk(t, 4<<20)
	put(t, d, 1, 0, 1<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 1<<20, 1<<20)
	must(t, d.Snapshot("two"))
	put(t, d, 3, 0, 1<<20)
	onlyTrouble(t, examine(t, d.Dir()))
	must(t, d.Close())
	onlyTrouble(t, examine(t, d.Dir()))
	held, err := Open(d.Dir(), OpenOptions{HoldJob: true})
	must(t, err)
	_, err = held.Delete("one")
	must(t, err)
	onlyTrouble(t, examine(t, held.Dir()))
	must(t, held.Close())
	e := examine(t, held.Dir())
	onlyTrouble(t, e, "note waiting-job chain.json: job ", "(delete of", "is not finished; mount the disk and it goes on")
}

func TestExamineRefuses(t *testing.T) {
	_, err := Examine(context.Background(), t.TempDir(), nil)
	wantError(t, err, os.ErrNotExist)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = Examine(ctx, newPlainDisk(t).dir, nil)
	wantError(t, err, context.Canceled)
	_, err = ExamineImage(context.Background(), filepath.Join(t.TempDir(), "none.raw"), nil, nil)
	wantError(t, err, fs.ErrNotExist)
}

// qcow2With makes an image with qemu-img.
func qcow2With(t *testing.T, path string, args ...string) {
	t.Helper()
	qemuTool(t, "qemu-img", append([]string{"create", "-q", "-f", "qcow2", path}, args...)...)
}

// withoutFormat takes the name of the backing file's format out of a header, which
// qemu-img refuses to leave out: another type makes the extension one that nobody knows.
func withoutFormat(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	want := binary.BigEndian.AppendUint32(nil, qcow2.ExtensionBackingFormat)
	at := strings.Index(string(data[:4096]), string(want))
	if at < 0 {
		t.Fatal("the header has no format")
	}
	patchFile(t, path, int64(at), 0x12, 0x34, 0x56, 0x78)
}

// Each trouble of an image that is no disk's is found, and nothing else.
func TestExamineImage(t *testing.T) {
	for _, c := range []struct {
		name  string
		do    func(t *testing.T, dir string) (image string)
		files string // of the chain
		says  []string
	}{
		{"raw", func(_ *testing.T, dir string) string { return dir + "/base.raw" }, "base.raw", nil},
		{"chain", func(_ *testing.T, dir string) string { return dir + "/top.qcow2" }, "top.qcow2 mid.qcow2 base.raw", nil},
		{"no format", func(t *testing.T, dir string) string {
			withoutFormat(t, dir+"/top.qcow2")
			return dir + "/top.qcow2"
		}, "top.qcow2 mid.qcow2 base.raw", []string{`problem backing-format top.qcow2: its header names the backing file "mid.qcow2" without a format`, "qemu-img rebase -u -b mid.qcow2 ", "/top.qcow2 (with -F raw or -F qcow2, whichever it is)"}},
		{"no format in the middle", func(t *testing.T, dir string) string {
			withoutFormat(t, dir+"/mid.qcow2")
			return dir + "/top.qcow2"
		}, "top.qcow2 mid.qcow2 base.raw", []string{`problem backing-format mid.qcow2: its header names the backing file "base.raw" without a format`}},
		{"format that is not read", func(t *testing.T, dir string) string {
			qcow2With(t, dir+"/vmdk.qcow2", "-u", "-b", "base.vmdk", "-F", "vmdk", "1M")
			return dir + "/vmdk.qcow2"
		}, "vmdk.qcow2", []string{"problem backing-format vmdk.qcow2", `with the format "vmdk"`}},
		{"backing file gone", func(t *testing.T, dir string) string {
			must(t, os.Remove(dir+"/base.raw"))
			return dir + "/top.qcow2"
		}, "top.qcow2 mid.qcow2", []string{`problem backing-file mid.qcow2: its backing file "base.raw" is not there; a relative name is looked for beside the image: `, "/base.raw; put it back, or say where it is now: qemu-img rebase -u -b PATH -F raw "}},
		{"moved away from its base", func(t *testing.T, dir string) string {
			qcow2With(t, dir+"/moved.qcow2", "-u", "-b", "old/base.raw", "-F", "raw", "1M")
			return dir + "/moved.qcow2"
		}, "moved.qcow2", []string{"problem backing-file moved.qcow2", "there is one of that name beside it", "rebase -u -b base.raw -F raw "}},
		{"loop", func(t *testing.T, dir string) string {
			qemuTool(t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-b", dir+"/top.qcow2", "-F", "qcow2", dir+"/mid.qcow2")
			must(t, os.Chtimes(dir+"/mid.qcow2", now(), now().Add(-time.Hour)))
			return dir + "/top.qcow2"
		}, "top.qcow2 mid.qcow2", []string{"problem backing-file mid.qcow2: a loop of backing files", "/mid.qcow2 (with -F raw or -F qcow2, whichever it is)"}},
		{"protocol", func(t *testing.T, dir string) string {
			qcow2With(t, dir+"/nbd.qcow2", "-u", "-b", "nbd:localhost:10809", "-F", "raw", "1M")
			return dir + "/nbd.qcow2"
		}, "nbd.qcow2", []string{"problem backing-file nbd.qcow2", "names with a protocol and json: are not followed"}},
		{"newer base", func(t *testing.T, dir string) string {
			must(t, os.Chtimes(dir+"/base.raw", now(), now().Add(time.Hour)))
			return dir + "/top.qcow2"
		}, "top.qcow2 mid.qcow2 base.raw", []string{"warning changed-layer base.raw: it was written (", "mid.qcow2 (", "which stands on it; if it was only copied or touched, nothing is wrong: "}},
		{"smaller than its base", func(t *testing.T, dir string) string {
			qcow2With(t, dir+"/small.qcow2", "-b", "base.raw", "-F", "raw", "512K")
			return dir + "/small.qcow2"
		}, "small.qcow2 base.raw", []string{"warning image-size small.qcow2: it is a disk of 524288 bytes on one of 1048576 bytes"}},
		{"cut off", func(t *testing.T, dir string) string {
			qemuTool(t, "qemu-io", "-c", "write 0 512k", dir+"/top.qcow2")
			info, err := os.Stat(dir + "/top.qcow2")
			must(t, err)
			must(t, os.Truncate(dir+"/top.qcow2", info.Size()-(100<<10)))
			return dir + "/top.qcow2"
		}, "top.qcow2 mid.qcow2 base.raw", []string{"problem cut-off top.qcow2: the file was cut off: "}},
		{"header cut off", func(t *testing.T, dir string) string {
			must(t, os.Truncate(dir+"/top.qcow2", 90))
			return dir + "/top.qcow2"
		}, "top.qcow2", []string{"problem image-header top.qcow2", "the file ends after 90 bytes"}},
		{"dirty", func(t *testing.T, dir string) string {
			patchFile(t, dir+"/top.qcow2", 79, 1)
			return dir + "/top.qcow2"
		}, "top.qcow2 mid.qcow2 base.raw", []string{"warning image-header top.qcow2: it is marked dirty", "qemu-img check -r all "}},
		{"encrypted", func(t *testing.T, dir string) string {
			patchFile(t, dir+"/top.qcow2", 35, 2)
			return dir + "/top.qcow2"
		}, "top.qcow2", []string{"problem image-header top.qcow2", "encrypted (LUKS)"}},
		{"qcow2 by another name", func(t *testing.T, dir string) string {
			must(t, os.Rename(dir+"/top.qcow2", dir+"/top.img"))
			return dir + "/top.img"
		}, "top.img mid.qcow2 base.raw", []string{"warning image-header top.img: it begins like a qcow2", "--format qcow2"}},
		{"raw by another name", func(t *testing.T, dir string) string {
			must(t, os.Rename(dir+"/base.raw", dir+"/base.qcow2"))
			return dir + "/base.qcow2"
		}, "base.qcow2", []string{"problem image-header base.qcow2: it is named .qcow2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.WriteFile(dir+"/base.raw", make([]byte, 1<<20), 0o600))
			must(t, os.Chtimes(dir+"/base.raw", now(), now().Add(-time.Hour)))
			qcow2With(t, dir+"/mid.qcow2", "-b", "base.raw", "-F", "raw")
			qcow2With(t, dir+"/top.qcow2", "-b", "mid.qcow2", "-F", "qcow2")
			e, err := ExamineImage(context.Background(), c.do(t, dir), nil, nil)
			must(t, err)
			onlyTrouble(t, e, c.says...)
			var files []string
			for _, l := range e.Layers {
				files = append(files, filepath.Base(l.File))
			}
			if got := strings.Join(files, " "); got != c.files {
				t.Errorf("the chain is %s, not %s", got, c.files)
			}
		})
	}
}

// Every trouble has an id that is listed.
func TestExaminations(t *testing.T) {
	listed := map[string]bool{}
	for _, e := range Examinations() {
		if listed[e[0]] || e[1] == "" {
			t.Errorf("%q", e)
		}
		listed[e[0]] = true
	}
	source := ""
	for _, file := range []string{"examine.go", "examine_layers.go", "examine_image.go"} {
		text, err := os.ReadFile(file)
		must(t, err)
		source += string(text)
	}
	for id := range listed {
		if strings.Count(source, `"`+id+`"`) != 1 {
			t.Errorf("%s stands in the source %d times", id, strings.Count(source, `"`+id+`"`))
		}
	}
}

// FuzzExamineImage: whatever an image and what it stands on hold, they are looked at
// without harm, and nothing is written.
func FuzzExamineImage(f *testing.F) {
	disk := hostileDisks(f)[0]
	top := content(f, disk, hostileTop)
	f.Add(top, true)
	f.Add(top[:len(top)/2], true)
	f.Add(top[:200], false)
	f.Add([]byte("QFI\xfb"), true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, data []byte, asTop bool) {
		timer := time.AfterFunc(hangLimit, func() { panic("hang: this input takes more than " + hangLimit.String()) })
		defer timer.Stop()
		host := settled(disk)
		path := hostileTop
		if !asTop {
			path = hostileBase
		}
		putFile(t, host, path, data)
		before := host.Versions()
		e, err := ExamineImage(context.Background(), hostileTop, nil, host)
		if err != nil || len(e.Layers) == 0 || len(e.Layers) > 3 {
			t.Errorf("%v, %d files, %s", err, len(e.Layers), troubleLines(e))
		}
		for path, version := range host.Versions() {
			if before[path] != version {
				t.Errorf("%s was written", path)
			}
		}
	})
}

// A disk that works has no trouble, whatever snapshots and jobs do meanwhile.
func TestExamineMeanwhile(t *testing.T) {
	d, _ := testDisk(t, 8<<20)
	var looks atomic.Int64
	var looking sync.WaitGroup
	stop := make(chan struct{})
	looking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			e, err := Examine(context.Background(), d.Dir(), nil)
			if err != nil {
				t.Errorf("examine: %v", err)
			}
			if lines := troubleLines(e); lines != "" {
				t.Errorf("found:\n%s", lines)
			}
			looks.Add(1)
		}
	})
	// On a busy machine a look can take as long as many changes.
	for i := 0; i < 12 || looks.Load() < 5; i++ {
		name := fmt.Sprint("s", i)
		put(t, d, byte(i), int64(i%4)<<20, 2<<20)
		must(t, d.Snapshot(name))
		put(t, d, byte(i+1), int64(i%5)<<20, 1<<20)
		switch i % 4 {
		case 1:
			id, err := d.Flatten(name)
			finish(t, d, id, err)
		case 2, 3:
			id, err := d.Delete(fmt.Sprint("s", i-2))
			finish(t, d, id, err)
		}
	}
	close(stop)
	looking.Wait()
	must(t, d.Close())
	onlyTrouble(t, examine(t, d.Dir()))
}
