// Package where finds the disk that an argument means, and what of it can be reached from here.
//
// Find tells a disk directory, an image that has one, and a mountpoint apart, and finds the
// mount of a disk wherever it is: in this mount namespace, in that of another process, behind
// a bind mount, or nowhere any more although its daemon goes on (Unseen). A Target is what was
// found: it says who uses the mount (Users) and what the mount says of itself (Document), and
// its errors name the way out (Explain).
//
// It changes nothing, opens no disk and takes no lock: package client does. It knows no command.
package where

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"varve/chain"
	"varve/chain/dirlock"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/aside"
	"varve/cmd/varve/internal/claim"
	"varve/cmd/varve/internal/waiting"
	"varve/overlay/hostfs"
)

// LockWait is how long a command waits for another one to let go of a disk
// directory.
const LockWait = 5 * time.Second

// LockPoll is how often it looks.
const LockPoll = 20 * time.Millisecond

// Target is what a DISK argument names.
type Target struct {
	Arg        string // as the user wrote it
	Dir        string // the disk directory; "" for a mount of an image that has none, and of another user's word (claim)
	Mountpoint string // "" when the disk is not mounted
	Owner      int    // uid of the mounting user, -1 when unknown
	ReadOnly   bool   // the mount is read-only
	Device     uint64 // of the mount's files; 0 when the disk is not mounted

	Mount mounts.Mount // what path goes through; the zero value when the disk is not mounted
}

// Find finds the disk that an argument names: a mountpoint, a disk
// directory, or an image with the disk directory that is its own by default. A mount
// that only other mount namespaces show is opened there.
func Find(arg string) (Target, error) {
	t, err := FindSeen(arg)
	if unseen := (Unseen{}); errors.As(err, &unseen) {
		return unseen.Reach(arg, err)
	}
	return t, err
}

// FindSeen is Find for who needs the mount in this process's own mount namespace. An
// Unseen says that it is not there.
func FindSeen(arg string) (Target, error) {
	defer waiting.For(PathWait(arg))()
	path, err := mounts.Resolve(arg)
	if err != nil {
		return Target{}, err
	}
	// The mount table comes first: looking at a mountpoint whose daemon is gone
	// fails, and at one that hangs never ends.
	if m, ok, err := mounts.At(path); err != nil {
		return Target{}, err
	} else if ok {
		return mountTarget(arg, m)
	}
	if m, ok, err := mounts.Around(path); err != nil {
		return Target{}, err
	} else if ok {
		if main, seen, err := mounts.Main(m.Device); err == nil && seen && !m.Whole() {
			m = main
		}
		return Target{}, fmt.Errorf("it lies in the varve mount %s; name that", m.Mountpoint)
	}
	dir, err := DiskDirectory(path)
	if err != nil {
		return Target{}, err
	}
	t := Target{Arg: arg, Dir: dir, Owner: -1}
	m, mounted, err := waitMount(dir)
	if err != nil {
		return Target{}, err
	}
	if mounted {
		t = t.At(m)
	}
	return t, nil
}

// mountTarget is the target of an argument that names a place of a mount.
func mountTarget(arg string, m mounts.Mount) (Target, error) {
	switch {
	case !m.Whole():
		return Target{}, PartOf(m)
	case !m.Reachable():
		return Target{}, Hidden(m)
	}
	t := Target{Arg: arg}.At(m)
	if claim.Believed(m) && IsDiskDirectory(m.Source) {
		t.Dir = m.Source
	}
	return t, nil
}

// At is the target as one that is mounted.
func (t Target) At(m mounts.Mount) Target {
	t.Mountpoint, t.Owner, t.ReadOnly, t.Device, t.Mount = m.Mountpoint, m.UID, m.ReadOnly, m.Device, m
	return t
}

// path is where this process finds a file of the mount.
func (t Target) path(elements ...string) string {
	root := t.Mountpoint
	if !t.Mount.Here() {
		root = t.Mount.Path()
	}
	return filepath.Join(append([]string{root}, elements...)...)
}

// unseenWait is after how long a mount that cannot be seen is looked for elsewhere.
const unseenWait = time.Second

// waitMount finds the mount of a disk directory by who holds it. A daemon holds
// it a moment longer than its mount can be seen, at the beginning and, after
// fusermount3 -u, at the end: that moment is waited for.
func waitMount(dir string) (m mounts.Mount, mounted bool, err error) {
	begun := time.Now()
	deadline, looked := begun.Add(LockWait), false
	for {
		pid, mountpoint, held, err := dirlock.Holder(dir)
		if err != nil || !held || mountpoint == "" {
			return mounts.Mount{}, false, err
		}
		m, ok, err := MountOfDisk(pid, mountpoint, dir)
		if err == nil && ok && !m.Reachable() {
			err = Hidden(m)
		}
		if err != nil || ok {
			return m, ok, err
		}
		// One that is somewhere else does not come here. Of one that is just going there
		// may be copies.
		if !looked && (time.Since(begun) > unseenWait || isApart(dir, pid, mountpoint)) {
			looked = true
			if len(elsewhere(dir, pid, mountpoint)) > 0 {
				deadline = begun
			}
		}
		if time.Now().After(deadline) {
			return mounts.Mount{}, false, HeldElsewhere(dir, pid, mountpoint)
		}
		time.Sleep(LockPoll)
	}
}

// DiskDirectory is the disk directory at path, or that of the image at path.
func DiskDirectory(path string) (string, error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		if IsDiskDirectory(path + ".varve") {
			return "", fmt.Errorf("no such disk; did you mean %s.varve?", filepath.Base(path))
		}
		return "", errors.New("no such disk directory, mountpoint or image")
	}
	if err != nil {
		return "", err
	}
	if info.IsDir() {
		if !IsDiskDirectory(path) {
			words := "it is neither a disk directory (it has no chain.json) nor a varve mount"
			if m, ok := mountedElsewhere(path); ok {
				words += fmt.Sprintf(" here; in the mount namespace of pid %d the disk %s is mounted there: name that", m.PID, m.Source)
			}
			return "", errors.New(words)
		}
		return path, nil
	}
	dir, err := chain.DirFor(path)
	if err != nil {
		return "", fmt.Errorf("it is an image; name its disk directory or mountpoint: %w", err)
	}
	if !IsDiskDirectory(dir) {
		return "", fmt.Errorf("it is an image without a disk directory; \"varve mount %s MOUNTPOINT\" makes one", chain.ShellWord(filepath.Base(path)))
	}
	return dir, nil
}

// IsDiskDirectory says whether path is a disk directory by having a chain.json.
func IsDiskDirectory(path string) bool {
	info, err := os.Stat(filepath.Join(path, "chain.json"))
	return err == nil && info.Mode().IsRegular()
}

// Name is what a disk is called on a line of its own: the last part of what
// the user wrote.
func (t Target) Name() string {
	return filepath.Base(t.Arg)
}

// Explain adds the way out to an error of reaching into the mount.
func (t Target) Explain(err error) error {
	// The path of a descriptor tells nobody anything.
	if path := (*os.PathError)(nil); !t.Mount.Here() && errors.As(err, &path) {
		path.Path = strings.Replace(path.Path, t.Mount.Path(), t.Mountpoint, 1)
	}
	switch {
	case errors.Is(err, aside.ErrNoAnswer):
		return fmt.Errorf("no answer within %s", AnswerTime)
	case errors.Is(err, syscall.ENOTCONN), errors.Is(err, syscall.ECONNABORTED):
		return fmt.Errorf("the daemon of %s is gone; mount the disk there again, or clear the mountpoint with \"varve umount %s\"", t.Mountpoint, chain.ShellWord(t.Mountpoint))
	case errors.Is(err, os.ErrPermission) && t.Owner >= 0 && t.Owner != os.Geteuid():
		err = fmt.Errorf("only uid %d, who mounted %s, may do that: %w", t.Owner, t.Mountpoint, err)
		if os.Geteuid() == 0 {
			err = fmt.Errorf("%w; run the command as that user, with \"%s varve\" and the same words", err, Become(t.Owner))
		}
	}
	return err
}

// Become is how root runs a program as another user, whom the host need not know by name.
func Become(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return "runuser -u " + chain.ShellWord(u.Username) + " --"
	}
	return fmt.Sprintf("setpriv --reuid %d --clear-groups --", uid)
}

// NotMounted refuses a mounted disk, for what works on a disk directory only.
func (t Target) NotMounted() error {
	if t.Mountpoint != "" {
		if !t.Mount.Here() {
			return fmt.Errorf("it is mounted at %s in the mount namespace of pid %d; unmount it first with \"varve umount %s\"", t.Mountpoint, t.Mount.PID, chain.ShellWord(t.Dir))
		}
		return fmt.Errorf("it is mounted at %s; unmount it first with \"varve umount %s\"", t.Mountpoint, chain.ShellWord(t.Mountpoint))
	}
	return nil
}

// RefuseInside refuses a new file in a directory of the disk's own; dir is resolved.
func (t Target) RefuseInside(dir, file string) error {
	for _, own := range []string{t.Dir, t.Mountpoint} {
		if own != "" && (own == t.Dir || t.Mount.Here()) && mounts.Within(dir, own) {
			return fmt.Errorf("%s lies in %s, which holds only the disk's own files; name another place", file, own)
		}
	}
	return nil
}

// ExplainLocked adds the way out to an error about an image that somebody has open, most
// often a VM that was not shut down before its image is mounted.
func ExplainLocked(err error) error {
	if errors.Is(err, hostfs.ErrLocked) {
		return fmt.Errorf("%w; stop that first", err)
	}
	return err
}
