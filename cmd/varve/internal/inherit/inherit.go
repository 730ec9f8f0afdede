// Package inherit keeps what this process has inherited from those that it starts.
package inherit

import (
	"math"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Nothing has no program that this process starts inherit a descriptor but its three standard
// ones and those that are given to it. Go opens all of its own that way; what the caller had
// open, such as a script's flock(1) or one end of a pipe, a process that goes on in the
// background would keep open for as long as a disk is mounted.
func Nothing() {
	const first = 3
	if unix.CloseRange(first, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	// Before Linux 5.11.
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return // as far as it can be told
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
}
