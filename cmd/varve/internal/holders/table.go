package holders

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/mounts"
)

// Identity is a file by its device and inode, a block device by its numbers.
// The zero value is no file.
type Identity struct{ Device, Inode uint64 }

// Identify gives the identity of the file at path. It does not ask the file
// system for what the kernel has already; ok is false when it cannot be told.
func Identify(path string) (id Identity, ok bool) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_INO, &st); err != nil {
		return Identity{}, false
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return Identity{Device: unix.Mkdev(st.Rdev_major, st.Rdev_minor)}, true
	}
	return Identity{Device: unix.Mkdev(st.Dev_major, st.Dev_minor), Inode: st.Ino}, true
}

// Handle is a file as a process, or a loop device, has it open.
type Handle struct {
	PID     int      // 0 for a loop device
	Command string   // the process's name
	Device  string   // of a loop device: /dev/loopN
	Path    string   // as the kernel shows it; in another mount namespace or of a mount that is gone not a path of here
	ID      Identity // the zero value for a mapping and a loop device
	Mapped  bool     // mapped to memory without being open

	link string // its link in /proc; "" for a mapping and a loop device
	ro   string // of a loop device: the file that says whether it is read only
}

// Table is what the processes of this host and its loop devices had open at one
// moment.
type Table struct {
	Hidden int // processes whose files only root may see
	all    []Handle
}

// identifyTime is how long a file system that may not answer is waited for, once for
// each.
const identifyTime = time.Second

// ReadTable reads /proc and /sys below root, which is "/" but in tests. It waits no
// longer than a second for each file system that may not answer, which NFS may do for
// a file that is open; files there have no identity then.
func ReadTable(root string) *Table {
	slow, err := mounts.Remote()
	return readTable(root, &identifier{all: err != nil, slow: slow, dead: map[string]bool{}, identify: Identify})
}

// identifier identifies open files.
type identifier struct {
	all      bool     // any file system may not answer
	slow     []string // mountpoints of those that may not
	dead     map[string]bool
	identify func(path string) (Identity, bool)
}

// of identifies the file behind a link in /proc whose path is said to be this.
func (i *identifier) of(link, path string) Identity {
	at := ""
	for _, m := range i.slow {
		if mounts.Within(path, m) && len(m) > len(at) {
			at = m
		}
	}
	switch {
	case at == "" && !i.all:
		id, _ := i.identify(link)
		return id
	case i.dead[at]:
		return Identity{}
	}
	told := make(chan Identity, 1)
	go func() {
		id, _ := i.identify(link)
		told <- id
	}()
	select {
	case id := <-told:
		return id
	case <-time.After(identifyTime):
		i.dead[at] = true
		return Identity{}
	}
}

func readTable(root string, ids *identifier) *Table {
	t := &Table{}
	proc := filepath.Join(root, "proc")
	entries, err := os.ReadDir(proc)
	if err != nil {
		return t
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
			t.process(filepath.Join(proc, e.Name()), pid, ids)
		}
	}
	for _, f := range loopFiles(filepath.Join(root, "sys/block")) {
		// By its path alone: looking it up could ask a daemon that hangs.
		t.all = append(t.all, Handle{Device: f.device, Path: f.path,
			ro: filepath.Join(root, "sys/block", filepath.Base(f.device), "ro")})
	}
	sort.SliceStable(t.all, func(i, j int) bool { return t.all[i].PID < t.all[j].PID })
	return t
}

func (t *Table) process(dir string, pid int, ids *identifier) {
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		if os.IsPermission(err) {
			t.Hidden++
		}
		return
	}
	command := ""
	add := func(h Handle) {
		if command == "" {
			command = commandIn(dir)
		}
		h.PID, h.Command = pid, command
		t.all = append(t.all, h)
	}
	seen := map[string]bool{}
	for _, fd := range fds {
		link := filepath.Join(dir, "fd", fd.Name())
		path, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "/dev/null") {
			continue
		}
		id := ids.of(link, path)
		path = strings.TrimSuffix(path, " (deleted)")
		seen[path] = true
		add(Handle{Path: path, ID: id, link: link})
	}
	maps, err := os.Open(filepath.Join(dir, "maps"))
	if err != nil {
		return
	}
	defer maps.Close() // read only
	for s := bufio.NewScanner(maps); s.Scan(); {
		// address, permissions, offset, device, inode, path. Programs and their
		// libraries are mapped, and nobody's images.
		i := bytes.IndexByte(s.Bytes(), '/')
		if i < 0 || bytes.Contains(s.Bytes()[i:], []byte(".so")) {
			continue
		}
		if path := strings.TrimSuffix(string(s.Bytes()[i:]), " (deleted)"); !seen[path] {
			seen[path] = true
			add(Handle{Path: path, Mapped: true})
		}
	}
}

// Of gives the handles of the files that a function picks.
func (t *Table) Of(pick func(Handle) bool) []Handle {
	var list []Handle
	for _, h := range t.all {
		if pick(h) {
			list = append(list, h)
		}
	}
	return list
}

// Mode tells how a handle is open: whether it can write, and whether it has the
// lock by which QEMU keeps other writers away.
func (h Handle) Mode() (write, locked bool) {
	if h.Device != "" {
		text, err := os.ReadFile(h.ro)
		return err == nil && strings.TrimSpace(string(text)) == "0", false
	}
	if h.link == "" {
		return false, false
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(h.link)), "fdinfo", filepath.Base(h.link)))
	if err != nil {
		return false, false
	}
	for line := range strings.Lines(string(text)) {
		if flags, ok := strings.CutPrefix(line, "flags:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(flags), 8, 64)
			write = err == nil && n&unix.O_ACCMODE != unix.O_RDONLY && n&unix.O_PATH == 0
		}
		locked = locked || isWriteLock(line)
	}
	return write, locked
}

// qemuWriteByte is the byte that QEMU locks while it may write an image
// (block/file-posix.c: RAW_PL_PERM_BASE + 1).
const qemuWriteByte = 101

// isWriteLock says whether a line of fdinfo is QEMU's lock of a writer:
// "lock: 1: OFDLCK ADVISORY READ -1 fe:01:1234 100 101".
func isWriteLock(line string) bool {
	f := strings.Fields(line)
	if len(f) != 9 || f[0] != "lock:" || f[2] != "OFDLCK" {
		return false
	}
	first, err := strconv.ParseInt(f[7], 10, 64)
	if err != nil || first > qemuWriteByte {
		return false
	}
	last, err := strconv.ParseInt(f[8], 10, 64)
	return f[8] == "EOF" || err == nil && last >= qemuWriteByte
}

// commandIn is the name of a process by its directory in /proc.
func commandIn(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, "comm"))
	if err != nil {
		return "?"
	}
	return strings.TrimRight(string(b), "\n")
}
