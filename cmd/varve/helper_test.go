package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestMountHelperArgs(t *testing.T) {
	for _, c := range []struct{ given, want string }{
		{"/a.varve /mnt -o rw -t fuse.varve", "mount -o rw -- /a.varve /mnt"},
		{"/a.varve /mnt -n -v -o rw,noatime,uid=5", "mount -o rw,noatime,uid=5 -- /a.varve /mnt"},
		{"-o ro -- -a -b", "mount -o ro -- -a -b"},
		{"/a /mnt -o rw,user=bob,noexec", "mount -o rw,noexec -- /a /mnt"},
		{"/a /mnt -s -o rw,frobnicate,noatime", "mount -o rw,noatime -- /a /mnt"},
		{`/a /mnt -o disk=/x\,y`, `mount -o disk=/x\,y -- /a /mnt`},
		{"/a /mnt -f -o rw", ""},
		{"/a /mnt -o remount,ro", "mount.fuse.varve: a mount cannot be changed;"},
		{"/a /mnt -N 4711", "mount.fuse.varve: another mount namespace is not supported;"},
		{"/a", "mount.fuse.varve: it takes SOURCE and MOUNTPOINT;"},
		{"/a /mnt -z", "mount.fuse.varve: unknown shorthand flag: 'z' in -z;"},
	} {
		args, err := mountHelperArgs(strings.Fields(c.given))
		got := strings.Join(args, " ")
		if err != nil {
			got = err.Error()
		}
		if got != c.want && (err == nil || !strings.HasPrefix(got, c.want)) {
			t.Errorf("%s gives %q, want %q", c.given, got, c.want)
		}
	}
}

func TestUmountHelperArgs(t *testing.T) {
	for _, c := range []struct{ given, want string }{
		{"/mnt", "umount -- /mnt"},
		{"/mnt -n -v -r -t fuse.varve", "umount -- /mnt"},
		{"/mnt -l", "umount --lazy -- /mnt"},
		{"-f -- -mnt", "umount --force -- -mnt"},
		{"/mnt /other", "umount.fuse.varve: it takes one MOUNTPOINT;"},
		{"/mnt -N 1", "umount.fuse.varve: another mount namespace is not supported;"},
		{"/mnt -q", "umount.fuse.varve: unknown shorthand flag: 'q' in -q;"},
	} {
		args, err := umountHelperArgs(strings.Fields(c.given))
		got := strings.Join(args, " ")
		if err != nil {
			got = err.Error()
		}
		if got != c.want && (err == nil || !strings.HasPrefix(got, c.want)) {
			t.Errorf("%s gives %q, want %q", c.given, got, c.want)
		}
	}
}

// The helpers as mount(8) runs them: links to the program.
func TestHelpers(t *testing.T) {
	dir := hostDir(t)
	must(t, dir, "create", "one.varve", "--size", "4M")
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	helper := func(name string, args ...string) result {
		t.Helper()
		link := filepath.Join(dir, name)
		if err := os.Symlink(exe, link); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
		cmd := exec.Command(link, args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), asVarve+"=1", "NOTIFY_SOCKET=")
		return finish(t, cmd)
	}
	if r := helper("mount.fuse.varve", "one.varve", "mnt", "-o", "rw,noatime,_netdev,x-systemd.mount-timeout=infinity", "-t", "fuse.varve"); r.code != exitDone || r.stdout+r.stderr != "" {
		t.Fatalf("mount.fuse.varve: exit %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	options := tool(t, dir, "findmnt", "-n", "-o", "OPTIONS", dir+"/mnt")
	if !slices.Contains(strings.Split(strings.TrimSpace(options), ","), "noatime") {
		t.Errorf("mounted with %s", options)
	}
	r := helper("mount.fuse.varve", "one.varve", "mnt", "-o", "rw")
	if r.code != exitMountFailed || !strings.Contains(r.stderr, "is mounted already") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("mounted twice: exit %d, %q", r.code, r.stderr)
	}
	if r := helper("umount.fuse.varve", "mnt"); r.code != exitDone || r.stdout+r.stderr != "" {
		t.Errorf("umount.fuse.varve: exit %d, %q", r.code, r.stderr)
	}
	// It returned, so nobody holds the disk any more.
	must(t, dir, "check", "one.varve")
	if r := helper("umount.fuse.varve", "mnt"); r.code != exitMountFailed || !strings.HasPrefix(r.stderr, "varve: umount mnt: ") {
		t.Errorf("unmounted twice: exit %d, %q", r.code, r.stderr)
	}
	if r := helper("mount.fuse.varve", "one.varve", "mnt", "-o", "frobnicate"); r.code != exitMountUsage || !strings.Contains(r.stderr, "frobnicate") {
		t.Errorf("an unknown option: exit %d, %q", r.code, r.stderr)
	}
}
