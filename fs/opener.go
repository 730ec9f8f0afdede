package fs

import (
	"bufio"
	"os"
	"strconv"
	"strings"

	"varve/chain"
	"varve/overlay/procs"
)

// openerOf names the process behind a request. A request carries the number of
// the thread that made it, or 0 when that cannot be seen from here (another
// pid namespace). It reads /proc and is for opens and commands only.
func openerOf(thread uint32) chain.Opener {
	if thread == 0 {
		return chain.Opener{}
	}
	pid := int(thread)
	if leader := threadGroup(pid); leader > 0 {
		pid = leader
	}
	return chain.Opener{PID: pid, Command: procs.Command(pid)}
}

// threadGroup is the process that a thread belongs to, or 0.
func threadGroup(thread int) int {
	file, err := os.Open("/proc/" + strconv.Itoa(thread) + "/status")
	if err != nil {
		return 0
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "Tgid:"); ok {
			leader, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				return 0
			}
			return leader
		}
	}
	return 0
}
