package doctor

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"varve/chain/mounts"
	"varve/cmd/varve/internal/aside"
	"varve/cmd/varve/internal/holders"
	"varve/cmd/varve/internal/libvirt"
)

// machine is the host as the checks see it. Each part is read once, when a check
// first asks for it, and for all disks.
type machine struct {
	root  string // "/"; in tests a directory that holds parts of /proc, /sys and /etc
	uid   int    // as whom the checks are made
	files func() *holders.Table
	vms   func() []vm     // those that run, then those that libvirt would start
	slow  func() []string // mountpoints of file systems that may not answer

	hidden bool // vms has not all that libvirt would start
}

func newMachine(root string) *machine {
	m := &machine{root: root, uid: os.Geteuid()}
	m.files = sync.OnceValue(func() *holders.Table { return holders.ReadTable(root) })
	m.vms = sync.OnceValue(func() []vm {
		defined, hidden := m.defined()
		m.hidden = hidden
		return append(m.running(), defined...)
	})
	m.slow = sync.OnceValue(func() []string {
		list, err := mounts.Remote()
		if err != nil {
			return []string{"/"}
		}
		return list
	})
	return m
}

// read gives a small file of the host, "" when it cannot be read.
func (m *machine) read(name string) string {
	text, err := os.ReadFile(filepath.Join(m.root, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// has says whether the host has a file.
func (m *machine) has(name string) bool {
	_, err := os.Lstat(filepath.Join(m.root, name))
	return err == nil
}

// vm is a virtual machine, or another program that opens images as QEMU does.
type vm struct {
	PID     int // 0 for one that is defined in libvirt and may be off
	UID     int // as whom it opens files, -1 when that is not known
	GID     int
	Command string
	Name    string
	Label   string // its AppArmor profile
	Disks   []vmDisk

	domain *libvirt.Domain // of one that is defined
	qemu   libvirt.QEMU    // as whom that will run
}

// running finds the VMs in /proc.
func (m *machine) running() []vm {
	entries, err := os.ReadDir(filepath.Join(m.root, "proc"))
	if err != nil {
		return nil
	}
	var list []vm
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(m.root, "proc", e.Name())
		command, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(command) == 0 {
			continue
		}
		words := strings.Split(strings.TrimSuffix(string(command), "\x00"), "\x00")
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			continue
		}
		// QEMU can call itself as it likes (-name process=), and what another user
		// runs is not always told.
		kind := programOf(words[0])
		if kind == noProgram {
			kind = programOf(string(bytes.TrimSpace(comm)))
		}
		if kind == noProgram {
			exe, err := os.Readlink(filepath.Join(dir, "exe"))
			if err != nil {
				continue
			}
			if kind = programOf(exe); kind == noProgram {
				continue
			}
		}
		cwd, err := os.Readlink(filepath.Join(dir, "cwd"))
		if err != nil {
			cwd = ""
		}
		c := parseCommandLine(kind, words, cwd)
		v := vm{PID: pid, Command: string(bytes.TrimSpace(comm)), Name: c.Name, Disks: c.Disks}
		v.UID, v.GID = idsIn(filepath.Join(dir, "status"))
		if label, err := os.ReadFile(filepath.Join(dir, "attr/current")); err == nil {
			v.Label = strings.TrimRight(string(label), "\x00\n")
		}
		list = append(list, v)
	}
	return list
}

// idsIn reads the user and the group as whom a process opens files, -1 when they
// are not told.
func idsIn(status string) (uid, gid int) {
	uid, gid = -1, -1
	text, err := os.ReadFile(status)
	if err != nil {
		return uid, gid
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line) // Uid: real effective saved fs
		if len(f) < 5 {
			continue
		}
		if n, err := strconv.Atoi(f[4]); err == nil && f[0] == "Uid:" {
			uid = n
		} else if err == nil && f[0] == "Gid:" {
			gid = n
		}
	}
	return uid, gid
}

// resolve is mounts.ResolveUpTo the file systems that may not answer.
func (m *machine) resolve(path string) string { return mounts.ResolveUpTo(path, m.slow()) }

// answers tells whether a path lies outside of all file systems that may not answer.
func (m *machine) answers(path string) bool {
	for _, dir := range m.slow() {
		if mounts.Within(path, dir) {
			return false
		}
	}
	return true
}

// soon is how long a file system that may hang is waited for.
const soon = time.Second

// StatSoon is os.Stat for what may hang: aside.ErrNoAnswer where there is no answer
// within answerTime.
func StatSoon(path string) (os.FileInfo, error) {
	if _, err := aside.Ask(context.Background(), statErrand, path, answerTime); err != nil {
		return nil, err
	}
	return os.Stat(path)
}
