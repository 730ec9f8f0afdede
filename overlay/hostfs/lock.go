package hostfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"varve/overlay/procs"
)

// ErrLocked says that another process holds the image open in a way that
// excludes the asked one.
var ErrLocked = errors.New("image is in use")

// QEMU marks what it does with an image, and what it forbids others to do, by
// shared locks on single bytes of the file: byte 100+n for "does n", byte
// 200+n for "forbids n". Who wants n looks whether anybody holds 200+n, who
// forbids n whether anybody holds 100+n. QEMU takes the locks first and looks
// then, so of two that come at once at least one sees the other. varve does
// the same with the same bytes (M18, D20).
const (
	lockReads         = 100
	lockWrites        = 101
	lockResizes       = 103
	lockForbidsRead   = 200
	lockForbidsWrite  = 201
	lockForbidsResize = 203
)

// lockRule says which bytes a mode holds, and on which nobody else may hold
// any lock.
type lockRule struct{ hold, test []int64 }

func ruleOf(mode LockMode) lockRule {
	switch mode {
	case LockFrozen:
		return lockRule{
			hold: []int64{lockReads, lockForbidsWrite, lockForbidsResize},
			test: []int64{lockWrites, lockResizes, lockForbidsRead},
		}
	case LockWritable:
		return lockRule{
			hold: []int64{lockReads, lockWrites, lockResizes, lockForbidsWrite, lockForbidsResize},
			test: []int64{lockWrites, lockResizes, lockForbidsRead, lockForbidsWrite, lockForbidsResize},
		}
	}
	return lockRule{}
}

// Lock changes the mode by taking what is missing, testing, and only then
// giving up what is too much: at no moment less is held than the weaker of
// both modes needs. When it fails the old mode is held as before.
//
// What the old mode has tested is not tested again. Whoever holds such a byte
// now took it later, and will find ours and go: a change of mode, least of all
// back to frozen, must not fail because somebody is just being refused.
//
// A frozen file that is to be written waits up to lockPatience for readers, with
// its bytes held: a new one is refused meanwhile, so those who hold a file for a
// short section, as an export does, cannot keep a job from it.
func (h *hostFile) Lock(mode LockMode) error {
	h.lockMu.Lock()
	defer h.lockMu.Unlock()
	old, rule := ruleOf(h.locked), ruleOf(mode)
	held := old.hold
	for i, at := range rule.hold {
		if slices.Contains(held, at) {
			continue
		}
		if err := h.setLock(at, unix.F_RDLCK); err != nil {
			return h.lockFailed(err, rule.hold[:i], held)
		}
	}
	wait := time.Duration(0)
	if h.locked == LockFrozen {
		wait = lockPatience
	}
	if err := h.testLocks(rule.test, old.test, time.Now().Add(wait)); err != nil {
		return h.lockFailed(err, rule.hold, held)
	}
	if err := h.unlockAllBut(held, rule.hold); err != nil {
		return err
	}
	h.locked = mode
	return nil
}

const (
	// lockPatience is how long a job waits for those who read what it is to write. It
	// holds up other operations, and is longer than what an export takes at a time.
	lockPatience = time.Second
	// lockPoll is how often it looks.
	lockPoll = 2 * time.Millisecond
)

// testLocks tests bytes that are not among known until none is held by anybody else.
func (h *hostFile) testLocks(bytes, known []int64, deadline time.Time) error {
	for _, at := range bytes {
		if slices.Contains(known, at) {
			continue
		}
		free, err := h.testLock(at)
		for err == nil && !free && time.Now().Before(deadline) {
			time.Sleep(lockPoll)
			free, err = h.testLock(at)
		}
		if err != nil {
			return err
		}
		if !free {
			return h.lockedBy(at)
		}
	}
	return nil
}

// lockFailed gives back what a failed Lock took and had not held before.
func (h *hostFile) lockFailed(err error, taken, held []int64) error {
	return errors.Join(err, h.unlockAllBut(taken, held))
}

func (h *hostFile) unlockAllBut(locked, keep []int64) error {
	for _, at := range locked {
		if slices.Contains(keep, at) {
			continue
		}
		if err := h.setLock(at, unix.F_UNLCK); err != nil {
			return err
		}
	}
	return nil
}

// setLock sets or drops the lock on one byte. The locks belong to the open
// file description (OFD): another description of the same file, closed
// anywhere in the process, does not drop them.
func (h *hostFile) setLock(at int64, kind int16) error {
	err := h.control("lock", func(fd int) error {
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: at, Len: 1})
	})
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return h.lockedBy(at)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOLCK), errors.Is(err, errors.ErrUnsupported):
		return fmt.Errorf("the file system gives no locks, so nothing would keep others from changing the image: %w", err)
	}
	return err
}

// testLock says whether no other description holds any lock on the byte.
func (h *hostFile) testLock(at int64) (free bool, err error) {
	// Shared locks conflict with an exclusive one only.
	want := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
	err = h.control("test lock", func(fd int) error {
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &want)
	})
	return want.Type == unix.F_UNLCK, err
}

// lockedBy makes the error for a byte that somebody else has locked.
func (h *hostFile) lockedBy(at int64) error {
	who := h.lockHolder(at)
	switch at {
	case lockWrites, lockResizes:
		return fmt.Errorf("%s is open for writing in %s: %w", h.f.Name(), who, ErrLocked)
	case lockForbidsWrite, lockForbidsResize:
		return fmt.Errorf("%s is open in %s, which lets nobody write it: %w", h.f.Name(), who, ErrLocked)
	}
	return fmt.Errorf("%s is open in %s, which lets nobody else open it: %w", h.f.Name(), who, ErrLocked)
}

// lockHolder names the process that has the byte locked.
func (h *hostFile) lockHolder(at int64) string {
	id := ""
	for _, l := range readLocks(fmt.Sprintf("/proc/self/fdinfo/%d", h.fd)) {
		id = l.id
	}
	if id == "" {
		info, err := h.Stat()
		if err != nil {
			return unknownHolder
		}
		id = fmt.Sprintf("%02x:%02x:%d", unix.Major(info.Device), unix.Minor(info.Device), info.Inode)
	}
	if h.holder != nil {
		return h.holder(id, at)
	}
	return LockHolder(id, at, os.Getpid(), h.fd)
}

const unknownHolder = "another process"

// LockHolder names the process that has a byte of a file locked, but not by the descriptor
// fd of the process pid, which asks. The kernel says pid -1 for locks of a description, so
// the holder is looked for in /proc/PID/fdinfo/FD, whose "lock:" lines name device and inode
// as the kernel knows them (on btrfs and overlayfs not as stat does): hence by comparison
// with the lines of the asker's own descriptor, where it holds a lock by now. They are what
// file is: major:minor:inode, the first two in hexadecimal digits.
func LockHolder(file string, at int64, pid, fd int) string {
	files, err := filepath.Glob("/proc/[0-9]*/fdinfo/*")
	if err != nil {
		return unknownHolder
	}
	for _, name := range files {
		part := strings.Split(name, "/")
		self := part[2] == strconv.Itoa(pid)
		if self && part[4] == strconv.Itoa(fd) {
			continue
		}
		for _, l := range readLocks(name) {
			if l.id == file && l.first <= at && at <= l.last {
				return describeProcess(part[2], self)
			}
		}
	}
	return unknownHolder
}

func describeProcess(pid string, self bool) string {
	if self {
		return "this process (pid " + pid + ")"
	}
	n, err := strconv.Atoi(pid)
	if err != nil {
		return "pid " + pid
	}
	return procs.Title(n, procs.Command(n))
}

// heldLock is one "lock:" line of a fdinfo file (proc_pid_fdinfo(5)).
type heldLock struct {
	id          string // major:minor:inode, as the kernel writes it
	first, last int64  // bytes
}

// readLocks gives the locks of one descriptor. A process may end, or belong to
// somebody else, while its files are read: then it has none to show.
func readLocks(fdinfo string) []heldLock {
	text, err := os.ReadFile(fdinfo)
	if err != nil || !bytes.Contains(text, []byte("lock:")) {
		return nil
	}
	var locks []heldLock
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		// lock: 1: OFDLCK ADVISORY READ -1 fe:00:9980029 100 100
		rest, ok := strings.CutPrefix(lines.Text(), "lock:")
		field := strings.Fields(rest)
		if !ok || len(field) < 8 {
			continue
		}
		first, err := strconv.ParseInt(field[6], 10, 64)
		if err != nil {
			continue
		}
		last, err := strconv.ParseInt(field[7], 10, 64)
		if err != nil { // "EOF"
			last = 1<<63 - 1
		}
		locks = append(locks, heldLock{id: field[5], first: first, last: last})
	}
	return locks
}
