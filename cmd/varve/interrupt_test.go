package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	testpatience "varve/integration/patience"
)

// heard is a command's standard error as it comes.
type heard struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (h *heard) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.text.Write(p)
}

func (h *heard) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.text.String()
}

// interrupted runs a command that meets something that hangs: it says what it waits for, and
// ends at one SIGTERM.
func interrupted(t *testing.T, dir, words string, args ...string) (says string) {
	t.Helper()
	cmd, stderr := command(dir, args...), &heard{}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return ""
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	defer cmd.Process.Kill() // it may have ended
	deadline := time.After(testpatience.Hang)
	for !strings.Contains(stderr.String(), words) {
		select {
		case <-ended:
			t.Errorf("varve %v ended: %s, %q", args, cmd.ProcessState, stderr)
			return ""
		case <-deadline:
			t.Errorf("varve %v says %q", args, stderr)
			return ""
		case <-time.After(10 * time.Millisecond):
		}
	}
	cmd.Process.Signal(syscall.SIGTERM) // that it has ended is said below
	select {
	case <-ended:
		if cmd.ProcessState.Success() {
			t.Errorf("varve %v succeeds: %q", args, stderr)
		}
	case <-deadline:
		t.Errorf("varve %v does not end: %q", args, stderr)
	}
	return stderr.String()
}

// TestInterruptWithAStoppedDaemon: every command that asks a daemon says that it waits for
// it, and ends at Ctrl-C.
func TestInterruptWithAStoppedDaemon(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	must(t, dir, "snapshot", "mnt", "s1")
	image(t, dir+"/new.raw", 1<<20, 1<<20)
	stopped(t, daemonOf(t, dir+"/vm.raw.varve"))
	var running sync.WaitGroup
	slots := make(chan struct{}, 4)
	for _, args := range []string{
		"list mnt", "list vm.raw.varve", "tree mnt", "status mnt", "status --watch mnt", "map mnt", "map mnt -o map.svg", "diff mnt s1 leaf",
		"snapshot mnt s2", "rename mnt s1 s3", "revert mnt s1", "undo mnt", "resize mnt 8M", "delete mnt s1", "delete --dry-run mnt s1",
		"prune mnt --keep-last 1", "cancel mnt", "hold mnt s1", "export mnt s1 out.raw", "export --force mnt s1 new.raw", "import new.raw mnt --format raw", "clone mnt s1 c.varve",
		"metrics mnt", "umount mnt", "umount vm.raw.varve",
	} {
		running.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			interrupted(t, dir, "waiting for the daemon of "+mnt, strings.Fields(args)...)
		})
	}
	running.Wait()
	// Nothing unfinished is left.
	if left, err := filepath.Glob(dir + "/.*"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestInterruptOnAHangingHost is the same of a disk that is not mounted, whose file system
// gives no answer.
func TestInterruptOnAHangingHost(t *testing.T) {
	dir := hostDir(t)
	host, stop := hangingHost(t, dir)
	image(t, dir+"/new.raw", 1<<20, 1<<20)
	must(t, dir, "create", host+"/d.varve", "--size", "4M")
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	stop()
	var running sync.WaitGroup
	slots := make(chan struct{}, 4)
	for _, args := range []string{
		"list D", "status D", "map D", "snapshot D s1", "delete D s1", "check D", "mount D mnt", "mount -f D mnt", "import new.raw D --format raw", "export D base o.raw",
		"create D2 --size 1M", "umount D", "accept D leaf", "rebase D --base new.raw",
	} {
		running.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			words := strings.Fields(strings.ReplaceAll(args, "D", host+"/d.varve"))
			interrupted(t, dir, "waiting for "+host+"/d.varve", words...)
		})
	}
	running.Wait()
	if out, err := exec.Command("pgrep", "-f", host+"/d.varve").Output(); err == nil {
		t.Errorf("processes left: %s", out)
	}
}

// TestInterruptedCreate: Ctrl-C in the middle of a create leaves nothing, and says so.
func TestInterruptedCreate(t *testing.T) {
	dir := hostDir(t)
	cmd := command(dir, "create", "d.varve", "--size", "1M")
	// Each fsync takes a while, so that the signal comes before the disk is made.
	slow := exec.Command("strace", append([]string{"-f", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=30000", cmd.Path}, cmd.Args[1:]...)...)
	slow.Dir, slow.Env = cmd.Dir, cmd.Env
	stderr := &heard{}
	slow.Stderr = stderr
	if err := slow.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has begun", func() bool {
		_, err := os.Lstat(dir + "/.d.varve.creating")
		return err == nil
	})
	child, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", slow.Process.Pid, slow.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(child)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	slow.Wait()
	said := notices.ReplaceAllString(stderr.String(), "")
	if slow.ProcessState.ExitCode() != exitFailed {
		t.Errorf("%v, says %q", slow.ProcessState, said)
	}
	switch left, err := os.ReadDir(dir); {
	case err != nil:
		t.Error(err)
	case strings.HasPrefix(said, "varve: interrupted while waiting for d.varve") && strings.HasSuffix(said, "what was begun there the next \"varve create\" of it removes\n"):
		t.Log("the host is so slow that nobody waited for the end")
	case said != "varve: create d.varve: interrupted; nothing was made\n" || len(left) > 0:
		t.Errorf("says %q, and left %v", said, left)
	}
	must(t, dir, "create", "d.varve", "--size", "1M")
}
