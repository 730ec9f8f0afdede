package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/chain"
)

// diskDir is a directory on the host's disk: tmpfs is no home for disks.
func diskDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "varve-daemon-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCheckMountpoint(t *testing.T) {
	dir := diskDir(t)
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
	dir := diskDir(t)
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
		flags                    Flags
		want                     plan
		err                      string
	}{
		{name: "disk directory", source: "ubuntu.raw.varve", want: plan{dir: "ubuntu.raw.varve"}},
		{name: "known image", source: "ubuntu.raw", want: plan{image: "ubuntu.raw", dir: "ubuntu.raw.varve"}},
		{name: "new image", source: "new.raw", want: plan{image: "new.raw", dir: "new.raw.varve", create: true}},
		{name: "new image elsewhere", source: "new.raw", flags: Flags{disk: "plain/d"}, want: plan{image: "new.raw", dir: "plain/d", create: true}},
		{name: "read-only without a directory", source: "new.raw", flags: Flags{readOnly: true}, want: plan{image: "new.raw"}},
		{name: "read-only with one", source: "ubuntu.raw", flags: Flags{readOnly: true}, want: plan{image: "ubuntu.raw", dir: "ubuntu.raw.varve"}},
		{name: "missing", source: "gone.raw", err: "no such image or disk directory"},
		{name: "misspelt", source: "ubuntu.raw.varve/../new", err: "no such image or disk directory"},
		{name: "directory", source: "plain", err: "it is neither an image nor a disk directory (it has no chain.json)"},
		{name: "two directories", source: "ubuntu.raw.varve", flags: Flags{disk: "x"}, err: "--disk goes with an image"},
		{name: "format again", source: "ubuntu.raw.varve", flags: Flags{format: "raw"}, err: "which knows its formats"},
		{name: "inside", source: "ubuntu.raw.varve", mountpoint: "ubuntu.raw.varve/mnt", err: "lies inside the disk directory"},
		{name: "inside by a link", source: "ubuntu.raw", mountpoint: "sly", err: "lies inside the disk directory"},
		{name: "around", source: "new.raw", mountpoint: "inside", flags: Flags{disk: "inside/new"}, err: "lies inside the mountpoint"},
		{name: "the same", source: "new.raw", mountpoint: "inside", flags: Flags{disk: "inside"}, err: "lies inside the disk directory"},
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

func TestTopForeign(t *testing.T) {
	parent := func(s string) *string { return &s }
	layers := []chain.LayerStatus{
		{ID: "000001", Name: "base", Foreign: true, File: "/b.raw", Format: "raw", Depth: 1},
		{ID: "000002", Name: "snap1", Foreign: true, File: "/s1.qcow2", Format: "qcow2", Depth: 2, Parent: parent("000001")},
		{ID: "000003", Name: "mine", File: "/d/layers/000003.qcow2", Format: "qcow2", Depth: 3, Parent: parent("000002")},
	}
	if top := topForeign(layers); top == nil || top.File != "/s1.qcow2" {
		t.Errorf("got %v", top)
	}
	if top := topForeign(layers[2:]); top != nil {
		t.Errorf("a disk without a base: %v", top)
	}
}
