package doctor

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// domain is what matters of a libvirt domain's XML.
type domain struct {
	Name  string `xml:"name"`
	Disks []struct {
		Device string `xml:"device,attr"`
		Driver struct {
			Type  string `xml:"type,attr"`
			Cache string `xml:"cache,attr"`
		} `xml:"driver"`
		Source struct {
			File string `xml:"file,attr"`
			Dev  string `xml:"dev,attr"`
		} `xml:"source"`
		Backing   *backingStore `xml:"backingStore"`
		ReadOnly  *struct{}     `xml:"readonly"`
		Transient *struct{}     `xml:"transient"`
	} `xml:"devices>disk"`
}

// backingStore is what a disk stands on, by libvirt's knowledge of it.
type backingStore struct {
	Source struct {
		File string `xml:"file,attr"`
	} `xml:"source"`
	Backing *backingStore `xml:"backingStore"`
}

// files are the paths of all that stands below, top first.
func (b *backingStore) files() (list []string) {
	for ; b != nil; b = b.Backing {
		if filepath.IsAbs(b.Source.File) {
			list = append(list, filepath.Clean(b.Source.File))
		}
	}
	return list
}

// defined gives the VMs that libvirt would start. hidden says that there are some
// that may not be looked at: they are root's.
func (m *machine) defined() (list []vm, hidden bool) {
	dir := filepath.Join(m.root, "etc/libvirt/qemu")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, os.IsPermission(err)
	}
	uid, gid := m.libvirtUser()
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".xml" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			hidden = hidden || os.IsPermission(err)
			continue
		}
		v, ok := parseDomain(text)
		if !ok {
			continue
		}
		v.UID, v.GID = uid, gid
		list = append(list, v)
	}
	return list, hidden
}

func parseDomain(text []byte) (vm, bool) {
	var d domain
	if xml.Unmarshal(text, &d) != nil || d.Name == "" {
		return vm{}, false
	}
	v := vm{Name: d.Name, UID: -1, GID: -1}
	for _, disk := range d.Disks {
		path := disk.Source.File
		if path == "" {
			path = disk.Source.Dev
		}
		if !filepath.IsAbs(path) {
			continue
		}
		// libvirt never lets QEMU guess: what has no type is raw.
		format := disk.Driver.Type
		if format == "" {
			format = "raw"
		}
		v.Disks = append(v.Disks, vmDisk{
			Path:     filepath.Clean(path),
			Format:   format,
			ReadOnly: disk.ReadOnly != nil || disk.Transient != nil || disk.Device == "cdrom",
			NoFlush:  disk.Driver.Cache == "unsafe",
			Below:    disk.Backing.files(),
		})
	}
	return v, true
}

// libvirtUser is the user as whom libvirt runs QEMU, -1 when it is not known.
func (m *machine) libvirtUser() (uid, gid int) {
	names := []string{"libvirt-qemu", "qemu"}
	for line := range strings.Lines(m.read("etc/libvirt/qemu.conf")) {
		if key, value, ok := strings.Cut(line, "="); ok && strings.TrimSpace(key) == "user" {
			names = []string{strings.Trim(strings.TrimSpace(value), `"`)}
		}
	}
	for _, name := range names {
		if n, err := strconv.Atoi(strings.TrimPrefix(name, "+")); err == nil {
			return n, -1
		}
		for line := range strings.Lines(m.read("etc/passwd")) {
			f := strings.Split(line, ":")
			if len(f) < 4 || f[0] != name {
				continue
			}
			uid, err := strconv.Atoi(f[2])
			if err != nil {
				continue
			}
			if gid, err := strconv.Atoi(f[3]); err == nil {
				return uid, gid
			}
		}
	}
	return -1, -1
}
