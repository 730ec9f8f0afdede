package confine

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

// drop takes all capabilities but some from every thread, also from what a program that is
// run could get, and gives the set of those that are left.
func drop(keep []int) (left uint64, err error) {
	var kept uint64
	for _, c := range keep {
		kept |= 1 << c
	}
	// Of a version that the kernel does not know it says so.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had, has [2]unix.CapUserData
	if err := unix.Capget(&header, &had[0]); err != nil {
		return 0, fmt.Errorf("read the capabilities: %w", err)
	}
	permitted := uint64(had[1].Permitted)<<32 | uint64(had[0].Permitted)
	// The bounding set only who has CAP_SETPCAP can make smaller; others gain nothing by it
	// under no_new_privs.
	if permitted&(1<<unix.CAP_SETPCAP) != 0 {
		for c := range lastCapability() + 1 {
			if kept&(1<<c) != 0 {
				continue
			}
			if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0, 0); errno != 0 && errno != unix.EINVAL {
				return 0, fmt.Errorf("drop capability %d from the bounding set: %w", c, errno)
			}
		}
	}
	left = permitted & kept
	for i := range has {
		part := uint32(left >> (32 * i))
		has[i] = unix.CapUserData{Effective: part, Permitted: part} // and none inheritable, so none ambient
	}
	// Of the thread that calls, so of each.
	header.Pid = 0
	_, _, errno := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&has[0])), 0)
	runtime.KeepAlive(&header)
	runtime.KeepAlive(&has)
	if errno != 0 {
		return 0, fmt.Errorf("drop capabilities: %w", errno)
	}
	return left, nil
}

// lastCapability is the highest number of a capability that the kernel has.
func lastCapability() int {
	text, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && n < 64 {
			return n
		}
	}
	return 63
}

// named are the names of the capabilities that this program has a use for.
var named = map[int]string{
	unix.CAP_CHOWN: "CHOWN", unix.CAP_DAC_OVERRIDE: "DAC_OVERRIDE", unix.CAP_FOWNER: "FOWNER",
	unix.CAP_SETUID: "SETUID", unix.CAP_SETGID: "SETGID", unix.CAP_SYS_RESOURCE: "SYS_RESOURCE",
}

// names are the names of a set's capabilities.
func names(set uint64) string {
	var list []string
	for c := range 64 {
		if set&(1<<c) == 0 {
			continue
		}
		name, ok := named[c]
		if !ok {
			name = strconv.Itoa(c)
		}
		list = append(list, name)
	}
	if len(list) == 0 {
		return "none"
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}
