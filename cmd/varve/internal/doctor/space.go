package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"varve/fs"
)

const (
	// lowPercent of a file system, and no more than lowBytes of it, is little.
	lowPercent = 5
	lowBytes   = 20 << 30
	// noBytes is as good as nothing: one flush of the guest may need more.
	noBytes = 64 << 20
)

// room is what a file system has free for us.
type room struct {
	bytes, total int64
	inodes       uint64 // 0 of 0 where a file system makes them as needed
	allInodes    uint64
	readOnly     bool // the file system takes no writes, or this mount of it does not
}

func roomOf(path string) (room, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return room{}, err
	}
	free := st.Bavail
	if os.Geteuid() == 0 { // for whom the reserved blocks are
		free = st.Bfree
	}
	return room{int64(free) * st.Bsize, int64(st.Blocks) * st.Bsize, st.Ffree, st.Files, st.Flags&unix.ST_RDONLY != 0 || inEmergency(path)}, nil
}

// inEmergency says whether the file system of a path takes no more writes since it met
// an error. Since Linux 6.15 ext4 does not say so in statfs(2): its options in the mount
// table tell (seen with Linux 6.18).
func inEmergency(path string) bool {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return false
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	device := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	for line := range strings.Lines(string(table)) {
		// proc_pid_mountinfo(5): the third field is the device, the last one the
		// options of the file system.
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[2] != device {
			continue
		}
		for option := range strings.SplitSeq(fields[len(fields)-1], ",") {
			if option == "emergency_ro" || option == "shutdown" {
				return true
			}
		}
	}
	return false
}

// lookAtSpace looks whether a disk's leaf can go on growing.
func lookAtSpace(_ context.Context, s *Scope) []Finding {
	if s.Unreachable {
		return nil
	}
	r, err := roomOf(s.Directory)
	if errors.Is(err, os.ErrPermission) {
		s.Unseen("how full the file system of %s is", s.Directory)
	}
	if err != nil {
		return nil // the directory is gone, which is told of already
	}
	if r.readOnly && s.mountedForWriting() {
		return []Finding{{Severity: Problem, What: "the host's file system is read-only: the guest's writes fail, and so does the log; what was not flushed before is lost",
			Fix: "see dmesg for why (often errors of the device). Stop what uses the disk, unmount it, repair the host's file system (fsck) and mount it writable again, then mount the disk"}}
	}
	return spaceFindings(r, s.growth())
}

// mountedForWriting says whether a mount of the disk lets its guest write.
func (s *Scope) mountedForWriting() bool { return len(s.Mounts) > 0 && s.writable() }

// spaceFindings judges the room for a leaf that can grow by some bytes.
func spaceFindings(r room, growth int64) []Finding {
	const fix = "make room on the host: \"varve prune\" or \"varve delete\" of snapshots gives some back, \"varve tree\" says how much"
	free := fmt.Sprintf("%s of %s free", fs.HumanSize(r.bytes), fs.HumanSize(r.total))
	var found []Finding
	switch {
	case r.bytes < noBytes:
		found = append(found, Finding{Severity: Problem, What: "the host's file system is full: " + free + "; writes of the guest fail with ENOSPC", Fix: fix})
	case r.bytes < min(r.total*lowPercent/100, lowBytes):
		found = append(found, Finding{Severity: Warning, What: "the host's file system is nearly full: " + free, Fix: fix})
	case growth > r.bytes:
		found = append(found, Finding{Severity: Note, What: fmt.Sprintf("the guest can still write %s to new places, more than the host has: %s", fs.HumanSize(growth), free),
			Fix: "keep an eye on the host's free space, or give it more"})
	}
	// Each snapshot takes a file, each change of chain.json another for a moment.
	if r.allInodes > 0 && r.inodes < 16 {
		found = append(found, Finding{Severity: Problem, What: fmt.Sprintf("the host's file system has %d inodes left of %d; snapshots fail", r.inodes, r.allInodes),
			Fix: "remove files that are not needed from it"})
	}
	return found
}

// growth is by how many bytes the leaf's file may still grow; 0 where that cannot
// be told or nobody writes it.
func (s *Scope) growth() int64 {
	for _, l := range s.Layers {
		var st unix.Stat_t
		if l.State == "leaf" && s.writable() && unix.Stat(l.File, &st) == nil {
			return max(0, s.Size-st.Blocks*512)
		}
	}
	return 0
}

// writable says whether the disk is not mounted just for reading.
func (s *Scope) writable() bool {
	for _, m := range s.Mounts {
		if !m.ReadOnly {
			return true
		}
	}
	return len(s.Mounts) == 0
}
