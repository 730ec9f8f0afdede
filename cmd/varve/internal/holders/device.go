package holders

import (
	"fmt"
	"os"
	"path/filepath"
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
					return unix.Mkdev(0, uint32(minor)), true
				}
			}
		}
	}
	return 0, false
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
