package chain

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// adoptedToCheck is a disk on a qcow2 of others that stands on another one.
func adoptedToCheck(t *testing.T) (c *checkedDisk, middle, bottom string) {
	t.Helper()
	dir := t.TempDir()
	bottom, middle = filepath.Join(dir, "bottom.qcow2"), filepath.Join(dir, "middle.qcow2")
	qemuTool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", bottom, "4M")
	qemuTool(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", bottom)
	qemuTool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "bottom.qcow2", "-F", "qcow2", middle)
	qemuTool(t, "qemu-io", "-f", "qcow2", "-c", "write -P 2 512k 1M", middle)
	c = &checkedDisk{t: t, dir: filepath.Join(dir, "vm.varve"), views: map[string]string{}}
	_, err := Create(c.dir, CreateOptions{Base: middle})
	must(t, err)
	return c, middle, bottom
}

// Foreign files are checked as strictly as ours, and never written: leaks are
// left, errors and changes are for their owner to put right.
func TestCheckAdopted(t *testing.T) {
	change := func(c *checkedDisk, path string, do func(w *imageWords)) {
		w := openWords(t, hostfs.OS(), path)
		do(w)
		w.close()
		for _, l := range mustLoad(t, c.dir).Layers {
			if l.File == path {
				c.accept(l.ID)
			}
		}
	}
	for _, test := range []struct {
		name          string
		do            func(c *checkedDisk, middle, bottom string)
		errors, leaks int64
		says          []string
	}{
		{"nothing", func(*checkedDisk, string, string) {}, 0, 0, nil},
		{"leak", func(c *checkedDisk, _, bottom string) { change(c, bottom, (*imageWords).leak) }, 0, 1,
			[]string{"leak 000001 bottom.qcow2: 1 leaked cluster of 64 KiB", "leave it as it is"}},
		{"refcount too low", func(c *checkedDisk, middle, _ string) { change(c, middle, (*imageWords).lower) }, 1, 0,
			[]string{"error 000002 middle.qcow2: cluster at", "the file is not varve's"}},
		{"another backing file", func(c *checkedDisk, middle, _ string) {
			qemuTool(t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "other.raw", middle)
			c.accept("000002")
		}, 1, 0, []string{"now stands on", "other.raw", "put the header back with qemu-img rebase -u"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, middle, bottom := adoptedToCheck(t)
			test.do(c, middle, bottom)
			before := fileState(t, middle) + fileState(t, bottom)
			for _, repair := range []bool{false, true} {
				r, lines := c.check(repair)
				if r.Errors != test.errors || r.Leaks != test.leaks || len(r.Findings) != int(test.errors+test.leaks) || len(r.Layers) != 3 {
					t.Errorf("repair %v: %d errors, %d leaks\n%s", repair, r.Errors, r.Leaks, lines)
				}
				for _, s := range test.says {
					if !strings.Contains(lines, s) {
						t.Errorf("repair %v: it does not say %q:\n%s", repair, s, lines)
					}
				}
			}
			if now := fileState(t, middle) + fileState(t, bottom); now != before {
				t.Errorf("a foreign file was changed:\n%s\nwas\n%s", now, before)
			}
		})
	}
}

// The bits with which a program says that an image is not in order come first, with the
// whole way out; carried out, it leaves a disk without a finding.
func TestCheckMarks(t *testing.T) {
	for _, test := range []struct {
		name    string
		bit     byte   // of the header's last byte of incompatible features
		finding string // the first
	}{
		{"dirty", qcow2.IncompatibleDirty, "note 000002 middle.qcow2: it is marked dirty: "},
		{"corrupt", qcow2.IncompatibleCorrupt, "error 000002 middle.qcow2: it is marked corrupt: "},
		{"both", qcow2.IncompatibleDirty | qcow2.IncompatibleCorrupt, "error 000002 middle.qcow2: it is marked corrupt: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, middle, _ := adoptedToCheck(t)
			w := openWords(t, hostfs.OS(), middle)
			w.lower()
			w.write(79, test.bit)
			w.close()
			r, lines := c.check(false)
			command := fmt.Sprintf("qemu-img check -r all %s && varve accept %s adopted", middle, c.dir)
			first, _, _ := strings.Cut(lines, "\n")
			if !strings.HasPrefix(first, test.finding) || !strings.HasSuffix(first, command) || r.Errors == 0 {
				t.Errorf("%d errors:\n%s", r.Errors, lines)
			}
			e, err := Examine(context.Background(), c.dir, nil)
			must(t, err)
			if len(e.Troubles) == 0 || !strings.Contains(e.Troubles[0].Text, "it is marked ") || !strings.HasSuffix(e.Troubles[0].WayOut, command) {
				t.Errorf("doctor says %+v", e.Troubles)
			}
			qemuTool(t, "qemu-img", "check", "-q", "-r", "all", middle)
			must(t, Accept(c.dir, "adopted", OpenOptions{}))
			if r, lines := c.check(false); len(r.Findings) != 0 {
				t.Errorf("after the way out:\n%s", lines)
			}
		})
	}
}

// Of a bit that nobody knows a repair is no way out.
func TestCheckUnknownBit(t *testing.T) {
	c, middle, _ := adoptedToCheck(t)
	w := openWords(t, hostfs.OS(), middle)
	w.write(78, 0x40)
	w.close()
	if _, lines := c.check(false); !strings.Contains(lines, "unknown incompatible feature: bit 14: image uses an unsupported feature; have qemu-img convert make a copy") {
		t.Errorf("%s", lines)
	}
}

// A repair beside a damaged foreign file mends ours and leaves the other.
func TestRepairLeavesForeign(t *testing.T) {
	c, _, bottom := adoptedToCheck(t)
	w := openWords(t, hostfs.OS(), bottom)
	w.leak()
	w.close()
	c.accept("000001")
	w = openWords(t, hostfs.OS(), c.path("000003"))
	w.leak()
	w.close()
	before := fileState(t, bottom)
	r, err := Check(context.Background(), c.dir, CheckOptions{Repair: true})
	must(t, err)
	if r.Leaks != 1 || len(r.Findings) != 1 || r.Findings[0].Layer != "000001" || len(r.Mended) != 2 {
		t.Errorf("%s\nmended %+v", findingLines(r), r.Mended)
	}
	if now := fileState(t, bottom); now != before {
		t.Errorf("%s, was %s", now, before)
	}
}
