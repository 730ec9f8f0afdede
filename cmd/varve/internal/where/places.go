package where

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"varve/chain"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/claim"
)

// A bind mount shows a mount, or one file or directory of it, at a further place; a
// new mount namespace shows all of them again. Each such place keeps the mount alive
// when it is gone from its own mountpoint.

// removal is the command that takes a place away.
func removal(m mounts.Mount) string {
	words := "umount " + chain.ShellWord(m.Mountpoint)
	switch {
	case m.PID == 0:
		return words
	case m.Rooted:
		return fmt.Sprintf("nsenter --target %d --mount --root %s", m.PID, words)
	}
	return fmt.Sprintf("nsenter --target %d --mount %s", m.PID, words)
}

// PlaceWords puts places into words, the first few of them, each with the command that
// takes it away.
func PlaceWords(list []mounts.Mount) string {
	const most = 4
	var words []string
	for i, m := range list {
		if i == most {
			words = append(words, fmt.Sprintf("%d more", len(list)-most))
			break
		}
		words = append(words, fmt.Sprintf("%s (\"%s\" takes that away)", m, removal(m)))
	}
	return strings.Join(words, ", ")
}

// otherPlaces gives the places at which a mount can be seen but that at mountpoint, in
// this mount namespace and in others.
func otherPlaces(device uint64, mountpoint string) ([]mounts.Mount, error) {
	table, err := mounts.Read()
	if err != nil {
		return nil, err
	}
	elsewhere, err := mounts.Elsewhere()
	if err != nil {
		return nil, err
	}
	var here []mounts.Mount
	if m, ok := table.Main(device); ok {
		here = append(here, m)
		here = append(here, m.Binds...)
	} else {
		here = table.Loose()
	}
	var list []mounts.Mount
	for _, m := range append(here, elsewhere...) {
		if m.Device == device && (m.PID != 0 || m.Mountpoint != mountpoint) {
			list = append(list, m)
		}
	}
	return list, nil
}

// PartOf says what a bind mount of a part of a mount is.
func PartOf(m mounts.Mount) error {
	if main, ok, err := mounts.Main(m.Device); err == nil && ok {
		return fmt.Errorf("it is a bind mount of %s of the varve mount %s; name that", m.Part(), main.Mountpoint)
	}
	return fmt.Errorf("it is a bind mount of %s of the disk %s, whose mount cannot be seen from here", m.Part(), m.Source)
}

// Hidden says what hides a mount.
func Hidden(m mounts.Mount) error {
	return fmt.Errorf("%s is mounted over it at %s; \"umount %s\" takes that away", m.Over, m.OverAt, chain.ShellWord(m.OverAt))
}

// MountOfDisk is the mount of a disk directory that a process holds, which says that the
// mount is at a mountpoint. It may have been moved since, and be reached by a bind mount only;
// by now another disk may be mounted there; and the same may have been mounted by another
// name of its directory, which may be gone. What the process cannot serve is no mount of the
// disk, whatever it is called.
func MountOfDisk(pid int, mountpoint, dir string) (mounts.Mount, bool, error) {
	list, err := mounts.List()
	if err != nil {
		return mounts.Mount{}, false, err
	}
	list = slices.DeleteFunc(list, func(m mounts.Mount) bool { return !claim.OfHolder(m, pid) })
	var found mounts.Mount
	ok := false
	for _, m := range list {
		if !isAt(m, mountpoint) {
			continue
		}
		same, err := isOf(m, dir)
		if err != nil {
			return mounts.Mount{}, false, err
		}
		if same {
			found, ok = m, true
		}
	}
	if ok {
		return found, true, nil
	}
	for _, m := range list {
		if m.Source == dir && !DaemonGone(m.Mountpoint) {
			return m, true, nil
		}
	}
	return mounts.Mount{}, false, nil
}

// isAt says whether a mount can be seen at a mountpoint.
func isAt(m mounts.Mount, mountpoint string) bool {
	for _, one := range append(m.Binds, m) {
		if one.Whole() && one.Mountpoint == mountpoint {
			return true
		}
	}
	return false
}

// isOf says whether a mount is of a disk directory. Of one whose source is gone it is
// taken for granted.
func isOf(m mounts.Mount, dir string) (bool, error) {
	if m.Source == dir {
		return true, nil
	}
	source, err := os.Stat(m.Source)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	own, err := os.Stat(dir)
	if err != nil {
		return false, err
	}
	return os.SameFile(source, own), nil
}
