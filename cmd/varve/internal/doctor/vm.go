package doctor

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"varve/chain"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/holders"
)

// who is a VM in a message.
func (v vm) who() string {
	switch {
	case v.PID == 0:
		return fmt.Sprintf("libvirt's domain %s", v.Name)
	case v.Name != "":
		return fmt.Sprintf("VM %s (pid %d %s)", v.Name, v.PID, v.Command)
	}
	return fmt.Sprintf("pid %d %s", v.PID, v.Command)
}

// FilesOfVMs gives the files that the VMs of this host have as disks, with symbolic
// links resolved: of those that run and those that libvirt would start. Files that
// cannot be looked at without perhaps waiting for ever are left out.
func FilesOfVMs() []string {
	m := newMachine("/")
	var list []string
	for _, v := range m.vms() {
		for _, d := range v.Disks {
			if path := m.resolve(d.Path); m.answers(path) {
				list = append(list, path)
			}
		}
	}
	return list
}

// end is how a VM is told to let go.
func (v vm) end() string {
	if v.PID == 0 {
		return v.domain.Virsh("edit " + chain.ShellWord(v.Name))
	}
	return "shut it down"
}

// vmFinding is what was found of one disk of one VM. The VM runs and has it open
// as its command line says unless it is only defined.
type vmFinding struct {
	Finding
	pid  int
	file string // the layer's, "" for another file
}

// The checks of VMs' disks; each finding says of which it is.
const (
	vmLayer   = "vm-layer"
	vmOptions = "vm-options"
	vmAccess  = "vm-access"
	vmLost    = "vm-lost"
)

// lookAtVMs gives what one check found of the VMs.
func lookAtVMs(check string) func(context.Context, *Scope) []Finding {
	return func(_ context.Context, s *Scope) []Finding {
		var list []Finding
		found := s.vmFindings()
		if s.machine.hidden {
			s.Unseen("libvirt's domains")
		}
		for _, f := range found {
			if f.Check == check {
				list = append(list, f.Finding)
			}
		}
		return list
	}
}

// vmFindings judges all disks of all VMs, by the disk's own files and its mounts.
func (s *Scope) vmFindings() []vmFinding {
	var list []vmFinding
	told := map[string]bool{} // name and path of what runs: its definition says it again
	for _, v := range s.machine.vms() {
		if !s.concerns(v) {
			continue
		}
		for _, d := range v.Disks {
			id := v.Name + "\x00" + d.Path
			if v.PID == 0 && told[id] {
				continue
			}
			told[id] = true
			list = append(list, s.judge(v, d)...)
		}
	}
	return list
}

func (s *Scope) judge(v vm, d vmDisk) []vmFinding {
	path := s.machine.resolve(d.Path)
	if l, ok := s.layerAt(path); ok {
		f, ok := s.judgeLayer(v, d, l)
		if !ok {
			return nil
		}
		f.Check = vmLayer
		if f.Severity != Note {
			f = s.byCommand(f, v, d)
		}
		return []vmFinding{{f, v.PID, l.File}}
	}
	for _, m := range s.Mounts {
		inside, ok := m.Inside(path)
		if !ok {
			continue
		}
		var list []vmFinding
		for _, f := range s.judgeInside(v, d, m, inside) {
			list = append(list, vmFinding{f, v.PID, ""})
		}
		return list
	}
	return nil
}

// layerAt finds the layer whose file is at a resolved path, also by another name
// of the file.
func (s *Scope) layerAt(path string) (Layer, bool) {
	for _, l := range s.Layers {
		if s.machine.resolve(l.File) == path {
			return l, true
		}
	}
	if !s.machine.answers(path) {
		return Layer{}, false
	}
	id, ok := holders.Identify(path)
	if !ok {
		return Layer{}, false
	}
	for _, l := range s.Layers {
		if s.identify(l) == id {
			return l, true
		}
	}
	return Layer{}, false
}

// identify gives the identity of a layer's file, the zero value where telling it
// could take for ever.
func (s *Scope) identify(l Layer) holders.Identity {
	if !s.machine.answers(s.machine.resolve(l.File)) {
		return holders.Identity{}
	}
	id, _ := holders.Identify(l.File)
	return id
}

// own says whether a layer may be written by whoever uses the image: the top of a
// chain that is no disk's.
func (s *Scope) own(l Layer) bool { return s.Directory == "" && l.File == s.Image }

// what is a layer with its file, in a message.
func (s *Scope) what(l Layer) string {
	switch l.State {
	case chain.StateLeaf:
		return "the leaf's file, " + l.File + ","
	case chain.StateBase:
		return "the base, " + l.File + ","
	case chain.StateFrozen:
		return fmt.Sprintf("the file of the snapshot %s, %s,", l.Name, l.File)
	case "":
		if s.own(l) {
			return "the image, " + l.File + ","
		}
		return fmt.Sprintf("%s, which %s stands on,", l.File, s.Image)
	}
	return l.Label() + ", " + l.File + ","
}

// right is what a VM is to be given instead.
func (s *Scope) right(v vm, d vmDisk) string {
	switch {
	case len(s.Mounts) > 0:
		return "give it " + filepath.Join(s.Mounts[0].Mountpoint, "disk.raw") + " (format raw) instead" + without(v, d)
	case s.Directory != "":
		return fmt.Sprintf("mount the disk (varve mount %s MOUNTPOINT), and give it MOUNTPOINT/disk.raw (format raw) instead", chain.ShellWord(s.Directory)) + without(v, d)
	}
	return "give it the image on top"
}

// without says what else is to leave the definition of a domain.
func without(v vm, d vmDisk) string {
	if v.PID != 0 || len(d.Below) == 0 {
		return ""
	}
	return "; take out the disk's <backingStore> with all that is in it, too: with that it does not start"
}

// redefine is the command that gives a domain the disk.raw of a mount as the disk that it
// has defined, "" where that cannot be told.
func redefine(v vm, d vmDisk, m mounts.Mount) string {
	if v.domain == nil || d.defined == nil || d.defined.Target == "" {
		return ""
	}
	return v.domain.Update(d.defined.On(filepath.Join(m.Mountpoint, "disk.raw")))
}

// byCommand adds to a finding the command that mends a domain's definition.
func (s *Scope) byCommand(f Finding, v vm, d vmDisk) Finding {
	if len(s.Mounts) > 0 {
		f.Commands = redefine(v, d, s.Mounts[0])
	}
	if f.Commands != "" {
		f.Fix += "; or let this command do it"
	}
	return f
}

// judgeLayer judges a VM that has a layer's own file.
func (s *Scope) judgeLayer(v vm, d vmDisk, l Layer) (Finding, bool) {
	switch {
	case s.own(l):
		return Finding{}, false
	case d.ReadOnly:
		return Finding{Severity: Note, What: fmt.Sprintf("%s reads %s and does not write it", v.who(), strings.TrimSuffix(s.what(l), ","))}, true
	case l.State == chain.StateLeaf && len(s.Mounts) == 0:
		return Finding{Severity: Warning,
			What: fmt.Sprintf("%s has %s to write: while it runs the disk cannot be mounted", v.who(), s.what(l)),
			Fix:  v.end() + ", then " + s.right(v, d)}, true
	case l.State == chain.StateLeaf:
		return Finding{Severity: Problem,
			What: fmt.Sprintf("%s has %s to write, past the mount: two writers destroy it", v.who(), s.what(l)),
			Fix:  v.end() + " now, then " + s.right(v, d) + s.checkAfter(v)}, true
	}
	return Finding{Severity: Problem,
		What: fmt.Sprintf("%s has %s to write: every write changes what the layers above show", v.who(), s.what(l)),
		Fix:  v.end() + ", then " + s.right(v, d) + s.checkAfter(v)}, true
}

// checkAfter is what to do when something may have been written already.
func (s *Scope) checkAfter(v vm) string {
	if v.PID == 0 || s.Directory == "" {
		return ""
	}
	return fmt.Sprintf("; \"varve check %s\", unmounted, says whether it has written already", chain.ShellWord(s.Directory))
}

// judgeInside judges a VM that has a file of the mount.
func (s *Scope) judgeInside(v vm, d vmDisk, m mounts.Mount, inside string) []Finding {
	var list []Finding
	add := func(severity Severity, check, what, fix string) {
		list = append(list, Finding{severity, check, m.Mountpoint, v.who() + " " + what, fix, ""})
	}
	if inside != "disk.raw" {
		if strings.HasPrefix(inside, "layers/") && !d.ReadOnly {
			add(Warning, vmOptions, fmt.Sprintf("has %s to write, which cannot be written: it does not start with that", inside),
				"say that it is read only (readonly=on, in libvirt <readonly/>), or let its writes go elsewhere (snapshot=on)")
		}
		return append(list, s.judgeUser(v, m, inside)...)
	}
	switch {
	case v.PID == 0:
		if f, wrong := s.judgeDefinition(v, d, m); wrong {
			list = append(list, f)
		}
	case d.Format == "raw":
	case d.Format == "":
		add(Warning, vmOptions, "has disk.raw without a format: QEMU guesses it from what the guest has written", "give it format=raw")
	default:
		add(Warning, vmOptions, fmt.Sprintf("has disk.raw as %s, but it is raw", d.Format), "give it format=raw")
	}
	if d.NoFlush && !d.ReadOnly {
		add(Warning, vmOptions, "ignores the guest's flushes (cache=unsafe): a power cut takes what the guest believes to be safe", "give it cache=none")
	}
	if d.NoLock && !d.ReadOnly {
		add(Warning, vmOptions, "has disk.raw without a lock (locking=off): a second VM could write it too", "leave that option out")
	}
	if s.lostMount(v, m) {
		add(Problem, vmLost, "still has a mount open that is gone: all that its guest reads and writes fails", "start it again; it finds the disk at the same path")
	}
	return append(list, s.judgeUser(v, m, inside)...)
}

// judgeDefinition judges how a domain has disk.raw: libvirt lets QEMU guess nothing, and
// holds on to what a disk stood on.
func (s *Scope) judgeDefinition(v vm, d vmDisk, m mounts.Mount) (f Finding, wrong bool) {
	var what, fix []string
	if d.Format != "raw" {
		what = append(what, fmt.Sprintf("as %s, but it is raw", d.Format))
		fix = append(fix, "write type='raw' into the disk's <driver>")
	}
	if len(d.Below) > 0 {
		what = append(what, fmt.Sprintf("on %s, by the <backingStore> that libvirt has kept", d.Below[0]))
		fix = append(fix, "take out the disk's <backingStore> with all that is in it")
	}
	if len(what) == 0 {
		return Finding{}, false
	}
	f = Finding{Severity: Problem, Check: vmOptions, Subject: m.Mountpoint,
		What: fmt.Sprintf("%s has disk.raw %s: with that it does not start", v.who(), strings.Join(what, ", and ")),
		Fix:  v.end() + ", and " + strings.Join(fix, ", and ")}
	return s.byCommand(f, v, d), true
}

// lostMount says whether a VM has disk.raw open in another mount than the one that
// is there: that of a daemon that was killed.
func (s *Scope) lostMount(v vm, m mounts.Mount) bool {
	if v.PID == 0 {
		return false
	}
	lost := false
	for _, h := range s.machine.files().Of(func(h holders.Handle) bool { return h.PID == v.PID }) {
		switch {
		case h.ID.Device == m.Device:
			return false
		case h.Path == "/disk.raw" || h.Path == filepath.Join(m.Mountpoint, "disk.raw"):
			lost = true
		}
	}
	return lost
}
