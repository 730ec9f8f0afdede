package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/chain/dirlock"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/aside"
	"varve/cmd/varve/internal/holders"
	"varve/cmd/varve/internal/mountfile"
)

// answerTime is how long a mount's daemon has for an answer.
const answerTime = 5 * time.Second

var (
	errHidden = errors.New("something lies over it") // so it was not asked
	errGone   = errors.New("unmounted meanwhile")
)

// mountChecks are the checks of mounts.
func mountChecks() []check {
	return []check{
		{"stale-mount", "a mount's daemon is gone", ofMount, lookAtStale},
		{noAnswer, "a mount's daemon, or a file system below a disk, does not answer", ofMount, lookAtHung},
		{"failed-job", "the last job of a mounted disk failed", ofMount, lookAtJob},
		{"damaged-layer", "something of a mounted disk's layers was found damaged, and cannot be read", ofMount, lookAtDamage},
		{"hidden-mount", "something is mounted over a mount, or a disk's mount cannot be seen from here", ofDisk | ofMount, lookAtHidden},
		{"claimed-mount", "a mount of another user's that names a disk which is not that user's, and which nobody who holds the disk serves", ofClaim, lookAtClaim},
		{"bind-mount", "a mount, or a file or directory of it, can be seen at further places", ofMount, lookAtBinds},
	}
}

// mountAnswer is what a mount said when it was asked.
type mountAnswer struct {
	status chain.Status
	err    error
}

// ask asks each mount of a scope for its status, all at once.
func (s *Scope) ask(ctx context.Context) {
	s.answers = make([]mountAnswer, len(s.Mounts))
	var asked sync.WaitGroup
	for i, m := range s.Mounts {
		asked.Go(func() {
			a := mountAnswer{err: errHidden}
			if m.Reachable() {
				a = askMount(ctx, mountfile.At(m), answerTime)
			}
			if a.err != nil && !stillMounted(m) {
				a.err = errGone
			}
			s.answers[i] = a
		})
	}
	asked.Wait()
}

// refused notes the mounts that may not be asked.
func (s *Scope) refused() {
	for i, m := range s.Mounts {
		if errors.Is(s.answers[i].err, os.ErrPermission) {
			s.Unseen("inside %s, which uid %d mounted", m.Mountpoint, m.UID)
		}
	}
}

// askMount reads a mount's status.json.
func askMount(ctx context.Context, at mountfile.Place, limit time.Duration) (a mountAnswer) {
	text, err := aside.Ask(ctx, statusErrand, at.Errand("status.json"), limit)
	if a.err = err; err == nil {
		a.err = json.Unmarshal(text, &a.status)
	}
	return a
}

// lookAtStale finds mounts whose daemon is gone.
func lookAtStale(_ context.Context, s *Scope) []Finding {
	var found []Finding
	for i, m := range s.Mounts {
		if err := s.answers[i].err; !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		mount, at := s.mountAgain(m), chain.ShellWord(m.Mountpoint)
		found = append(found, Finding{
			Severity: Problem, Subject: m.Mountpoint,
			What: "its daemon is gone: whoever opens a file there is told \"Transport endpoint is not connected\"",
			Fix: fmt.Sprintf("mount it anew with the options that it had: %s %s %s; a service: systemctl restart varve@NAME; or only take it away: varve umount %s. What had it open must be started again",
				mount, chain.ShellWord(m.Source), at, at),
		})
	}
	return found
}

// mountAgain is the command that mounts a disk with the options of a mount that is gone,
// without its arguments: those that chain.json remembers, or else what the kernel's mount
// table tells. A read-only mount is not remembered. Words that another user can have put
// there are not given to root to type.
func (s *Scope) mountAgain(m mounts.Mount) string {
	words := ""
	if m.AllowOther {
		words = "allow_other"
	}
	if m.ReadOnly {
		words = strings.TrimSuffix("ro,"+words, ",")
	} else if !s.Unreachable {
		if last, err := chain.LastMount(m.Source); err == nil && last.Known && !slices.ContainsFunc(last.Owners, func(uid int) bool { return uid != 0 && uid != os.Geteuid() }) {
			words = last.Options
		}
	}
	if words == "" {
		return "varve mount"
	}
	return "varve mount -o " + chain.ShellWord(words)
}

// lookAtHung finds mounts whose daemon does not answer, or not as varve does.
func lookAtHung(_ context.Context, s *Scope) []Finding {
	var found []Finding
	for i, m := range s.Mounts {
		err := s.answers[i].err
		switch {
		case errors.Is(err, aside.ErrNoAnswer):
			found = append(found, s.hung(m))
		case err == nil, errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.ECONNABORTED), errors.Is(err, os.ErrPermission), errors.Is(err, errHidden), errors.Is(err, errGone):
		default:
			found = append(found, Finding{Severity: Problem, Subject: m.Mountpoint, What: "its status cannot be read: " + err.Error(), Fix: "see what varve.log in the disk directory says"})
		}
	}
	return found
}

// hung tells what is known of a daemon that does not answer.
func (s *Scope) hung(m mounts.Mount) Finding {
	f := Finding{Severity: Problem, Subject: m.Mountpoint,
		What: fmt.Sprintf("its daemon gives no answer within %s", answerTime),
		Fix:  "see what varve.log in the disk directory says; by force, which loses what is not flushed: varve umount --force " + chain.ShellWord(m.Mountpoint)}
	if s.Unreachable {
		f.What += ", and neither does the file system below the disk"
		f.Fix = lookAtHost
		return f
	}
	pid, _, held, err := dirlock.Holder(m.Source)
	if err != nil || !held || pid == 0 {
		return f
	}
	switch state(pid) {
	case "T", "t":
		f.What += fmt.Sprintf(": pid %d %s is stopped", pid, holders.Command(pid))
		f.Fix = fmt.Sprintf("have it go on: kill -CONT %d", pid)
	case "D":
		f.What += fmt.Sprintf(": pid %d %s waits for the host's disk", pid, holders.Command(pid))
		f.Fix = "look whether the host's disk answers (dmesg)"
	default:
		f.What += fmt.Sprintf(": pid %d %s", pid, holders.Command(pid))
	}
	return f
}

// state is the letter of a process's state (proc_pid_stat(5)), "" when it is gone.
func state(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The name, in brackets, may hold anything.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) == 0 {
		return ""
	}
	return fields[0]
}

// lookAtClaim tells of a mount whose disk is no more than the word of who mounted it.
func lookAtClaim(_ context.Context, s *Scope) []Finding {
	m := s.Claimed
	return []Finding{{Severity: Note, What: fmt.Sprintf("uid %d has mounted a file system there that claims to be the disk %s: that disk is another user's and is not served from there, so the claim is not believed", m.UID, m.Source),
		Fix: "ask that user; umount " + chain.ShellWord(m.Mountpoint) + " takes it away"}}
}

// lookAtJob tells of the job that failed last.
func lookAtJob(_ context.Context, s *Scope) []Finding {
	var found []Finding
	for i, m := range s.Mounts {
		if j := s.answers[i].status.Job; j != nil && j.State == chain.JobFailed {
			again := fmt.Sprintf("varve delete %s --unnamed goes on with it", chain.ShellWord(s.nameOf(m)))
			if j.Kind != chain.DeleteJob {
				again = "do it again"
			}
			found = append(found, Finding{Severity: Problem, Subject: m.Mountpoint, What: fmt.Sprintf("job %s (%s) failed: %s", j.ID, j.Kind, j.Error),
				Fix: "every snapshot is as it was; remove that cause, then " + again})
		}
	}
	return found
}

// lookAtDamage tells of layers of which a mount could not read everything.
func lookAtDamage(_ context.Context, s *Scope) []Finding {
	var found []Finding
	for i, m := range s.Mounts {
		for _, l := range s.answers[i].status.Layers {
			if len(l.Damage) == 0 {
				continue
			}
			name, first := l.Name, l.Damage[0]
			if name == "" {
				name = l.ID
			}
			where := fmt.Sprintf("%d bytes at %d", first.Length, first.Start)
			if first.Partition != "" {
				where += " (" + first.Partition + ")"
			}
			if more := len(l.Damage) - 1; more > 0 {
				where += fmt.Sprintf(", and %d more places", more)
			}
			found = append(found, Finding{Severity: Problem, Subject: m.Mountpoint,
				What: fmt.Sprintf("layer %s (%s) is damaged: %s of the disk cannot be read from it: %s", name, l.File, where, first.Reason),
				Fix:  "all else can be read: save it with \"varve export --skip-damaged\", or put the file back from a backup with the disk unmounted; \"varve check\" then lists every place in its tables"})
		}
	}
	return found
}

// lookAtHidden finds mounts that cannot be reached by their path.
func lookAtHidden(_ context.Context, s *Scope) []Finding {
	var found []Finding
	for _, m := range s.Mounts {
		if !m.Reachable() {
			found = append(found, Finding{Severity: Warning, Subject: m.Mountpoint, What: fmt.Sprintf("%s is mounted over it: the disk %s cannot be reached there", m.Over, m.Source),
				Fix: "umount " + chain.ShellWord(m.OverAt) + " takes the upper one away"})
		}
		if !m.Here() {
			found = append(found, Finding{Severity: Note, Subject: s.Directory, What: fmt.Sprintf("it is mounted at %s in the mount namespace of pid %d, which cannot be seen from here (%s)", m.Mountpoint, m.PID, s.OutOfSight),
				Fix: "nothing has to be done; commands reach it by the disk directory: varve status " + chain.ShellWord(s.Directory)})
		}
	}
	if s.Directory == "" || s.Unreachable {
		return found
	}
	pid, mountpoint, held, err := dirlock.Holder(s.Directory)
	if err != nil || !held || mountpoint == "" || s.mountedAt(mountpoint) {
		return found
	}
	return append(found, Finding{Severity: Warning, Subject: s.Directory,
		What: fmt.Sprintf("pid %d %s holds it for a mount at %s that cannot be seen from here (%s)", pid, holders.Command(pid), mountpoint, cmp.Or(s.OutOfSight, "unmounted while it was in use, or mounted in another mount namespace")),
		Fix:  "\"varve umount " + chain.ShellWord(s.Directory) + "\" says who uses it, and how to end that"})
}

// lookAtBinds finds further places at which a mount can be seen.
func lookAtBinds(_ context.Context, s *Scope) []Finding {
	var found []Finding
	for _, m := range s.Mounts {
		var places, commands []string
		for _, b := range m.Binds {
			places = append(places, b.String())
			commands = append(commands, "umount "+chain.ShellWord(b.Mountpoint))
		}
		if len(places) > 0 {
			found = append(found, Finding{Severity: Note, Subject: m.Mountpoint, What: "it can be seen at further places: " + strings.Join(places, ", "),
				Fix: "before it is unmounted these have to go: " + strings.Join(commands, "; ")})
		}
	}
	return found
}

// stillMounted says whether the mount table has a mount still.
func stillMounted(m mounts.Mount) bool {
	list, err := mounts.List()
	return err != nil || !m.Here() || slices.ContainsFunc(list, func(now mounts.Mount) bool { return now.ID == m.ID })
}

// mountedAt says whether the disk's mount can be seen at its mountpoint, or answers at
// another place, to which it was moved.
func (s *Scope) mountedAt(mountpoint string) bool {
	for i, m := range s.Mounts {
		if inside, ok := m.Inside(mountpoint); ok && inside == "." {
			return true
		}
		if i < len(s.answers) && s.answers[i].err == nil {
			return true
		}
	}
	return false
}
