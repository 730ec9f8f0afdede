package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"varve/chain"
	"varve/cmd/varve/internal/holders"
	"varve/cmd/varve/internal/mounts"
)

// lockWait is how long a command waits for another one to let go of a disk
// directory.
const lockWait = 5 * time.Second

// target is what a DISK argument names.
type target struct {
	arg        string // as the user wrote it
	dir        string // the disk directory; "" for a read-only mount of an image that has none
	mountpoint string // "" when the disk is not mounted
	owner      int    // uid of the mounting user, -1 when unknown
	readOnly   bool   // the mount is read-only
}

// findTarget finds the disk that an argument names: a mountpoint, a disk
// directory, or an image with the disk directory that is its own by default.
func findTarget(arg string) (target, error) {
	path, err := mounts.Resolve(arg)
	if err != nil {
		return target{}, err
	}
	// The mount table comes first: looking at a mountpoint whose daemon is gone
	// fails, and at one that hangs never ends.
	if m, ok, err := mounts.At(path); err != nil {
		return target{}, err
	} else if ok {
		t := target{arg: arg, mountpoint: m.Mountpoint, owner: m.UID, readOnly: m.ReadOnly}
		if isDiskDirectory(m.Source) {
			t.dir = m.Source
		}
		return t, nil
	}
	if m, ok, err := mounts.Around(path); err != nil {
		return target{}, err
	} else if ok {
		return target{}, fmt.Errorf("it lies in the varve mount %s; name that", m.Mountpoint)
	}
	dir, err := diskDirectory(path)
	if err != nil {
		return target{}, err
	}
	t := target{arg: arg, dir: dir, owner: -1}
	pid, mountpoint, held, err := chain.Holder(dir)
	if err != nil {
		return target{}, err
	}
	if held && mountpoint != "" {
		m, ok, err := mounts.At(mountpoint)
		if err != nil {
			return target{}, err
		}
		if !ok {
			return target{}, fmt.Errorf("pid %d %s holds it for a mount at %s that cannot be seen from here (unmounted lazily, or mounted in another namespace)",
				pid, holders.Command(pid), mountpoint)
		}
		t.mountpoint, t.owner, t.readOnly = mountpoint, m.UID, m.ReadOnly
	}
	return t, nil
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
			return "", errors.New("it is a directory without chain.json, so no disk directory, and no varve mount")
		}
		return path, nil
	}
	dir, err := chain.DirFor(path)
	if err != nil {
		return "", fmt.Errorf("it is an image; name its disk directory or mountpoint: %w", err)
	}
	if !isDiskDirectory(dir) {
		return "", fmt.Errorf("it is an image without a disk directory; \"varve mount %s MOUNTPOINT\" makes one", filepath.Base(path))
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
	switch {
	case errors.Is(err, syscall.ENOTCONN), errors.Is(err, syscall.ECONNABORTED):
		return fmt.Errorf("the daemon of %s is gone; \"varve umount %s\", then mount it again", t.mountpoint, t.mountpoint)
	case errors.Is(err, os.ErrPermission) && t.owner >= 0 && t.owner != os.Geteuid():
		return fmt.Errorf("only uid %d, who mounted %s, may do that: %w", t.owner, t.mountpoint, err)
	}
	return err
}

// open opens a disk that is not mounted.
func (t target) open(o chain.OpenOptions) (*chain.Disk, error) {
	o.LockWait = lockWait
	return chain.Open(t.dir, o)
}
