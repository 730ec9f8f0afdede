package doctor

import "varve/cmd/varve/internal/libvirt"

// libvirt is what libvirt keeps in files of this machine.
func (m *machine) libvirt() *libvirt.Host {
	return &libvirt.Host{Root: m.root, UID: m.uid, Resolve: m.resolve, Answers: m.answers}
}

// defined gives the VMs that libvirt would start. hidden says that there are some
// that may not be looked at: they are root's.
func (m *machine) defined() (list []vm, hidden bool) {
	host := m.libvirt()
	domains, hidden := host.Domains(true)
	for _, d := range domains {
		v := vmOf(d)
		v.domain, v.qemu = &d, host.QEMU(d)
		v.UID, v.GID = v.qemu.UID, v.qemu.GID
		list = append(list, v)
	}
	return list, hidden
}

// vmOf is a VM as a domain's definition has it.
func vmOf(d libvirt.Domain) vm {
	v := vm{Name: d.Name, UID: -1, GID: -1}
	for _, disk := range d.Disks {
		v.Disks = append(v.Disks, vmDisk{
			Path: disk.Path, Format: disk.Format, ReadOnly: disk.ReadOnly,
			NoFlush: disk.Cache == "unsafe", Below: disk.Below, defined: &disk,
		})
	}
	return v
}

// concerns says whether a VM is worth a word: what a user has defined whom the disk lets
// in nowhere is that user's alone.
func (s *Scope) concerns(v vm) bool {
	return v.domain == nil || v.domain.User == "" || v.domain.Of == s.machine.uid || s.letsIn(v.domain.Of)
}

// lookAtSnapshots finds snapshots of libvirt's whose files are layers of a disk.
func lookAtSnapshots(s *Scope) []Finding {
	layers := map[string]bool{}
	for _, l := range s.Layers {
		if l.Foreign && l.Format == "qcow2" { // a snapshot makes no other
			layers[s.machine.resolve(l.File)] = true
		}
	}
	if len(layers) == 0 {
		return nil
	}
	snapshots, hidden := s.machine.libvirt().Snapshots()
	if hidden {
		s.Unseen("libvirt's snapshots")
	}
	type named struct{ names, commands string }
	found, order := map[string]named{}, []string{}
	for _, snapshot := range snapshots {
		for _, d := range snapshot.Disks {
			if d.Overlay == "" || !layers[s.machine.resolve(d.Overlay)] {
				continue
			}
			of, known := found[snapshot.Domain]
			if !known {
				order = append(order, snapshot.Domain)
			} else {
				of.names += ", "
			}
			of.names += snapshot.Name
			of.commands += snapshot.Forget() + "\n"
			found[snapshot.Domain] = of
			break
		}
	}
	var list []Finding
	for _, domain := range order {
		list = append(list, Finding{Severity: Warning,
			What: "libvirt still lists " + found[domain].names + " as snapshots of domain " + domain +
				", and their files are layers of this disk: its snapshot-revert would take the VM off disk.raw, and its snapshot-delete could merge these files",
			Fix:      "varve goes back to them; have libvirt forget them, which leaves the files alone",
			Commands: found[domain].commands})
	}
	return list
}
