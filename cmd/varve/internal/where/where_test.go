package where

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/chain/mounts"
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

func TestFind(t *testing.T) {
	dir := t.TempDir()
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
		got, err := Find(filepath.Join(dir, c.arg))
		switch {
		case c.err != "":
			if err == nil || err.Error() != c.err {
				t.Errorf("%s: %v, want %q", c.arg, err, c.err)
			}
		case err != nil || got.Dir != filepath.Join(dir, c.dir) || got.Mountpoint != "":
			t.Errorf("%s: %+v, %v", c.arg, got, err)
		}
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
		if got := UseWords(use(n)); !strings.Contains(got, want) {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

// The device number of a mount that is gone is given to the next one: what is seen there
// is no user of the disk.
func TestDeviceNumberOfAnotherDisk(t *testing.T) {
	dir := t.TempDir()
	for _, disk := range []string{"one", "two"} {
		write := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		write(os.Mkdir(dir+"/"+disk, 0o700))
		write(os.WriteFile(dir+"/"+disk+"/chain.json", []byte("{}"), 0o600))
	}
	if err := os.Symlink("one", dir+"/same"); err != nil {
		t.Fatal(err)
	}
	for source, want := range map[string]bool{"one": false, "same": false, "moved away": false, "two": true} {
		places := []mounts.Mount{{Mountpoint: "/mnt", Root: "/", Source: dir + "/" + source}}
		if got := (Target{Dir: dir + "/one"}).NumberIsAnothers(places); got != want {
			t.Errorf("a mount of %s: %v, want %v", source, got, want)
		}
	}
}
