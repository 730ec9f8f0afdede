package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"varve/chain"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/holders"
)

// Stake is something outside of varve that is right only as long as disk.raw holds what
// it holds now: the memory of a VM that is to be resumed, or an image that stands on
// disk.raw. A revert would make it destroy the guest's file systems.
type Stake struct {
	Saved bool   // memory of a VM that is off; else an image on top of disk.raw
	What  string // in words, as a sentence's beginning
	Fix   string // the way out

	image savedImage // with Saved
}

// Discard gives up the saved memory of a stake, by telling libvirt: it gives the command
// that does, of which User is as whom it is to run ("" for the caller).
func (k Stake) Discard() (command []string, user string) {
	if user = k.image.User; k.image.Of == os.Geteuid() {
		user = "" // runuser is root's alone
	}
	return k.image.remove(), user
}

// Stakes gives what relies on the content of a disk. What may not be looked at, and file
// systems that may not answer, are left out.
func Stakes(dir string, list []mounts.Mount) []Stake {
	s := &Scope{Directory: dir, Mounts: list, machine: newMachine("/")}
	return append(s.saved(), s.overlays()...)
}

// The checks of stakes.
const (
	vmSaved   = "vm-saved"
	vmOverlay = "vm-overlay"
)

// stakeChecks are the checks of what relies on the disk's content.
func stakeChecks() []check {
	return []check{
		{vmSaved, "the memory of a VM that is off and will be resumed on disk.raw", ofDisk | ofMount, func(_ context.Context, s *Scope) []Finding {
			return s.tell(s.saved(), "a revert, an undo or a resize before that destroys the guest's file systems")
		}},
		{vmOverlay, "an image of QEMU's that stands on disk.raw and takes the guest's writes", ofDisk | ofMount, func(_ context.Context, s *Scope) []Finding {
			return s.tell(s.overlays(), "a snapshot by varve lacks what is in it, and a revert destroys it")
		}},
	}
}

func (s *Scope) tell(stakes []Stake, consequence string) []Finding {
	var list []Finding
	for _, k := range stakes {
		list = append(list, Finding{Severity: Problem, What: k.What + ": " + consequence, Fix: k.Fix})
	}
	return list
}

// raws are the paths of the disk's disk.raw, resolved: where it is mounted, and where it
// was last; by bind mounts too.
func (s *Scope) raws() []string {
	var list []string
	file := func(raw string) {
		if !slices.Contains(list, raw) {
			list = append(list, raw)
		}
	}
	add := func(mountpoint string) { file(filepath.Join(mountpoint, "disk.raw")) }
	for _, m := range s.Mounts {
		for _, at := range append([]mounts.Mount{m}, m.Binds...) {
			switch {
			case at.Whole():
				add(at.Mountpoint)
			case at.Part() == "disk.raw":
				file(at.Mountpoint)
			}
		}
	}
	if s.Directory != "" && !s.Unreachable {
		if last, err := chain.LastMount(s.Directory); err == nil && last.Mountpoint != "" && !s.anothers(last.Mountpoint) {
			add(last.Mountpoint)
		}
	}
	return list
}

// anothers says whether another disk is mounted at a path by now.
func (s *Scope) anothers(mountpoint string) bool {
	m, there, err := mounts.At(mountpoint)
	return err == nil && there && m.Source != s.Directory
}

// saved finds the memory of VMs that will be resumed on the disk.
func (s *Scope) saved() []Stake {
	raws := s.raws()
	if len(raws) == 0 {
		return nil
	}
	images, hidden := s.machine.savedImages()
	if hidden {
		s.Unseen("memory of VMs that libvirt keeps")
	}
	var list []Stake
	for _, i := range images {
		if i.User != "" && !s.letsIn(i.Of) {
			continue // who cannot use the disk has no memory of it, whatever a file says
		}
		if !slices.ContainsFunc(i.Disks, func(d vmDisk) bool {
			return slices.Contains(raws, s.machine.resolve(d.Path)) || s.machine.anyOf(raws, d.Below)
		}) {
			continue
		}
		of := "libvirt"
		if i.User != "" {
			of = i.User + "'s libvirt"
		}
		when := ""
		if info, err := os.Stat(filepath.Join(s.machine.root, i.File)); err == nil {
			when = " of " + info.ModTime().Format(time.DateTime)
		}
		list = append(list, Stake{Saved: true, image: i,
			What: fmt.Sprintf("%s keeps the memory%s of domain %s, in %s, and its next start goes on with that", of, when, i.Name, i.File),
			Fix:  fmt.Sprintf("start the domain and shut it down in order, or give its memory up: %s", i.removal(s.machine.uid))})
	}
	return list
}

// letsIn says whether a user can be one who uses the disk: the disk's owner, who mounted
// it, or anybody where others are let in.
func (s *Scope) letsIn(uid int) bool {
	if slices.ContainsFunc(s.Mounts, func(m mounts.Mount) bool { return m.AllowOther || m.UID == uid }) {
		return true
	}
	if s.Directory == "" || s.Unreachable {
		return false
	}
	last, err := chain.LastMount(s.Directory)
	return err == nil && (slices.Contains(last.Owners, uid) || slices.Contains(strings.Split(last.Options, ","), "allow_other"))
}

// anyOf says whether one of some paths, which need not be resolved, is among others that
// are.
func (m *machine) anyOf(resolved, paths []string) bool {
	return slices.ContainsFunc(paths, func(p string) bool { return slices.Contains(resolved, m.resolve(p)) })
}

// overlays finds images that stand on disk.raw: those that a program has open to write,
// those that libvirt would give to a VM, and those that lie beside the disk.
func (s *Scope) overlays() []Stake {
	raws := s.raws()
	if len(raws) == 0 {
		return nil
	}
	known := map[string]bool{}
	var list []Stake
	add := func(file, who, fix string) {
		if !known[file] {
			known[file] = true
			list = append(list, Stake{What: fmt.Sprintf("%s, which stands on disk.raw, %s", file, who), Fix: fix})
		}
	}
	const pivot = "blockcommit %s %s --active --pivot"
	for _, v := range s.machine.vms() {
		if v.PID == 0 {
			continue
		}
		for _, h := range s.machine.files().Of(func(h holders.Handle) bool { return h.PID == v.PID && !h.Mapped }) {
			file := s.machine.resolve(h.Path)
			if write, _ := h.Mode(); !write || slices.Contains(raws, file) || !s.machine.standsOn(file, raws) {
				continue
			}
			fix := "put its writes into disk.raw (QMP block-commit, then block-job-complete)"
			if v.Name != "" {
				fix = "put its writes into disk.raw and go on there: " + "virsh " + fmt.Sprintf(pivot, chain.ShellWord(v.Name), chain.ShellWord(file))
			}
			add(file, "takes the writes of "+v.who(), fix)
		}
	}
	for _, v := range s.machine.vms() {
		if !s.concerns(v) {
			continue // whom the disk does not let in holds up nothing
		}
		for _, d := range v.Disks {
			file := s.machine.resolve(d.Path)
			if v.PID != 0 || d.ReadOnly || slices.Contains(raws, file) || !s.machine.anyOf(raws, d.Below) && !s.machine.standsOn(file, raws) {
				continue
			}
			add(file, "is the disk of "+v.who(),
				"start it, then put its writes into disk.raw: "+v.domain.Virsh(fmt.Sprintf(pivot, chain.ShellWord(v.Name), chain.ShellWord(file))))
		}
	}
	for _, file := range s.beside(raws) {
		if s.machine.standsOn(file, raws) {
			add(file, "lies beside the disk", "with no VM running: qemu-img commit "+chain.ShellWord(file)+" puts it into disk.raw; or, when nothing in it is missed, remove it")
		}
	}
	return list
}

// Bounds of the search for images that lie beside a disk.
const (
	mostBeside     = 512     // entries of a directory
	smallestBeside = 3 << 16 // bytes: a qcow2 has a header, a refcount table and a block
)

// beside gives the files beside the disk directory and its mountpoints.
func (s *Scope) beside(raws []string) []string {
	dirs := []string{}
	add := func(path string) {
		if dir := filepath.Dir(path); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	if s.Directory != "" {
		add(s.Directory)
	}
	for _, raw := range raws {
		add(filepath.Dir(raw))
	}
	var list []string
	for _, dir := range dirs {
		if !s.machine.answers(dir) {
			continue
		}
		d, err := os.Open(dir)
		if err != nil {
			continue
		}
		entries, _ := d.ReadDir(mostBeside) // what was read so far is looked at
		d.Close()                           // read only
		for _, e := range entries {
			// By its type in the directory: to look at a mountpoint could take for ever.
			file := filepath.Join(dir, e.Name())
			if !e.Type().IsRegular() || !s.machine.answers(file) {
				continue
			}
			if info, err := e.Info(); err == nil && info.Mode().IsRegular() && info.Size() >= smallestBeside {
				list = append(list, file)
			}
		}
	}
	return list
}

// standsOn says whether a qcow2 stands on one of some files, by its header and those of
// what is below it.
func (m *machine) standsOn(file string, resolved []string) bool {
	if !m.answers(file) {
		return false
	}
	info, err := os.Stat(file)
	if err != nil || !info.Mode().IsRegular() {
		return false
	}
	for below := range chain.BackingFiles(file) {
		path := m.resolve(below)
		if slices.Contains(resolved, path) {
			return true
		}
		if !m.answers(path) {
			return false
		}
	}
	return false
}
