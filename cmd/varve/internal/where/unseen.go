package where

import (
	"errors"
	"fmt"
	"os"
	"time"

	"varve/chain"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/claim"
	"varve/cmd/varve/internal/holders"
)

// A daemon's mount need not be seen where a command runs: it was made in another mount
// namespace (a container, a service of its own, "unshare --mount"), or it was unmounted
// here while another namespace had a copy. The daemon is known by the disk's lock and its
// mount by the connection that it serves; a place of it in the namespace of a process is
// opened through /proc.

// Unseen is that a daemon holds a disk for a mount that the mount table of this mount
// namespace does not show.
type Unseen struct {
	Dir        string
	PID        int
	Mountpoint string         // as the daemon says
	Device     uint64         // of the mount's files; 0 when it cannot be told
	How        string         // in words
	places     []mounts.Mount // in other mount namespaces, where all of it is seen
}

func (e Unseen) Error() string {
	if e.PID == 0 { // in a container that shows none of its processes
		return fmt.Errorf("another process holds it for a mount at %s that cannot be seen from here (%s)", e.Mountpoint, e.How).Error()
	}
	return fmt.Errorf("pid %d %s holds it for a mount at %s that cannot be seen from here (%s)", e.PID, holders.Command(e.PID), e.Mountpoint, e.How).Error()
}

// elsewhere gives the places in other mount namespaces at which all of the mount is seen
// that a daemon serves for a disk directory. The connection that the daemon has open tells
// which mount that is; where it cannot be told it is the one that is of this disk, at the
// daemon's mountpoint and in its own namespace.
func elsewhere(dir string, pid int, mountpoint string) []mounts.Mount {
	device, known := holders.Connection(pid)
	list, err := mounts.Elsewhere()
	if !known {
		list, err = mounts.Apart(pid)
	}
	if err != nil {
		return nil
	}
	var places []mounts.Mount
	for _, m := range list {
		served := known && m.Device == device || !known && m.Source == dir && m.Mountpoint == mountpoint
		if served && m.Whole() && m.Reachable() {
			places = append(places, m)
		}
	}
	return places
}

// isApart says whether a daemon's mount is in the daemon's own mount namespace and not in
// this one.
func isApart(dir string, pid int, mountpoint string) bool {
	list, err := mounts.Apart(pid)
	if err != nil {
		return false
	}
	for _, m := range list {
		if m.Source == dir && m.Mountpoint == mountpoint && m.Whole() {
			return true
		}
	}
	return false
}

// mountedElsewhere is the mount that another mount namespace has at a path, of a disk whose
// daemon goes on. A copy of one that is gone is nothing to name, and in a user namespace
// anybody can mount what looks like root's.
func mountedElsewhere(path string) (mounts.Mount, bool) {
	list, err := mounts.Elsewhere()
	if err != nil {
		return mounts.Mount{}, false
	}
	for _, m := range list {
		if m.PID != 0 && !m.Rooted && m.Mountpoint == path && m.Whole() && claim.Serves(m.Source, m.Device) {
			return m, true
		}
	}
	return mounts.Mount{}, false
}

// OnlyElsewhere gives the mounts that other mount namespaces have and this one does not, each
// by one place: those of disks whose daemon holds the disk directory that they name. A disk
// that a container has at another path than this host is not among them.
func OnlyElsewhere(table mounts.Table, places []mounts.Mount) []mounts.Mount {
	seen := map[uint64]bool{} // devices
	for _, m := range table.List() {
		seen[m.Device] = true
	}
	type sight struct {
		source string
		device uint64
	}
	asked := map[sight]bool{} // of many containers that have the same mount one is asked
	end := time.After(AnswerTime)
	var list []mounts.Mount
	for _, m := range places {
		at := sight{m.Source, m.Device}
		if m.PID == 0 || m.Rooted || !m.Whole() || !m.Reachable() || seen[m.Device] || asked[at] {
			continue
		}
		asked[at] = true
		// The disk's file system may hang.
		answer := make(chan bool, 1)
		go func() { answer <- claim.Serves(m.Source, m.Device) }()
		select {
		case serves := <-answer:
			if serves {
				seen[m.Device] = true
				list = append(list, m)
			}
		case <-end:
			return list
		}
	}
	return list
}

// Reach is the target of an argument whose disk is mounted out of sight, by the first
// place that can be opened; otherwise the error is unseen, with what is in the way of
// looking into the namespace.
func (e Unseen) Reach(arg string, unseen error) (Target, error) {
	for _, place := range e.places {
		m, err := place.Reach()
		switch {
		case err == nil:
			return Target{Arg: arg, Dir: e.Dir}.At(m), nil
		case errors.Is(err, os.ErrPermission):
			unseen = fmt.Errorf("%w, and uid %d may not look into it: use root, or \"nsenter --target %d --mount\" before the command: %w", e, os.Geteuid(), place.PID, err)
		}
	}
	return Target{}, unseen
}

// HeldElsewhere says who holds a disk for a mount that cannot be seen, who uses it, and how
// to end that.
func HeldElsewhere(dir string, pid int, mountpoint string) error {
	e := Unseen{Dir: dir, PID: pid, Mountpoint: mountpoint, How: "unmounted while it was in use, or mounted in a mount namespace that this user may not look into",
		places: elsewhere(dir, pid, mountpoint)}
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	ours, ownErr := os.Readlink("/proc/self/ns/mnt")
	known := false
	e.Device, known = holders.Connection(pid)
	if err == nil && ownErr == nil && theirs != ours || isApart(dir, pid, mountpoint) {
		e.How = "mounted in another mount namespace"
	}
	way := fmt.Sprintf("; \"varve umount %s\" ends it when nobody has a file of it open any more", chain.ShellWord(dir))
	u, usersErr := Target{Mountpoint: mountpoint, Device: e.Device}.Users(false)
	if !known || usersErr != nil {
		return fmt.Errorf("%w%s", e, way)
	}
	switch {
	case err != nil || ownErr != nil || theirs != ours:
	case len(u.Uses) > 0:
		e.How = "unmounted while it was in use"
	case len(u.Places)+len(u.Copies) > 0:
		e.How = "unmounted, and seen in other mount namespaces"
	}
	switch {
	case len(u.Uses) > 0 && len(u.Places)+len(u.Copies) == 0 && theirs == ours:
		return fmt.Errorf("%w: %v; close that, then it writes everything and ends by itself", e, u)
	case len(u.Uses)+len(u.Places) > 0:
		return fmt.Errorf("%w: %v%s", e, u, way)
	case len(u.Copies) > 0:
		return fmt.Errorf("%w: %s%s", e, PlaceWords(u.Copies), way)
	case theirs == ours && err == nil:
		return fmt.Errorf("%w: %s; close that, then it writes everything and ends by itself", e, UseWords(nil))
	}
	return fmt.Errorf("%w%s", e, way)
}
