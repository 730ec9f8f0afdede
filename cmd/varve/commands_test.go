package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/chain"
	"varve/integration/turn"
)

// The same commands, with the same words and codes, on a mounted disk by its
// mountpoint, its directory and its image, and on one that is not mounted. What is refused
// takes turns: each on one or two of them.
func TestCommandsMountedOrNot(t *testing.T) {
	for n, c := range []struct {
		name    string
		disk    string
		mounted bool
	}{
		{"mountpoint", "mnt", true},
		{"mounted directory", "vm.raw.varve", true},
		{"mounted image", "vm.raw", true},
		{"directory", "vm.raw.varve", false},
		{"image", "vm.raw", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if testing.Short() && n%3 != 0 {
				t.Skip("one that is mounted and one that is not are enough")
			}
			dir, mnt := mounted(t, 64<<20, 3<<20)
			put(t, mnt, "first", 100)
			remount := func() {}
			if !c.mounted {
				must(t, dir, "umount", "mnt")
				remount = func() { must(t, dir, "mount", "vm.raw", "mnt") }
			}
			quiet := func(args ...string) {
				t.Helper()
				if r := must(t, dir, args...); r.stdout+r.stderr != "" {
					t.Errorf("%v says %q %q", args, r.stdout, r.stderr)
				}
			}
			quiet("snapshot", c.disk, "one")
			quiet("snapshot", c.disk, "two")
			quiet("rename", c.disk, "one", "uno")
			quiet("resize", c.disk, "65M")
			st := document(t, dir, c.disk)
			if named(st) != "base uno two" || st.Size != 65<<20 || st.Disk != filepath.Join(dir, "vm.raw.varve") || st.Version != 1 {
				t.Errorf("status says %+v", st)
			}

			for i, f := range []struct {
				args, words string
			}{
				{"snapshot DISK two", `snapshot two: exists already`},
				{"snapshot DISK base", `the name "base" is taken by varve itself`},
				{"snapshot DISK a/b", `a character other than A-Z a-z 0-9 . _ -`},
				{"snapshot DISK .a", `begins with "."`},
				{"revert DISK three", `snapshot three: does not exist`},
				{"delete DISK three", `snapshot three: does not exist`},
				{"delete DISK base", `base`},
				{"flatten DISK three", `snapshot three: does not exist`},
				{"flatten DISK base", `base`},
				{"rename DISK three four", `snapshot three: does not exist`},
				{"rename DISK two uno", `snapshot uno: exists already`},
				{"rename DISK base b", `base`},
				{"resize DISK 1M", `shrink`},
				{"cancel DISK", `no job is under way`},
				{"cancel DISK 77", `job 77: does not exist`},
			} {
				if turn.Of(i+n, 3) != 0 && os.Getenv("VARVE_LONG") == "" {
					continue
				}
				args := strings.Fields(strings.Replace(f.args, "DISK", c.disk, 1))
				fails(t, dir, exitFailed, []string{"varve: " + args[0] + " " + c.disk + ": ", f.words}, args...)
			}

			r := must(t, dir, "flatten", c.disk, "two")
			if !strings.HasPrefix(r.stderr, "flatten "+c.disk+": done") || r.stdout != "" {
				t.Errorf("flatten says %q %q", r.stdout, r.stderr)
			}
			if r := must(t, dir, "delete", c.disk, "uno"); !strings.HasPrefix(r.stderr, "delete "+c.disk+": done") {
				t.Errorf("delete says %q", r.stderr)
			}
			quiet("revert", c.disk, "two")
			if st := document(t, dir, c.disk); named(st) != "base two" {
				t.Errorf("status says %+v", st)
			}
			r = must(t, dir, "list", c.disk)
			if !strings.HasPrefix(r.stdout, "LAYER ") || !strings.Contains(r.stdout, "\ntwo ") || !strings.Contains(r.stdout, "\nleaf ") {
				t.Errorf("list says\n%s", r.stdout)
			}
			if r := must(t, dir, "ls", c.disk, "--json"); !json.Valid([]byte(r.stdout)) {
				t.Errorf("list --json says\n%s", r.stdout)
			}
			remount()
			if got := get(t, mnt+"/disk.raw", 100, 5); got != "first" {
				t.Errorf("disk.raw has %q", got)
			}
			must(t, dir, "umount", c.disk)
			for _, l := range document(t, dir, "vm.raw").Layers {
				if l.Format == "qcow2" {
					tool(t, dir, "qemu-img", "check", "-q", l.File)
				}
			}
			words := "it is not mounted"
			if c.disk == "mnt" {
				words = "nor a varve mount"
			}
			fails(t, dir, exitFailed, []string{"umount " + c.disk + ": ", words}, "umount", c.disk)
		})
	}
}

func TestCreate(t *testing.T) {
	dir := hostDir(t)
	image(t, dir+"/u.raw", 10<<20, 1<<20)
	tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "u.raw", "-F", "raw", "one.qcow2")
	tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "one.qcow2", "-F", "qcow2", "two.img")

	r := must(t, dir, "create", "blank.varve", "--size", "1G")
	if want := "varve: made " + dir + "/blank.varve, a blank disk\nvarve: " + dir + "/blank.varve now holds the only copy of what is written to the disk\n"; r.stderr != want {
		t.Errorf("says %q", r.stderr)
	}
	r = must(t, dir, "create", "chain.varve", "--base", "two.img", "--format", "qcow2", "--size", "20M")
	want := "varve: made " + dir + "/chain.varve on a chain of 3 files, top first:\n" +
		"  " + dir + "/two.img (qcow2, as adopted: the disk as it was last written)\n  " + dir + "/one.qcow2 (qcow2, as layer-1: what two.img stands on)\n  " + dir + "/u.raw (raw, as base: what one.qcow2 stands on)\n"
	if !strings.HasPrefix(r.stderr, want) {
		t.Errorf("says\n%swant\n%s", r.stderr, want)
	}
	for disk, size := range map[string]int64{"blank.varve": 1 << 30, "chain.varve": 20 << 20} {
		if st := document(t, dir, disk); st.Size != size {
			t.Errorf("%s has %d bytes", disk, st.Size)
		}
	}
	fails(t, dir, exitFailed, []string{"create blank.varve: ", "exists"}, "create", "blank.varve", "--size", "1G")
	fails(t, dir, exitFailed, []string{"create s.varve: ", "less than"}, "create", "s.varve", "--base", "u.raw", "--size", "1M")
	if _, err := os.Stat(dir + "/s.varve"); err == nil {
		t.Error("a failed create left its directory")
	}
}

func TestListMounts(t *testing.T) {
	dir, mnt := mounted(t, 8<<20, 1<<20)
	must(t, dir, "snapshot", "mnt", "one")
	var doc mountsDocument
	if err := json.Unmarshal([]byte(must(t, dir, "list", "--json").stdout), &doc); err != nil || doc.Version != 1 {
		t.Fatalf("%v, %+v", err, doc)
	}
	found := false
	for _, m := range doc.Mounts {
		if m.Mountpoint == mnt {
			found = true
			if m.Disk != dir+"/vm.raw.varve" || m.Size != 8<<20 || m.Layers != 3 || m.ReadOnly || m.Job != nil || m.Error != "" {
				t.Errorf("got %+v", m)
			}
		}
	}
	if !found {
		t.Errorf("%s is not in %+v", mnt, doc)
	}
	if r := must(t, dir, "list"); !strings.Contains(r.stdout, mnt) {
		t.Errorf("list says\n%s", r.stdout)
	}
}

// What a mounted disk's status.json reads and what --json prints is one
// document, and an unmounted disk has the same layers.
func TestStatusIsOneDocument(t *testing.T) {
	dir, mnt := mounted(t, 8<<20, 1<<20)
	put(t, mnt, "x", 0)
	must(t, dir, "snapshot", "mnt", "one")
	file, err := os.ReadFile(mnt + "/status.json")
	if err != nil {
		t.Fatal(err)
	}
	if r := must(t, dir, "status", "mnt", "--json"); r.stdout != string(file) {
		t.Errorf("the file reads\n%sthe command prints\n%s", file, r.stdout)
	}
	table, err := os.ReadFile(mnt + "/status")
	if err != nil {
		t.Fatal(err)
	}
	if r := must(t, dir, "status", "mnt"); r.stdout != string(table) {
		t.Errorf("the file reads\n%sthe command prints\n%s", table, r.stdout)
	}
	var before chain.Status
	if err := json.Unmarshal(file, &before); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "umount", "mnt")
	state := directoryState(t, dir+"/vm.raw.varve")
	after := document(t, dir, "vm.raw")
	if len(after.Layers) != len(before.Layers) || after.Leaf != before.Leaf || after.Size != before.Size || len(after.Open) != 0 {
		t.Errorf("before\n%+v\nafter\n%+v", before, after)
	}
	if now := directoryState(t, dir+"/vm.raw.varve"); now != state {
		t.Errorf("looking changed the directory from\n%s\nto\n%s", state, now)
	}
}

// directoryState names all files of a directory with size and time.
func directoryState(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil {
			all.WriteString(path + " " + info.Mode().String() + " " + info.ModTime().String() + " ")
			if !info.IsDir() {
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				fmt.Fprint(&all, sha256.Sum256(b))
			}
			all.WriteString("\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

func TestAccept(t *testing.T) {
	dir, mnt := mounted(t, 8<<20, 1<<20)
	must(t, dir, "snapshot", "mnt", "one")
	fails(t, dir, exitFailed, []string{"accept mnt: it is mounted at " + mnt + "; unmount it first"}, "accept", "mnt", "base")
	must(t, dir, "umount", "mnt")
	image(t, dir+"/vm.raw", 8<<20, 2<<20)
	fails(t, dir, exitFailed, []string{"mount vm.raw: ", dir + "/vm.raw", "one", "varve accept " + dir + "/vm.raw.varve base"}, "mount", "vm.raw", "mnt")
	fails(t, dir, exitFailed, []string{"accept vm.raw: ", `layer "nobody" does not exist`}, "accept", "vm.raw", "nobody")
	must(t, dir, "accept", "vm.raw", "base")
	must(t, dir, "mount", "vm.raw", "mnt")
}
