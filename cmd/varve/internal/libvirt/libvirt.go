// Package libvirt reads what libvirt keeps in files: the domains that it would start,
// the snapshots that virsh has taken, and as whom it runs QEMU. It asks no libvirtd, so
// it works where none runs, and writes nothing.
package libvirt

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"varve/chain"
)

// Host is a machine whose files are read. It is safe for concurrent use.
type Host struct {
	Root string // "/"; in tests a directory that holds parts of /etc, /var and /home
	UID  int    // as whom the files are read
	// Resolve gives a path with its symbolic links resolved, without asking a file system
	// that may not answer.
	Resolve func(path string) string
	// Answers says whether a path lies outside of all file systems that may not answer: a
	// user's home may be anywhere.
	Answers func(path string) bool
}

// place is where one libvirtd keeps its files: the system's, or a user's own (libvirt,
// src/qemu/qemu_conf.c, virQEMUDriverConfigNew).
type place struct {
	domains   string // absolute, below the host's root
	snapshots string
	user      string // whose it is; "" for the system's
	uid       int    // that user's; 0 for the system's
}

const (
	systemDomains   = "/etc/libvirt/qemu"
	systemSnapshots = "/var/lib/libvirt/qemu/snapshot"
)

// places gives the directories of the system's libvirtd, of the reading user's own, and with
// others of each user's.
func (h *Host) places(others bool) []place {
	list := []place{{domains: systemDomains, snapshots: systemSnapshots}}
	of := func(configuration, user string, uid int) {
		dir := filepath.Join(configuration, "libvirt/qemu")
		if !h.Answers(dir) {
			return
		}
		list = append(list, place{domains: dir, snapshots: filepath.Join(dir, "snapshot"), user: user, uid: uid})
	}
	own := ""
	if dir := os.Getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) && h.Root == "/" {
		own = filepath.Clean(dir)
	}
	told := false
	for line := range strings.Lines(h.read("etc/passwd")) {
		f := strings.Split(strings.TrimSpace(line), ":") // name:password:uid:gid:gecos:home:shell
		if len(f) < 7 || !filepath.IsAbs(f[5]) || f[5] == "/" || f[5] == "/nonexistent" {
			continue
		}
		uid, err := strconv.Atoi(f[2])
		if err != nil || uid != h.UID && !others {
			continue
		}
		dir := filepath.Join(f[5], ".config")
		if uid == h.UID && own != "" && !told {
			dir, told = own, true
		}
		of(dir, f[0], uid)
	}
	return list
}

// read gives a small file of the host, "" when it cannot be read.
func (h *Host) read(name string) string {
	text, err := os.ReadFile(filepath.Join(h.Root, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// maxXML is the highest length, in bytes, of a file of libvirt's that is read.
const maxXML = 4 << 20

// readXML reads a file of libvirt's. A user's directory may hold anything: neither a
// FIFO nor a symbolic link is followed.
func readXML(path string) (text []byte, info os.FileInfo, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close() // read only
	if info, err = f.Stat(); err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxXML {
		return nil, nil, fmt.Errorf("%s is no file of libvirt's", path)
	}
	text, err = io.ReadAll(io.LimitReader(f, maxXML))
	return text, info, err
}

// list gives the paths of the XML files in a directory, which is below the host's root.
// A directory that is not there has none.
func (h *Host) list(dir string) (paths []string, err error) {
	dir = filepath.Join(h.Root, dir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".xml" {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, nil
}

// virsh is the beginning of a command to the libvirtd of a user, "" for the system's.
// uid is as whom it is called, and as is what makes that another user, "" for nothing.
func virsh(user string, of, uid int) (as, command string) {
	switch {
	case user == "":
		return "", "virsh"
	case of == uid:
		return "", "virsh -c qemu:///session"
	}
	return "runuser -u " + chain.ShellWord(user) + " -- ", "virsh -c qemu:///session"
}
