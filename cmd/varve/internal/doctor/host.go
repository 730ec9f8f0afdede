package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/holders"
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
// A mount without that is in order: it becomes a problem with a VM of another user, so
// it is worth a word only where there can be one.
func lookAtAllowOther(_ context.Context, s *Scope) []Finding {
	if s.machine.uid == 0 || s.machine.othersAllowed() {
		return nil
	}
	others := slices.ContainsFunc(s.machine.vms(), func(v vm) bool { return v.UID >= 0 && v.UID != s.machine.uid })
	if !others && !s.machine.has(libvirtConfiguration) {
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
			if filepath.Base(path) != "disk.raw" || !s.machine.answers(path) || v.PID != 0 && !s.machine.lost(v, path) {
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

// lost says whether a VM that runs has lost the disk at a path that is none here: not
// one that sees other mounts, and not one that has the file open still, which somebody
// has only removed.
func (m *machine) lost(v vm, path string) bool {
	ns := func(pid string) string {
		link, err := os.Readlink(filepath.Join(m.root, "proc", pid, "ns/mnt"))
		if err != nil {
			return pid // another one, as far as we know
		}
		return link
	}
	if ns(strconv.Itoa(v.PID)) != ns("self") {
		return false
	}
	open := m.files().Of(func(h holders.Handle) bool {
		return h.PID == v.PID && h.Path == path && h.ID != (holders.Identity{})
	})
	return len(open) == 0
}
