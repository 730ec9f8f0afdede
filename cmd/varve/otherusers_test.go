package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestOtherUsersAreKeptOut mounts with the flags that let others in, and tries
// as other users what they may, by the modes, and what they may not. The modes
// are the kernel's business (M19); the host's files are nobody's but the
// mounting user's, whatever the umask.
func TestOtherUsersAreKeptOut(t *testing.T) {
	const owner, stranger = nobody, nobody - 1
	scripts := map[string]string{
		"stat the mount":    "stat mnt",
		"list the mount":    "ls mnt",
		"stat disk.raw":     "stat mnt/disk.raw",
		"read disk.raw":     "head -c 16 mnt/disk.raw",
		"write disk.raw":    "head -c 16 /dev/zero | dd of=mnt/disk.raw conv=notrunc status=none",
		"truncate disk.raw": "truncate -s 8M mnt/disk.raw",
		"chmod disk.raw":    "chmod 0666 mnt/disk.raw",
		"read a layer":      "head -c 16 mnt/layers/base.raw",
		"write a layer":     "head -c 16 /dev/zero | dd of=mnt/layers/base.raw conv=notrunc status=none",
		"rename a layer":    "mv mnt/layers/one.raw mnt/layers/two.raw",
		"read status":       "cat mnt/status mnt/status.json",
		"list control":      "ls mnt/control",
		"stat control":      "stat mnt/control/snapshot",
		"read control":      "cat mnt/control/snapshot",
		"write control":     "echo theirs > mnt/control/snapshot",
		"list the disk":     "ls vm.raw.varve",
		"read chain.json":   "cat vm.raw.varve/chain.json",
		"read the leaf":     "cat vm.raw.varve/layers/*.qcow2",
		"read the log":      "cat vm.raw.varve/varve.log",
	}
	see := []string{"stat the mount"}
	read := append([]string{"list the mount", "stat disk.raw", "read disk.raw", "read a layer", "read status"}, see...)
	own := append([]string{"write disk.raw", "truncate disk.raw", "chmod disk.raw"}, read...)
	for _, c := range []struct {
		flags string
		uid   uint32
		may   []string
	}{
		{"", stranger, nil},
		{"--umask 000", stranger, nil},
		{"--allow-other", stranger, see},
		{"--allow-other --umask 027", stranger, see},
		{"--allow-other --umask 022", stranger, read},
		{"--allow-other --uid 65534 --gid 65534", owner, own},
		{"--allow-other --uid 65534 --gid 65534", stranger, see},
		{"--allow-other --uid 65534 --gid 65534 --umask 022", stranger, read},
		{"-o allow_other,uid=65534,gid=65534,umask=077", owner, own},
		{"--uid 65534 --gid 65534 --umask 000", owner, nil},
	} {
		t.Run(strings.TrimSpace(c.flags), func(t *testing.T) {
			dir := hostDir(t)
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(dir+"/mnt", 0o755); err != nil {
				t.Fatal(err)
			}
			image(t, dir+"/vm.raw", 4<<20, 1<<20)
			old := syscall.Umask(0) // the disk directory is private all the same
			must(t, dir, append([]string{"mount", "vm.raw", "mnt"}, strings.Fields(c.flags)...)...)
			syscall.Umask(old)
			must(t, dir, "snapshot", "mnt", "one")
			may := map[string]bool{}
			for _, what := range c.may {
				may[what] = true
			}
			for what, script := range scripts {
				cmd := exec.Command("sh", "-c", script)
				cmd.Dir = dir
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.uid, Gid: c.uid}}
				out, err := cmd.CombinedOutput()
				denied := strings.Contains(string(out), "Permission denied") || strings.Contains(string(out), "Operation not permitted")
				switch {
				case may[what] && err != nil:
					t.Errorf("%s: %v, %s", what, err, out)
				case !may[what] && (err == nil || !denied):
					t.Errorf("%s is not refused: %v, %s", what, err, out)
				}
			}
			st := document(t, dir, "mnt")
			if named(st) != "base one" {
				t.Errorf("the snapshots are now %s", named(st))
			}
		})
	}
}

// Of a user's own mount root too is told whom to become, and as whom the command works.
func TestRootAtAUsersMount(t *testing.T) {
	dir := hostDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir+"/own", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir+"/own", nobody, nobody); err != nil {
		t.Fatal(err)
	}
	own := func(args ...string) {
		t.Helper()
		if r := asUser(t, nobody, dir+"/own", dir, args...); r.code != exitDone {
			t.Fatalf("%q: %+v", args, r)
		}
	}
	own("create", "d.varve", "--size", "1M")
	if err := os.Mkdir(dir+"/own/mnt", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir+"/own/mnt", nobody, nobody); err != nil {
		t.Fatal(err)
	}
	own("mount", "d.varve", "mnt")
	r := vv(t, dir, "snapshot", "own/mnt", "one")
	who := fmt.Sprintf("varve: snapshot own/mnt: only uid %d, who mounted %s/own/mnt, may do that: ", nobody, dir)
	_, become, found := strings.Cut(r.stderr, ": permission denied; run the command as that user, with \"")
	become, rest, ends := strings.Cut(become, " varve\" and the same words\n")
	if r.code != exitFailed || !strings.HasPrefix(r.stderr, who) || !found || !ends || rest != "" {
		t.Fatalf("%+v", r)
	}
	tool(t, dir+"/own", "sh", "-euc", become+" id -u | grep -qx 65534")
	own("snapshot", "mnt", "one")
	own("umount", "mnt")
}

// Another user's mount is not unmounted, and whose it is stands in the line.
func TestUmountOfAnotherUser(t *testing.T) {
	dir, _ := mounted(t, 1<<20, 0)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r := asUser(t, nobody, dir, dir, "umount", "mnt")
	if want := "varve: umount mnt: only uid 0, who mounted " + dir + "/mnt, may do that: permission denied\n"; r.code != exitFailed || r.stderr != want {
		t.Errorf("exit %d, says %q, not %q", r.code, r.stderr, want)
	}
	must(t, dir, "umount", "mnt")
}
