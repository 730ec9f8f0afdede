package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/cmd/varve/internal/holders"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFindTarget(t *testing.T) {
	dir := hostDir(t)
	write(t, dir+"/vm1.varve/chain.json", "{}")
	write(t, dir+"/ubuntu.raw", "x")
	write(t, dir+"/ubuntu.raw.varve/chain.json", "{}")
	write(t, dir+"/lonely.raw", "x")
	write(t, dir+"/plain/file", "x")
	for name, to := range map[string]string{"link": "vm1.varve", "link.raw": "ubuntu.raw"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ arg, dir, err string }{
		{arg: "vm1.varve", dir: "vm1.varve"},
		{arg: "vm1.varve/", dir: "vm1.varve"},
		{arg: "link", dir: "vm1.varve"},
		{arg: "ubuntu.raw", dir: "ubuntu.raw.varve"},
		{arg: "link.raw", dir: "ubuntu.raw.varve"},
		{arg: "vm1", err: "no such disk; did you mean vm1.varve?"},
		{arg: "nothing", err: "no such disk directory, mountpoint or image"},
		{arg: "plain", err: "it is neither a disk directory (it has no chain.json) nor a varve mount"},
		{arg: "lonely.raw", err: `it is an image without a disk directory; "varve mount lonely.raw MOUNTPOINT" makes one`},
	} {
		got, err := findTarget(filepath.Join(dir, c.arg))
		switch {
		case c.err != "":
			if err == nil || err.Error() != c.err {
				t.Errorf("%s: %v, want %q", c.arg, err, c.err)
			}
		case err != nil || got.dir != filepath.Join(dir, c.dir) || got.mountpoint != "":
			t.Errorf("%s: %+v, %v", c.arg, got, err)
		}
	}
}

func TestCheckMountpoint(t *testing.T) {
	dir := hostDir(t)
	for _, d := range []string{"empty", "full/inner"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, dir+"/file", "x")
	if err := os.Symlink("empty", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, want, err string }{
		{path: "empty", want: "empty"},
		{path: "link", want: "empty"},
		{path: "missing", err: "does not exist; make it with mkdir"},
		{path: "file", err: "is not a directory"},
		{path: "full", err: `is not empty (it has "inner" in it)`},
	} {
		got, stale, err := checkMountpoint(filepath.Join(dir, c.path))
		if stale != nil {
			t.Errorf("%s: a stale mount of %s", c.path, stale.Source)
		}
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), filepath.Join(dir, c.path)) {
				t.Errorf("%s: %v, want %q", c.path, err, c.err)
			}
		case err != nil || got != filepath.Join(dir, c.want):
			t.Errorf("%s: %q, %v", c.path, got, err)
		}
	}
}

func TestMakePlan(t *testing.T) {
	dir := hostDir(t)
	write(t, dir+"/ubuntu.raw", "x")
	write(t, dir+"/ubuntu.raw.varve/chain.json", "{}")
	write(t, dir+"/new.raw", "x")
	for _, d := range []string{"mnt", "plain", "ubuntu.raw.varve/mnt", "inside"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("ubuntu.raw.varve/mnt", dir+"/sly"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, source, mountpoint string
		flags                    mountFlags
		want                     plan
		err                      string
	}{
		{name: "disk directory", source: "ubuntu.raw.varve", want: plan{dir: "ubuntu.raw.varve"}},
		{name: "known image", source: "ubuntu.raw", want: plan{image: "ubuntu.raw", dir: "ubuntu.raw.varve"}},
		{name: "new image", source: "new.raw", want: plan{image: "new.raw", dir: "new.raw.varve", create: true}},
		{name: "new image elsewhere", source: "new.raw", flags: mountFlags{disk: "plain/d"}, want: plan{image: "new.raw", dir: "plain/d", create: true}},
		{name: "read-only without a directory", source: "new.raw", flags: mountFlags{readOnly: true}, want: plan{image: "new.raw"}},
		{name: "read-only with one", source: "ubuntu.raw", flags: mountFlags{readOnly: true}, want: plan{image: "ubuntu.raw", dir: "ubuntu.raw.varve"}},
		{name: "missing", source: "gone.raw", err: "no such image or disk directory"},
		{name: "misspelt", source: "ubuntu.raw.varve/../new", err: "no such image or disk directory"},
		{name: "directory", source: "plain", err: "it is neither an image nor a disk directory (it has no chain.json)"},
		{name: "two directories", source: "ubuntu.raw.varve", flags: mountFlags{disk: "x"}, err: "--disk goes with an image"},
		{name: "format again", source: "ubuntu.raw.varve", flags: mountFlags{format: "raw"}, err: "which knows its formats"},
		{name: "inside", source: "ubuntu.raw.varve", mountpoint: "ubuntu.raw.varve/mnt", err: "lies inside the disk directory"},
		{name: "inside by a link", source: "ubuntu.raw", mountpoint: "sly", err: "lies inside the disk directory"},
		{name: "around", source: "new.raw", mountpoint: "inside", flags: mountFlags{disk: "inside/new"}, err: "lies inside the mountpoint"},
		{name: "the same", source: "new.raw", mountpoint: "inside", flags: mountFlags{disk: "inside"}, err: "lies inside the disk directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := func(name string) string {
				if name == "" {
					return ""
				}
				return filepath.Join(dir, name)
			}
			if c.mountpoint == "" {
				c.mountpoint = "mnt"
			}
			c.flags.disk = in(c.flags.disk)
			got, err := makePlan(&c.flags, in(c.source), in(c.mountpoint))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%+v, %v; want %q", got, err, c.err)
				}
				return
			}
			want := plan{mountpoint: in("mnt"), image: in(c.want.image), dir: in(c.want.dir), create: c.want.create}
			if err != nil || got != want {
				t.Errorf("got %+v, %v; want %+v", got, err, want)
			}
		})
	}
}

func TestUsersOf(t *testing.T) {
	use := func(n int) []holders.Use {
		var uses []holders.Use
		for i := range n {
			uses = append(uses, holders.Use{PID: 10 + i, Command: "qemu-img", How: "open", What: "disk.raw"})
		}
		return uses
	}
	for n, want := range map[int]string{
		0: "by a process that cannot be seen",
		1: "disk.raw is open (pid 10 qemu-img)",
		6: "disk.raw is open (pid 13 qemu-img), 2 more",
	} {
		if got := usersOf(use(n)); !strings.Contains(got, want) {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
