package holders

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Detached lists what holds the mount of a daemon after it was unmounted lazily.
// No mount table shows it any more and its files have no path, so they are known
// by their device: the kernel tells the number of the daemon's FUSE connection in
// fdinfo (seen with Linux 6.18; where it does not, known is false), and that is the
// minor device number of its files, which it tells without asking the daemon.
func Detached(daemon int) (uses []Use, known bool) {
	minor, ok := connection(daemon)
	if !ok {
		return nil, false
	}
	device := unix.Mkdev(0, minor)
	for _, file := range loopFiles("/sys/block") {
		if isOurs(file.path) && loopOn(file.device) == device {
			uses = append(uses, Use{How: "loop device", What: strings.TrimPrefix(file.path, "/"), Device: file.device})
		}
	}
	pids, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return uses, true
	}
	var of []Use
	for _, dir := range pids {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		of = append(of, detachedIn(dir, pid, device)...)
	}
	sort.SliceStable(of, func(i, j int) bool { return of[i].PID < of[j].PID })
	return append(uses, of...), true
}

// detachedIn lists what one process has of a device.
func detachedIn(dir string, pid int, device uint64) []Use {
	var uses []Use
	seen := map[string]bool{}
	add := func(how, link string) {
		// The kernel shows the path from the root of the mount, which is no
		// place in the process's own tree.
		path, err := os.Readlink(link)
		if err != nil || seen[path] || !isOurs(path) || deviceOf(link) != device {
			return
		}
		seen[path] = true
		what := strings.TrimPrefix(path, "/")
		if what == "" {
			what = "."
		}
		uses = append(uses, Use{PID: pid, Command: Command(pid), How: how, What: what})
	}
	add("working directory", filepath.Join(dir, "cwd"))
	fds, err := filepath.Glob(filepath.Join(dir, "fd", "*"))
	if err != nil {
		return uses
	}
	for _, fd := range fds {
		add("open", fd)
	}
	return uses
}

// isOurs says whether a path from a mount's root can be that of a varve mount.
func isOurs(path string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch first {
	case "", "disk.raw", "layers", "control", "status", "status.json", "map.svg", "metrics":
		return strings.HasPrefix(path, "/")
	}
	return false
}

// connection is the number of the FUSE connection that a process serves.
func connection(pid int) (minor uint32, ok bool) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		return 0, false
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if n, ok := strings.CutPrefix(line, "fuse_connection:"); ok {
				if minor, err := strconv.ParseUint(strings.TrimSpace(n), 10, 20); err == nil {
					return uint32(minor), true
				}
			}
		}
	}
	return 0, false
}

// deviceOf is the device of the file behind a link in /proc, 0 when it cannot be
// told. Nothing is asked of the file system: its daemon may hang.
func deviceOf(link string) uint64 {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return 0
	}
	return unix.Mkdev(st.Dev_major, st.Dev_minor)
}

// loopOn is the device of the file that a loop device is attached to, 0 when it
// cannot be told.
func loopOn(device string) uint64 {
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0
	}
	defer f.Close() // nothing was read
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return 0
	}
	return info.Device
}
