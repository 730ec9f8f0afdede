package fs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/overlay"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

func TestUnmount(t *testing.T) {
	dir, d, s := mounted(t, mib, Options{})
	file := open(t, filepath.Join(dir, nameDisk), os.O_RDWR)
	if err := s.Unmount(); !errors.Is(err, unix.EBUSY) {
		t.Fatalf("unmount while a file is open: %v, want EBUSY", err)
	}
	if _, err := file.WriteAt([]byte("still here"), 0); err != nil {
		t.Errorf("it does not go on serving: %v", err)
	}
	file.Close()
	if err := s.Unmount(); err != nil {
		t.Fatal(err)
	}
	s.Wait()
	if err := s.Unmount(); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if len(names(t, dir)) != 0 {
		t.Error("the mount is still there")
	}
	if left := d.opens(); len(left) != 0 {
		t.Errorf("left open: %v", left)
	}
	d.onChange(chain.Change{Size: true, Content: true, Layers: true}) // must not hang or panic
}

// A connection that is cut leaves no handle open in the chain.
func TestLostConnectionClosesFiles(t *testing.T) {
	dir, d, s := mounted(t, mib, Options{})
	file := open(t, filepath.Join(dir, nameDisk), os.O_RDWR)
	// MNT_FORCE aborts the connection; the open file keeps the mount itself.
	if err := unix.Unmount(dir, unix.MNT_FORCE); err != unix.EBUSY {
		t.Fatalf("forced unmount: %v, want EBUSY", err)
	}
	s.Wait()
	if left := d.opens(); len(left) != 0 {
		t.Errorf("left open: %v", left)
	}
	file.Close()
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Error(err)
	}
}

// Without root the mount is made and taken away by fusermount3.
func TestMountByAnOrdinaryUser(t *testing.T) {
	top := reachable(t)
	// Where go test builds its binaries no other user can look.
	binary, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	program, dir := filepath.Join(top, "program"), filepath.Join(top, "mnt")
	if err := os.WriteFile(program, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, dir)
	cmd.Env = append(os.Environ(), helperVariable+"=serve")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(out)
	if line, err := said.ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if got, err := asNobody(t, top, "cd mnt && echo data | dd of=disk.raw conv=notrunc 2>/dev/null && head -c 4 disk.raw && grep mnt /proc/mounts && ls -ld control"); err != nil ||
		!strings.HasPrefix(got, "data") || !strings.Contains(got, `/x,y\134z `+dir+` fuse.varve`) ||
		!strings.Contains(got, "default_permissions") || !strings.Contains(got, "drwx------ 2 nobody") {
		t.Errorf("%v: %s", err, got)
	}
	hold := exec.Command("sleep", "100")
	hold.Dir = dir
	hold.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "try")
	if line, err := said.ReadString('\n'); line != "true\n" {
		t.Errorf("unmounting what is in use was EBUSY: %q, %v", line, err)
	}
	if err := hold.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := hold.Wait(); err == nil {
		t.Error("it was not killed")
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if len(names(t, dir)) != 0 {
		t.Error("the mount is still there")
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	goroutines := func() int { runtime.GC(); return runtime.NumGoroutine() }
	files := func() int { return len(names(t, "/proc/self/fd")) }
	cycle := func() {
		top := t.TempDir()
		s, err := mount(newFakeDisk(top, mib), top, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.ReadFile(filepath.Join(top, nameDisk)); err != nil {
			t.Error(err)
		}
		if err := s.Unmount(); err != nil {
			t.Fatal(err)
		}
		s.Wait()
	}
	cycle()
	threads, fds := goroutines(), files()
	for range 5 {
		cycle()
	}
	waitFor(t, "goroutines to end", func() bool { return goroutines() <= threads })
	if n := files(); n > fds {
		t.Errorf("%d open files, %d before", n, fds)
	}
}

func TestMountFails(t *testing.T) {
	top := t.TempDir()
	d := newFakeDisk(top, mib)
	file := filepath.Join(top, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dir  string
		o    Options
		want string
	}{
		{filepath.Join(top, "none"), Options{}, "no such file or directory"},
		{file, Options{}, "not a directory"},
		{top, Options{MountOptions: []string{"blubb=3"}}, `unknown mount option "blubb=3"`},
	} {
		if s, err := mount(d, c.dir, c.o); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.dir) {
			t.Errorf("mount %s: %v, want %q", c.dir, err, c.want)
			if err == nil {
				s.Unmount()
			}
		}
	}
}

// The mountpoint may be named through a symbolic link, and be one already.
func TestMountOverAMountThroughALink(t *testing.T) {
	below, d, _ := mounted(t, mib, Options{})
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(below, link); err != nil {
		t.Fatal(err)
	}
	s := serve(t, newFakeDisk(d.dir, 2*mib), link, Options{})
	if size := stat(t, filepath.Join(below, nameDisk)).Size; size != 2*mib {
		t.Errorf("size %d", size)
	}
	device := stat(t, below).Dev
	got, err := os.ReadFile(fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(device), unix.Minor(device)))
	if err != nil || strings.TrimSpace(string(got)) != "1024" {
		t.Errorf("readahead %s, %v", got, err)
	}
	if err := s.Unmount(); err != nil {
		t.Fatal(err)
	}
	s.Wait()
	if size := stat(t, filepath.Join(below, nameDisk)).Size; size != mib {
		t.Errorf("size %d after the upper mount went", size)
	}
}

func TestMountOptions(t *testing.T) {
	const usual = unix.MS_NOSUID | unix.MS_NODEV
	for _, c := range []struct {
		in    []string
		flags uintptr
		want  givenOptions
	}{
		{nil, usual, givenOptions{}},
		{[]string{"defaults", "nofail", "_netdev", "x-systemd.automount", "user", "default_permissions"}, usual, givenOptions{}},
		{[]string{"ro", "noexec"}, usual | unix.MS_RDONLY | unix.MS_NOEXEC, givenOptions{words: []string{"ro", "noexec"}}},
		{[]string{"ro", "rw", "dev", "suid"}, 0, givenOptions{words: []string{"ro", "rw", "dev", "suid"}}},
		{[]string{"allow_other", "context=system_u:object_r:virt_image_t:s0"}, usual,
			givenOptions{allowOther: true, kernel: []string{"context=system_u:object_r:virt_image_t:s0"}}},
	} {
		got, err := mountOptions(c.in)
		if err != nil {
			t.Errorf("%v: %v", c.in, err)
		}
		if got.flags != c.flags || got.allowOther != c.want.allowOther ||
			!slices.Equal(got.words, c.want.words) || !slices.Equal(got.kernel, c.want.kernel) {
			t.Errorf("%v: %+v, flags want %#x", c.in, got, c.flags)
		}
	}
	for _, bad := range []string{"", "ro=1", "max_read=3", "fd=3", "context"} {
		if _, err := mountOptions([]string{bad}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestErrnoOf(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("outer: %w", fmt.Errorf("inner: %w", err)) }
	for _, c := range []struct {
		err      error
		want     syscall.Errno
		expected bool
	}{
		{nil, 0, true},
		{wrap(chain.ErrExist), unix.EEXIST, true},
		{wrap(chain.ErrNotExist), unix.ENOENT, true},
		{wrap(chain.ErrInvalid), unix.EINVAL, true},
		{wrap(chain.ErrBusy), unix.EBUSY, true},
		{wrap(chain.ErrReadOnly), unix.EROFS, true},
		{wrap(chain.ErrChanged), unix.EIO, false},
		{wrap(chain.ErrInUse), unix.EBUSY, true},
		{wrap(hostfs.ErrLocked), unix.EBUSY, true},
		{wrap(qcow2.ErrCorrupt), unix.EIO, false},
		{wrap(qcow2.ErrUnsupported), unix.EIO, false},
		{errors.Join(overlay.ErrFailed, unix.ENOSPC), unix.EIO, false},
		{wrap(refuse(unix.EXDEV, "no")), unix.EXDEV, true},
		{wrap(context.Canceled), unix.EINTR, true},
		{wrap(context.DeadlineExceeded), unix.ETIMEDOUT, true},
		{wrap(&os.PathError{Op: "pwrite", Path: "f", Err: unix.ENOSPC}), unix.ENOSPC, false},
		{wrap(unix.EDQUOT), unix.EDQUOT, false},
		{wrap(unix.EACCES), unix.EACCES, false},
		{wrap(os.ErrPermission), unix.EACCES, false},
		{wrap(errors.ErrUnsupported), unix.EOPNOTSUPP, true},
		// The host's, where it would mean something else to our caller.
		{wrap(unix.ENOENT), unix.EIO, false},
		{wrap(unix.EEXIST), unix.EIO, false},
		{wrap(unix.EINVAL), unix.EIO, false},
		{wrap(unix.ENOSYS), unix.EIO, false},
		{wrap(unix.EINTR), unix.EIO, false},
		{unix.ENOSYS, unix.EIO, false},
		{io.EOF, unix.EIO, false},
		{io.ErrUnexpectedEOF, unix.EIO, false},
		{errors.New("anything"), unix.EIO, false},
	} {
		if got, expected := errnoOf(c.err); got != c.want || expected != c.expected {
			t.Errorf("%v: %v, %v; want %v, %v", c.err, got, expected, c.want, c.expected)
		}
	}
}

func TestRepeatedErrorsAreCounted(t *testing.T) {
	var r repeatFilter
	now := time.Now()
	for i, c := range []struct {
		what, text string
		after      time.Duration
		dropped    int
		write      bool
	}{
		{"read", "a", 0, 0, true},
		{"read", "a", 10 * time.Millisecond, 0, false},
		{"read", "a", 10 * time.Millisecond, 0, false},
		{"read", "b", 0, 2, true},
		{"write", "b", 0, 0, true},
		{"write", "b", quietFor, 0, true},
	} {
		now = now.Add(c.after)
		if dropped, write := r.pass(c.what, c.text, now); dropped != c.dropped || write != c.write {
			t.Errorf("%d: %d, %v; want %d, %v", i, dropped, write, c.dropped, c.write)
		}
	}
}

// M19: locks are the kernel's own, so QEMU's image locks work between the
// processes of this host and go with a close.
func TestLocks(t *testing.T) {
	dir, _, _ := mounted(t, mib, Options{})
	path := filepath.Join(dir, nameDisk)
	lock := func(file *os.File) error {
		return unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 100, Len: 1})
	}
	first, second := open(t, path, os.O_RDWR), open(t, path, os.O_RDWR)
	if err := lock(first); err != nil {
		t.Fatalf("lock: %v", err)
	}
	if err := lock(second); err != unix.EAGAIN {
		t.Errorf("a second lock: %v, want EAGAIN", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := lock(second); err != nil {
		t.Errorf("after the first was closed: %v", err)
	}
}
