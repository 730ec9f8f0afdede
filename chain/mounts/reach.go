package mounts

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNotThere is that another mount, or none, is at a place by now.
var ErrNotThere = errors.New("it is not there any more")

// Apart gives the places of varve mounts that a process sees and this one does not, in
// the mount namespace of the process. Of a process that has ended there are none.
func Apart(pid int) ([]Mount, error) {
	own, err := Read()
	if err != nil {
		return nil, err
	}
	theirs, err := readFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	seen := map[int]bool{} // by ID
	for _, m := range own.places() {
		seen[m.ID] = true
	}
	var list []Mount
	for _, m := range theirs.places() {
		if !seen[m.ID] {
			m.PID = pid
			list = append(list, m)
		}
	}
	return list, nil
}

// Path is the path by which this process opens what is in the mount: the mountpoint, or
// after Reach what leads to a place in another mount namespace.
func (m Mount) Path() string {
	if m.through != "" {
		return m.through
	}
	return m.Mountpoint
}

// Here says whether the place is in this process's own mount namespace.
func (m Mount) Here() bool { return m.PID == 0 }

// Reach opens a place in another mount namespace, and gives it with the Path by which this
// process and its children reach it until Release. It asks nothing of the mount's daemon.
// The error is os.ErrPermission for a process that this user may not look into, and
// ErrNotThere when the table that showed the place is out of date.
func (m Mount) Reach() (Mount, error) {
	if m.Here() {
		return m, nil
	}
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", m.PID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return m, fmt.Errorf("look into the mount namespace of pid %d: %w", m.PID, err)
	}
	defer unix.Close(root)
	path := strings.TrimPrefix(m.Mountpoint, "/")
	if path == "" {
		path = "."
	}
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS, // the table's paths have none
	})
	if err != nil {
		return m, fmt.Errorf("open %s in the mount namespace of pid %d: %w", m.Mountpoint, m.PID, err)
	}
	// No field is asked for of which the kernel would ask the daemon.
	var st unix.Statx_t
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st)
	if err == nil && (unix.Mkdev(st.Dev_major, st.Dev_minor) != m.Device || st.Mask&unix.STATX_MNT_ID != 0 && st.Mnt_id != uint64(m.ID)) {
		err = ErrNotThere
	}
	if err != nil {
		unix.Close(fd)
		return m, fmt.Errorf("look at %s in the mount namespace of pid %d: %w", m.Mountpoint, m.PID, err)
	}
	m.fd = fd
	m.through = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)
	return m, nil
}

// Release closes what Reach has opened.
func (m Mount) Release() {
	if m.through != "" {
		unix.Close(m.fd)
	}
}
