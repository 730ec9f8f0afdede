package main

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/mounts"
	"varve/cmd/varve/internal/umount"
	"varve/cmd/varve/internal/where"
)

// With --wait the unmount comes when the last user is done, and says meanwhile
// who that is.
func TestUmountWaits(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	f, err := os.OpenFile(mnt+"/disk.raw", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fails(t, dir, exitFailed, []string{"umount mnt: it is in use: ", "close that first"}, "umount", "mnt")

	cmd := command(dir, "umount", "mnt", "--wait")
	var words strings.Builder
	cmd.Stderr = &words
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		t.Fatalf("it did not wait: %v, %s", err, words.String())
	case <-time.After(time.Second):
	}
	if _, err := f.WriteAt([]byte("written while umount waited"), 0); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := <-ended; err != nil {
		t.Fatalf("umount --wait: %v, %s", err, words.String())
	}
	if said := notices.ReplaceAllString(words.String(), ""); !strings.Contains(said, "varve: umount mnt: in use, waiting: ") || strings.Count(said, "\n") != 1 {
		t.Errorf("umount --wait said %q", said)
	}
	must(t, dir, "mount", "vm.raw", "mnt")
	if got := get(t, mnt+"/disk.raw", 0, 27); got != "written while umount waited" {
		t.Errorf("disk.raw has %q", got)
	}
	must(t, dir, "umount", "mnt", "--wait") // nobody uses it: nothing to wait for
}

// The waiting ends with the time that it was given; the disk stays mounted.
func TestUmountWaitTimeout(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	f, err := os.Open(mnt + "/disk.raw")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := vv(t, dir, "umount", "mnt", "--wait", "--timeout", "700ms")
	if r.code != exitFailed || !strings.Contains(r.stderr, "varve: umount mnt: the time of --timeout is over: it is still in use: ") || !strings.Contains(r.stderr, "it stays mounted") {
		t.Errorf("exit %d, %q", r.code, r.stderr)
	}
	if _, err := os.Stat(mnt + "/disk.raw"); err != nil {
		t.Error(err)
	}
}

// A lazy unmount takes the mount out of sight; its user goes on, and the disk is
// closed in order at the end.
func TestUmountLazily(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	f, err := os.OpenFile(mnt+"/disk.raw", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	must(t, dir, "umount", "--lazy", "mnt")
	if _, err := os.Stat(mnt + "/disk.raw"); !os.IsNotExist(err) {
		t.Errorf("disk.raw is still there: %v", err)
	}
	if _, err := f.WriteAt([]byte("late"), 0); err != nil {
		t.Error(err)
	}
	f.Close()
	eventually(t, "the disk can be mounted again", func() bool { return vv(t, dir, "mount", "vm.raw", "mnt").code == exitDone })
	if got := get(t, mnt+"/disk.raw", 0, 4); got != "late" {
		t.Errorf("disk.raw has %q", got)
	}
}

// Force is for a daemon that does not answer; from one that does nothing is taken.
func TestUmountByForce(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	f, err := os.OpenFile(mnt+"/disk.raw", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fails(t, dir, exitFailed, []string{"umount mnt: it is in use: "}, "umount", "--force", "mnt")
	if _, err := f.WriteAt([]byte("safe"), 0); err != nil {
		t.Errorf("a write after an unmount by force that was refused: %v", err)
	}
	f.Close()

	goOn := stopped(t, daemonOf(t, dir+"/vm.raw.varve"))
	time.AfterFunc(where.AnswerTime+time.Second, goOn) // for the rest it has to do something
	r := must(t, dir, "umount", "--force", mnt)
	if !strings.Contains(r.stderr, "its daemon does not answer; ending its connection") {
		t.Errorf("umount --force says %q", r.stderr)
	}
	must(t, dir, "mount", "vm.raw", "mnt")
	if got := get(t, mnt+"/disk.raw", 0, 4); got != "safe" {
		t.Errorf("disk.raw has %q", got)
	}
}

// Whoever keeps a mount busy only for a moment, and is gone when umount looks for its
// users, does not make umount fail.
func TestUmountBesideAPasserBy(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}

	// A descriptor that is under way in a socket is nobody's in /proc.
	fd, err := unix.Open(mnt, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	m, _, err := mounts.At(mnt)
	if err != nil {
		t.Fatal(err)
	}
	if err := umount.Unmount(mnt, m.Device); !errors.Is(err, unix.EBUSY) {
		t.Fatalf("the mount is not busy: %v", err)
	}
	fails(t, dir, exitFailed, []string{"by a process that cannot be seen"}, "umount", "mnt")
	time.AfterFunc(200*time.Millisecond, func() {
		unix.Close(pair[1])
		unix.Close(pair[0])
	})
	must(t, dir, "umount", "mnt")
}
