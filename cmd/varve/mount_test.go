package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/dirlock"
	"varve/cmd/varve/internal/logfile"
	"varve/cmd/varve/internal/where"
	testpatience "varve/integration/patience"
)

func TestFirstAndNextMount(t *testing.T) {
	dir := hostDir(t)
	image(t, dir+"/vm.raw", 8<<20, 1<<20)
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	r := must(t, dir, "mount", "vm.raw", "mnt")
	want := "varve: made " + dir + "/vm.raw.varve on " + dir + "/vm.raw (raw)\n" +
		"varve: " + dir + "/vm.raw.varve now holds the only copy of what is written to the disk\n" +
		"varve: it needs the image as it is: do not write to it, move it or delete it\n"
	if r.stderr != want || r.stdout != "" {
		t.Errorf("says\n%s%swant\n%s", r.stdout, r.stderr, want)
	}
	put(t, dir+"/mnt", "kept", 0)
	must(t, dir, "umount", "mnt")
	if r := must(t, dir, "mount", "vm.raw", "mnt"); r.stderr+r.stdout != "" {
		t.Errorf("the second time says %q", r.stderr)
	}
	if got := get(t, dir+"/mnt/disk.raw", 0, 4); got != "kept" {
		t.Errorf("disk.raw has %q", got)
	}
	info, err := os.Stat(dir + "/vm.raw.varve/" + logfile.Name)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the log: %v, %v", info, err)
	}
}

// The daemon is of no session and no directory of the caller's, and holds
// nothing of his: a script that reads the command's output to its end goes on.
func TestDaemonLetsGo(t *testing.T) {
	dir, _ := mounted(t, 8<<20, 1<<20)
	pid := daemonOf(t, dir+"/vm.raw.varve")
	proc := "/proc/" + strconv.Itoa(pid)
	if cwd, err := os.Readlink(proc + "/cwd"); err != nil || cwd != "/" {
		t.Errorf("its working directory is %s, %v", cwd, err)
	}
	for _, fd := range []string{"0", "1", "2"} {
		if to, err := os.Readlink(proc + "/fd/" + fd); err != nil || to != "/dev/null" {
			t.Errorf("descriptor %s is %s, %v", fd, to, err)
		}
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("its session is %d, %v", sid, err)
	}
	env, err := os.ReadFile(proc + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(env)) {
		if mask, ok := strings.CutPrefix(line, "SigIgn:\t"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
			if err != nil || n&1 == 0 { // SIGHUP is signal 1
				t.Errorf("SIGHUP is not ignored: %s", line)
			}
		}
	}
}

func TestMountAdoptsAChain(t *testing.T) {
	dir := hostDir(t)
	image(t, dir+"/u.raw", 10<<20, 1<<20)
	tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "u.raw", "-F", "raw", "one.qcow2")
	tool(t, dir, "qemu-io", "-c", "write -P 7 4M 64k", "one.qcow2")
	tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "one.qcow2", "-F", "qcow2", "two.qcow2")
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	files := "  " + dir + "/two.qcow2 (qcow2, as adopted: the disk as it was last written)\n  " + dir + "/one.qcow2 (qcow2, as layer-1: what two.qcow2 stands on)\n  " + dir + "/u.raw (raw, as base: what one.qcow2 stands on)\n"
	if r := must(t, dir, "mount", "-r", "two.qcow2", "mnt"); !strings.HasPrefix(r.stderr, "varve: reading a chain of 3 files, top first:\n"+files+"varve: note: a file of a chain holds what was written after the snapshot") {
		t.Errorf("read-only says\n%s", r.stderr)
	}
	if got := get(t, dir+"/mnt/disk.raw", 4<<20, 3); got != "\a\a\a" {
		t.Errorf("disk.raw has %q", got)
	}
	must(t, dir, "umount", "mnt")
	if r := must(t, dir, "mount", "two.qcow2", "mnt"); !strings.HasPrefix(r.stderr, "varve: made "+dir+"/two.qcow2.varve on a chain of 3 files, top first:\n"+files) {
		t.Errorf("says\n%s", r.stderr)
	}
	if st := document(t, dir, "mnt"); named(st) != "base layer-1 adopted" {
		t.Errorf("status says %+v", st)
	}
}

func TestMountElsewhere(t *testing.T) {
	dir := hostDir(t)
	for _, d := range []string{"mnt", "mnt2", "home"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	image(t, dir+"/vm.raw", 8<<20, 1<<20)
	image(t, dir+"/other.raw", 8<<20, 1<<20)
	must(t, dir, "mount", "vm.raw", "mnt", "--disk", "home/vm")
	if _, err := os.Stat(dir + "/vm.raw.varve"); err == nil {
		t.Error("there is a directory beside the image too")
	}
	must(t, dir, "umount", "home/vm")
	must(t, dir, "mount", "vm.raw", "mnt", "-o", "disk=home/vm")
	must(t, dir, "umount", "mnt")
	fails(t, dir, exitFailed, []string{"belongs to another image, " + dir + "/vm.raw"}, "mount", "other.raw", "mnt", "--disk", "home/vm")
}

func TestMountModes(t *testing.T) {
	dir := hostDir(t)
	image(t, dir+"/vm.raw", 8<<20, 1<<20)
	if err := os.Mkdir(dir+"/mnt", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "mount", "-o", "allow_other,uid=1234,gid=1235,umask=027,noatime,nodev", "vm.raw", "mnt")
	info, err := os.Stat(dir + "/mnt/disk.raw")
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	if st.Uid != 1234 || st.Gid != 1235 || info.Mode().Perm() != 0o640 {
		t.Errorf("disk.raw has uid %d, gid %d, mode %o", st.Uid, st.Gid, info.Mode().Perm())
	}
	// Another user comes to the mount's control files as far as their modes.
	cmd := command(dir, "snapshot", dir+"/mnt", "one")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1234, Gid: 1235}}
	exe := dir + "/varve"
	copyFile(t, cmd.Path, exe, 0o755)
	cmd.Path = exe
	r := finish(t, cmd)
	if r.code != exitFailed || !strings.Contains(r.stderr, "only uid 0, who mounted "+dir+"/mnt, may do that") || !strings.Contains(r.stderr, "permission denied") {
		t.Errorf("exit %d, says %q", r.code, r.stderr)
	}
}

func copyFile(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, mode)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestReadOnlyWritesNothing(t *testing.T) {
	dir := hostDir(t)
	image(t, dir+"/vm.raw", 8<<20, 1<<20)
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	before := directoryState(t, dir)
	must(t, dir, "mount", "--read-only", "vm.raw", "mnt")
	if got := get(t, dir+"/mnt/disk.raw", 0, 8<<20); got != get(t, dir+"/vm.raw", 0, 8<<20) {
		t.Error("disk.raw is not the image")
	}
	if _, err := os.OpenFile(dir+"/mnt/disk.raw", os.O_RDWR, 0); err == nil {
		t.Error("disk.raw can be opened for writing")
	}
	fails(t, dir, exitFailed, []string{"read-only"}, "snapshot", "mnt", "one")
	if r := must(t, dir, "list"); !strings.Contains(r.stdout, dir+"/mnt") {
		t.Errorf("list says\n%s", r.stdout)
	}
	must(t, dir, "status", "mnt")
	must(t, dir, "umount", "mnt")
	if after := directoryState(t, dir); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}

	// The same with a disk directory.
	must(t, dir, "mount", "vm.raw", "mnt")
	must(t, dir, "snapshot", "mnt", "one")
	must(t, dir, "umount", "mnt")
	before = directoryState(t, dir)
	must(t, dir, "mount", "-o", "ro", "vm.raw", "mnt")
	if _, err := os.Stat(dir + "/mnt/layers/one.raw"); err != nil {
		t.Error(err)
	}
	must(t, dir, "umount", "mnt")
	if after := directoryState(t, dir); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

// In the foreground, as a systemd service of Type=notify: ready is told, a
// signal unmounts unless somebody uses the mount, and the log goes to stderr.
func TestForegroundService(t *testing.T) {
	dir := hostDir(t)
	image(t, dir+"/vm.raw", 8<<20, 1<<20)
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	told := func() string {
		t.Helper()
		if err := socket.SetReadDeadline(time.Now().Add(testpatience.Hang)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		n, err := socket.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	cmd := command(dir, "mount", "--foreground", "vm.raw", "mnt")
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+dir+"/notify")
	var words bytes.Buffer
	cmd.Stderr = &words
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if got := told(); !strings.HasPrefix(got, "READY=1\nMAINPID="+strconv.Itoa(cmd.Process.Pid)+"\n") {
		t.Errorf("told %q", got)
	}
	put(t, dir+"/mnt", "hello", 0)

	f, err := os.Open(dir + "/mnt/disk.raw")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, s := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		if got := told(); !strings.HasPrefix(got, "STATUS=in use, not unmounted: disk.raw is open (pid "+strconv.Itoa(os.Getpid())) {
			t.Errorf("told %q", got)
		}
	}
	if got := get(t, dir+"/mnt/disk.raw", 0, 5); got != "hello" {
		t.Errorf("it no longer serves: %q", got)
	}
	f.Close()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := told(); got != "STOPPING=1" {
		t.Errorf("told %q", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, words.String())
	}
	for _, w := range []string{"msg=mounted", `msg="not unmounted: it is in use"`, "msg=unmounted", "msg=closed"} {
		if !strings.Contains(words.String(), w) {
			t.Errorf("the log lacks %s:\n%s", w, words.String())
		}
	}
	if clean, err := dirlock.ClosedInOrder(dir + "/vm.raw.varve"); !clean || err != nil {
		t.Errorf("closed in order: %v, %v", clean, err)
	}
}

func TestUmountSaysWhoUsesIt(t *testing.T) {
	dir, mnt := mounted(t, 8<<20, 1<<20)
	must(t, dir, "snapshot", "mnt", "one")
	f, err := os.OpenFile(mnt+"/disk.raw", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	inside := exec.Command("sh", "-c", "read line")
	inside.Dir = mnt + "/layers"
	hold, err := inside.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := inside.Start(); err != nil {
		t.Fatal(err)
	}
	loop := strings.TrimSpace(tool(t, dir, "losetup", "--find", "--show", "--read-only", mnt+"/layers/one.raw"))
	t.Cleanup(func() { exec.Command("losetup", "-d", loop).Run() })

	fails(t, dir, exitFailed, []string{
		"umount mnt: it is in use: layers/one.raw is attached to " + loop,
		"disk.raw is open (pid " + strconv.Itoa(os.Getpid()),
		"pid " + strconv.Itoa(inside.Process.Pid) + " sh has its working directory there",
		"; close that first",
	}, "umount", "mnt")
	fails(t, dir, exitFailed, []string{"revert mnt: ", "disk.raw is open (pid " + strconv.Itoa(os.Getpid())}, "revert", "mnt", "one")

	tool(t, dir, "losetup", "-d", loop)
	hold.Close()
	inside.Wait()
	f.Close()
	eventually(t, "it can be unmounted", func() bool { return vv(t, dir, "umount", "mnt").code == exitDone })
}

// A daemon that was killed leaves a mount that answers nobody. Commands say
// what to do, umount clears it and says that the disk was not closed.
func TestDaemonKilled(t *testing.T) {
	dir, mnt := mounted(t, 8<<20, 1<<20)
	put(t, mnt, "kept", 0)
	pid := daemonOf(t, dir+"/vm.raw.varve")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the mount is dead", func() bool { return where.DaemonGone(mnt) })
	fails(t, dir, exitFailed, []string{"the daemon of " + mnt + " is gone", `"varve umount ` + mnt + `"`}, "snapshot", "mnt", "one")
	if r := must(t, dir, "list"); !strings.Contains(r.stdout, "is gone") {
		t.Errorf("list says\n%s", r.stdout)
	}
	r := must(t, dir, "umount", "mnt")
	if !strings.Contains(r.stderr, "its daemon was gone before") {
		t.Errorf("umount says %q", r.stderr)
	}
	must(t, dir, "mount", "vm.raw", "mnt")
	if got := get(t, mnt+"/disk.raw", 0, 4); got != "kept" {
		t.Errorf("disk.raw has %q", got)
	}
}

// Whoever unmounts otherwise and mounts again at once waits for the lock.
func TestMountWaitsForTheLastOne(t *testing.T) {
	dir, mnt := mounted(t, 256<<20, 1<<20)
	f, err := os.OpenFile(mnt+"/disk.raw", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	block := bytes.Repeat([]byte("varve"), 1<<20/5)
	for i := range int64(100) {
		if _, err := f.WriteAt(block, i<<20); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	tool(t, dir, "fusermount3", "-u", mnt)
	must(t, dir, "mount", "vm.raw", "mnt")
	if got := get(t, mnt+"/disk.raw", 99<<20, 5); got != "varve" {
		t.Errorf("disk.raw has %q", got)
	}
}

// Names that the mount table and mount options write in other ways.
func TestMountStrangeNames(t *testing.T) {
	for who, uid := range map[string]uint32{"root": 0, "user": nobody} {
		t.Run(who, func(t *testing.T) {
			dir := hostDir(t)
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			home := dir + "/a home"
			for _, d := range []string{home, home + `/m n,t\040é`} {
				if err := os.Mkdir(d, 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.Chown(d, int(uid), int(uid)); err != nil {
					t.Fatal(err)
				}
			}
			mnt, img := `m n,t\040é`, `vm 1,x=y\,"é.raw`
			image(t, home+"/"+img, 4<<20, 1<<20)
			if err := os.Chmod(home+"/"+img, 0o644); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{
				{"mount", img, mnt},
				{"snapshot", mnt, "one"},
				{"snapshot", img + ".varve", "two"},
				{"list", img},
				{"umount", mnt},
				{"mount", "-r", img + ".varve", mnt},
				{"umount", img},
			} {
				if r := asUser(t, uid, home, dir, args...); r.code != exitDone {
					t.Errorf("%q: exit %d, says %q", args, r.code, r.stderr)
				}
			}
			if st := document(t, dir, home+"/"+img); named(st) != "base one two" {
				t.Errorf("status says %+v", st)
			}
		})
	}
}

// Who interrupts a mount that takes long has no mount afterwards.
func TestInterruptedMount(t *testing.T) {
	dir, fast := slowDisk(t)
	must(t, dir, "umount", "mnt")
	cmd := command(dir, "mount", "vm.varve", "mnt")
	var words bytes.Buffer
	cmd.Stderr = &words
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the daemon has the disk", func() bool {
		_, _, held, err := dirlock.Holder(dir + "/vm.varve")
		return err == nil && held
	})
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	said := notices.ReplaceAllString(words.String(), "")
	if !strings.HasPrefix(said, "varve: interrupted while waiting for vm.varve") && said != "varve: mount vm.varve: interrupted (terminated); the disk was unmounted again\n" && said != "varve: mount vm.varve: interrupted; nothing was mounted\n" ||
		cmd.ProcessState.ExitCode() != exitFailed {
		t.Errorf("%s, says %q", cmd.ProcessState, said)
	}
	fast()
	must(t, dir, "mount", "vm.varve", "mnt")
}
