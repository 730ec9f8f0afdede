package doctor

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"varve/chain"
	"varve/cmd/varve/internal/holders"
	"varve/cmd/varve/internal/mounts"
)

// lookAtOpenFiles tells who has which file of the disk open and how, and who has
// a layer's file open to write.
func lookAtOpenFiles(_ context.Context, s *Scope) []Finding {
	table := s.machine.files()
	if table.Hidden > 0 {
		s.Unseen("the open files of %d processes", table.Hidden)
	}
	told := map[string]bool{}
	for _, f := range s.vmFindings() {
		if f.file != "" {
			told[fmt.Sprint(f.pid, f.file)] = true
		}
	}
	daemon := 0
	if s.Directory != "" {
		if pid, _, held, err := chain.Holder(s.Directory); err == nil && held {
			daemon = pid
		}
	}
	var list []Finding
	for _, l := range s.Layers {
		id, _ := holders.Identify(l.File)
		file := s.machine.resolve(l.File)
		readers := users{}
		for _, h := range table.Of(func(h holders.Handle) bool {
			return h.Path == file || h.ID == id && id != (holders.Identity{})
		}) {
			write, locked := h.Mode()
			switch {
			case h.PID != 0 && (h.PID == daemon || told[fmt.Sprint(h.PID, l.File)]):
			case !write && h.Command == "varve": // of a disk on the same base
			case write && !s.own(l):
				list = append(list, s.judgeWriter(l, h))
			default:
				readers.add(h, write, locked)
			}
		}
		if len(readers) > 0 {
			list = append(list, Finding{Severity: Note, What: strings.TrimSuffix(s.what(l), ",") + ", is open: " + readers.String()})
		}
	}
	for _, m := range s.Mounts {
		list = append(list, s.openInside(m, daemon)...)
	}
	return list
}

// judgeWriter judges somebody who has a layer's file open to write.
func (s *Scope) judgeWriter(l Layer, h holders.Handle) Finding {
	f := Finding{Severity: Problem, What: fmt.Sprintf("%s has %s open to write", userName(h), s.what(l))}
	end := "end it"
	if h.Device != "" {
		end = "detach it (losetup -d " + h.Device + ")"
	}
	switch {
	case l.State == "leaf" && len(s.Mounts) == 0:
		f.Severity = Warning
		f.What += ": until it lets go the disk cannot be mounted"
		f.Fix = end
		return f
	case l.State == "leaf":
		f.What += ", past the mount: two writers destroy it"
	default:
		f.What += ": every write falsifies the layers above"
	}
	f.Fix = end + ", or open the file read only"
	if s.Directory != "" {
		f.Fix += fmt.Sprintf("; whether it wrote already says varve check %s, unmounted", s.Directory)
	}
	return f
}

// openInside tells who has files of a mount open.
func (s *Scope) openInside(m mounts.Mount, daemon int) []Finding {
	files := map[string]users{}
	var order []string
	for _, h := range s.machine.files().Of(func(h holders.Handle) bool {
		return h.PID != daemon && (h.ID.Device == m.Device || h.ID == (holders.Identity{})) && mounts.Within(h.Path, m.Mountpoint)
	}) {
		inside, err := filepath.Rel(m.Mountpoint, h.Path)
		if err != nil {
			continue
		}
		if files[inside] == nil {
			files[inside] = users{}
			order = append(order, inside)
		}
		write, locked := h.Mode()
		files[inside].add(h, write, locked)
	}
	slices.Sort(order)
	var list []Finding
	for _, inside := range order {
		list = append(list, Finding{Severity: Note, Subject: m.Mountpoint, What: inside + " is open: " + files[inside].String()})
	}
	return list
}

// users are those who have a file open, by name, with how.
type users map[string]string

// add adds a handle; of several of one process the strongest counts.
func (u users) add(h holders.Handle, write, locked bool) {
	how := "read only"
	switch {
	case h.Mapped():
		how = "mapped"
	case locked:
		how = "to write, with QEMU's lock"
	case write:
		how = "to write"
	}
	u[userName(h)] = max(u[userName(h)], how) // the words' order is that of their strength
}

// mostUsers is how many users of a file are named.
const mostUsers = 4

func (u users) String() string {
	var words []string
	for name, how := range u {
		words = append(words, name+" "+how)
	}
	slices.Sort(words)
	if more := len(words) - mostUsers; more > 0 {
		words = append(words[:mostUsers], fmt.Sprintf("%d more", more))
	}
	return strings.Join(words, ", ")
}

// userName is who has a handle.
func userName(h holders.Handle) string {
	if h.Device != "" {
		return h.Device
	}
	return fmt.Sprintf("pid %d %s", h.PID, h.Command)
}

// mayPass says whether a user may pass through a directory.
func mayPass(info fs.FileInfo, uid, gid int) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	switch mode := info.Mode().Perm(); {
	case !ok || uid == 0:
		return true
	case int(st.Uid) == uid:
		return mode&0o100 != 0
	case gid < 0:
		return mode&0o011 != 0
	case int(st.Gid) == gid:
		return mode&0o010 != 0
	default:
		return mode&0o001 != 0
	}
}
