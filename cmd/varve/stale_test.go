package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"varve/chain/mounts"
	"varve/cmd/varve/internal/logfile"
	"varve/cmd/varve/internal/process"
	"varve/integration/harness"
	testpatience "varve/integration/patience"
)

// killed kills the daemon of a disk directory and waits for its end. The mount
// stays.
func killed(t *testing.T, disk string) {
	t.Helper()
	pid := daemonOf(t, disk)
	daemon := process.Open(pid)
	defer daemon.Close()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	daemon.Wait(testpatience.Hang)
}

// mountsAt counts the mounts at a place.
func mountsAt(t *testing.T, at string) (n int) {
	t.Helper()
	list, err := mounts.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		if m.Mountpoint == at {
			n++
		}
	}
	return n
}

// The next mount clears what a daemon that was killed left, says so, and nothing
// that was fsynced is lost. Also where a program still has a file open.
func TestStaleMountIsMended(t *testing.T) {
	for who, uid := range map[string]uint32{"root": 0, "user": nobody} {
		for _, busy := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, busy %v", who, busy), func(t *testing.T) {
				dir := hostDir(t)
				home, mnt := dir+"/home", dir+"/home/mnt"
				if err := os.MkdirAll(mnt, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				image(t, home+"/vm.raw", 8<<20, 1<<20)
				for _, path := range []string{home, mnt, home + "/vm.raw"} {
					if err := os.Chown(path, int(uid), int(uid)); err != nil {
						t.Fatal(err)
					}
				}
				run := func(args ...string) result {
					t.Helper()
					r := asUser(t, uid, home, dir, args...)
					if r.code != exitDone {
						t.Fatalf("varve %q: exit %d, says %q", args, r.code, r.stderr)
					}
					return r
				}
				run("mount", "vm.raw", "mnt")
				// A program of that user, which may look into the mount.
				program := exec.Command("sh", "-c", "exec 3<>mnt/disk.raw && echo kept >&3 && sync mnt/disk.raw && { [ $1 = true ] || exec 3>&-; } && echo ready && read line", "sh", strconv.FormatBool(busy))
				program.Dir = home
				program.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
				harness.Keep(t, program)

				killed(t, home+"/vm.raw.varve")
				r := run("mount", "vm.raw", "mnt")
				if want := "varve: mount vm.raw: at " + mnt + " was a mount of this disk whose daemon was gone; unmounted it; what the guest had not flushed"; !strings.Contains(r.stderr, want) {
					t.Errorf("says %q, lacks %q", r.stderr, want)
				}
				inUse := fmt.Sprintf("still in use, although its daemon is gone: disk.raw is open (pid %d sh)", program.Process.Pid)
				if strings.Contains(r.stderr, inUse) != busy {
					t.Errorf("says %q; %q is in it: want %v", r.stderr, inUse, busy)
				}
				if n := mountsAt(t, mnt); n != 1 {
					t.Errorf("%d mounts at %s", n, mnt)
				}
				kept := exec.Command("head", "-c", "4", "mnt/disk.raw")
				kept.Dir, kept.SysProcAttr = home, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
				if out, err := kept.Output(); err != nil || string(out) != "kept" {
					t.Errorf("disk.raw has %q, %v", out, err)
				}
				run("umount", "mnt")
			})
		}
	}
}

// usersDisk makes an image of an ordinary user's, with a mountpoint beside it.
func usersDisk(t *testing.T) (dir, home, mnt string) {
	t.Helper()
	dir = hostDir(t)
	home, mnt = dir+"/home", dir+"/home/mnt"
	if err := os.MkdirAll(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	image(t, home+"/vm.raw", 4<<20, 1<<20)
	for _, path := range []string{home, mnt, home + "/vm.raw"} {
		if err := os.Chown(path, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	if r := asUser(t, nobody, home, dir, "mount", "vm.raw", "mnt"); r.code != exitDone {
		t.Fatalf("exit %d, says %q", r.code, r.stderr)
	}
	return dir, home, mnt
}

// Root can mend the mount of a user whose daemon is gone, though it cannot look
// into it.
func TestStaleMountOfAUser(t *testing.T) {
	_, home, _ := usersDisk(t)
	fails(t, home, exitFailed, []string{"at mnt the disk " + home + "/vm.raw.varve is mounted already"}, "mount", "vm.raw", "mnt")
	killed(t, home+"/vm.raw.varve")
	if r := must(t, home, "mount", "vm.raw", "mnt"); !strings.Contains(r.stderr, "was a mount of this disk whose daemon was gone; unmounted it") {
		t.Errorf("says %q", r.stderr)
	}
	must(t, home, "umount", "mnt")
}

// A user learns which of his programs keeps his disk after a lazy unmount.
func TestLazilyUnmountedByAUser(t *testing.T) {
	dir, home, mnt := usersDisk(t)
	his := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	program := exec.Command("sh", "-c", "exec 3<mnt/disk.raw && echo ready && read line")
	program.Dir, program.SysProcAttr = home, his
	end := harness.Keep(t, program)
	lazily := exec.Command("fusermount3", "-uz", mnt)
	lazily.SysProcAttr = his
	if out, err := lazily.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r := asUser(t, nobody, home, dir, "umount", "vm.raw")
	want := fmt.Sprintf("(unmounted while it was in use): disk.raw is open (pid %d sh); close that", program.Process.Pid)
	if r.code != exitFailed || !strings.Contains(r.stderr, want) {
		t.Errorf("exit %d, says %q, lacks %q", r.code, r.stderr, want)
	}
	end()
	if r := asUser(t, nobody, home, dir, "mount", "vm.raw", "mnt"); r.code != exitDone {
		t.Errorf("exit %d, says %q", r.code, r.stderr)
	}
}

// What another disk left, or another file system, is named and not touched.
func TestStaleMountOfAnother(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	image(t, dir+"/other.raw", 4<<20, 1<<20)
	killed(t, dir+"/vm.raw.varve")
	fails(t, dir, exitFailed, []string{"varve: mount other.raw: at mnt is a mount of another disk, " + dir + "/vm.raw.varve, whose daemon is gone", `"varve umount mnt"`}, "mount", "other.raw", "mnt")
	if mountsAt(t, mnt) != 1 {
		t.Error("the other disk's mount was touched")
	}
	if _, err := os.Stat(dir + "/other.raw.varve"); err == nil {
		t.Error("a mount that was refused made a disk directory")
	}
	r := must(t, dir, "umount", "mnt")
	if !strings.Contains(r.stderr, "its daemon was gone before") {
		t.Errorf("umount says %q", r.stderr)
	}

	// A FUSE file system of somebody else's whose daemon is gone.
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("theirs", mnt, "fuse.theirs", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", device.Fd())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(mnt, syscall.MNT_DETACH) })
	device.Close()
	fails(t, dir, exitFailed, []string{"at mnt is a mount of theirs (fuse.theirs) whose daemon is gone", "not varve's", `"fusermount3 -u mnt"`}, "mount", "vm.raw", "mnt")
	if err := syscall.Unmount(mnt, 0); err != nil {
		t.Errorf("it is no longer there: %v", err)
	}
}

// umount clears a dead mount by the disk's name too, and whoever has files open.
// The other commands and list say what there is.
func TestStaleMountInWords(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	f, err := os.Open(mnt + "/disk.raw")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	killed(t, dir+"/vm.raw.varve")
	gone := []string{"the daemon of " + mnt + " is gone; mount the disk there again, or clear the mountpoint with \"varve umount " + mnt + `"`}
	for _, args := range [][]string{{"list", "mnt"}, {"status", "mnt"}, {"snapshot", "mnt", "one"}, {"cancel", "mnt", "1"}} {
		fails(t, dir, exitFailed, gone, args...)
	}
	if r := must(t, dir, "list"); !strings.Contains(r.stdout, gone[0]) {
		t.Errorf("list says\n%s", r.stdout)
	}
	r := must(t, dir, "umount", "vm.raw.varve")
	for _, want := range []string{
		fmt.Sprintf("varve: umount vm.raw.varve: still in use, although its daemon is gone: disk.raw is open (pid %d ", os.Getpid()),
		"varve: umount vm.raw.varve: its daemon was gone before; what the guest had not flushed is lost",
	} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("umount says %q, lacks %q", r.stderr, want)
		}
	}
	if mountsAt(t, mnt) != 0 {
		t.Error("the mount is still there")
	}
	fails(t, dir, exitFailed, []string{"it is not mounted"}, "umount", "vm.raw.varve")
}

// A daemon whose mount was unmounted lazily keeps the disk until its files are
// closed. Whoever wants the disk is told by whom.
func TestLazilyUnmounted(t *testing.T) {
	if testing.Short() {
		t.Skip("each command waits for the lock")
	}
	dir, mnt := mounted(t, 4<<20, 1<<20)
	put(t, mnt, "kept", 0)
	program := exec.Command("sh", "-c", "exec 3<mnt/disk.raw && cd mnt/layers && echo ready && read line")
	program.Dir = dir
	end := harness.Keep(t, program)
	loop := strings.TrimSpace(tool(t, dir, "losetup", "--find", "--show", "--read-only", mnt+"/layers/base.raw"))
	t.Cleanup(func() { exec.Command("losetup", "-d", loop).Run() })
	pid := daemonOf(t, dir+"/vm.raw.varve")
	tool(t, dir, "fusermount3", "-uz", mnt)

	words := []string{
		fmt.Sprintf("pid %d ", pid), "holds it for a mount at " + mnt + " that cannot be seen from here (unmounted while it was in use): ",
		"layers/base.raw is attached to " + loop,
		fmt.Sprintf("disk.raw is open (pid %d sh)", program.Process.Pid),
		fmt.Sprintf("pid %d sh has its working directory there", program.Process.Pid),
		"close that, then it writes everything and ends by itself",
	}
	fails(t, dir, exitFailed, append(slices.Clone(words[:len(words)-1]), "varve: umount vm.raw.varve: ", "close that first, or use --wait"), "umount", "vm.raw.varve")
	fails(t, dir, exitFailed, append(words, "varve: list vm.raw.varve: "), "list", "vm.raw.varve")
	fails(t, dir, exitFailed, append(words, "varve: mount vm.raw: "), "mount", "vm.raw", "mnt")

	// Another disk may take the place, and a signal to the first daemon leaves
	// it alone.
	image(t, dir+"/other.raw", 4<<20, 1<<20)
	must(t, dir, "mount", "other.raw", "mnt")
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the log says that it is unmounted already", func() bool {
		log, err := os.ReadFile(filepath.Join(dir, "vm.raw.varve", logfile.Name))
		return err == nil && strings.Contains(string(log), "it is unmounted already, and ends when nobody uses it any more") &&
			strings.Contains(string(log), fmt.Sprintf("disk.raw is open (pid %d sh)", program.Process.Pid))
	})
	if m, ok, err := mounts.At(mnt); !ok || m.Source != dir+"/other.raw.varve" {
		t.Fatalf("at %s is %+v, %v, %v", mnt, m, ok, err)
	}
	must(t, dir, "umount", "mnt")

	tool(t, dir, "losetup", "-d", loop)
	end()
	must(t, dir, "mount", "vm.raw", "mnt") // waits for the daemon
	if got := get(t, mnt+"/disk.raw", 0, 4); got != "kept" {
		t.Errorf("disk.raw has %q", got)
	}
}
