package holders

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fromRoot says whether a path can be that of a file of a varve mount as seen from the
// mount's root: that is how the kernel shows what is open in a mount that was unmounted
// lazily.
func fromRoot(path string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch first {
	case "", "disk.raw", "layers", "control", "status", "status.json", "map.svg", "metrics":
		return strings.HasPrefix(path, "/")
	}
	return false
}

// Connection is the device of the files of the FUSE connection that a process serves,
// as the kernel tells in fdinfo (seen with Linux 6.18; ok is false where it does not).
func Connection(pid int) (device uint64, ok bool) {
	for _, device := range Connections(pid) {
		return device, true
	}
	return 0, false
}

// Connections are the devices of all connections that a process serves (Connection).
func Connections(pid int) []uint64 { return connections(strconv.Itoa(pid)) }

// Servers are the processes that serve the FUSE connection of a device, as far as the
// kernel tells this user (Connection).
func Servers(device uint64) (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && slices.Contains(connections(e.Name()), device) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// connections are the devices of the FUSE connections that a process serves.
func connections(pid string) (devices []uint64) {
	files, err := filepath.Glob("/proc/" + pid + "/fdinfo/*")
	if err != nil {
		return nil
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if n, ok := strings.CutPrefix(line, "fuse_connection:"); ok {
				if minor, err := strconv.ParseUint(strings.TrimSpace(n), 10, 20); err == nil {
					devices = append(devices, unix.Mkdev(0, uint32(minor)))
				}
			}
		}
	}
	return devices
}

// deviceOf is the device of the file behind a link in /proc, 0 when it cannot be
// told. Nothing is asked of the file system: its daemon may hang. It asks for no field,
// which the kernel tells also of a mount that only another user may look into.
func deviceOf(link string) uint64 {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
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
