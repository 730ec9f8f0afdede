package libvirt

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"varve/chain"
)

// Snapshot is what libvirt remembers of a snapshot that virsh has taken.
type Snapshot struct {
	Domain, Name string
	Taken        time.Time
	Disks        []SnapshotDisk

	forget string
}

// SnapshotDisk is one disk of a snapshot. The state of the snapshot is what Before shows,
// the file that the VM wrote until then. Overlay is the file that the VM wrote from then
// on, "" where the snapshot made none (an internal one); virsh names it after the
// snapshot, although it holds what came later.
type SnapshotDisk struct{ Overlay, Before string }

// Forget is the command that has libvirt forget the snapshot and leave its files alone.
func (s Snapshot) Forget() string { return s.forget }

// snapshotXML is the form of a snapshot in its file (https://libvirt.org/formatsnapshot.html).
type snapshotXML struct {
	Name  string `xml:"name"`
	Taken string `xml:"creationTime"`
	Disks []struct {
		Name string  `xml:"name,attr"` // the disk's target, or its file
		Kind string  `xml:"snapshot,attr"`
		File element `xml:"source"`
	} `xml:"disks>disk"`
	Domain domainXML `xml:"domain"` // as it was just before
}

// parseSnapshot reads a <domainsnapshot>; ok is false for what is none.
func parseSnapshot(text []byte) (s Snapshot, ok bool) {
	var x snapshotXML
	if xml.Unmarshal(text, &x) != nil || x.Name == "" {
		return Snapshot{}, false
	}
	s.Name = x.Name
	if seconds, err := strconv.ParseInt(x.Taken, 10, 64); err == nil {
		s.Taken = time.Unix(seconds, 0)
	}
	before, _ := x.Domain.domain()
	for _, d := range x.Disks {
		var one SnapshotDisk
		if file := d.File.attribute("file"); d.Kind == "external" && filepath.IsAbs(file) {
			one.Overlay = filepath.Clean(file)
		}
		for _, was := range before.Disks {
			if d.Name != "" && (was.Target == d.Name || was.Path == d.Name) {
				one.Before = was.Path
			}
		}
		if d.Kind != "no" && one != (SnapshotDisk{}) {
			s.Disks = append(s.Disks, one)
		}
	}
	return s, true
}

// Snapshots gives what libvirt remembers of snapshots of the system's domains and of the
// reading user's own, the oldest first. hidden says that some may not be looked at.
//
// Names alone are to be taken from here: QEMU's user owns the system's directory, so that
// a VM that has broken out of its QEMU can write into it.
func (h *Host) Snapshots() (list []Snapshot, hidden bool) {
	for _, p := range h.places(false) {
		entries, err := os.ReadDir(filepath.Join(h.Root, p.snapshots))
		hidden = hidden || os.IsPermission(err)
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			paths, err := h.list(filepath.Join(p.snapshots, e.Name()))
			hidden = hidden || os.IsPermission(err)
			for _, path := range paths {
				text, _, err := readXML(path)
				hidden = hidden || os.IsPermission(err)
				if err != nil {
					continue
				}
				if s, ok := parseSnapshot(text); ok {
					s.Domain = e.Name()
					as, command := virsh(p.user, p.uid, h.UID)
					s.forget = Domain{as: as, virsh: command}.Virsh("snapshot-delete " + chain.ShellWord(s.Domain) + " " + chain.ShellWord(s.Name) + " --metadata")
					list = append(list, s)
				}
			}
		}
	}
	slices.SortStableFunc(list, func(a, b Snapshot) int { return a.Taken.Compare(b.Taken) })
	return list, hidden
}
