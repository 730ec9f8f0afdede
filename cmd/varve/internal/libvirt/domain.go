package libvirt

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Domain is what matters of a domain's definition.
type Domain struct {
	Name  string
	Disks []Disk
	Label string // of its QEMU's user and group, "+UID:+GID" or names; "" where the host's are taken

	// Of a domain that Domains has found:
	User    string // whose libvirtd it is, "" for the system's
	Of      int    // the uid of that user; 0 for the system's
	Trusted bool   // nobody but root and the reading user can have written the definition

	as, virsh string // the beginning of a command, see virsh
}

// Virsh is a command of virsh's about the domain, as the reading user types it. The
// arguments are shell words.
func (d Domain) Virsh(arguments string) string { return d.as + d.virsh + " " + arguments }

// Disk is one disk of a domain that has a file or a block device.
type Disk struct {
	Path       string // absolute and clean
	Target     string // "vda"
	Format     string // libvirt never lets QEMU guess: what has no type is raw
	Cache      string
	ReadOnly   bool     // never written: also a transient one, and a CD
	Below      []string // the files that it stands on, by the <backingStore> that libvirt keeps, top first
	definition element
}

// domainXML is the form of a domain in its file (https://libvirt.org/formatdomain.html).
type domainXML struct {
	Name   string `xml:"name"`
	Labels []struct {
		Model string `xml:"model,attr"`
		Label string `xml:"label"`
	} `xml:"seclabel"`
	Disks []element `xml:"devices>disk"`
}

// ParseDomain reads a <domain>; ok is false for what is none.
func ParseDomain(text []byte) (d Domain, ok bool) {
	var x domainXML
	if xml.Unmarshal(text, &x) != nil {
		return Domain{}, false
	}
	return x.domain()
}

func (x domainXML) domain() (d Domain, ok bool) {
	if x.Name == "" {
		return Domain{}, false
	}
	d.Name, d.virsh = x.Name, "virsh"
	for _, l := range x.Labels {
		if l.Model == "dac" {
			d.Label = strings.TrimSpace(l.Label)
		}
	}
	for _, e := range x.Disks {
		if disk, ok := e.disk(); ok {
			d.Disks = append(d.Disks, disk)
		}
	}
	return d, true
}

// disk reads a <disk>; ok is false for one without a file.
func (e element) disk() (d Disk, ok bool) {
	source := e.child("source")
	path := source.attribute("file")
	if path == "" {
		path = source.attribute("dev")
	}
	if !filepath.IsAbs(path) {
		return Disk{}, false
	}
	driver := e.child("driver")
	d = Disk{
		Path: filepath.Clean(path), Target: e.child("target").attribute("dev"),
		Format: driver.attribute("type"), Cache: driver.attribute("cache"), definition: e,
		ReadOnly: e.has("readonly") || e.has("transient") || e.attribute("device") == "cdrom",
	}
	if d.Format == "" {
		d.Format = "raw"
	}
	for b := e.child("backingStore"); b.XMLName.Local != ""; b = b.child("backingStore") {
		if file := b.child("source").attribute("file"); filepath.IsAbs(file) {
			d.Below = append(d.Below, filepath.Clean(file))
		}
	}
	return d, true
}

// Domains gives what libvirt would start: the system's domains, the reading user's own,
// and with others those of all users. hidden says that some of the system's or of the reading user's own may not be looked
// at.
func (h *Host) Domains(others bool) (list []Domain, hidden bool) {
	for _, p := range h.places(others) {
		counts := p.user == "" || p.uid == h.UID
		paths, err := h.list(p.domains)
		hidden = hidden || counts && os.IsPermission(err)
		private := false
		if info, err := os.Stat(filepath.Join(h.Root, p.domains)); err == nil {
			private = h.writtenBy(info)
		}
		for _, path := range paths {
			text, info, err := readXML(path)
			hidden = hidden || counts && os.IsPermission(err)
			if err != nil {
				continue
			}
			d, ok := ParseDomain(text)
			if !ok {
				continue
			}
			d.User, d.Of = p.user, p.uid
			d.as, d.virsh = virsh(p.user, p.uid, h.UID)
			d.Trusted = private && counts && h.writtenBy(info)
			list = append(list, d)
		}
	}
	return list, hidden
}

// writtenBy says whether only root and the reading user can write a file or directory.
func (h *Host) writtenBy(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && (st.Uid == 0 || int(st.Uid) == h.UID) && info.Mode().Perm()&0o022 == 0
}

// QEMU is as whom a libvirtd runs QEMU.
type QEMU struct {
	UID, GID int // -1 where it is not known
	Groups   []int
	Owns     bool // libvirt gives the VM's files to that user (dynamic_ownership)
}

// names of QEMU's user, and of its group, where qemu.conf has none: Debian's, then
// Fedora's.
var names = []string{"libvirt-qemu", "qemu"}

// QEMU tells as whom the domain's QEMU runs: a user's own domains as that user, those of
// the system as qemu.conf or the domain says.
func (h *Host) QEMU(d Domain) QEMU {
	if d.User != "" {
		q := QEMU{UID: d.Of}
		_, _, q.GID = h.user([]string{d.User})
		q.Groups = h.groups(d.User)
		return q
	}
	users, groups, owns := names, names, true
	for line := range strings.Lines(h.read("etc/libvirt/qemu.conf")) {
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		value, _, _ = strings.Cut(value, "#")
		value = strings.Trim(strings.TrimSpace(value), `"`)
		switch strings.TrimSpace(key) {
		case "user":
			users = []string{value}
		case "group":
			groups = []string{value}
		case "dynamic_ownership":
			owns = value != "0"
		}
	}
	if user, group, ok := strings.Cut(d.Label, ":"); ok {
		users, groups = []string{user}, []string{group}
	}
	q := QEMU{Owns: owns}
	name, uid, primary := h.user(users)
	q.UID, q.Groups = uid, h.groups(name)
	if q.GID = h.group(groups); q.GID < 0 {
		q.GID = primary
	}
	return q
}

// user finds the first of some users that there is: its name, "" for none, its uid and
// its group, -1 for what is not known. "+N" and "N" are uids.
func (h *Host) user(names []string) (found string, uid, gid int) {
	for _, name := range names {
		number, err := strconv.Atoi(strings.TrimPrefix(name, "+"))
		for line := range strings.Lines(h.read("etc/passwd")) {
			f := strings.Split(line, ":")
			if len(f) < 4 || f[0] != name && f[2] != strconv.Itoa(number) || f[0] != name && err != nil {
				continue
			}
			u, errU := strconv.Atoi(f[2])
			g, errG := strconv.Atoi(f[3])
			if errU == nil && errG == nil {
				return f[0], u, g
			}
		}
		if err == nil {
			return "", number, -1
		}
	}
	return "", -1, -1
}

// group finds the first of some groups that there is, -1 for none.
func (h *Host) group(names []string) int {
	for _, name := range names {
		if n, err := strconv.Atoi(strings.TrimPrefix(name, "+")); err == nil {
			return n
		}
		for line := range strings.Lines(h.read("etc/group")) {
			if f := strings.Split(line, ":"); len(f) >= 3 && f[0] == name {
				if n, err := strconv.Atoi(f[2]); err == nil {
					return n
				}
			}
		}
	}
	return -1
}

// groups gives the groups of which a user is a member.
func (h *Host) groups(user string) []int {
	var list []int
	for line := range strings.Lines(h.read("etc/group")) {
		f := strings.Split(strings.TrimSpace(line), ":") // name:password:gid:members
		if len(f) < 4 {
			continue
		}
		for member := range strings.SplitSeq(f[3], ",") {
			if n, err := strconv.Atoi(f[2]); err == nil && member == user && user != "" {
				list = append(list, n)
			}
		}
	}
	return list
}
