package main

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

	"github.com/spf13/cobra"

	"varve/chain"
	"varve/chain/dirlock"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/aside"
	"varve/cmd/varve/internal/claim"
	"varve/cmd/varve/internal/waiting"
	"varve/fs"
)

// lockWait is how long a command waits for another one to let go of a disk
// directory.
const lockWait = 5 * time.Second

// lockPoll is how often it looks.
const lockPoll = 20 * time.Millisecond

// target is what a DISK argument names.
type target struct {
	arg        string // as the user wrote it
	dir        string // the disk directory; "" for a mount of an image that has none, and of another user's word (claim)
	mountpoint string // "" when the disk is not mounted
	owner      int    // uid of the mounting user, -1 when unknown
	readOnly   bool   // the mount is read-only
	device     uint64 // of the mount's files; 0 when the disk is not mounted

	mount mounts.Mount // what path goes through; the zero value when the disk is not mounted
}

// findTarget finds the disk that an argument names: a mountpoint, a disk
// directory, or an image with the disk directory that is its own by default. A mount
// that only other mount namespaces show is opened there.
func findTarget(arg string) (target, error) {
	t, err := findSeen(arg)
	if unseen := (unseenError{}); errors.As(err, &unseen) {
		return unseen.reach(arg, err)
	}
	return t, err
}

// findSeen is findTarget for who needs the mount in this process's own mount namespace. An
// unseenError says that it is not there.
func findSeen(arg string) (target, error) {
	defer waiting.For(pathWait(arg))()
	path, err := mounts.Resolve(arg)
	if err != nil {
		return target{}, err
	}
	// The mount table comes first: looking at a mountpoint whose daemon is gone
	// fails, and at one that hangs never ends.
	if m, ok, err := mounts.At(path); err != nil {
		return target{}, err
	} else if ok {
		return mountTarget(arg, m)
	}
	if m, ok, err := mounts.Around(path); err != nil {
		return target{}, err
	} else if ok {
		if main, seen, err := mounts.Main(m.Device); err == nil && seen && !m.Whole() {
			m = main
		}
		return target{}, fmt.Errorf("it lies in the varve mount %s; name that", m.Mountpoint)
	}
	dir, err := diskDirectory(path)
	if err != nil {
		return target{}, err
	}
	t := target{arg: arg, dir: dir, owner: -1}
	m, mounted, err := waitMount(dir)
	if err != nil {
		return target{}, err
	}
	if mounted {
		t = t.at(m)
	}
	return t, nil
}

// mountTarget is the target of an argument that names a place of a mount.
func mountTarget(arg string, m mounts.Mount) (target, error) {
	switch {
	case !m.Whole():
		return target{}, partOf(m)
	case !m.Reachable():
		return target{}, hidden(m)
	}
	t := target{arg: arg}.at(m)
	if claim.Believed(m) && isDiskDirectory(m.Source) {
		t.dir = m.Source
	}
	return t, nil
}

// at is the target as one that is mounted.
func (t target) at(m mounts.Mount) target {
	t.mountpoint, t.owner, t.readOnly, t.device, t.mount = m.Mountpoint, m.UID, m.ReadOnly, m.Device, m
	return t
}

// path is where this process finds a file of the mount.
func (t target) path(elements ...string) string {
	root := t.mountpoint
	if !t.mount.Here() {
		root = t.mount.Path()
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
	deadline, looked := begun.Add(lockWait), false
	for {
		pid, mountpoint, held, err := dirlock.Holder(dir)
		if err != nil || !held || mountpoint == "" {
			return mounts.Mount{}, false, err
		}
		m, ok, err := mountOfDisk(pid, mountpoint, dir)
		if err == nil && ok && !m.Reachable() {
			err = hidden(m)
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
			return mounts.Mount{}, false, heldElsewhere(dir, pid, mountpoint)
		}
		time.Sleep(lockPoll)
	}
}

// diskDirectory is the disk directory at path, or that of the image at path.
func diskDirectory(path string) (string, error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		if isDiskDirectory(path + ".varve") {
			return "", fmt.Errorf("no such disk; did you mean %s.varve?", filepath.Base(path))
		}
		return "", errors.New("no such disk directory, mountpoint or image")
	}
	if err != nil {
		return "", err
	}
	if info.IsDir() {
		if !isDiskDirectory(path) {
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
	if !isDiskDirectory(dir) {
		return "", fmt.Errorf("it is an image without a disk directory; \"varve mount %s MOUNTPOINT\" makes one", chain.ShellWord(filepath.Base(path)))
	}
	return dir, nil
}

// isDiskDirectory says whether path is a disk directory by having a chain.json.
func isDiskDirectory(path string) bool {
	info, err := os.Stat(filepath.Join(path, "chain.json"))
	return err == nil && info.Mode().IsRegular()
}

// name is what a disk is called on a line of its own: the last part of what
// the user wrote.
func (t target) name() string {
	return filepath.Base(t.arg)
}

// explain adds the way out to an error of reaching into the mount.
func (t target) explain(err error) error {
	// The path of a descriptor tells nobody anything.
	if path := (*os.PathError)(nil); !t.mount.Here() && errors.As(err, &path) {
		path.Path = strings.Replace(path.Path, t.mount.Path(), t.mountpoint, 1)
	}
	switch {
	case errors.Is(err, aside.ErrNoAnswer):
		return fmt.Errorf("no answer within %s", answerTime)
	case errors.Is(err, syscall.ENOTCONN), errors.Is(err, syscall.ECONNABORTED):
		return fmt.Errorf("the daemon of %s is gone; mount the disk there again, or clear the mountpoint with \"varve umount %s\"", t.mountpoint, chain.ShellWord(t.mountpoint))
	case errors.Is(err, os.ErrPermission) && t.owner >= 0 && t.owner != os.Geteuid():
		err = fmt.Errorf("only uid %d, who mounted %s, may do that: %w", t.owner, t.mountpoint, err)
		if os.Geteuid() == 0 {
			err = fmt.Errorf("%w; run the command as that user, with \"%s varve\" and the same words", err, become(t.owner))
		}
	}
	return err
}

// become is how root runs a program as another user, whom the host need not know by name.
func become(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return "runuser -u " + chain.ShellWord(u.Username) + " --"
	}
	return fmt.Sprintf("setpriv --reuid %d --clear-groups --", uid)
}

// notMounted refuses a mounted disk, for what works on a disk directory only.
func (t target) notMounted() error {
	if t.mountpoint != "" {
		if !t.mount.Here() {
			return fmt.Errorf("it is mounted at %s in the mount namespace of pid %d; unmount it first with \"varve umount %s\"", t.mountpoint, t.mount.PID, chain.ShellWord(t.dir))
		}
		return fmt.Errorf("it is mounted at %s; unmount it first with \"varve umount %s\"", t.mountpoint, chain.ShellWord(t.mountpoint))
	}
	return nil
}

// refuseInside refuses a new file in a directory of the disk's own; dir is resolved.
func (t target) refuseInside(dir, file string) error {
	for _, own := range []string{t.dir, t.mountpoint} {
		if own != "" && (own == t.dir || t.mount.Here()) && mounts.Within(dir, own) {
			return fmt.Errorf("%s lies in %s, which holds only the disk's own files; name another place", file, own)
		}
	}
	return nil
}

// status is a disk's status; of a disk that is not mounted all of it is counted.
func (t target) status(cmd *cobra.Command) (chain.Status, error) {
	if t.mountpoint != "" {
		_, st, err := t.document()
		return st, err
	}
	d, err := t.open(chain.OpenOptions{ReadOnly: true, Log: warnings(cmd.ErrOrStderr())})
	if err != nil {
		return chain.Status{}, err
	}
	defer d.Close() // read only: there is nothing to lose
	// Nobody's VM waits for this one, and what is asked once should be right.
	if err := d.CountAll(cmd.Context()); err != nil {
		return chain.Status{}, err
	}
	st, err := d.Status()
	if err == nil {
		fs.NameDamage(&st, func(id string, p []byte, off int64) error {
			if id == "" {
				return d.ReadAt(p, off)
			}
			return d.PeekView(id, p, off)
		})
	}
	return st, err
}

// open opens a disk that is not mounted.
func (t target) open(o chain.OpenOptions) (*chain.Disk, error) {
	o.LockWait = lockWait
	defer waiting.For(pathWait(t.dir))()
	return chain.Open(t.dir, o)
}
