package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"varve/chain"
	"varve/chain/dirlock"
	"varve/chain/mounts"
	"varve/integration/harness"
)

// bind makes a bind mount, with a file or directory to stand on.
func bind(t *testing.T, from, at string) {
	t.Helper()
	info, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	if info.IsDir() {
		err = os.Mkdir(at, 0o700)
	} else {
		err = os.WriteFile(at, nil, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(from, at, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
}

// namespace keeps a shell in a mount namespace of its own that has a copy of the
// mounts below dir, and of no other test's; script runs in it first.
func namespace(t *testing.T, dir, script string) (pid int) {
	t.Helper()
	c := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c",
		`awk '$5 !~ "^'"$1"'/" && / - fuse.varve / {print $5}' /proc/self/mountinfo | while read at; do umount -ilc "$at"; done; `+script+`; echo ready; read line`, "sh", dir)
	c.Dir = dir
	harness.Keep(t, c)
	return c.Process.Pid // unshare becomes the shell
}

// commandsIn are the commands that a message gives in quotes.
func commandsIn(message string) (list []string) {
	for _, found := range regexp.MustCompile(`"((?:nsenter [^"]*)?umount [^"]*)" takes`).FindAllStringSubmatch(message, -1) {
		list = append(list, found[1])
	}
	return list
}

// Bind mounts of a file, a directory and the whole are seen as what they are: counted
// once, named by every command, and umount goes through when the commands that it
// names have been run.
func TestBindMounts(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	put(t, mnt, "through the mount", 0)
	bind(t, mnt+"/disk.raw", dir+"/f.raw")
	bind(t, mnt+"/layers", dir+"/l")
	bind(t, mnt, dir+"/w")

	r := must(t, dir, "list")
	if n := strings.Count(r.stdout, dir+"/vm.raw.varve"); n != 1 {
		t.Errorf("list has the disk %d times:\n%s", n, r.stdout)
	}
	for _, want := range []string{"disk.raw at " + dir + "/f.raw", "layers at " + dir + "/l", "all of it at " + dir + "/w"} {
		if !strings.Contains(r.stdout, "\n"+mnt+" can also be seen: "+want+"\n") {
			t.Errorf("list lacks %q:\n%s", want, r.stdout)
		}
	}
	var doc mountsDocument
	if err := json.Unmarshal([]byte(must(t, dir, "list", "--json").stdout), &doc); err != nil {
		t.Fatal(err)
	}
	for _, m := range doc.Mounts {
		if m.Disk == dir+"/vm.raw.varve" && (m.Mountpoint != mnt || len(m.Binds) != 3 || m.Binds[0].Part != "disk.raw" || m.Error != "") {
			t.Errorf("list --json has %+v", m)
		}
	}
	up := fmt.Sprintf(`varve_up{disk="%s/vm.raw.varve"`, dir)
	if r := must(t, dir, "metrics", "--all"); strings.Count(r.stdout, up) != 1 || !strings.Contains(r.stdout, up+`,mountpoint="`+mnt+`"} 1`) {
		t.Errorf("metrics --all is not up once:\n%s", r.stdout)
	}
	if r := must(t, dir, "metrics", "w", "mnt", "vm.raw"); strings.Count(r.stdout, up) != 1 {
		t.Errorf("metrics counts the disk %d times", strings.Count(r.stdout, up))
	}
	for _, path := range []string{"w", "f.raw", "l/base.raw"} {
		says(t, dir, []string{path}, "note bind-mount "+mnt+": it can be seen at further places: disk.raw at "+dir+"/f.raw, layers at "+dir+"/l, all of it at "+dir+"/w")
	}

	// The whole works, a part says what it is.
	must(t, dir, "snapshot", "w", "by-the-bind")
	if got := named(document(t, dir, "mnt")); got != "base by-the-bind" {
		t.Errorf("snapshots: %s", got)
	}
	fails(t, dir, exitFailed, []string{"it is a bind mount of disk.raw of the varve mount " + mnt + "; name that"}, "snapshot", "f.raw", "x")
	fails(t, dir, exitFailed, []string{"it is a bind mount of disk.raw of the varve mount " + mnt + "; name that"}, "metrics", "f.raw")
	fails(t, dir, exitFailed, []string{"it is a bind mount of layers of the varve mount " + mnt, `"umount ` + dir + `/l" takes it away`}, "umount", "l")
	fails(t, dir, exitFailed, []string{"it lies in the varve mount " + mnt + "; name that"}, "snapshot", "l/base.raw", "x")
	fails(t, dir, exitFailed, []string{"it is a bind mount of the varve mount " + mnt, `"varve umount ` + mnt + `" unmounts the disk`}, "umount", "w")
	fails(t, dir, exitFailed, []string{dir + "/f.raw is a file in the varve mount " + mnt}, "create", "other", "--base", "f.raw", "--format", "raw")

	// umount does not take away the first place while there are others.
	before := named(document(t, dir, "mnt"))
	said := vv(t, dir, "umount", "mnt")
	if said.code != exitFailed || strings.Count(said.stderr, "\n") != 1 {
		t.Fatalf("umount: exit %d, says %q", said.code, said.stderr)
	}
	if got := named(document(t, dir, "mnt")); got != before || mountsAt(t, mnt) != 1 {
		t.Errorf("after an umount that was refused: %s", got)
	}
	// A mount namespace that another test has made meanwhile has copies, which go with these.
	commands := slices.DeleteFunc(commandsIn(said.stderr), func(c string) bool { return strings.HasPrefix(c, "nsenter ") })
	if len(commands) != 3 {
		t.Errorf("umount says %q", said.stderr)
	}
	for _, c := range commands {
		tool(t, dir, "sh", "-c", c)
	}
	must(t, dir, "umount", "mnt", "--wait")
	tool(t, dir, "qemu-img", "check", "-q", must(t, dir, "list", "vm.raw", "--json").leafFile(t))
}

// leafFile is the file of the last layer that "list --json" tells.
func (r result) leafFile(t *testing.T) string {
	t.Helper()
	var st chain.Status
	if err := json.Unmarshal([]byte(r.stdout), &st); err != nil {
		t.Fatal(err)
	}
	return st.Layers[len(st.Layers)-1].File
}

// A program that has disk.raw open by a bind mount is named, and --wait goes through
// when both are gone.
func TestBoundAndOpen(t *testing.T) {
	dir, _ := mounted(t, 4<<20, 1<<20)
	bind(t, dir+"/mnt/disk.raw", dir+"/f.raw")
	qemu := exec.Command("sh", "-c", "mkfifo in; exec 8<>in; qemu-io -f raw f.raw <&8 >out & echo 'write -P 7 0 64k' >&8; until grep -q wrote out; do sleep 0.05; done; echo ready; read line; echo quit >&8; wait; umount f.raw")
	qemu.Dir = dir
	end := harness.Keep(t, qemu)
	fails(t, dir, exitFailed, []string{"it is in use: disk.raw is open (pid ", " qemu-io)", "; it can also be seen elsewhere: disk.raw at " + dir + "/f.raw"}, "umount", "mnt")
	waiting := command(dir, "umount", "mnt", "--wait")
	var words strings.Builder
	waiting.Stderr = &words
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	end()
	if err := waiting.Wait(); err != nil {
		t.Fatalf("umount --wait: %v, %s", err, words.String())
	}
	must(t, dir, "mount", "vm.raw", "mnt")
	if got := get(t, dir+"/mnt/disk.raw", 0, 3); got != "\a\a\a" {
		t.Errorf("disk.raw has %q", got)
	}
	must(t, dir, "umount", "mnt")
}

// A mount that was moved is found, unmounted and ended by SIGTERM where it is now.
func TestMovedMount(t *testing.T) {
	for _, how := range []string{"by its path", "by the disk", "by a signal"} {
		dir, mnt := mounted(t, 4<<20, 1<<20)
		if err := os.Mkdir(dir+"/new", 0o700); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount(mnt, dir+"/new", "", syscall.MS_MOVE, ""); err != nil {
			t.Fatal(err)
		}
		switch how {
		case "by its path":
			fails(t, dir, exitFailed, []string{"is mounted already at " + dir + "/new"}, "mount", "vm.raw", "mnt")
			must(t, dir, "umount", "new")
		case "by the disk":
			must(t, dir, "snapshot", "vm.raw", "one")
			must(t, dir, "umount", "vm.raw")
		default:
			says(t, dir, []string{"vm.raw"})
			if err := syscall.Kill(daemonOf(t, dir+"/vm.raw.varve"), syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the daemon has ended", func() bool { _, _, held, err := dirlock.Holder(dir + "/vm.raw.varve"); return err == nil && !held })
		}
		if mountsAt(t, dir+"/new") != 0 {
			t.Errorf("%s: it is still mounted", how)
		}
	}
}

// What lies over a mount is named, and left alone; by a bind mount that nothing hides
// the disk can be worked on.
func TestOvermounted(t *testing.T) {
	for _, over := range []string{"mnt", "."} {
		dir, mnt := mounted(t, 4<<20, 1<<20)
		at := filepath.Join(dir, over)
		if err := syscall.Mount("hides", at, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
		want := []string{"hides (tmpfs) is mounted over it at " + at + `; "umount ` + at + `" takes that away`}
		for _, args := range [][]string{{"umount", mnt}, {"snapshot", mnt, "x"}, {"metrics", mnt}, {"list", mnt}} {
			fails(t, "/", exitFailed, want, args...)
		}
		if r := must(t, "/", "list"); !strings.Contains(r.stdout, want[0]) {
			t.Errorf("list says\n%s", r.stdout)
		}
		if fsType, _, _, err := mounts.Top(at); err != nil || fsType != "tmpfs" {
			t.Errorf("at %s is %s, %v", at, fsType, err)
		}
		tool(t, "/", "umount", at)
		must(t, dir, "umount", "mnt")
	}

	dir, mnt := mounted(t, 4<<20, 1<<20)
	bind(t, mnt, dir+"/w")
	if err := syscall.Mount("hides", mnt, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(mnt, syscall.MNT_DETACH) })
	must(t, dir, "snapshot", "vm.raw", "one")
	r := vv(t, dir, "umount", "vm.raw")
	if !strings.Contains(r.stderr, "umount vm.raw: it can also be seen elsewhere: all of it at "+mnt+" (\"umount "+mnt+"\" takes that away)") {
		t.Errorf("umount says %q", r.stderr)
	}
	tool(t, dir, "umount", mnt)
	tool(t, dir, "umount", mnt)
	must(t, dir, "umount", "vm.raw")
}

// A container that has disk.raw and nothing else says which disk that is.
func TestOnlyPartsAreSeen(t *testing.T) {
	dir, _ := mounted(t, 4<<20, 1<<20)
	bind(t, dir+"/mnt/disk.raw", dir+"/f.raw")
	pid := namespace(t, dir, "umount mnt")
	inside := func(args ...string) result {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		c := exec.Command("nsenter", append([]string{"--target", fmt.Sprint(pid), "--mount", "--wdns=" + dir, exe}, args...)...)
		c.Env = append(os.Environ(), asVarve+"=1")
		return finish(t, c)
	}
	only := "it is a bind mount of disk.raw of the disk " + dir + "/vm.raw.varve, whose mount cannot be seen from here"
	if r := inside("list"); r.code != exitDone || !strings.Contains(r.stdout, only) {
		t.Errorf("list: exit %d, %s%s", r.code, r.stdout, r.stderr)
	}
	for _, args := range [][]string{{"snapshot", "f.raw", "x"}, {"umount", "f.raw"}} {
		if r := inside(args...); r.code != exitFailed || !strings.Contains(r.stderr, only) {
			t.Errorf("%v: exit %d, %s", args, r.code, r.stderr)
		}
	}
	if r := inside("metrics", "--all"); r.code != exitDone || strings.Contains(r.stdout, dir) {
		t.Errorf("metrics: exit %d\n%s", r.code, r.stdout)
	}
}
