package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/cmd/varve/internal/mounts"
)

// lookAtFUSE looks whether disks can be mounted here.
func lookAtFUSE(_ context.Context, s *Scope) []Finding {
	const device = "/dev/fuse"
	var list []Finding
	switch err := unix.Access(filepath.Join(s.machine.root, device), unix.R_OK|unix.W_OK); {
	case errors.Is(err, unix.ENOENT):
		list = append(list, Finding{Severity: Problem, What: device + " is not there: nothing can be mounted",
			Fix: "modprobe fuse; a container has to be given the device"})
	case err != nil:
		list = append(list, Finding{Severity: Problem, What: fmt.Sprintf("%s cannot be opened (%v): nothing can be mounted", device, err),
			Fix: "as root: chmod 666 " + device})
	}
	if s.machine.uid == 0 {
		return list // root mounts without a helper
	}
	path, err := exec.LookPath("fusermount3")
	if err != nil {
		return append(list, Finding{Severity: Problem, What: "fusermount3 is missing: only root can mount", Fix: "install the package fuse3"})
	}
	if info, err := os.Stat(path); err == nil && info.Mode()&os.ModeSetuid == 0 {
		list = append(list, Finding{Severity: Warning, What: path + " is not setuid root: only root can mount", Fix: "as root: chmod u+s " + chain.ShellWord(path)})
	}
	return list
}

// lookAtAllowOther looks whether ordinary users may let others into their mounts.
// A mount without that is in order: it becomes a problem with a VM of another user.
func lookAtAllowOther(_ context.Context, s *Scope) []Finding {
	if s.machine.uid == 0 || s.machine.othersAllowed() {
		return nil
	}
	return []Finding{{Severity: Note, What: "ordinary users cannot mount with --allow-other, which a VM of another user needs",
		Fix: "root puts the line user_allow_other into /etc/fuse.conf"}}
}

// othersAllowed says whether ordinary users may let others in.
func (m *machine) othersAllowed() bool {
	return mounts.OthersAllowed(filepath.Join(m.root, "etc/fuse.conf"))
}

// lookAtLostDisks looks for VMs that have the disk.raw of a mount that is not there,
// or not there any more.
func lookAtLostDisks(ctx context.Context, s *Scope) []Finding {
	list := lookAtVMs(vmLost)(ctx, s)
	if !s.Host {
		return list
	}
	for _, v := range s.machine.vms() {
		for _, d := range v.Disks {
			path := s.machine.resolve(d.Path)
			if filepath.Base(path) != "disk.raw" || !s.machine.answers(path) || s.machine.mountedFor(v, path) {
				continue
			}
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				continue
			}
			f := Finding{Severity: Problem, What: fmt.Sprintf("%s has %s, where no disk is mounted: all that its guest reads and writes fails", v.who(), path),
				Fix: fmt.Sprintf("mount the disk at %s, and start it again", filepath.Dir(path))}
			if v.PID == 0 {
				f.Severity = Note
				f.What = fmt.Sprintf("%s has %s, where no disk is mounted: it does not start", v.who(), path)
				f.Fix = fmt.Sprintf("mount the disk at %s first", filepath.Dir(path))
			}
			list = append(list, f)
		}
	}
	return list
}

// mountedFor says whether a VM sees a varve mount at a path that is none here: it
// may have a mount namespace of its own.
func (m *machine) mountedFor(v vm, path string) bool {
	if v.PID == 0 {
		return false
	}
	for line := range strings.Lines(m.read(fmt.Sprintf("proc/%d/mountinfo", v.PID))) {
		f := strings.Fields(line)
		if len(f) > 5 && strings.Contains(line, " - "+mounts.FSType+" ") && mounts.Within(path, f[4]) {
			return true
		}
	}
	return false
}
