package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/chain/bounded"
	"varve/cmd/varve/internal/aside"
	"varve/cmd/varve/internal/mountfile"
	"varve/fs/control"
	"varve/fs/show"
	"varve/overlay/hostfs"
)

const (
	// lowPercent of a file system, and no more than lowBytes of it, is little.
	lowPercent = 5
	lowBytes   = 20 << 30
	// noBytes is as good as nothing: a table of each layer that the next writes go to,
	// chain.json and what the host's file system takes for them.
	noBytes = 2 << 20
	// withinHour and withinDay are for how long what is free must last at the least, as the guest
	// has written since the last snapshot.
	withinHour = time.Hour
	withinDay  = 24 * time.Hour
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
	free, err := hostfs.OS().Free(path)
	return room{free, int64(st.Blocks) * st.Bsize, st.Ffree, st.Files, st.Flags&unix.ST_RDONLY != 0 || inEmergency(path)}, err
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
func lookAtSpace(ctx context.Context, s *Scope) []Finding {
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
	own := s.growth()
	if own.left == 0 {
		return spaceFindings(r, own)
	}
	found := spaceFindings(r, own.and(s.neighbours))
	for i := range found {
		if found[i].Fix == "" {
			found[i].Fix = s.wayOut(ctx)
		}
	}
	return found
}

// mountedForWriting says whether a mount of the disk lets its guest write.
func (s *Scope) mountedForWriting() bool { return len(s.Mounts) > 0 && s.writable() }

// growth is what leaves can still take on the host, and have taken a second since they
// were made; both in bytes, 0 where that cannot be told or nobody writes them.
type growth struct {
	left, rate int64
	disks      int // how many leaves
}

func (g growth) and(h growth) growth {
	return growth{g.left + h.left, g.rate + h.rate, g.disks + h.disks}
}

// addUp finds out for each disk what the others on its file system can still take: they
// share what is free there.
func addUp(scopes []*Scope) {
	onDevice := make(map[uint64][]*Scope)
	for _, s := range scopes {
		var st unix.Stat_t
		if s.Directory != "" && !s.Unreachable && unix.Stat(s.Directory, &st) == nil {
			onDevice[st.Dev] = append(onDevice[st.Dev], s)
		}
	}
	for _, together := range onDevice {
		for _, s := range together {
			for _, other := range together {
				if g := other.growth(); other != s && g.left > 0 {
					s.neighbours = s.neighbours.and(g)
				}
			}
		}
	}
}

// lasts says whether what is free lasts for some time at that rate.
func (g growth) lasts(free int64, d time.Duration) bool {
	return g.rate == 0 || free/g.rate >= int64(d/time.Second)
}

// spaceFindings judges the room for a leaf that can grow. A full host troubles nobody
// whose disk has all its blocks. An empty Fix is to be filled in.
func spaceFindings(r room, g growth) []Finding {
	free := fmt.Sprintf("%s of %s free", show.Size(r.bytes), show.Size(r.total))
	who, fail := "the guest", "its"
	if g.disks > 1 {
		who, fail = fmt.Sprintf("the guests of %d disks there", g.disks), "their"
	}
	wants := fmt.Sprintf("; %s can still write %s to new places", who, show.Size(g.left))
	var found []Finding
	switch {
	case g.left <= r.bytes:
	case r.bytes < noBytes:
		found = append(found, Finding{Severity: Problem, What: "the host's file system is full: " + free + wants + ", and " + fail + " writes there fail with ENOSPC"})
	case !g.lasts(r.bytes, withinHour):
		found = append(found, Finding{Severity: Problem, What: "the host's file system is full within an hour, as " + who + " " + has(g) + " written so far: " + free + wants})
	case !g.lasts(r.bytes, withinDay) || r.bytes < min(r.total*lowPercent/100, lowBytes):
		found = append(found, Finding{Severity: Warning, What: "the host's file system is nearly full: " + free + wants})
	default:
		found = append(found, Finding{Severity: Note, What: fmt.Sprintf("%s can still write %s to new places, more than the host has: %s", who, show.Size(g.left), free),
			Fix: "keep an eye on the host's free space, or give it more"})
	}
	// Each snapshot takes a file, each change of chain.json another for a moment.
	if r.allInodes > 0 && r.inodes < 16 {
		found = append(found, Finding{Severity: Problem, What: fmt.Sprintf("the host's file system has %d inodes left of %d; snapshots fail", r.inodes, r.allInodes),
			Fix: "remove files that are not needed from it"})
	}
	return found
}

func has(g growth) string {
	if g.disks > 1 {
		return "have"
	}
	return "has"
}

// wayOut names the delete that gives room, of those that would be accepted.
func (s *Scope) wayOut(ctx context.Context) string {
	const other = "make room on the host in another way, or put the disk directory on a larger file system"
	if len(s.Mounts) == 0 {
		return fmt.Sprintf("\"varve delete %s --dry-run\" says whether the delete of a snapshot makes room, and of which; else %s", chain.ShellWord(s.Directory), other)
	}
	for i, m := range s.Mounts {
		if m.ReadOnly || i < len(s.answers) && s.answers[i].err != nil {
			continue
		}
		text, err := aside.Ask(ctx, bestErrand, mountfile.At(m).Errand(control.Dir, control.Plan), examineTime)
		var p chain.Plan
		if err != nil || bounded.JSON(text, &p) != nil {
			continue
		}
		if len(p.Gone) == 0 {
			return "no snapshot's delete would give anything back now; " + other
		}
		return fmt.Sprintf("\"varve delete %s %s\" gives back %s; \"fstrim\" in a guest with discard=unmap what it has deleted; or %s",
			chain.ShellWord(s.nameOf(m)), p.Gone[0].Name, show.Size(p.FreedBytes), other)
	}
	return other
}

// bestDelete asks a mount which snapshot's delete gives back most.
func bestDelete(word string) ([]byte, error) {
	at, elements, err := mountfile.ParseErrand(word)
	if err != nil {
		return nil, err
	}
	f, err := at.Open(os.O_RDWR, elements...)
	if err != nil {
		return nil, err
	}
	defer f.Close() // nothing is held back until then
	if _, err := f.WriteString(control.Delete + "\n"); err != nil {
		return nil, err
	}
	text, err := at.ReadOpen(f, mountfile.MostAnswer)
	if err != nil {
		return nil, err
	}
	answer, ok := control.ParseAnswer(string(text))
	if !ok {
		return nil, fmt.Errorf("%s gave no answer", f.Name())
	}
	return []byte(answer), nil
}

// growth is that of the leaf's file.
func (s *Scope) growth() (g growth) {
	for _, l := range s.Layers {
		var st unix.Stat_t
		if l.State != chain.StateLeaf || !s.writable() || unix.Stat(l.File, &st) != nil {
			continue
		}
		g.left, g.disks = max(0, s.Size-st.Blocks*512), 1
		for _, a := range s.answers {
			for _, o := range a.status.Layers {
				if age := int64(time.Since(o.Created) / time.Second); o.ID == l.ID && age > 60 {
					g.rate = st.Blocks * 512 / age
				}
			}
		}
	}
	return g
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
