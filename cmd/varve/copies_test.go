package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"varve/cmd/varve/internal/logfile"
	"varve/cmd/varve/internal/process"
)

// A mount namespace that was made meanwhile has a copy of the mount. Who has a file open by
// it keeps the disk, and is named, by umount, by SIGTERM and by who wants the disk.
func TestCopyInUse(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	pid := namespace(t, dir, `exec 9<>mnt/disk.raw; printf "the copy's" >&9`)
	user := fmt.Sprintf("disk.raw is open (pid %d sh)", pid)
	fails(t, dir, exitFailed, []string{"umount mnt: it is in use: " + user}, "umount", "mnt")
	daemon := daemonOf(t, dir+"/vm.raw.varve")
	if err := syscall.Kill(daemon, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	logged := func(words string) func() bool {
		return func() bool {
			text, err := os.ReadFile(dir + "/vm.raw.varve/" + logfile.Name)
			return err == nil && strings.Contains(string(text), words)
		}
	}
	eventually(t, "the log names who keeps the mount", logged(`not unmounted: it is in use" signal=terminated by="`+user))
	if mountsAt(t, mnt) != 1 {
		t.Fatal("the mount was taken away under its user")
	}

	// umount(8) sees this mount namespace only.
	tool(t, dir, "umount", "mnt")
	fails(t, dir, exitFailed, []string{"cannot be seen from here (unmounted while it was in use): " + user, `"varve umount ` + dir + `/vm.raw.varve" ends it`}, "mount", "vm.raw", "mnt")
	must(t, dir, "snapshot", "vm.raw", "x") // by the copy
	fails(t, dir, exitFailed, []string{"cannot be seen from here", user}, "umount", "vm.raw")
	waiting := command(dir, "umount", "vm.raw", "--wait")
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the daemon was asked", logged("it is unmounted already, and ends when nobody uses it any more"))
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := waiting.Wait(); err != nil {
		t.Errorf("umount --wait: %v", err)
	}
	must(t, dir, "mount", "vm.raw", "mnt")
	if got := get(t, mnt+"/disk.raw", 0, 10); got != "the copy's" {
		t.Errorf("disk.raw has %q", got)
	}
	must(t, dir, "umount", "mnt")
}

// A copy by which no file is open keeps nothing, whoever ends the mount, and gives errors
// from then on. What was written and not flushed is on disk.
func TestIdleCopy(t *testing.T) {
	for _, how := range []string{"umount", "umount by the disk", "umount after umount(8)", "umount --lazy", "SIGTERM"} {
		t.Run(how, func(t *testing.T) {
			dir, mnt := mounted(t, 4<<20, 1<<20)
			disk := dir + "/vm.raw.varve"
			f, err := os.OpenFile(mnt+"/disk.raw", os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte("not flushed"), 0); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			pid := namespace(t, dir, "true")
			daemon := process.Open(daemonOf(t, disk))
			defer daemon.Close()
			switch how {
			case "umount":
				must(t, dir, "umount", "mnt")
			case "umount by the disk":
				must(t, dir, "umount", "vm.raw")
			case "umount after umount(8)":
				tool(t, dir, "umount", "mnt")
				must(t, dir, "umount", "vm.raw")
			case "umount --lazy":
				must(t, dir, "umount", "--lazy", "mnt")
			default:
				if err := daemon.Terminate(); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "the disk is let go", func() bool { return vv(t, dir, "check", "vm.raw").code == exitDone })
			out, err := exec.Command("nsenter", "--target", strconv.Itoa(pid), "--mount", "cat", mnt+"/disk.raw").CombinedOutput()
			if err == nil || !strings.Contains(string(out), "Transport endpoint is not connected") {
				t.Errorf("the copy says %.100q, %v", out, err)
			}
			must(t, dir, "mount", "--read-only", "vm.raw", "mnt")
			if got := get(t, mnt+"/disk.raw", 0, 11); got != "not flushed" {
				t.Errorf("disk.raw has %q", got)
			}
			must(t, dir, "umount", "mnt")
		})
	}
}

// Where the control file system of FUSE is not mounted an ordinary user's daemon cannot end
// a connection that a copy of its mount keeps. umount says so and how to go on, and does
// not wait for ever; root's ends it, and nothing is lost.
func TestIdleCopyOfAUsersMount(t *testing.T) {
	dir := hostDir(t)
	home := dir + "/home"
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(home, 0o755), os.Mkdir(home+"/mnt", 0o755),
		os.Chown(home, nobody, nobody), os.Chown(home+"/mnt", nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	varve := command(home)
	copyFile(t, varve.Path, home+"/varve", 0o755)
	script := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", `
umount /sys/fs/fuse/connections 2>/dev/null
user="setpriv --reuid=`+strconv.Itoa(nobody)+` --regid=`+strconv.Itoa(nobody)+` --clear-groups"
$user ./varve create vm.varve --size 4M && $user ./varve mount vm.varve mnt || exit 3
printf "not flushed" | $user dd of=mnt/disk.raw conv=notrunc status=none
unshare --mount --propagation private sleep 1000 &
copy=$!
while [ "$(readlink /proc/$copy/ns/mnt)" = "$(readlink /proc/self/ns/mnt)" ]; do sleep 0.01; done
$user ./varve umount mnt
echo "as a user: $?" >&2
./varve umount vm.varve
echo "as root: $?" >&2
$user ./varve export vm.varve leaf - | head -c 11 >&2
kill $copy
wait $copy
exit 0`)
	script.Dir, script.Env = home, varve.Env
	r := finish(t, script)
	for _, want := range []string{
		"varve: umount mnt: " + home + "/mnt is no longer mounted here, but pid ", "all of it at " + home + "/mnt in the mount namespace of pid ",
		"a user's daemon cannot end these where /sys/fs/fuse/connections is not mounted; \"varve umount " + home + "/vm.varve\" as root ends them",
		"\nas a user: 1\n", "\nas root: 0\n", "not flushed",
	} {
		if r.code != 0 || !strings.Contains(r.stderr, want) {
			t.Errorf("exit code %d, lacks %q:\n%s", r.code, want, r.stderr)
		}
	}
}
