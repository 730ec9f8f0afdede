package where

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"varve/chain"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/holders"
)

// Users are the reasons for which a mount goes on.
type Users struct {
	Uses   []holders.Use  // open files and the like, wherever the mount is seen
	Places []mounts.Mount // where somebody wanted it to be seen, but at its mountpoint
	// copies are what other mount namespaces have at the same mountpoint, as each has that
	// is made while a disk is mounted, by a container or by libvirt for a VM. Nobody asked
	// for them: where no file is open by them, they keep nothing.
	Copies []mounts.Mount
}

func (u Users) None() bool { return len(u.Uses) == 0 && len(u.Places) == 0 }

// String says who uses the mount.
func (u Users) String() string {
	var words []string
	if u.None() && len(u.Copies) > 0 {
		return "copies of the mount in other mount namespaces: " + PlaceWords(u.Copies)
	}
	if len(u.Uses) > 0 || len(u.Places) == 0 {
		words = append(words, UseWords(u.Uses))
	}
	if len(u.Places) > 0 {
		words = append(words, "it can also be seen elsewhere: "+PlaceWords(u.Places))
	}
	return strings.Join(words, "; ")
}

// NumberIsAnothers says whether places that have the mount's device number show another
// disk: the kernel gives the number of a mount that is gone to the next one.
func (t Target) NumberIsAnothers(places []mounts.Mount) bool {
	return t.Dir != "" && slices.ContainsFunc(places, func(m mounts.Mount) bool {
		if m.Source == t.Dir || !IsDiskDirectory(m.Source) {
			return false
		}
		own, err := os.Stat(t.Dir)
		other, otherErr := os.Stat(m.Source)
		return err == nil && otherErr == nil && !os.SameFile(own, other)
	})
}

// Users finds out who uses a mount. With asking its daemon is asked too, which knows
// of files that /proc does not show to this user, such as those of another user's
// processes; the answer passes through the mountpoint.
func (t Target) Users(asking bool) (Users, error) {
	places, err := otherPlaces(t.Device, t.Mountpoint)
	if err != nil {
		return Users{}, err
	}
	if t.NumberIsAnothers(places) {
		return Users{}, nil
	}
	all := places
	if t.Mountpoint != "" {
		all = append([]mounts.Mount{{Mountpoint: t.Mountpoint, Root: "/", Device: t.Device}}, places...)
	}
	u := Users{Uses: holders.Find(t.Device, all)}
	for _, m := range places {
		if m.PID != 0 && m.Whole() && m.Mountpoint == t.Mountpoint {
			u.Copies = append(u.Copies, m)
		} else {
			u.Places = append(u.Places, m)
		}
	}
	if !asking {
		return u, nil
	}
	// A loop device is opened by a program that may have ended; the device is what
	// counts then.
	if st, err := t.DocumentSoon(); err == nil {
		for _, o := range st.Open {
			if !known(u.Uses, o) {
				u.Uses = append(u.Uses, holders.Use{PID: o.PID, Command: o.Command, How: "open", What: o.File})
			}
		}
	}
	return u, nil
}

func known(uses []holders.Use, o chain.OpenStatus) bool {
	for _, u := range uses {
		if u.What == o.File && (u.PID == o.PID || u.Device != "") {
			return true
		}
	}
	return o.PID == os.Getpid()
}

// UseWords puts uses into words, the first few of them.
func UseWords(uses []holders.Use) string {
	const most = 4
	if len(uses) == 0 {
		return "by a process that cannot be seen from here (another user's, or in a container)"
	}
	var words []string
	for i, u := range uses {
		if i == most {
			words = append(words, fmt.Sprintf("%d more", len(uses)-most))
			break
		}
		words = append(words, u.String())
	}
	return strings.Join(words, ", ")
}
