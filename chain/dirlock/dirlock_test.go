package dirlock

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/integration/patience"
	"varve/overlay/hostfs"
)

// lockHelperDir tells TestLockHelper, run as another process, what to lock.
const lockHelperDir = "VARVE_TEST_LOCK_DIR"

// TestLockHelper is the other process of TestLockOfAnotherProcess.
func TestLockHelper(t *testing.T) {
	dir := os.Getenv(lockHelperDir)
	if dir == "" {
		return
	}
	lock, err := Take(hostfs.OS(), dir, Options{Exclusive: os.Getenv("VARVE_TEST_LOCK_SHARED") == "", Mountpoint: "/mnt/other"})
	fmt.Println("locked", err)
	// Until the parent closes the pipe, or kills us.
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	_ = lock.Unlock()
}

// lockElsewhere locks a directory in another process. Its pid and a function
// that kills it come back.
func lockElsewhere(t *testing.T, dir string, shared bool) (pid int, kill func()) {
	t.Helper()
	command := exec.Command(os.Args[0], "-test.run=^TestLockHelper$")
	command.Env = append(os.Environ(), lockHelperDir+"="+dir)
	if shared {
		command.Env = append(command.Env, "VARVE_TEST_LOCK_SHARED=1")
	}
	stdin, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close() })
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = command.Process.Kill()
		_ = command.Wait() // "signal: killed"
	})
	t.Cleanup(kill)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "locked <nil>\n" {
		t.Fatalf("the other process: %q, %v", line, err)
	}
	return command.Process.Pid, kill
}

func TestLockOfAnotherProcess(t *testing.T) {
	fs := hostfs.OS()
	dir := t.TempDir()
	if _, _, held, err := Holder(dir); held || err != nil {
		t.Errorf("a directory that was never locked: %v, %v", held, err)
	}
	pid, kill := lockElsewhere(t, dir, false)
	for _, exclusive := range []bool{true, false} {
		_, err := Take(fs, dir, Options{Exclusive: exclusive})
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d ", pid)) ||
			!strings.Contains(err.Error(), "has it mounted at /mnt/other") {
			t.Errorf("exclusive %v: %v", exclusive, err)
		}
	}
	if gotPID, mountpoint, held, err := Holder(dir); gotPID != pid || mountpoint != "/mnt/other" || !held || err != nil {
		t.Errorf("held by %d at %q: %v, %v", gotPID, mountpoint, held, err)
	}
	// Somebody who waits gets it as soon as the holder is gone, even by a kill.
	go func() {
		time.Sleep(100 * time.Millisecond)
		kill()
	}()
	lock, err := Take(fs, dir, Options{Exclusive: true, Wait: patience.Hang})
	if err != nil {
		t.Fatal(err)
	}
	if gotPID, mountpoint, held, err := Holder(dir); gotPID != os.Getpid() || mountpoint != "" || !held || err != nil {
		t.Errorf("held by %d at %q: %v, %v", gotPID, mountpoint, held, err)
	}
	if _, err := Take(fs, dir, Options{Exclusive: true}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "works on it") {
		t.Errorf("a second lock in one process: %v", err)
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	if err := lock.Unlock(); err != nil {
		t.Errorf("unlocked twice: %v", err)
	}
	if _, _, held, err := Holder(dir); held || err != nil {
		t.Errorf("after the unlock: %v, %v", held, err)
	}
	if info, err := os.Stat(filepath.Join(dir, Name)); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestLockAfterCrash: the words of a killed holder say nothing once its lock
// is gone.
func TestLockAfterCrash(t *testing.T) {
	dir := t.TempDir()
	_, kill := lockElsewhere(t, dir, false)
	kill()
	if text, err := os.ReadFile(filepath.Join(dir, Name)); err != nil || !strings.Contains(string(text), "/mnt/other") {
		t.Fatalf("the killed holder left %q, %v: this test shows nothing", text, err)
	}
	if _, _, held, err := Holder(dir); held || err != nil {
		t.Errorf("held: %v, %v", held, err)
	}
	lock, err := Take(hostfs.OS(), dir, Options{Exclusive: true, Mountpoint: "/m"})
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	// The words that stood there were longer.
	if _, mountpoint, _, err := Holder(dir); mountpoint != "/m" || err != nil {
		t.Errorf("at %q, %v", mountpoint, err)
	}
}

func TestSharedLocks(t *testing.T) {
	fs := hostfs.OS()
	dir := t.TempDir()
	// Who only reads makes no file.
	none, err := Take(fs, dir, Options{Mountpoint: "/mnt/ro"})
	if err != nil {
		t.Fatal(err)
	}
	if err := none.Unlock(); err != nil {
		t.Fatal(err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("a read-only lock made %v, %v", names, err)
	}
	if err := os.WriteFile(filepath.Join(dir, Name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pid, _ := lockElsewhere(t, dir, true)
	second, err := Take(fs, dir, Options{})
	if err != nil {
		t.Fatalf("two readers: %v", err)
	}
	if err := second.Unlock(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	_, err = Take(fs, dir, Options{Exclusive: true, Wait: 100 * time.Millisecond})
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d ", pid)) {
		t.Errorf("a writer beside a reader: %v", err)
	}
	if waited := time.Since(start); waited < 100*time.Millisecond {
		t.Errorf("waited only %v", waited)
	}
	if gotPID, _, held, err := Holder(dir); gotPID != pid || !held || err != nil {
		t.Errorf("held by %d: %v, %v", gotPID, held, err)
	}
}

func TestLockRefusesALink(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(dir, Name)); err != nil {
		t.Fatal(err)
	}
	if _, err := Take(hostfs.OS(), dir, Options{Exclusive: true}); err == nil {
		t.Error("a link was followed")
	}
	if text, err := os.ReadFile(victim); string(text) != "precious" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}

// TestHolderOfThatFile: a process with a lock on another file that has the same inode number,
// on another file system, does not hold the disk, whatever is written into the lock file.
func TestHolderOfThatFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root; make test runs it so")
	}
	var dirs []string
	var inodes []uint64
	for range 2 {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		if err := os.WriteFile(filepath.Join(dir, Name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, Name), &st); err != nil {
			t.Fatal(err)
		}
		dirs, inodes = append(dirs, dir), append(inodes, st.Ino)
	}
	if inodes[0] != inodes[1] {
		t.Fatalf("inodes %v", inodes)
	}
	shell := exec.Command("sh", "-c", "exec 9<"+filepath.Join(dirs[1], Name)+"; flock 9; echo locked; read end")
	stdin, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := shell.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(stdin.Close(), shell.Wait()) })
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "locked\n" {
		t.Fatalf("%q, %v", line, err)
	}
	other := shell.Process.Pid
	lock, err := Take(hostfs.OS(), dirs[0], Options{Exclusive: true, Mountpoint: "/nowhere"})
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	if _, err := lock.f.WriteAt(fmt.Appendf(nil, `{"pid":%d,"mountpoint":"/nowhere"}`, other), 0); err != nil {
		t.Fatal(err)
	}
	if pid, _, held, err := Holder(dirs[0]); pid != os.Getpid() || !held || err != nil {
		t.Errorf("pid %d holds it, %v, %v; it is %d, and %d is another one", pid, held, err, os.Getpid(), other)
	}
}

func TestLockOfASimulatedFileSystem(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		if _, err := Take(struct{ hostfs.FS }{hostfs.OS()}, dir, Options{Exclusive: true}); err != nil {
			t.Error(err)
		}
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("%v, %v", names, err)
	}
}
