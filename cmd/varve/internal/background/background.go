// Package background lets a command go on in the background as a daemon: it
// runs itself again in a session of its own and waits until that process says
// that it is ready, or ends.
//
// The two talk over an inherited pipe; a signal or a file could be lost, or
// mistaken for an older one. Until it is ready the daemon keeps the caller's
// stderr, so that what it has to say (and what fusermount3 says) reaches the
// user; then it lets go of it, since a kept descriptor hangs a script that
// reads the command's output to its end.
package background

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"varve/cmd/varve/internal/inherit"
)

// environment names the variable that tells the daemon its end of the pipe.
const environment = "VARVE_READY_FD"

// ready is what the daemon writes into the pipe.
const ready = "ready\n"

// ErrInterrupted is that the daemon was told to end before it had begun with anything.
var ErrInterrupted = errors.New("interrupted; nothing was mounted")

// Start runs this program again with the given arguments, in the caller's
// working directory, and waits for it. The code is 0 when the daemon is ready,
// else the exit code with which it ended; what went wrong it has said on
// stderr itself. When ctx ends, the daemon is asked to end (SIGTERM) and Start
// goes on waiting for one of the two. ErrInterrupted when it ended by that signal; where a
// limit of the host kept it from starting, the error says which.
func Start(ctx context.Context, args []string, stderr *os.File) (code int, err error) {
	exe, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find the program to run in the background: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("make a pipe to the daemon: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), environment+"=3")
	cmd.ExtraFiles = []*os.File{w} // descriptor 3
	words, err := giveStderr(cmd, stderr)
	if err != nil {
		w.Close()
		return 0, fmt.Errorf("make a pipe to the daemon: %w", err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	inherit.Nothing()
	err = cmd.Start()
	w.Close()
	if words != nil {
		words.w.Close()
	}
	switch {
	case errors.Is(err, unix.EAGAIN):
		return 0, fmt.Errorf("start the daemon: %w; raise the limit of processes and threads (ulimit -u, TasksMax= of a systemd unit, pids.max of a container)", err)
	case err != nil:
		return 0, fmt.Errorf("start the daemon: %w", err)
	}

	stop := context.AfterFunc(ctx, func() {
		// It may have ended by itself in the meantime.
		_ = cmd.Process.Signal(syscall.SIGTERM)
	})
	defer stop()
	said, err := io.ReadAll(r)
	if err != nil {
		return 0, fmt.Errorf("wait for the daemon: %w", err)
	}
	if string(said) == ready {
		words.end()
		return 0, cmd.Process.Release()
	}
	err = cmd.Wait()
	if means := words.end(); means != nil {
		return 0, means
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode(), nil
	case ctx.Err() != nil && signalOf(exit) == syscall.SIGTERM:
		return 0, ErrInterrupted
	case signalOf(exit) > 0:
		return 0, fmt.Errorf("the daemon was ended by a signal (%v) before the disk was mounted", signalOf(exit))
	case err != nil:
		return 0, fmt.Errorf("wait for the daemon: %w", err)
	default:
		return 0, errors.New("the daemon ended before the disk was mounted, and did not say why")
	}
}

// signalOf is the signal that has ended a process, 0 for none.
func signalOf(exit *exec.ExitError) syscall.Signal {
	if exit == nil {
		return 0
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return status.Signal()
	}
	return 0
}

// giveStderr has what a command says come to stderr through a screen, which is nil where it
// goes there directly: systemd's journal knows its own stream again.
func giveStderr(cmd *exec.Cmd, stderr *os.File) (*screen, error) {
	cmd.Stderr = stderr
	if isJournal(stderr) {
		return nil, nil
	}
	words, err := listen(stderr)
	if err == nil {
		cmd.Stderr = words.w
	}
	return words, err
}

// Pipe is the daemon's end.
type Pipe struct{ w *os.File }

// Inherited gives the daemon's end of the pipe; ok is false in a process that
// Start did not make. It is to be called once, before any process is started.
func Inherited() (p *Pipe, ok bool, err error) {
	value, ok := os.LookupEnv(environment)
	if !ok {
		return nil, false, nil
	}
	if err := os.Unsetenv(environment); err != nil {
		return nil, false, err
	}
	fd, err := strconv.Atoi(value)
	if err != nil || fd < 3 {
		return nil, false, fmt.Errorf("%s is %q: it is for varve's own use", environment, value)
	}
	// Otherwise a child (fusermount3) would keep the pipe open.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
		return nil, false, fmt.Errorf("%s is %q: %w", environment, value, err)
	}
	return &Pipe{os.NewFile(uintptr(fd), "ready pipe")}, true, nil
}

// Ready lets the waiting process go. Unless keepStderr, this process's stderr
// is /dev/null from then on. An error means that nobody waits any more.
func (p *Pipe) Ready(keepStderr bool) error {
	defer p.w.Close()
	if !keepStderr {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer null.Close()
		if err := unix.Dup3(int(null.Fd()), 2, 0); err != nil {
			return fmt.Errorf("let go of stderr: %w", err)
		}
	}
	if _, err := p.w.WriteString(ready); err != nil {
		return fmt.Errorf("tell the caller that the mount is ready: %w", err)
	}
	return nil
}

// StderrIsJournal says whether stderr is the one that systemd connected to its
// journal (systemd.exec(5), JOURNAL_STREAM: the stream's device and inode). A
// variable that was merely inherited, with stderr somewhere else, does not
// count.
func StderrIsJournal() bool { return isJournal(os.Stderr) }

func isJournal(stderr *os.File) bool {
	var st unix.Stat_t
	if err := unix.Fstat(int(stderr.Fd()), &st); err != nil {
		return false
	}
	return os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}
