package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// startVM starts a VM that does not run, with one drive, and waits until varve or the
// kernel can see that it has its file open. ready is a part of that file's path.
func startVM(t *testing.T, dir, drive, ready string) (pid int, end func()) {
	t.Helper()
	cmd := exec.Command("qemu-system-x86_64", "-M", "pc", "-S", "-display", "none", "-nodefaults", "-m", "32",
		"-name", "vm1", "-drive", "if=virtio,"+drive)
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end = func() {
		if !ended {
			ended = true
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
	t.Cleanup(end)
	pid = cmd.Process.Pid
	eventually(t, "QEMU has its drive open", func() bool {
		return strings.Contains(lockedFiles(pid), ready)
	})
	return pid, end
}

// lockedFiles are the files that a process has a lock on.
func lockedFiles(pid int) string {
	var all strings.Builder
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd.Name()))
		if err != nil || !strings.Contains(string(info), "OFDLCK") {
			continue
		}
		if path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name())); err == nil {
			fmt.Fprintln(&all, path)
		}
	}
	return all.String()
}

// A VM is right with disk.raw, and wrong with anything else of the disk; a mount that
// hangs or was lost under it does not keep that from being said.
func TestDoctorOfVMs(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	disk := dir + "/vm.raw.varve"
	must(t, dir, "snapshot", "mnt", "one")
	base := dir + "/vm.raw"

	pid, end := startVM(t, dir, "file=mnt/disk.raw,format=raw,cache=none,aio=native", "/disk.raw")
	right := fmt.Sprintf("note open-files %s: disk.raw is open: pid %d qemu-system-x86 to write, with QEMU's lock", mnt, pid)
	says(t, dir, []string{"mnt"}, right)

	goOn := stopped(t, daemonOf(t, disk))
	if r := vv(t, dir, "doctor", "mnt", "--json"); !strings.Contains(r.stdout, `"no-answer"`) || !strings.Contains(r.stdout, "disk.raw is open: pid") {
		t.Errorf("of a mount that hangs: %s", r.stdout)
	}
	goOn()

	killed(t, disk)
	must(t, dir, "mount", "vm.raw", "mnt")
	says(t, dir, []string{"mnt"}, fmt.Sprintf("problem vm-lost %s: VM vm1 (pid %d qemu-system-x86) still has a mount open that is gone", mnt, pid))
	end()
	says(t, dir, []string{"mnt"})

	// varve's own lock keeps QEMU from these while the disk is mounted, unless QEMU is
	// told to ask for none.
	loop := strings.TrimSpace(tool(t, dir, "losetup", "--find", "--show", "vm.raw"))
	t.Cleanup(func() { exec.Command("losetup", "--detach", loop).Run() })
	says(t, dir, []string{"mnt"}, fmt.Sprintf("problem open-files %s: %s has the base, %s, open to write: every write changes what the layers above show; detach it (losetup -d %s)", disk, loop, base, loop))
	tool(t, dir, "losetup", "--detach", loop)

	must(t, dir, "umount", "mnt")
	pid, end = startVM(t, dir, "file.driver=file,file.filename=vm.raw,format=raw", "/vm.raw")
	says(t, dir, []string{"vm.raw"}, fmt.Sprintf("problem vm-layer %s: VM vm1 (pid %d qemu-system-x86) has the base, %s, to write", disk, pid, base))
	// Also where nobody named the disk.
	if _, lines := asked(t, dir); !strings.Contains(lines, fmt.Sprintf("problem vm-layer %s: VM vm1 (pid %d ", disk, pid)) {
		t.Errorf("without an argument: %s", lines)
	}
	end()

	snapshot := disk + "/layers/000002.qcow2"
	pid, end = startVM(t, dir, "format=qcow2,file="+snapshot, "/000002.qcow2")
	says(t, dir, []string{"vm.raw"},
		fmt.Sprintf("problem vm-layer %s: VM vm1 (pid %d qemu-system-x86) has the file of the snapshot one, %s, to write", disk, pid, snapshot),
		fmt.Sprintf("note open-files %s: the base, %s, is open: pid %d qemu-system-x86 read only", disk, base, pid))
	end()
}

// A VM has not lost a disk.raw that it has open, or that only it can see.
func TestDoctorOfOrdinaryVMs(t *testing.T) {
	const vm = ` && truncate -s 1M vm/disk.raw && qemu-system-x86_64 -M pc -S -display none -nodefaults -m 32 -daemonize -pidfile pid -drive if=virtio,format=raw,file=$PWD/vm/disk.raw`
	for name, script := range map[string]string{
		"removed":     "true" + vm + " && rm vm/disk.raw",
		"a container": "mount -t tmpfs none vm" + vm,
	} {
		dir := hostDir(t)
		if err := os.Mkdir(dir+"/vm", 0o700); err != nil {
			t.Fatal(err)
		}
		tool(t, dir, "unshare", map[string]string{"removed": "--uts", "a container": "--mount"}[name], "sh", "-c", script)
		pid := strings.TrimSpace(tool(t, dir, "cat", "pid"))
		end := func() { exec.Command("kill", "-9", pid).Run() }
		t.Cleanup(end)
		if r := vv(t, dir, "doctor", "--json"); strings.Contains(r.stdout, dir+"/vm/disk.raw, where no disk is mounted") {
			t.Errorf("%s: %s", name, r.stdout)
		}
		end()
	}
}

// Every cache mode of QEMU works on disk.raw, whatever the mount's options; only one
// is worth a word.
func TestDoctorOfCacheModes(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	for _, mode := range []string{"cache=none,aio=native", "cache=none,aio=io_uring", "cache=directsync", "cache=writethrough", "cache=writeback", "cache=unsafe"} {
		pid, end := startVM(t, dir, "file=mnt/disk.raw,format=raw,"+mode, "/disk.raw")
		want := []string{fmt.Sprintf("note open-files %s: disk.raw is open: pid %d ", mnt, pid)}
		if mode == "cache=unsafe" {
			want = append(want, fmt.Sprintf("warning vm-options %s: VM vm1 (pid %d qemu-system-x86) ignores the guest's flushes", mnt, pid))
		}
		says(t, dir, []string{"mnt"}, want...)
		end()
	}
}
