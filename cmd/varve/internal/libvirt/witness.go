package libvirt

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"varve/chain"
	"varve/chain/mounts"
)

// ThisHost is the machine that the program runs on, seen as its user.
func ThisHost() *Host {
	slow := sync.OnceValue(func() []string {
		list, err := mounts.Remote()
		if err != nil {
			return []string{"/"}
		}
		return list
	})
	return &Host{
		Root: "/", UID: os.Geteuid(),
		Resolve: func(path string) string { return mounts.ResolveUpTo(path, slow()) },
		Answers: func(path string) bool {
			return !slices.ContainsFunc(slow(), func(dir string) bool { return mounts.Within(path, dir) })
		},
	}
}

var _ chain.Witness = (*Host)(nil)

// Formats tells as what libvirt gives a file to VMs. A definition that another user than
// root and the reading one can have written says nothing.
func (h *Host) Formats(path string) []chain.Claim {
	path = h.Resolve(path)
	domains, _ := h.Domains(false)
	var claims []chain.Claim
	for _, d := range domains {
		for _, disk := range d.Disks {
			if d.Trusted && h.Resolve(disk.Path) == path {
				claims = append(claims, chain.Claim{Format: disk.Format, By: "libvirt's domain " + d.Name})
			}
		}
	}
	return claims
}

// With gives the names of the domains that have a file as a disk.
func (h *Host) With(path string) []string {
	path = h.Resolve(path)
	domains, _ := h.Domains(false)
	var names []string
	for _, d := range domains {
		if slices.ContainsFunc(d.Disks, func(disk Disk) bool { return h.Resolve(disk.Path) == path }) {
			names = append(names, d.Name)
		}
	}
	return names
}

// States tells of which of virsh's snapshots the files of a chain show the state, and
// what else there is to know of them. files are the top one and what it stands on.
//
// A file shows the state of a snapshot when libvirt says that the VM wrote to it until
// then, and the chain has the snapshot's overlay directly above it. One of the two is not
// enough: after virsh blockcommit or blockpull the file of then has another content, or
// the overlay stands on an older file.
func (h *Host) States(files []string) (states []chain.SnapshotState, notes []string) {
	states = make([]chain.SnapshotState, len(files))
	snapshots, hidden := h.Snapshots()
	at := map[string]int{}
	for i, file := range files {
		at[h.Resolve(file)] = i
	}
	var lost []string
	domain := ""
	for _, s := range snapshots {
		concerned, found := false, -1
		for _, d := range s.Disks {
			over, hasOver := at[h.Resolve(d.Overlay)]
			before, hasBefore := at[h.Resolve(d.Before)]
			concerned = concerned || d.Overlay != "" && hasOver || d.Before != "" && hasBefore
			if d.Overlay != "" && d.Before != "" && hasOver && hasBefore && before == over+1 {
				found = before
			}
		}
		switch {
		case !concerned:
		case found < 0:
			lost, domain = append(lost, s.Name), s.Domain
		case states[found].Name == "":
			states[found] = chain.SnapshotState{Name: s.Name, By: fmt.Sprintf("libvirt's snapshot %s of domain %s", s.Name, s.Domain)}
		default:
			notes = append(notes, fmt.Sprintf("libvirt's snapshot %s of domain %s is the same state as %s", s.Name, s.Domain, states[found].Name))
		}
	}
	if len(lost) > 0 {
		slices.Sort(lost)
		notes = append(notes, fmt.Sprintf("of libvirt's snapshots of domain %s no layer shows %s: no file of this chain has that state by itself (an internal snapshot, or virsh blockcommit or blockpull came after it)",
			domain, strings.Join(lost, ", ")))
	}
	if hidden {
		notes = append(notes, "whether libvirt has snapshots of it may be looked at by root alone, so no layer has the name of one")
	}
	return states, notes
}
