// Package confine takes from this process, for good, what it does not need any more: paths
// other than those that are named (Landlock), the network, signals to other processes,
// capabilities, and the gain of any by a program that is run (no_new_privs).
//
// All of it holds for every thread, those included that the Go runtime starts later. Where
// the kernel has a part of it only, that part holds, and Confined says which.
//
// A process that Landlock confines can neither mount nor unmount, and cannot look into the
// processes of others (/proc/PID/fd and the like), whoever it runs as: see package outside.
package confine

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

// Needs are what a process keeps.
type Needs struct {
	// Writable are directories in which files and directories may be read, written, made,
	// renamed and removed. Readable are files, and directories with all that is in them. A
	// path that is missing is left out. What a path leads to now is meant, wherever it is
	// moved to; /proc/self/fd/N is what a descriptor has open.
	Writable, Readable []string
	// Capabilities are kept, of those that the process has, such as unix.CAP_CHOWN.
	Capabilities []int
	// AbstractSockets leaves connections to abstract Unix sockets allowed.
	AbstractSockets bool
}

// Confined says what holds.
type Confined struct {
	// Landlock is the version of Landlock's interface that is used, 0 where the kernel has
	// none: then files are not confined.
	Landlock int
	// Capabilities are those that are left, each by its name; "none".
	Capabilities string
}

// Rights of Landlock. What is left out of them nobody has: to run programs, to make devices,
// FIFOs, sockets and links, to control devices.
const (
	readFile  = landlock.AccessFSSet(ll.AccessFSReadFile)
	readDir   = readFile | landlock.AccessFSSet(ll.AccessFSReadDir)
	writeFile = readFile | landlock.AccessFSSet(ll.AccessFSWriteFile|ll.AccessFSTruncate)
	writeDir  = readDir | writeFile | landlock.AccessFSSet(ll.AccessFSMakeReg|ll.AccessFSMakeDir|ll.AccessFSRemoveFile|ll.AccessFSRemoveDir)
)

// scopedSignals is the erratum of Landlock (landlock_create_ruleset(2)) without whose fix
// the threads of one process could not send each other signals, which Go's need.
const scopedSignals = 2

// Confine confines this process. On an error a part of it may hold already.
func Confine(n Needs) (Confined, error) {
	rules, err := n.rules()
	if err != nil {
		return Confined{}, err
	}
	if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return Confined{}, fmt.Errorf("set no_new_privs: %w", errno)
	}
	config, version := n.config()
	if err := config.Restrict(rules...); err != nil {
		return Confined{}, fmt.Errorf("confine to the files of the disk: %w", err)
	}
	left, err := drop(n.Capabilities)
	return Confined{Landlock: version, Capabilities: names(left)}, err
}

// config is what Landlock restricts. Connections to the sockets of syslog and of systemd,
// which it could restrict by their paths from its version 9 on, stay allowed: their files
// are made anew when these services start again.
func (n Needs) config() (config landlock.Config, version int) {
	version, err := ll.LandlockGetABIVersion()
	if err != nil {
		version = 0
	}
	config = landlock.V10.BestEffort()
	config.HandledAccessFS = landlock.V8.HandledAccessFS
	if n.AbstractSockets {
		config.Scoped &^= landlock.ScopedSet(ll.ScopeAbstractUnixSocket)
	}
	if errata, err := ll.LandlockGetErrata(); err != nil || errata&(1<<(scopedSignals-1)) == 0 {
		config.Scoped &^= landlock.ScopedSet(ll.ScopeSignal)
	}
	return config, version
}

func (n Needs) rules() (rules []landlock.Rule, err error) {
	add := func(path string, ofDir, ofFile landlock.AccessFSSet) {
		info, statErr := os.Stat(path)
		switch {
		case errors.Is(statErr, os.ErrNotExist):
		case statErr != nil:
			err = errors.Join(err, statErr)
		case info.IsDir():
			rules = append(rules, landlock.PathAccess(ofDir, path))
		default:
			rules = append(rules, landlock.PathAccess(ofFile, path))
		}
	}
	for _, path := range n.Writable {
		add(path, writeDir, writeFile)
	}
	for _, path := range n.Readable {
		add(path, readDir, readFile)
	}
	return rules, err
}

// String is for a log.
func (c Confined) String() string {
	var words []string
	if c.Landlock == 0 {
		words = append(words, "this kernel has no Landlock, so files are not confined")
	} else {
		words = append(words, fmt.Sprintf("Landlock %d", c.Landlock))
	}
	return strings.Join(append(words, "no_new_privs", "capabilities "+c.Capabilities), ", ")
}
