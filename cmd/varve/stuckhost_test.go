package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"varve/chain/mounts"
	testpatience "varve/integration/patience"
)

// asLoopback makes this test program serve a directory at another: "FROM:AT".
const asLoopback = "VARVE_TEST_AS_LOOPBACK"

// serveLoopback is the program of hangingHost.
func serveLoopback(places string) int {
	from, at, _ := strings.Cut(places, ":")
	root, err := gofs.NewLoopbackRoot(from)
	if err == nil {
		var server *fuse.Server
		// Nothing is kept by the kernel, so that each look asks.
		server, err = gofs.Mount(at, root, &gofs.Options{MountOptions: fuse.MountOptions{FsName: "loopback", Name: "loopback", DirectMount: true}})
		if err == nil {
			server.Wait()
			return 0
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// hangingHost is a directory on a file system that can be stopped, as a network's
// disk that is gone; it goes on at the end.
func hangingHost(t *testing.T, dir string) (host string, stop func()) {
	t.Helper()
	host = dir + "/host"
	for _, d := range []string{dir + "/below", host} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	server := exec.Command("/proc/self/exe")
	server.Env = append(os.Environ(), asLoopback+"="+dir+"/below:"+host)
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	go server.Wait() // it ends when it is unmounted
	eventually(t, "the host's file system is mounted", func() bool {
		_, _, there, err := mounts.Top(host)
		return err == nil && there
	})
	return host, func() { stopped(t, server.Process.Pid) }
}

// within runs varve and expects it to end although something hangs.
func within(t *testing.T, dir string, args ...string) result {
	t.Helper()
	done := make(chan result, 1)
	begun := time.Now()
	go func() { done <- finish(t, command(dir, args...)) }()
	select {
	case r := <-done:
		t.Logf("%v took %s", args, time.Since(begun))
		return r
	case <-time.After(testpatience.Hang):
		t.Errorf("varve %v goes on", args)
		return result{}
	}
}

// A disk whose file system hangs holds up neither other disks' doctor nor its own, and
// metrics of all mounts are there, again and again, while its daemon is stuck.
func TestDiskOnAHangingHost(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	host, stop := hangingHost(t, dir)
	lost := dir + "/lost"
	if err := os.Mkdir(lost, 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "create", host+"/lost.varve", "--size", "3M")
	must(t, dir, "mount", host+"/lost.varve", lost)
	for link, to := range map[string]string{"near": mnt + "/disk.raw", "far": lost + "/disk.raw", "away": host + "/lost.varve"} {
		if err := os.Symlink(to, dir+"/"+link); err != nil {
			t.Fatal(err)
		}
	}
	must(t, dir, "doctor", "far")
	stop()
	// Somebody reads, and so the daemon is stuck too.
	reader := exec.Command("dd", "if="+lost+"/disk.raw", "of=/dev/null", "bs=64k", "count=1", "iflag=direct")
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	go reader.Wait()

	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() {
		if r := within(t, dir, "doctor", mnt); r.code != exitDone {
			t.Errorf("another disk: exit %d, says %s%s", r.code, r.stdout, r.stderr)
		}
	})
	for _, args := range [][]string{{"doctor"}, {"doctor", lost}, {"doctor", "far"}, {"doctor", host + "/lost.varve"}, {"doctor", "away"}} {
		running.Go(func() {
			r := within(t, dir, args...)
			if text := strings.Join(strings.Fields(r.stdout), " "); r.code != exitFailed || !strings.Contains(text, host+"/lost.varve problem the file system that it is on gives no answer within 5s") {
				t.Errorf("%v: exit %d, says %s%s", args, r.code, r.stdout, r.stderr)
			}
		})
	}
	running.Go(func() {
		for code, args := range [][]string{exitDone: {"metrics", "--all"}, exitFailed: {"metrics", mnt, lost}} {
			r := within(t, dir, args...)
			up, lostUp := sampleOf(r.stdout, `varve_up{disk="`+dir+`/vm.raw.varve",mountpoint="`+mnt+`"}`), sampleOf(r.stdout, `varve_up{disk="`+host+`/lost.varve"`)
			if r.code != code || up != "1" || lostUp != "0" {
				t.Errorf("%v: exit %d, the other is up: %q, this one: %q\n%s", args, r.code, up, lostUp, r.stderr)
			}
		}
		// What was left behind is one process, however often it was asked for.
		if n := leftBehind(t, lost, "metrics"); n != 1 {
			t.Errorf("%d processes wait for the mount's metrics", n)
		}
	})
	running.Go(func() {
		if r := within(t, dir, "metrics", host+"/lost.varve"); r.code != exitFailed || !strings.Contains(r.stderr, "no answer within 5s") {
			t.Errorf("metrics by the directory: exit %d, says %s%s", r.code, r.stdout, r.stderr)
		}
	})
	running.Go(func() {
		if r := within(t, dir, "list"); r.code != exitDone || !strings.Contains(r.stdout, "4 MiB") {
			t.Errorf("list: exit %d, says %s%s", r.code, r.stdout, r.stderr)
		}
	})
}

// leftBehind counts the processes that wait for a file of a mount.
func leftBehind(t *testing.T, mountpoint, file string) int {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/task/*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	pids := map[string]bool{}
	for _, line := range lines {
		if text, err := os.ReadFile(line); err == nil && strings.HasPrefix(string(text), "varve-aside\x00") && strings.Contains(string(text), strconv.Quote(mountpoint)) && strings.Contains(string(text), strconv.Quote(file)) {
			pids[strings.Split(line, "/")[2]] = true
		}
	}
	return len(pids)
}

// A link into a mount that hangs, or is gone, is followed to the mount and not into it.
func TestDoctorOfALinkIntoAHungMount(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	if err := os.Symlink(mnt+"/disk.raw", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	goOn := stopped(t, daemonOf(t, dir+"/vm.raw.varve"))
	if r := within(t, dir, "doctor", "link"); r.code != exitFailed || !strings.Contains(r.stdout, mnt+"\n  problem  its daemon gives no answer") {
		t.Errorf("exit %d, says %s%s", r.code, r.stdout, r.stderr)
	}
	goOn()
	killed(t, dir+"/vm.raw.varve")
	if r := within(t, dir, "doctor", "link"); r.code != exitFailed || !strings.Contains(r.stdout, mnt+"\n  problem  its daemon is gone") {
		t.Errorf("exit %d, says %s%s", r.code, r.stdout, r.stderr)
	}
}
