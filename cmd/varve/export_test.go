package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// exportDisk is a mounted disk of an odd size with a snapshot "one" over a base,
// zeros in between and a leaf with more. want has the views by name.
func exportDisk(t *testing.T) (dir string, want map[string]string) {
	t.Helper()
	const size = 21<<20 + 512
	dir, mnt := mounted(t, size, 5<<20)
	put(t, mnt, strings.Repeat("snapshot", 40000), 3<<20+700)
	put(t, mnt, strings.Repeat("end", 1000), size-3000)
	f, err := os.OpenFile(mnt+"/disk.raw", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20, 300000); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "snapshot", "mnt", "one")
	put(t, mnt, "leaf", 9<<20)
	want = map[string]string{}
	for name, file := range map[string]string{"base": "layers/base.raw", "one": "layers/one.raw", "leaf": "disk.raw"} {
		b, err := os.ReadFile(filepath.Join(mnt, file))
		if err != nil {
			t.Fatal(err)
		}
		want[name] = filepath.Join(dir, "want."+name)
		if err := os.WriteFile(want[name], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, want
}

// Every view, mounted and not, in every format: qemu-img sees the same bytes and
// finds no fault.
func TestExport(t *testing.T) {
	dir, want := exportDisk(t)
	for _, mounted := range []bool{true, false} {
		disk := "mnt"
		if !mounted {
			must(t, dir, "umount", "mnt")
			disk = "vm.raw.varve"
		}
		for name, truth := range want {
			if mounted && name == "leaf" {
				fails(t, dir, exitFailed, []string{"take a snapshot with \"varve snapshot mnt NAME\""}, "export", disk, name, "no.raw")
				continue
			}
			for i, flags := range [][]string{{}, {"--format", "qcow2"}, {"--format", "qcow2", "--compress"}} {
				out := fmt.Sprintf("out.%v.%s.%d", mounted, name, i)
				r := must(t, dir, append([]string{"export", disk, name, out}, flags...)...)
				if !strings.Contains(r.stderr, "export "+disk+": done, ") {
					t.Errorf("says %q", r.stderr)
				}
				format := "raw"
				if i > 0 {
					format = "qcow2"
					tool(t, dir, "qemu-img", "check", "-q", out)
				}
				tool(t, dir, "qemu-img", "compare", "-q", "-f", "raw", "-F", format, truth, out)
				if info := tool(t, dir, "qemu-img", "info", "-f", format, "--output", "json", out); !strings.Contains(info, `"virtual-size": 22020608,`) {
					t.Errorf("another size: %s", info)
				}
				var st unix.Stat_t
				if err := unix.Stat(filepath.Join(dir, out), &st); err != nil || st.Blocks*512 > 7<<20 || i == 2 && st.Blocks*512 > 2<<20 {
					t.Errorf("%s takes %d bytes (%v)", out, st.Blocks*512, err)
				}
			}
			r := must(t, dir, "export", disk, name, "-")
			if b, err := os.ReadFile(truth); err != nil || r.stdout != string(b) {
				t.Errorf("the pipe got %d bytes that are not those of %s (%v)", len(r.stdout), name, err)
			}
		}
	}
	noPartials(t, dir)
	tool(t, dir, "qemu-img", "check", "-q", "vm.raw.varve/layers/000002.qcow2")
	must(t, dir, "check", "vm.raw.varve")
}

func noPartials(t *testing.T, dir string) {
	t.Helper()
	if left, err := filepath.Glob(filepath.Join(dir, ".*.partial")); err != nil || len(left) > 0 {
		t.Errorf("%q are left (%v)", left, err)
	}
}

// What is asked for wrongly is refused in one line, and nothing is lost.
func TestExportRefused(t *testing.T) {
	dir, _ := exportDisk(t)
	for _, c := range []struct {
		args  string
		code  int
		words string
	}{
		{"mnt one out --format vmdk", exitUsage, "neither raw nor qcow2"},
		{"mnt one out --compress", exitUsage, "--compress needs --format qcow2"},
		{"mnt one - --format qcow2", exitUsage, "cannot be written into a pipe"},
		{"mnt one", exitUsage, "OUT is missing"},
		{"mnt two out", exitFailed, "snapshot two: does not exist"},
		{"mnt ../disk out", exitFailed, "../disk"},
		{"mnt one vm.raw", exitFailed, "vm.raw exists already; name another file, or replace it with --force"},
		{"mnt one vm.raw.varve/out", exitFailed, "which holds only the disk's own files; name another place"},
		{"mnt one vm.raw.varve/layers/out --force", exitFailed, "which holds only the disk's own files; name another place"},
		{"mnt one mnt/layers/out", exitFailed, "which holds only the disk's own files; name another place"},
		{"mnt one /dev/null --format qcow2", exitFailed, "a qcow2 cannot be written there"},
		{"mnt one nowhere/out", exitFailed, "nowhere/out"},
		{"mnt one /proc/out", exitFailed, "/proc/out"},
	} {
		fails(t, dir, c.code, []string{c.words}, append([]string{"export"}, strings.Fields(c.args)...)...)
	}
	must(t, dir, "umount", "mnt")
	fails(t, dir, exitFailed, []string{"snapshot two: does not exist"}, "export", "vm.raw.varve", "two", "out")
	before, err := os.ReadFile(dir + "/vm.raw")
	if err != nil {
		t.Fatal(err)
	}
	if len(before) != 21<<20+512 || !bytes.Equal(before[7:9], []byte{49, 56}) {
		t.Error("the base was written")
	}
	if err := os.WriteFile(dir+"/old", []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "export", "vm.raw.varve", "one", "old", "--force")
	tool(t, dir, "qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", "want.one", "old")
	noPartials(t, dir)
}

// A full file system: the part of the file is gone, and the disk is as it was.
func TestExportToAFullFileSystem(t *testing.T) {
	dir, _ := exportDisk(t)
	full := filepath.Join(dir, "full")
	if err := os.Mkdir(full, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=2m"); err != nil {
		t.Skip("needs root: ", err)
	}
	t.Cleanup(func() { unix.Unmount(full, 0) })
	for _, flags := range [][]string{{}, {"--format", "qcow2"}} {
		fails(t, dir, exitFailed, []string{"write full/out: no space left on device; what was written is removed again"}, append([]string{"export", "mnt", "one", "full/out"}, flags...)...)
	}
	if left, err := os.ReadDir(full); err != nil || len(left) > 0 {
		t.Errorf("%v is left (%v)", left, err)
	}
	must(t, dir, "export", "mnt", "one", "out")
}
