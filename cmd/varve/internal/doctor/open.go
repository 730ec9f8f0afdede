package doctor

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"varve/chain"
	"varve/chain/dirlock"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/aside"
	"varve/cmd/varve/internal/holders"
)

// lookAtOpenFiles tells who has which file of the disk open and how, and who has
// a layer's file open to write.
func lookAtOpenFiles(_ context.Context, s *Scope) []Finding {
	table := s.machine.files()
	if table.Hidden > 0 {
		s.Unseen("open files of other users' processes")
	}
	told := map[string]bool{}
	for _, f := range s.vmFindings() {
		if f.file != "" {
			told[fmt.Sprint(f.pid, f.file)] = true
		}
	}
	daemon, servers := s.daemon(), s.servers()
	var list []Finding
	for _, l := range s.Layers {
		id := s.identify(l)
		file := s.machine.resolve(l.File)
		readers, written := users{}, false // by who may write it
		for _, h := range table.Of(func(h holders.Handle) bool {
			return h.Path == file || h.ID == id && id != (holders.Identity{})
		}) {
			write, locked := h.Mode()
			switch {
			case h.PID != 0 && (h.PID == daemon || servers[h.PID] || told[fmt.Sprint(h.PID, l.File)]):
			case h.Command == "varve" && (!write || daemon < 0): // of a disk on the same base
			case write && !s.own(l):
				list = append(list, s.judgeWriter(l, h))
			default:
				written = written || write
				readers.add(h, write, locked)
			}
		}
		if len(readers) > 0 {
			f := Finding{Severity: Note, What: strings.TrimSuffix(s.what(l), ",") + ", is open: " + readers.String()}
			if written {
				f.Fix = "stop that before the image is mounted: varve refuses one that somebody writes"
			}
			list = append(list, f)
		}
	}
	for i, m := range s.Mounts {
		var told []chain.OpenStatus
		if table.Hidden > 0 && i < len(s.answers) {
			told = s.answers[i].status.Open
		}
		list = append(list, s.openInside(m, daemon, told)...)
	}
	return list
}

// daemon is the pid of who serves a disk or works on it: 0 for nobody, -1 when it
// cannot be told.
func (s *Scope) daemon() int {
	if s.Directory == "" {
		return 0
	}
	if s.Unreachable {
		return -1
	}
	told := make(chan int, 1)
	go func() {
		pid, _, held, err := dirlock.Holder(s.Directory)
		switch {
		case err != nil || held && pid == 0:
			pid = -1
		case !held:
			pid = 0
		}
		told <- pid
	}()
	select {
	case pid := <-told:
		return pid
	case <-time.After(soon): // the disk's file system hangs
		return -1
	}
}

// servers are the processes that hold the lock of the disk, or of another one in
// whose directory a layer's file lies: a clone stands on layers that the daemon of
// that disk has open to write. They are known by the lock, as a daemon in another PID
// namespace knows itself by another pid.
func (s *Scope) servers() map[int]bool {
	dirs := []string{s.Directory}
	for _, l := range s.Layers {
		if dir := filepath.Dir(filepath.Dir(s.machine.resolve(l.File))); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	found := map[int]bool{}
	if s.Unreachable {
		return found
	}
	for _, dir := range dirs {
		if dir = s.machine.resolve(dir); !s.machine.answers(dir) {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "chain.json")); err != nil {
			continue // no disk directory
		}
		lock := filepath.Join(dir, "lock")
		id, known := holders.Identify(lock)
		for _, h := range s.machine.files().Of(func(h holders.Handle) bool { return h.Path == lock || known && h.ID == id }) {
			if _, locked := h.Mode(); locked {
				found[h.PID] = true
			}
		}
	}
	return found
}

// judgeWriter judges somebody who has a layer's file open to write.
func (s *Scope) judgeWriter(l Layer, h holders.Handle) Finding {
	f := Finding{Severity: Problem, What: fmt.Sprintf("%s has %s open to write", userName(h), s.what(l))}
	end := "end it"
	if h.Device != "" {
		end = "detach it (losetup -d " + h.Device + ")"
	}
	switch {
	case l.State == chain.StateLeaf && len(s.Mounts) == 0:
		f.Severity = Warning
		f.What += ": until it lets go the disk cannot be mounted"
		f.Fix = end
		return f
	case l.State == chain.StateLeaf:
		f.What += ", past the mount: two writers destroy it"
	default:
		f.What += ": every write changes what the layers above show"
	}
	f.Fix = end + ", or open the file read only"
	if s.Directory != "" {
		f.Fix += fmt.Sprintf("; \"varve check %s\", unmounted, says whether it has written already", chain.ShellWord(s.Directory))
	}
	return f
}

// openInside tells who has files of a mount open, also by what its daemon told of
// processes that cannot be looked into.
func (s *Scope) openInside(m mounts.Mount, daemon int, told []chain.OpenStatus) []Finding {
	files := map[string]users{}
	add := func(inside string, h holders.Handle, write, locked bool) {
		if files[inside] == nil {
			files[inside] = users{}
		}
		files[inside].add(h, write, locked)
	}
	for _, h := range s.machine.files().Of(func(h holders.Handle) bool {
		return h.PID != daemon && (h.ID.Device == m.Device || h.ID == (holders.Identity{}))
	}) {
		inside, ok := m.Inside(h.Path)
		if !ok || aside.IsChild(h.PID) { // one that asks for this command, or is about to end
			continue
		}
		write, locked := h.Mode()
		add(inside, h, write, locked)
	}
	for _, o := range told {
		h := holders.Handle{PID: o.PID, Command: o.Command}
		if _, known := files[o.File][userName(h)]; !known && o.PID != os.Getpid() {
			add(o.File, h, o.Write, false)
		}
	}
	var list []Finding
	for _, inside := range slices.Sorted(maps.Keys(files)) {
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
	case h.Mapped:
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
