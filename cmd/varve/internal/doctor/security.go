package doctor

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"varve/chain/mounts"
)

// appArmorRules is the file of the host's own rules for all VMs of libvirt.
const appArmorRules = "/etc/apparmor.d/local/abstractions/libvirt-qemu"

// What is there where libvirt is installed: with its rules for AppArmor, at all.
const (
	appArmorOfVMs        = "/etc/apparmor.d/abstractions/libvirt-qemu"
	libvirtConfiguration = "/etc/libvirt/qemu.conf"
)

// forVMs says whether a mount is, or may be, for VMs that are confined: where one has a
// file of it, or a file of the host shows that there can be some.
func (s *Scope) forVMs(m mounts.Mount, sign string) bool {
	return s.machine.has(sign) || len(s.vmsAt(m)) > 0
}

// vmsAt gives the VMs that have a file of a mount.
func (s *Scope) vmsAt(m mounts.Mount) []vm {
	var list []vm
	for _, v := range s.machine.vms() {
		for _, d := range v.Disks {
			if _, ok := m.Inside(s.machine.resolve(d.Path)); ok {
				list = append(list, v)
				break
			}
		}
	}
	return list
}

// lookAtAppArmor gives the rule for mounts that VMs of libvirt are to use, where
// no VM shows that it is not needed.
func lookAtAppArmor(_ context.Context, s *Scope) []Finding {
	if s.machine.read("sys/module/apparmor/parameters/enabled") != "Y" {
		return nil
	}
	rules := s.machine.read(appArmorRules)
	var list []Finding
	for _, m := range s.Mounts {
		confined := false
		for _, v := range s.vmsAt(m) {
			confined = confined || strings.HasPrefix(v.Label, "libvirt-") && strings.HasSuffix(v.Label, "(enforce)")
		}
		if !s.forVMs(m, appArmorOfVMs) {
			continue
		}
		if confined || strings.Contains(rules, m.Mountpoint+"/") {
			continue
		}
		list = append(list, Finding{Severity: Note, Subject: m.Mountpoint,
			What: "AppArmor is in force. libvirt allows a VM the disk.raw that its XML names; nothing of this mount is allowed beyond that",
			Fix: fmt.Sprintf("only where QEMU is refused (journalctl -k | grep DENIED): put the lines \"%s rwk,\" and \"%s rk,\" into %s, and start the VM again",
				filepath.Join(m.Mountpoint, "disk.raw"), filepath.Join(m.Mountpoint, "layers/*.raw"), appArmorRules)})
	}
	return list
}

// lookAtSELinux looks whether VMs of libvirt may use the files of a mount.
func lookAtSELinux(_ context.Context, s *Scope) []Finding {
	if s.machine.read("sys/fs/selinux/enforce") != "1" {
		return nil
	}
	// The value in force, and the one that waits to be committed.
	value := s.machine.read("sys/fs/selinux/booleans/virt_use_fusefs")
	if strings.HasPrefix(value, "1") {
		return nil
	}
	var list []Finding
	for _, m := range s.Mounts {
		if m.Context || !s.forVMs(m, libvirtConfiguration) {
			continue
		}
		f := Finding{Severity: Warning, Subject: m.Mountpoint,
			What: "SELinux is in force and its boolean virt_use_fusefs is off: VMs of libvirt are refused the files of this mount",
			Fix:  "setsebool -P virt_use_fusefs on; or, for this mount alone, mount it with -o context=system_u:object_r:svirt_image_t:s0"}
		for _, v := range s.vmsAt(m) {
			if v.PID == 0 {
				f.Severity = Problem
				f.What += "; " + v.who() + " is to use it"
				break
			}
		}
		list = append(list, f)
	}
	return list
}
