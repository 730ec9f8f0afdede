package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"varve/chain/mounts"
	"varve/cmd/varve/internal/claim"
	"varve/cmd/varve/internal/holders"
)

func newUmountCommand() *cobra.Command {
	var flags umountFlags
	c := &cobra.Command{
		Use:     "umount DISK",
		Aliases: []string{"unmount"},
		Short:   "Unmount a disk and wait until all is written",
		Long: `Unmounts a disk and returns when its daemon has written everything and let go of
the disk directory: then the files can be copied, or opened by other programs.

A mount that somebody uses is not unmounted; the error says who has what open.
With --wait it is unmounted as soon as they are done: a VM is shut down first.

umount(8) does the same of a mount with the option uhelper=fuse.varve.`,
		Example: `  varve umount /mnt/vm1
  varve umount vm1.varve --timeout 30s
  varve umount /mnt/vm1 --wait             # until the VM is off`,
		Args: takes("DISK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := flags.check(); err != nil {
				return wrongUse(cmd, "%w", err)
			}
			return wrapped(cmd, args[0], umountDisk(cmd, args[0], flags))
		},
	}
	c.Flags().DurationVar(&flags.timeout, "timeout", 0, "wait no longer than `TIME` (default: as long as it takes)")
	c.Flags().BoolVarP(&flags.wait, "wait", "w", false, "while the mount is in use, wait until it is not")
	c.Flags().BoolVarP(&flags.lazy, "lazy", "l", false, "take it out of sight now; the daemon goes on until nobody uses it")
	c.Flags().BoolVarP(&flags.force, "force", "f", false, "of a daemon that does not answer, end the connection (root)")
	return c
}

func umountDisk(cmd *cobra.Command, arg string, flags umountFlags) error {
	ctx, stop := interruptible(cmd)
	defer stop()
	if err := refuseBind(arg); err != nil {
		return err
	}
	t, err := findSeen(arg)
	if unseen := (unseenError{}); errors.As(err, &unseen) {
		return umountUnseen(ctx, cmd.ErrOrStderr(), arg, unseen, flags)
	}
	if err != nil {
		return err
	}
	if t.mountpoint == "" {
		// The mount of a daemon that is gone stands at its mountpoint still.
		m, there, err := claim.MountOf(t.dir)
		if err != nil {
			return err
		}
		if !there {
			return errors.New("it is not mounted")
		}
		t = t.at(m)
	}
	if err := t.isMain(); err != nil {
		return err
	}
	if uid := os.Geteuid(); uid != 0 && t.owner >= 0 && t.owner != uid {
		return t.explain(os.ErrPermission) // fusermount3 says that there is no such mount
	}
	c, err := t.watchClosing()
	if err != nil {
		return err
	}
	defer c.close()
	ended := processEnd(c.pid)
	defer ended.close()
	if flags.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, flags.timeout)
		defer cancel()
	}
	if !flags.force && !flags.lazy {
		if err := c.checkInPlace(); err != nil {
			return err
		}
	}
	if flags.force {
		if err := t.force(cmd.ErrOrStderr()); err != nil {
			return err
		}
	}
	if err := t.takeDown(ctx, cmd.ErrOrStderr(), flags); err != nil {
		return t.explain(err)
	}
	if flags.lazy {
		t.leaveBehind(cmd.ErrOrStderr(), ended)
		return nil // those who use it decide how long the daemon goes on
	}
	if t.dir == "" && c.session == nil {
		return nil // nothing was ever written
	}
	if err := waitReleased(ctx, cmd.ErrOrStderr(), &c, ended, flags.wait); err != nil || t.readOnly {
		return err
	}
	// Its last words go into the log in the disk directory.
	ended.wait(patience)
	return c.check(cmd.ErrOrStderr())
}

// unmountPath asks the kernel, or where that is root's business fusermount3,
// to unmount a device's mount. The error is unix.EBUSY when the mount is in use.
func unmountPath(mountpoint string, device uint64) error { return unmount(mountpoint, device, false) }

// unmount is unmountPath, or with lazily takes the mount out of sight, whoever
// uses it.
func unmount(mountpoint string, device uint64, lazily bool) error {
	flags, option := 0, "-u"
	if lazily {
		flags, option = unix.MNT_DETACH, "-uz"
	}
	if os.Geteuid() == 0 {
		return mounts.Unmount(mountpoint, device, flags)
	}
	// C-locale words: they decide what the error was.
	var words bytes.Buffer
	c := exec.Command("fusermount3", option, "--", mountpoint)
	c.Env = append(os.Environ(), "LC_ALL=C")
	c.Stderr = &words
	err := c.Run()
	switch text := strings.TrimSpace(words.String()); {
	case err == nil:
		return nil
	case strings.Contains(strings.ToLower(text), "busy"):
		return unix.EBUSY
	case text != "":
		return errors.New(text)
	}
	return fmt.Errorf("run fusermount3: %w", err)
}

// process is a handle on a process that cannot come to mean another one.
type process struct {
	fd      int    // -1 for none
	command string // its name
}

// processEnd gets hold of a process to wait for its end. Where that cannot be
// had, there is nothing to wait for.
func processEnd(pid int) process {
	if pid <= 0 {
		return process{fd: -1}
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return process{fd: -1}
	}
	return process{fd, holders.Command(pid)}
}

// wait returns when the process has ended, or after limit.
func (p process) wait(limit time.Duration) {
	if p.fd < 0 {
		return
	}
	for deadline := time.Now().Add(limit); ; {
		left := time.Until(deadline)
		if left <= 0 {
			return
		}
		// A pidfd becomes readable when its process ends (pidfd_open(2)).
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, int(left/time.Millisecond)+1)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// terminate asks a daemon to end, as SIGTERM does. The owner of a disk directory can have it
// look as if any process held it: what is called neither varve, with a version's number
// perhaps, nor as this program is left alone.
func (p process) terminate() error {
	if p.fd < 0 {
		return unix.ESRCH
	}
	if !strings.HasPrefix(p.command, "varve") && p.command != holders.Command(os.Getpid()) {
		return fmt.Errorf("that process is %s, not varve", p.command)
	}
	return unix.PidfdSendSignal(p.fd, unix.SIGTERM, nil, 0)
}

func (p process) close() {
	if p.fd >= 0 {
		unix.Close(p.fd)
	}
}
