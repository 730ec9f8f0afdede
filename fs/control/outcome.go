package control

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/fs/show"
)

// Outcome is what became of one write to a control file.
type Outcome struct {
	Time  time.Time
	PID   int           // of the writing process; 0 where it cannot be seen
	Line  string        // the command's line as it was written
	Job   string        // id of the job that goes on in the background; ""
	Errno syscall.Errno // 0: done
	// Reason says in words what went wrong; "" when nothing did.
	Reason string
}

// outcomePrefix begins the line of a control file that holds an Outcome.
const outcomePrefix = "# last: "

// String is the line, without a newline:
//
//	# last: 2026-11-22T18:30:00Z pid 4242: "before-upgrade": ok
//	# last: 2026-11-22T18:30:00Z pid 4242: "old": ok job 3
//	# last: 2026-11-22T18:30:00Z pid 4242: "one": error EEXIST: layer one exists already
//
// The command is quoted as in Go, so the line is printable whatever was
// written. ParseOutcome reads it back.
func (o Outcome) String() string {
	head := fmt.Sprintf("%s%s pid %d: %s: ", outcomePrefix, o.Time.UTC().Format(time.RFC3339), o.PID, strconv.Quote(o.Line))
	switch {
	case o.Errno != 0:
		return head + "error " + ErrnoName(o.Errno) + ": " + show.OneLine(o.Reason)
	case o.Job != "":
		return head + "ok job " + o.Job
	}
	return head + "ok"
}

// ParseOutcome finds the outcome of the last write in what a control file
// reads. ok is false where there is none, or none that it understands.
func ParseOutcome(content string) (o Outcome, ok bool) {
	for line := range strings.Lines(content) {
		if rest, found := strings.CutPrefix(strings.TrimSuffix(line, "\n"), outcomePrefix); found {
			return parseOutcome(rest)
		}
	}
	return Outcome{}, false
}

func parseOutcome(rest string) (o Outcome, ok bool) {
	when, rest, found := strings.Cut(rest, " pid ")
	if !found {
		return Outcome{}, false
	}
	var err error
	if o.Time, err = time.Parse(time.RFC3339, when); err != nil {
		return Outcome{}, false
	}
	pid, rest, found := strings.Cut(rest, ": ")
	if !found {
		return Outcome{}, false
	}
	if o.PID, err = strconv.Atoi(pid); err != nil {
		return Outcome{}, false
	}
	quoted, err := strconv.QuotedPrefix(rest)
	if err != nil {
		return Outcome{}, false
	}
	if o.Line, err = strconv.Unquote(quoted); err != nil {
		return Outcome{}, false
	}
	result, found := strings.CutPrefix(rest[len(quoted):], ": ")
	if !found {
		return Outcome{}, false
	}
	if result == "ok" {
		return o, true
	}
	if job, found := strings.CutPrefix(result, "ok job "); found {
		o.Job = job
		return o, job != ""
	}
	failure, found := strings.CutPrefix(result, "error ")
	if !found {
		return Outcome{}, false
	}
	name, reason, found := strings.Cut(failure, ": ")
	if !found {
		return Outcome{}, false
	}
	if o.Errno = errnoNamed(name); o.Errno == 0 {
		return Outcome{}, false
	}
	o.Reason = reason
	return o, true
}

// ErrnoName is an errno's symbol, such as EBUSY; its number where it has none.
func ErrnoName(no syscall.Errno) string {
	if name := unix.ErrnoName(no); name != "" {
		return name
	}
	return strconv.Itoa(int(no))
}

// errnoNamed is ErrnoName's inverse; 0 where there is no such errno.
func errnoNamed(name string) syscall.Errno {
	if n, err := strconv.Atoi(name); err == nil && n > 0 {
		return syscall.Errno(n)
	}
	const highest = 133 // EHWPOISON, the last that Linux has
	for no := syscall.Errno(1); no <= highest; no++ {
		if unix.ErrnoName(no) == name {
			return no
		}
	}
	return 0
}

// kinds are the errors of package chain that callers tell apart, and the errnos that stand for
// them in an outcome.
var kinds = []struct {
	err   error
	errno syscall.Errno
}{
	{chain.ErrExist, unix.EEXIST},
	{chain.ErrNotExist, unix.ENOENT},
	{chain.ErrTooLarge, unix.EFBIG},
	{chain.ErrInvalid, unix.EINVAL},
	{chain.ErrBusy, unix.EBUSY},
	{chain.ErrReadOnly, unix.EROFS},
}

// ErrnoOf is the errno for an error of package chain that callers tell apart; 0 for another one.
func ErrnoOf(err error) syscall.Errno {
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return k.errno
		}
	}
	return 0
}

// IsKind says whether an errno of an outcome stands for an error of package chain.
func IsKind(errno syscall.Errno, err error) bool {
	for _, k := range kinds {
		if k.errno == errno && k.err == err {
			return true
		}
	}
	return false
}
