// Package process is a handle on a process that cannot come to mean another one.
package process

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"varve/cmd/varve/internal/holders"
)

// Process is a handle on a process that cannot come to mean another one.
type Process struct {
	fd      int    // -1 for none
	command string // its name
}

// Open gets hold of a process to wait for its end. Where that cannot be
// had, there is nothing to wait for.
func Open(pid int) Process {
	if pid <= 0 {
		return Process{fd: -1}
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return Process{fd: -1}
	}
	return Process{fd, holders.Command(pid)}
}

// Wait returns when the process has ended, or after limit.
func (p Process) Wait(limit time.Duration) {
	if p.fd < 0 {
		return
	}
	for deadline := time.Now().Add(limit); ; {
		left := time.Until(deadline)
		if left <= 0 {
			return
		}
		// A pidfd becomes readable when its process ends (pidfd_open(2)).
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, int(left/time.Millisecond)+1)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// Terminate asks a daemon to end, as SIGTERM does. The owner of a disk directory can have it
// look as if any process held it: what is called neither varve, with a version's number
// perhaps, nor as this program is left alone.
func (p Process) Terminate() error {
	if p.fd < 0 {
		return unix.ESRCH
	}
	if !strings.HasPrefix(p.command, "varve") && p.command != holders.Command(os.Getpid()) {
		return fmt.Errorf("that process is %s, not varve", p.command)
	}
	return unix.PidfdSendSignal(p.fd, unix.SIGTERM, nil, 0)
}

func (p Process) Close() {
	if p.fd >= 0 {
		unix.Close(p.fd)
	}
}
