package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// tools are what the contestants and the judges need, with Debian's packages.
var tools = map[string]string{
	"fio": "fio", "qemu-img": "qemu-utils", "qemu-io": "qemu-utils", "qemu-nbd": "qemu-utils",
	"qemu-storage-daemon": "qemu-system-common", "nbdfuse": "libnbd-bin", "losetup": "mount",
	"mkfs.xfs": "xfsprogs", "dd": "coreutils", "cp": "coreutils",
}

func checkTools(varve string) error {
	var missing []string
	for tool, pkg := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, tool+" ("+pkg+")")
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing: %s; packaging/install-deps.sh --bench installs them", strings.Join(missing, ", "))
	}
	if _, err := os.Stat(varve); err != nil {
		return fmt.Errorf("%w; make build makes it", err)
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return err
	}
	return nil
}

// command runs a program to its end and gives its output. An error has what it
// said. An interrupt ends it.
func (b *bench) command(stdin, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(b.ctx, name, args...)
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	// fio forks: what is ended is the group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return output(cmd, stdin)
}

// always is command for what must run after an interrupt too.
func always(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return output(exec.CommandContext(ctx, name, args...), "")
}

func output(cmd *exec.Cmd, stdin string) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err,
			strings.TrimSpace(errs.String()+" "+lastLine(out.String())))
	}
	return out.String(), nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// daemon is a process that serves a contestant.
type daemon struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error // after done
}

// launch starts a process in a session of its own, so that Ctrl-C on the
// terminal leaves it to be unmounted and ended in order.
func launch(log, name string, args ...string) (*daemon, error) {
	file, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = file, file
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	d := &daemon{cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		d.err = cmd.Wait()
		close(d.done)
	}()
	return d, nil
}

// until waits for a condition while the daemon lives.
func (d *daemon) until(what string, ok func() bool) error {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		select {
		case <-d.done:
			said, _ := os.ReadFile(d.log)
			return fmt.Errorf("%s ended (%v): %s", d.cmd.Args[0], d.err, lastLine(string(said)))
		default:
		}
		if ok() {
			return nil
		}
	}
	return fmt.Errorf("%s: no %s within a minute", d.cmd.Args[0], what)
}

// end waits for a daemon that was told to end, and kills one that does not.
func (d *daemon) end(signal syscall.Signal) error {
	if signal != 0 {
		_ = d.cmd.Process.Signal(signal)
	}
	select {
	case <-d.done:
		return nil
	case <-time.After(30 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.done
		return errors.New(d.cmd.Args[0] + " did not end and was killed")
	}
}
