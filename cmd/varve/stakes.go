package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"varve/chain/mounts"
	"varve/cmd/varve/internal/claim"
	"varve/cmd/varve/internal/doctor"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/where"
)

// A VM that is off can still have its memory kept, to be resumed with the disk as it
// was; and an image of QEMU's can stand on disk.raw. Both are destroyed when disk.raw
// becomes something else. disk.raw itself is not open then, so only libvirt's files, and
// headers, tell.

// savedStateFlag is --discard-saved-state, of commands that change disk.raw while the VM
// is off.
type savedStateFlag struct{ discard bool }

func (s *savedStateFlag) register(f *pflag.FlagSet) {
	f.BoolVar(&s.discard, "discard-saved-state", false, "give up the memory that libvirt keeps of a VM that was saved on this disk")
}

// clear refuses to go on while somebody outside of varve relies on the content of the
// disk that arg names. With --discard-saved-state it has libvirt remove saved memory.
// overlays says whether an image on top of disk.raw is a reason too.
func (s *savedStateFlag) clear(cmd *cobra.Command, arg string, overlays bool) error {
	t, err := where.Find(arg)
	if err != nil {
		return nil // the command itself says it
	}
	return wrapped(cmd, arg, s.clearTarget(t, cmd.ErrOrStderr(), overlays))
}

func (s *savedStateFlag) clearTarget(t where.Target, stderr io.Writer, overlays bool) error {
	stakes, err := stakesOf(t)
	if err != nil {
		return err
	}
	// All refusals first: memory is given up only for what is then done.
	if err := s.refuse(stakes, overlays); err != nil || !s.discard {
		return err
	}
	for _, k := range stakes {
		if k.Saved {
			if err := discardState(k, stderr); err != nil {
				return err
			}
		}
	}
	stakes, err = stakesOf(t)
	if err == nil && slices.ContainsFunc(stakes, func(k doctor.Stake) bool { return k.Saved }) {
		err = errors.New("libvirt still keeps the memory of a VM that was saved on this disk")
	}
	return err
}

// refuse says which of some stakes is in the way.
func (s *savedStateFlag) refuse(stakes []doctor.Stake, overlays bool) error {
	for _, k := range stakes {
		switch {
		case k.Saved && !s.discard:
			return fmt.Errorf("%s: on another disk content that would destroy the guest's file systems; %s, or use --discard-saved-state", k.What, k.Fix)
		case !k.Saved && overlays:
			return fmt.Errorf("%s: that image would then stand on another disk content; %s", k.What, k.Fix)
		}
	}
	return nil
}

// stakesOf are what relies on the content of the disk. The error is that of reading the
// mount table, without which nobody knows.
func stakesOf(t where.Target) ([]doctor.Stake, error) {
	list, err := mounts.List()
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(m mounts.Mount) bool {
		return (t.Device == 0 || m.Device != t.Device) && (t.Dir == "" || m.Source != t.Dir || !claim.Believed(m))
	})
	return doctor.Stakes(t.Dir, list), nil
}

// discardState has libvirt remove the saved memory of a domain.
func discardState(k doctor.Stake, stderr io.Writer) error {
	words, name := k.Discard()
	c := exec.Command(words[0], words[1:]...)
	if name != "" {
		var err error
		if c, err = commandAs(name, words); err != nil {
			return fmt.Errorf("give up the saved memory as the user %s: %w", name, err)
		}
	}
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("give up the saved memory with %q: %w: %s", strings.Join(words, " "), err, strings.TrimSpace(string(out)))
	}
	tell.Line(stderr, "gave up saved memory: %s", k.What)
	return nil
}

// commandAs is a command that root runs as another user. It has the environment of that
// user: with root's XDG_RUNTIME_DIR and HOME it would look for root's libvirt, and that user
// can read all of it. Nor has it root's terminal, into which it could type.
func commandAs(name string, words []string) (*exec.Cmd, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	c := exec.Command("runuser", append([]string{"-u", name, "--"}, words...)...)
	c.Dir = "/"
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8",
		"HOME=" + u.HomeDir, "USER=" + name, "LOGNAME=" + name,
	}
	if run := "/run/user/" + u.Uid; isDirectory(run) {
		c.Env = append(c.Env, "XDG_RUNTIME_DIR="+run)
	}
	return c, nil
}

func isDirectory(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// warnOfOverlays says what a snapshot of disk.raw does not have in it.
func warnOfOverlays(cmd *cobra.Command, arg string) {
	t, err := where.Find(arg)
	if err != nil {
		return
	}
	stakes, err := stakesOf(t)
	if err != nil {
		tell.Line(cmd.ErrOrStderr(), "%s %s: whether an image stands on disk.raw is not known: %v", cmd.Name(), arg, err)
	}
	for _, k := range stakes {
		if !k.Saved {
			tell.Line(cmd.ErrOrStderr(), "%s %s: %s: what the guest wrote there is not in the snapshot; %s", cmd.Name(), arg, k.What, k.Fix)
		}
	}
}
