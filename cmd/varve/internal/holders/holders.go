// Package holders finds out who keeps a mount busy: processes with a file, a
// working directory or a mapping in it, loop devices on its files, and mounts
// inside it.
//
// It reads /proc and /sys only and asks nothing of the mount itself. What other
// users do is seen by root only.
package holders

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"varve/chain/mounts"
	"varve/overlay/procs"
)

// Use is one reason for which a mount cannot go away.
type Use struct {
	PID     int    // 0 for a loop device or a mount
	Command string // the process's name
	How     string // "open", "working directory", "root directory", "program", "mapped", "loop device" or "mount"
	What    string // path relative to the mountpoint ("." for itself); for a mount its mountpoint
	Device  string // of a loop device: /dev/loopN
}

// String is the use in words, as error messages list it.
func (u Use) String() string {
	switch {
	case u.Device != "":
		return fmt.Sprintf("%s is attached to %s", u.What, u.Device)
	case u.How == "mount":
		return u.What + " is mounted inside"
	case u.How == "working directory" || u.How == "root directory":
		return fmt.Sprintf("%s has its %s there", procs.Title(u.PID, u.Command), u.How)
	case u.How == "open":
		return fmt.Sprintf("%s is open (%s)", u.What, procs.Title(u.PID, u.Command))
	default:
		return fmt.Sprintf("%s is %s (%s)", u.What, u.How, procs.Title(u.PID, u.Command))
	}
}

// Find lists what holds a varve mount whose files are on a device, in whatever mount
// namespace it is. places are where the mount can be seen; what is open at none of them,
// as after a lazy unmount, is found too. The caller itself is left out. Each process is
// named once for each file.
//
// It goes by the device of files, which the kernel tells without asking the daemon.
func Find(device uint64, places []mounts.Mount) []Use {
	f := finder{device: device, places: places}
	uses := f.loops("/sys/block")
	uses = append(uses, f.processes("/proc")...)
	for _, m := range places {
		if m.PID != 0 {
			continue
		}
		if below, err := mounts.Below(m.Mountpoint); err == nil {
			for _, m := range below {
				uses = append(uses, Use{How: "mount", What: m})
			}
		}
	}
	return uses
}

// finder finds the uses of a mount.
type finder struct {
	device uint64
	places []mounts.Mount
}

// name is what a path, as the kernel shows it, means inside the mount; ok is false for
// one that cannot be there.
func (f finder) name(path string) (name string, ok bool) {
	// The kernel marks files without a name any more.
	path = strings.TrimSuffix(path, " (deleted)")
	at := -1
	for i, m := range f.places {
		if mounts.Within(path, m.Mountpoint) && (at < 0 || len(m.Mountpoint) > len(f.places[at].Mountpoint)) {
			at = i
		}
	}
	if at >= 0 {
		below, err := filepath.Rel(f.places[at].Mountpoint, path)
		return filepath.Join(f.places[at].Part(), below), err == nil
	}
	if !fromRoot(path) {
		return "", false
	}
	return filepath.Join(".", path), true
}

func (f finder) processes(proc string) []Use {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil
	}
	var uses []Use
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		uses = append(uses, f.process(filepath.Join(proc, e.Name()), pid)...)
	}
	sort.SliceStable(uses, func(i, j int) bool { return uses[i].PID < uses[j].PID })
	return uses
}

func (f finder) process(dir string, pid int) []Use {
	var uses []Use
	seen := map[string]bool{}
	add := func(how, name string) {
		if !seen[name] {
			seen[name] = true
			uses = append(uses, Use{PID: pid, Command: Command(pid), How: how, What: name})
		}
	}
	link := func(how, name string) {
		path, err := os.Readlink(filepath.Join(dir, name))
		if err != nil {
			return
		}
		if what, ok := f.name(path); ok && deviceOf(filepath.Join(dir, name)) == f.device {
			add(how, what)
		}
	}
	link("working directory", "cwd")
	link("root directory", "root")
	link("program", "exe")
	if fds, err := os.ReadDir(filepath.Join(dir, "fd")); err == nil {
		for _, fd := range fds {
			link("open", filepath.Join("fd", fd.Name()))
		}
	}
	if maps, err := os.Open(filepath.Join(dir, "maps")); err == nil {
		defer maps.Close()
		ours := fmt.Sprintf("%02x:%02x", unix.Major(f.device), unix.Minor(f.device))
		for s := bufio.NewScanner(maps); s.Scan(); {
			// address, permissions, offset, device, inode, path
			fields := strings.Fields(s.Text())
			if i := strings.Index(s.Text(), "/"); i >= 0 && len(fields) > 3 && fields[3] == ours {
				if what, ok := f.name(s.Text()[i:]); ok {
					add("mapped", what)
				}
			}
		}
	}
	return uses
}

func (f finder) loops(block string) []Use {
	var uses []Use
	for _, loop := range loopFiles(block) {
		what, ok := f.name(loop.path)
		// What is not at one of the places could be anybody's.
		if !ok || fromRoot(loop.path) && loopOn(loop.device) != f.device {
			continue
		}
		uses = append(uses, Use{How: "loop device", What: what, Device: loop.device})
	}
	return uses
}

// loopFile is an attached loop device and its file.
type loopFile struct{ device, path string }

func loopFiles(block string) []loopFile {
	files, err := filepath.Glob(filepath.Join(block, "loop*/loop/backing_file"))
	if err != nil {
		return nil
	}
	var list []loopFile
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		path := strings.TrimSuffix(strings.TrimRight(string(b), "\n"), " (deleted)")
		list = append(list, loopFile{"/dev/" + filepath.Base(filepath.Dir(filepath.Dir(f))), path})
	}
	return list
}

// Command is the name of a process, "?" when it is gone.
func Command(pid int) string {
	return commandIn(fmt.Sprintf("/proc/%d", pid))
}
