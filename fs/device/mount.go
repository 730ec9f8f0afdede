package device

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"varve/chain/mounts"
)

const devFuse = "/dev/fuse"

// mount mounts and gives the descriptor of the connection.
func mount(mountpoint string, o Options) (int, error) {
	// The kernel would mount over a file too, which then is none.
	var st unix.Stat_t
	if err := unix.Stat(mountpoint, &st); err != nil {
		return 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return 0, unix.ENOTDIR
	}
	if o.Direct {
		return mountDirect(mountpoint, o)
	}
	return mountByHelper(mountpoint, o)
}

// mountDirect mounts with mount(2).
func mountDirect(mountpoint string, o Options) (int, error) {
	fd, err := unix.Open(devFuse, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: devFuse, Err: err}
	}
	m := o.Fuse
	options := []string{
		fmt.Sprintf("fd=%d", fd),
		fmt.Sprintf("rootmode=%o", unix.S_IFDIR),
		fmt.Sprintf("user_id=%d", os.Geteuid()),
		fmt.Sprintf("group_id=%d", os.Getegid()),
		fmt.Sprintf("max_read=%d", m.MaxWrite),
	}
	options = append(options, m.Options...)
	if m.AllowOther {
		options = append(options, "allow_other")
	}
	// The mountpoint itself, whatever was put in its way since.
	dir, err := mounts.OpenDirectory(mountpoint)
	if err == nil {
		err = unix.Mount(m.FsName, fmt.Sprintf("/proc/self/fd/%d", dir), "fuse."+m.Name, m.DirectMountFlags, strings.Join(options, ","))
		unix.Close(dir) // of O_PATH: nothing can be lost
	}
	if err != nil {
		return 0, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// mountByHelper has fusermount3 mount, which sends the descriptor back (libfuse,
// util/fusermount.c).
func mountByHelper(mountpoint string, o Options) (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "fusermount3"), os.NewFile(uintptr(pair[1]), "fusermount3")
	defer ours.Close()
	defer theirs.Close()
	m := o.Fuse
	words := append([]string{}, m.Options...)
	if m.AllowOther {
		words = append(words, "allow_other")
	}
	words = append(words, "fsname="+m.FsName, "subtype="+m.Name, fmt.Sprintf("max_read=%d", m.MaxWrite))
	for i := range words {
		words[i] = escaped(words[i])
	}
	helper, err := fusermount()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(helper, "-o", strings.Join(words, ","), "--", mountpoint)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	if words, err := run(cmd); err != nil {
		if words != "" {
			return 0, errors.New(words)
		}
		return 0, fmt.Errorf("%s: %w", helper, err)
	}
	// Or nobody would tell us that there is no message.
	if err := theirs.Close(); err != nil {
		return 0, err
	}
	return receiveDescriptor(int(ours.Fd()))
}

// run runs a command and gives what it says on stderr.
func run(cmd *exec.Cmd) (words string, err error) {
	var said bytes.Buffer
	cmd.Stderr = &said
	err = cmd.Run()
	return strings.TrimSpace(said.String()), err
}

// escaped keeps a comma in an option from ending it.
func escaped(option string) string {
	return strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(option)
}

// Unmount takes a mount away, but not while it is in use: then the error is
// unix.EBUSY.
func Unmount(mountpoint string, direct bool) error {
	if direct {
		for {
			if err := unix.Unmount(mountpoint, unix.UMOUNT_NOFOLLOW); err != unix.EINTR {
				return err
			}
		}
	}
	helper, err := fusermount()
	if err != nil {
		return err
	}
	cmd := exec.Command(helper, "-u", "--", mountpoint)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	switch words, err := run(cmd); {
	case err == nil:
		return nil
	case strings.Contains(words, unix.EBUSY.Error()) || strings.Contains(strings.ToLower(words), "busy"):
		return unix.EBUSY
	case words != "":
		return errors.New(words)
	default:
		return fmt.Errorf("%s: %w", helper, err)
	}
}

// fusermount finds the helper, also with a PATH that lacks it.
func fusermount() (string, error) {
	if path, err := exec.LookPath("fusermount3"); err == nil {
		return path, nil
	}
	path, err := exec.LookPath(filepath.Join("/bin", "fusermount3"))
	if err != nil {
		return "", errors.New("fusermount3 is missing; it is in the package fuse3")
	}
	return path, nil
}

// receiveDescriptor takes one descriptor out of a message.
func receiveDescriptor(socket int) (int, error) {
	control := make([]byte, unix.CmsgSpace(4))
	var payload [1]byte
	_, n, _, _, err := unix.Recvmsg(socket, payload[:], control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("receive the descriptor from fusermount3: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return 0, fmt.Errorf("what fusermount3 sent: %w", err)
	}
	if len(messages) != 1 {
		return 0, errors.New("fusermount3 sent no descriptor")
	}
	fds, err := unix.ParseUnixRights(&messages[0]) // there is room for one
	if err != nil {
		return 0, fmt.Errorf("what fusermount3 sent: %w", err)
	}
	return fds[0], nil
}
