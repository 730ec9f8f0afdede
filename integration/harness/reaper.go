package harness

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"

	"varve/integration/patience"
)

// startReaper starts a process that outlives this one and, when this one is
// gone, removes what it left: a test binary that runs into its time limit or
// is killed runs no cleanup. The function that it returns ends the reaper.
func startReaper(dir string) (stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Stdin = read
	cmd.Env = append(os.Environ(), reaperVariable+"="+dir)
	// A session of its own: Ctrl-C on the terminal is for the tests.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the reaper: %w", err)
	}
	if err := read.Close(); err != nil {
		return nil, err
	}
	return func() {
		_ = write.Close()
		_ = cmd.Wait()
	}, nil
}

// reap waits for the end of the test binary, which holds the other end of
// standard input, and cleans up after it.
func reap(dir string) int {
	_, _ = io.Copy(io.Discard, os.Stdin)
	sweep(dir)
	if err := os.RemoveAll(dir); err != nil {
		return 1
	}
	return 0
}

// sweep ends every process of a run, unmounts everything and detaches every
// loop device below its directory. It tells what there was.
func sweep(dir string) (found []string) {
	// QEMU and fio first: they hold the mounts.
	for _, p := range processesOf(dir) {
		if !p.daemon {
			found = append(found, "process "+p.String())
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
	}
	below := func(path string) bool { return strings.HasPrefix(path, dir+"/") }

	mounts, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return !below(i.Mountpoint), false
	})
	if err != nil {
		found = append(found, "read the mounts: "+err.Error())
	}
	slices.Reverse(mounts) // a mount on a loop device goes before the mount that the device's file is in
	detached := false
	for _, m := range mounts {
		found = append(found, fmt.Sprintf("mount %s on %s", m.Source, m.Mountpoint))
		if m.FSType == "fuse.varve" && !detached {
			found = append(found, detachLoops(below)...)
			detached = true
		}
		if err := syscall.Unmount(m.Mountpoint, syscall.MNT_DETACH); err != nil {
			found = append(found, fmt.Sprintf("unmount %s: %v", m.Mountpoint, err))
		}
	}
	if !detached {
		found = append(found, detachLoops(below)...)
	}

	// A daemon whose mount is gone ends by itself, after its flush.
	deadline := time.Now().Add(patience.Hang)
	for {
		left := processesOf(dir)
		if len(left) == 0 {
			return found
		}
		if time.Now().After(deadline) {
			for _, p := range left {
				found = append(found, "process "+p.String())
				_ = syscall.Kill(p.pid, syscall.SIGKILL)
			}
			return found
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// detachLoops detaches the loop devices whose file is below the run's directory.
func detachLoops(below func(string) bool) (found []string) {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if err != nil || !below(string(backing)) {
			continue // detached between the two
		}
		device := "/dev/" + strings.Split(file, "/")[3]
		found = append(found, fmt.Sprintf("loop device %s on %s", device, strings.TrimSpace(string(backing))))
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			found = append(found, fmt.Sprintf("losetup -d %s: %v: %s", device, err, out))
		}
	}
	return found
}

// process is one that a run started.
type process struct {
	pid     int
	command string
	daemon  bool // varve itself
}

func (p process) String() string { return fmt.Sprintf("%d (%s)", p.pid, p.command) }

// processesOf finds the processes, other than this one and the reaper, that
// carry the run's directory in their environment.
func processesOf(dir string) []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		environ, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "environ"))
		if err != nil {
			continue // gone, or a kernel thread
		}
		variables := bytes.Split(environ, []byte{0})
		has := func(variable string) bool {
			return slices.ContainsFunc(variables, func(v []byte) bool { return string(v) == variable })
		}
		if !has(runVariable+"="+dir) || has(reaperVariable+"="+dir) || !running(pid) {
			continue
		}
		command, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		words := strings.ReplaceAll(strings.TrimRight(string(command), "\x00"), "\x00", " ")
		name, _, _ := strings.Cut(words, " ")
		found = append(found, process{pid: pid, command: words, daemon: filepath.Base(name) == "varve"})
	}
	return found
}

// running tells whether a process exists and is not a zombie.
func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || err != nil {
		return false
	}
	// pid (comm) state: comm may hold anything, also a parenthesis.
	after := stat[bytes.LastIndexByte(stat, ')')+1:]
	fields := bytes.Fields(after)
	return len(fields) > 0 && fields[0][0] != 'Z' && fields[0][0] != 'X'
}
