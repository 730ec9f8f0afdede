// Package holders finds out who keeps a mount busy: processes with a file, a
// working directory or a mapping in it, loop devices on its files, and mounts
// inside it.
//
// It reads /proc and /sys only and never touches the mount itself. What other
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

	"varve/cmd/varve/internal/mounts"
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
		return fmt.Sprintf("pid %d %s has its %s there", u.PID, u.Command, u.How)
	case u.How == "open":
		return fmt.Sprintf("%s is open (pid %d %s)", u.What, u.PID, u.Command)
	default:
		return fmt.Sprintf("%s is %s (pid %d %s)", u.What, u.How, u.PID, u.Command)
	}
}

// Find lists what holds the mount at mountpoint, which is absolute and
// resolved. The caller itself is left out. Each process is named once for each
// file.
func Find(mountpoint string) []Use {
	uses := loops("/sys/block", mountpoint)
	uses = append(uses, processes("/proc", mountpoint)...)
	if below, err := mounts.Below(mountpoint); err == nil {
		for _, m := range below {
			uses = append(uses, Use{How: "mount", What: m})
		}
	}
	return uses
}

func processes(proc, mountpoint string) []Use {
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
		uses = append(uses, process(filepath.Join(proc, e.Name()), pid, mountpoint)...)
	}
	sort.SliceStable(uses, func(i, j int) bool { return uses[i].PID < uses[j].PID })
	return uses
}

func process(dir string, pid int, mountpoint string) []Use {
	var uses []Use
	seen := map[string]bool{}
	add := func(how, path string) {
		// The kernel marks files without a name any more.
		path = strings.TrimSuffix(path, " (deleted)")
		if !mounts.Within(path, mountpoint) {
			return
		}
		what, err := filepath.Rel(mountpoint, path)
		if err != nil || seen[what] {
			return
		}
		seen[what] = true
		uses = append(uses, Use{PID: pid, Command: Command(pid), How: how, What: what})
	}
	link := func(how, name string) {
		if path, err := os.Readlink(filepath.Join(dir, name)); err == nil {
			add(how, path)
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
		for s := bufio.NewScanner(maps); s.Scan(); {
			// address, permissions, offset, device, inode, path
			if i := strings.Index(s.Text(), "/"); i >= 0 {
				add("mapped", s.Text()[i:])
			}
		}
	}
	return uses
}

func loops(block, mountpoint string) []Use {
	var uses []Use
	for _, f := range loopFiles(block) {
		if !mounts.Within(f.path, mountpoint) {
			continue
		}
		what, err := filepath.Rel(mountpoint, f.path)
		if err != nil {
			continue
		}
		uses = append(uses, Use{How: "loop device", What: what, Device: f.device})
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
