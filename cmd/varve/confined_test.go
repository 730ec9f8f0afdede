package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"varve/chain/mounts"
	"varve/cmd/varve/internal/logfile"
)

// statusOf gives what /proc/PID/status says of a process, by its names.
func statusOf(t *testing.T, pid int) map[string]string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			status[name] = strings.TrimSpace(value)
		}
	}
	return status
}

// outsideOf is the process outside that belongs to a daemon.
func outsideOf(t *testing.T, daemon int) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if text, err := os.ReadFile(file); err != nil || string(text) != "varve-outside\x00" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			continue
		}
		if stat, err := os.ReadFile(filepath.Join(filepath.Dir(file), "stat")); err == nil {
			if _, rest, ok := strings.Cut(string(stat), ") "); ok && strings.Fields(rest)[1] == strconv.Itoa(daemon) {
				return pid
			}
		}
	}
	t.Fatalf("pid %d has no process outside", daemon)
	return 0
}

func logOf(t *testing.T, disk string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(disk, logfile.Name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// gone says whether a process has ended.
func gone(pid int) bool { return syscall.Kill(pid, 0) == syscall.ESRCH }

// The daemon of a mount has no more rights than it needs, as root and as a user, and does
// all that a daemon does.
func TestDaemonIsConfined(t *testing.T) {
	var own [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &own[0]); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name         string
		by, owner    uint32
		capabilities []int
	}{
		{"root", 0, 0, []int{unix.CAP_DAC_OVERRIDE, unix.CAP_SYS_RESOURCE}},
		{"root in a user's directory", 0, nobody, []int{unix.CAP_DAC_OVERRIDE, unix.CAP_SYS_RESOURCE, unix.CAP_CHOWN, unix.CAP_FOWNER}},
		{"a user", nobody, nobody, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			home := hostDir(t)
			dir := filepath.Join(home, "own")
			for _, path := range []string{dir, filepath.Join(dir, "mnt")} {
				if err := os.Mkdir(path, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			image(t, filepath.Join(dir, "vm.raw"), 8<<20, 1<<20)
			if err := os.Chmod(home, 0o755); err != nil {
				t.Fatal(err)
			}
			tool(t, home, "chown", "-R", fmt.Sprint(c.owner), "own")
			do := func(args ...string) result {
				t.Helper()
				if c.by != 0 {
					return asUser(t, c.by, dir, home, args...)
				}
				return vv(t, dir, args...)
			}
			done := func(args ...string) {
				t.Helper()
				if r := do(args...); r.code != exitDone {
					t.Fatalf("%q: %+v", args, r)
				}
			}
			mnt, disk := filepath.Join(dir, "mnt"), filepath.Join(dir, "vm.raw.varve")
			done("create", "vm.raw.varve", "--base", "vm.raw")
			tool(t, dir, "chown", "-R", fmt.Sprint(c.owner), "vm.raw.varve")
			done("mount", "vm.raw", "mnt")
			daemon := daemonOf(t, disk)
			outside := outsideOf(t, daemon)
			want := uint64(0)
			for _, n := range c.capabilities {
				want |= 1 << n
			}
			want &= uint64(own[1].Permitted)<<32 | uint64(own[0].Permitted)
			status := statusOf(t, daemon)
			for _, name := range []string{"CapPrm", "CapEff", "CapInh", "CapBnd"} {
				had, err := strconv.ParseUint(status[name], 16, 64)
				switch {
				case err != nil:
					t.Fatal(err)
				case name == "CapInh" && had != 0, name != "CapInh" && had != want && (name != "CapBnd" || c.by == 0):
					t.Errorf("%s is %x, not %x", name, had, want)
				}
			}
			if status["NoNewPrivs"] != "1" {
				t.Error("no_new_privs is not set")
			}
			if !strings.Contains(logOf(t, disk), "msg=confined by=\"Landlock ") {
				t.Errorf("the log does not say by what it is confined:\n%s", logOf(t, disk))
			}

			// What it cannot do itself is done all the same.
			done("snapshot", "mnt", "one")
			done("clone", "mnt", "one", "clone.varve")
			done("check", "clone.varve")
			if r := do("clone", "mnt", "one", "clone.varve"); r.code != exitFailed || !strings.Contains(r.stderr, "clone.varve exists already") {
				t.Errorf("%+v", r)
			}
			if r := do("release", "mnt", "one"); r.code != exitFailed || !strings.Contains(r.stderr, "clone.varve was cloned from snapshot one") {
				t.Errorf("%+v", r)
			}
			if err := os.RemoveAll(filepath.Join(dir, "clone.varve")); err != nil {
				t.Fatal(err)
			}
			done("release", "mnt", "one")
			if c.by == 0 {
				deletesBesideAReader(t, dir, disk, func(args ...string) result { return do(args...) })
			}

			// It is told to end while somebody has the disk open, and then without that.
			user := exec.Command("sleep", "1000")
			if c.by != 0 {
				user.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.by, Gid: c.by}}
			}
			user.Dir = mnt
			if err := user.Start(); err != nil {
				t.Fatal(err)
			}
			defer user.Process.Kill()
			syscall.Kill(outside, syscall.SIGTERM) // as the stop of a scope does
			syscall.Kill(daemon, syscall.SIGTERM)
			who := fmt.Sprintf("by=\"pid %d sleep has its working directory there\"", user.Process.Pid)
			eventually(t, "the log names who uses the mount", func() bool { return strings.Contains(logOf(t, disk), who) })
			user.Process.Kill()
			user.Wait()
			syscall.Kill(daemon, syscall.SIGTERM)
			eventually(t, "both processes end", func() bool { return gone(daemon) && gone(outside) })
			if _, there, err := mounts.At(mnt); err != nil || there {
				t.Errorf("it is mounted still (%v)", err)
			}
			if text := logOf(t, disk); !strings.Contains(text, "msg=closed") {
				t.Errorf("not closed in order:\n%s", text)
			}
			done("check", "vm.raw")
		})
	}
}

// deletesBesideAReader deletes the snapshot one while QEMU has a layer open that is to be
// written: the error names it.
func deletesBesideAReader(t *testing.T, dir, disk string, do func(args ...string) result) {
	t.Helper()
	put(t, filepath.Join(dir, "mnt"), "more", 1<<20)
	reader := exec.Command("qemu-io", "-r", filepath.Join(disk, "layers/000002.qcow2"))
	stdin, err := reader.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	reader.Stdout, reader.Stderr = io.Discard, io.Discard
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	defer reader.Wait()
	defer stdin.Close()
	eventually(t, "QEMU has it locked", func() bool {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", reader.Process.Pid))
		for _, file := range files {
			if text, _ := os.ReadFile(file); strings.Contains(string(text), "lock:") {
				return true
			}
		}
		return false
	})
	who := fmt.Sprintf("is open in pid %d qemu-io", reader.Process.Pid)
	if r := do("delete", "mnt", "one"); r.code != exitFailed || !strings.Contains(r.stderr, who) {
		t.Errorf("%+v, which lacks %q", r, who)
	}
}

// Without the process outside the disk goes on, what needs that process says so, and the
// disk is unmounted as always.
func TestProcessOutsideIsGone(t *testing.T) {
	dir, mnt := mounted(t, 8<<20, 0)
	disk := filepath.Join(dir, "vm.raw.varve")
	daemon := daemonOf(t, disk)
	outside := outsideOf(t, daemon)
	must(t, dir, "snapshot", "mnt", "one")
	must(t, dir, "clone", "mnt", "one", "first.varve")
	if err := syscall.Kill(outside, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is gone", func() bool { return statusOf(t, outside)["State"] == "Z (zombie)" })
	fails(t, dir, exitFailed, []string{"varve-outside", "unmount and mount the disk"}, "clone", "mnt", "one", "clone.varve")
	if _, err := os.Lstat(filepath.Join(dir, "clone.varve")); !os.IsNotExist(err) {
		t.Errorf("clone.varve: %v", err)
	}
	// What cannot be told counts as standing: the daemon itself may not read it.
	fails(t, dir, exitFailed, []string{"first.varve was cloned from snapshot one"}, "release", "mnt", "one")
	put(t, mnt, "goes on", 0)
	must(t, dir, "umount", "mnt")
	eventually(t, "the daemon ends", func() bool { return gone(daemon) })
	must(t, dir, "check", "vm.raw")
}

// TestSIGTERMWithoutTheProcessOutside: a daemon that has lost the process which unmounts for it
// says so at once, closes the disk in order at SIGTERM, and leaves a mount behind that the next
// mount, or umount, takes away. While somebody has the disk open it goes on, as always.
func TestSIGTERMWithoutTheProcessOutside(t *testing.T) {
	for _, uid := range []uint32{0, nobody} {
		t.Run(fmt.Sprint("uid ", uid), func(t *testing.T) {
			dir := hostDir(t)
			if err := os.Mkdir(dir+"/mnt", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			must(t, dir, "create", "vm.varve", "--size", "8M")
			tool(t, dir, "chown", "-R", fmt.Sprint(uid), ".")
			do := func(args ...string) result {
				t.Helper()
				if uid != 0 {
					return asUser(t, uid, dir, dir, args...)
				}
				return vv(t, dir, args...)
			}
			disk, mnt := dir+"/vm.varve", dir+"/mnt"
			if r := do("mount", "vm.varve", "mnt"); r.code != exitDone {
				t.Fatalf("%+v", r)
			}
			daemon := daemonOf(t, disk)
			if err := syscall.Kill(outsideOf(t, daemon), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the log says that it is gone", func() bool { return strings.Contains(logOf(t, disk), "the process varve-outside has ended") })
			user := exec.Command("sh", "-c", "exec 3<>mnt/disk.raw; printf kept >&3; echo ready; exec sleep 1000")
			user.Dir = dir
			if uid != 0 {
				user.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
			}
			out, err := user.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := user.Start(); err != nil {
				t.Fatal(err)
			}
			defer user.Process.Kill()
			if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
				t.Fatal(err)
			}
			syscall.Kill(daemon, syscall.SIGTERM)
			eventually(t, "the log says that it is in use", func() bool { return strings.Contains(logOf(t, disk), "not unmounted: it is in use") })
			user.Process.Kill()
			user.Wait()
			syscall.Kill(daemon, syscall.SIGTERM)
			eventually(t, "the daemon ends", func() bool { return gone(daemon) })
			if text := logOf(t, disk); !strings.Contains(text, "the mount stays behind without a daemon") || !strings.Contains(text, "msg=closed") || strings.Contains(text, "msg=unmounted") {
				t.Errorf("the log says\n%s", text)
			}
			look := exec.Command("cat", mnt+"/disk.raw")
			look.SysProcAttr = user.SysProcAttr
			if words, err := look.CombinedOutput(); err == nil || !strings.Contains(string(words), "Transport endpoint is not connected") {
				t.Errorf("the mountpoint says %q, %v", words, err)
			}
			if r := do("mount", "vm.varve", "mnt"); r.code != exitDone || !strings.Contains(r.stderr, "was a mount of this disk whose daemon was gone") {
				t.Errorf("%+v", r)
			}
			if r := do("umount", "mnt"); r.code != exitDone {
				t.Errorf("%+v", r)
			}
			must(t, dir, "export", "vm.varve", "leaf", "leaf.raw")
			if got := get(t, dir+"/leaf.raw", 0, 4); got != "kept" {
				t.Errorf("the disk has %q", got)
			}
			must(t, dir, "check", "vm.varve")
		})
	}
}

// A process outside that is stopped keeps neither the disk from being closed nor an operation
// that would name who has a file locked.
func TestProcessOutsideIsStopped(t *testing.T) {
	dir, mnt := mounted(t, 8<<20, 0)
	disk := filepath.Join(dir, "vm.raw.varve")
	daemon := daemonOf(t, disk)
	outside := outsideOf(t, daemon)
	put(t, mnt, "written", 0)
	if err := syscall.Kill(outside, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(outside, syscall.SIGKILL)
	must(t, dir, "umount", "mnt", "--timeout", "60s")
	eventually(t, "the daemon ends", func() bool { return gone(daemon) })
	if text := logOf(t, disk); !strings.Contains(text, "msg=closed") {
		t.Errorf("not closed in order:\n%s", text)
	}
}

// What a script has open when it mounts a disk, as for flock(1), is neither the daemon's nor the
// process outside's afterwards.
func TestNothingOfTheCallersStaysOpen(t *testing.T) {
	dir := hostDir(t)
	image(t, filepath.Join(dir, "vm.raw"), 1<<20, 0)
	if err := os.Mkdir(filepath.Join(dir, "mnt"), 0o755); err != nil {
		t.Fatal(err)
	}
	script, err := os.Create(filepath.Join(dir, "script's"))
	if err != nil {
		t.Fatal(err)
	}
	defer script.Close()
	cmd := command(dir, "mount", "vm.raw", "mnt")
	cmd.ExtraFiles = []*os.File{nil, nil, script}
	if r := finish(t, cmd); r.code != exitDone {
		t.Fatalf("%+v", r)
	}
	t.Cleanup(func() { vv(t, dir, "umount", "mnt") })
	daemon := daemonOf(t, filepath.Join(dir, "vm.raw.varve"))
	for _, pid := range []int{daemon, outsideOf(t, daemon)} {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if err != nil || len(files) < 3 {
			t.Fatal(files, err)
		}
		for _, file := range files {
			if to, _ := os.Readlink(file); to == script.Name() {
				t.Errorf("%s is %s", file, to)
			}
		}
	}
	must(t, dir, "umount", "mnt")
}
