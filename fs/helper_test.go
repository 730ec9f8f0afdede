package fs

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// helperVariable makes the test binary a small program of its own: a page
// fault on the mount must not happen in the process that serves it.
const helperVariable = "VARVE_FS_TEST_HELPER"

func TestMain(m *testing.M) {
	if job := os.Getenv(helperVariable); job != "" {
		if err := helper(job, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// helper maps a file into memory and prints its digest ("mmap"), or writes to
// it through a shared mapping ("mmap-write"), or serves a mount ("serve").
func helper(job string, args []string) error {
	if job == "serve" {
		return serveAlone(args[0])
	}
	flag, protection := os.O_RDONLY, unix.PROT_READ
	if job == "mmap-write" {
		flag, protection = os.O_RDWR, unix.PROT_READ|unix.PROT_WRITE
	}
	file, err := os.OpenFile(args[0], flag, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	memory, err := unix.Mmap(int(file.Fd()), 0, int(info.Size()), protection, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	if job == "mmap-write" {
		copy(memory[8192:], args[1])
		if err := unix.Msync(memory, unix.MS_SYNC); err != nil {
			return err
		}
	}
	fmt.Printf("%x\n", sha256.Sum256(memory))
	return unix.Munmap(memory)
}

func runHelper(t *testing.T, job string, args ...string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), helperVariable+"="+job)
	return run(t, cmd)
}

func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return string(out)
}

func shell(t *testing.T, dir, script string) (string, error) {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// asNobody runs a shell command as an unprivileged user.
func asNobody(t *testing.T, dir, script string) (string, error) {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// reachable is a temporary directory that other users can walk to.
func reachable(t *testing.T) string {
	t.Helper()
	top := t.TempDir()
	for dir := top; strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return top
}

// mounted serves a fake disk of that many bytes and gives its mountpoint.
func mounted(t *testing.T, size int64, o Options) (string, *fakeDisk, *Server) {
	t.Helper()
	top := reachable(t)
	d := newFakeDisk(top, size)
	mountpoint := filepath.Join(top, "mnt")
	if err := os.Mkdir(mountpoint, 0o755); err != nil {
		t.Fatal(err)
	}
	return mountpoint, d, serve(t, d, mountpoint, o)
}

func serve(t *testing.T, d disk, mountpoint string, o Options) *Server {
	t.Helper()
	s, err := mount(d, mountpoint, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Unmount(); err != nil {
			t.Errorf("unmount: %v", err)
			if err := unix.Unmount(mountpoint, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
		s.Wait()
	})
	return s
}

func open(t *testing.T, path string, flag int) *os.File {
	t.Helper()
	file, err := os.OpenFile(path, flag, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

func write(t *testing.T, path, text string) error {
	t.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.WriteString(text)
	return err
}

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return st
}

// serveAlone mounts a disk in memory, says so, and unmounts when its input
// ends; it tells what became of an unmount that it tries for each line.
func serveAlone(dir string) error {
	s, err := mount(newFakeDisk(filepath.Dir(dir), 1<<20), dir, Options{FsName: "/x,y\\z", UID: uint32(os.Getuid()), Umask: 0o077})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(errors.Is(s.Unmount(), unix.EBUSY))
	}
	if err := s.Unmount(); err != nil {
		return err
	}
	s.Wait()
	return nil
}
