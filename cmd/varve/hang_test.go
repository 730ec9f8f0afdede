package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"varve/chain/mounts"
	testpatience "varve/integration/patience"
)

// stopped stops a process as a debugger does, and lets it go on at the end.
func stopped(t *testing.T, pid int) (goOn func()) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	goOn = func() { syscall.Kill(pid, syscall.SIGCONT) }
	t.Cleanup(goOn)
	// A thread that has not stopped yet may still take a request, and who asked is
	// then not even to be killed.
	eventually(t, "every thread has stopped", func() bool {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, task := range tasks {
			stat, err := os.ReadFile(task)
			if err != nil || !strings.Contains(string(stat), ") T ") {
				return false
			}
		}
		return err == nil && len(tasks) > 0
	})
	return goOn
}

// One daemon that hangs does not hide the others from the list.
func TestListWithAHungDaemon(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	if err := os.Mkdir(dir+"/mnt2", 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "create", "two.varve", "--size", "3M")
	must(t, dir, "mount", "two.varve", "mnt2")
	stopped(t, daemonOf(t, dir+"/vm.raw.varve"))
	r := must(t, dir, "list")
	lines := map[string]string{}
	for line := range strings.Lines(r.stdout) {
		lines[strings.Fields(line)[0]] = line
	}
	if !strings.Contains(lines[mnt], "no answer within") || !strings.Contains(lines[mnt+"2"], "3 MiB") {
		t.Errorf("list says\n%s", r.stdout)
	}
}

// umount that gives up waiting says that the daemon still writes.
func TestUmountTimeout(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	pid := daemonOf(t, dir+"/vm.raw.varve")
	// The mount is taken away while the daemon can do nothing: what it has to
	// do then, it does when it goes on.
	f, err := os.Open(mnt + "/disk.raw")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Unmount(mnt, syscall.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	fails(t, dir, exitFailed, []string{"umount vm.raw.varve: pid " + strconv.Itoa(pid), "holds it for a mount at " + mnt + " that cannot be seen from here"}, "umount", "vm.raw.varve")
	f.Close()
	eventually(t, "the lock is free", func() bool { return vv(t, dir, "mount", "vm.raw", "mnt").code == exitDone })

	pid = daemonOf(t, dir+"/vm.raw.varve")
	goOn := stopped(t, pid)
	cmd := command(dir, "umount", "vm.raw.varve", "--timeout", "300ms")
	done := make(chan result, 1)
	go func() { done <- finish(t, cmd) }()
	select {
	case r := <-done:
		if r.code != exitFailed || !strings.Contains(r.stderr, mnt+" is unmounted, but its daemon (pid "+strconv.Itoa(pid)+") has not written everything yet; wait until that process has ended before you copy or use "+dir+"/vm.raw.varve") {
			t.Errorf("exit %d, says %q", r.code, r.stderr)
		}
		goOn()
	case <-time.After(testpatience.Hang):
		goOn()
		t.Errorf("it waits for a daemon that is stopped: %+v", <-done)
	}
	eventually(t, "the lock is free", func() bool { return vv(t, dir, "mount", "vm.raw", "mnt").code == exitDone })
}

// Options of mount(8) reach the kernel.
func TestMountOptionsReachTheKernel(t *testing.T) {
	dir := hostDir(t)
	image(t, dir+"/vm.raw", 4<<20, 1<<20)
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "mount", "vm.raw", "mnt", "-o", "noatime,noexec,_netdev,x-systemd.automount")
	m, ok, err := mounts.At(dir + "/mnt")
	if err != nil || !ok || m.Source != dir+"/vm.raw.varve" || m.ReadOnly || m.UID != os.Getuid() {
		t.Errorf("got %+v, %v, %v", m, ok, err)
	}
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		field := strings.Fields(line)
		if field[1] != dir+"/mnt" {
			continue
		}
		for _, want := range []string{"rw", "nosuid", "nodev", "noexec", "noatime", "default_permissions"} {
			if !strings.Contains(","+field[3]+",", ","+want+",") {
				t.Errorf("%s is not in %s", want, line)
			}
		}
	}
}
