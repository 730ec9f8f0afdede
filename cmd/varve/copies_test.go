package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// A mount namespace that was made meanwhile has a copy of the mount. Who has a file open by
// it keeps the disk, and is named, by umount, by SIGTERM and by who wants the disk.
func TestCopyInUse(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	pid := namespace(t, dir, `exec 9<>mnt/disk.raw; printf "the copy's" >&9`)
	user := fmt.Sprintf("disk.raw is open (pid %d sh)", pid)
	fails(t, dir, exitFailed, []string{"umount mnt: it is in use: " + user}, "umount", "mnt")
	daemon := daemonOf(t, dir+"/vm.raw.varve")
	if err := syscall.Kill(daemon, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	logged := func(words string) func() bool {
		return func() bool {
			text, err := os.ReadFile(dir + "/vm.raw.varve/" + logName)
			return err == nil && strings.Contains(string(text), words)
		}
	}
	eventually(t, "the log names who keeps the mount", logged(`not unmounted: it is in use" signal=terminated by="`+user))
	if mountsAt(t, mnt) != 1 {
		t.Fatal("the mount was taken away under its user")
	}

	// umount(8) sees this mount namespace only.
	tool(t, dir, "umount", "mnt")
	fails(t, dir, exitFailed, []string{"cannot be seen from here (unmounted while it was in use): " + user, `"varve umount ` + dir + `/vm.raw.varve" ends it`}, "snapshot", "vm.raw", "x")
	fails(t, dir, exitFailed, []string{"cannot be seen from here", user}, "umount", "vm.raw")
	waiting := command(dir, "umount", "vm.raw", "--wait")
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the daemon was asked", logged("it is unmounted already, and ends when nobody uses it any more"))
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := waiting.Wait(); err != nil {
		t.Errorf("umount --wait: %v", err)
	}
	must(t, dir, "mount", "vm.raw", "mnt")
	if got := get(t, mnt+"/disk.raw", 0, 10); got != "the copy's" {
		t.Errorf("disk.raw has %q", got)
	}
	must(t, dir, "umount", "mnt")
}

// A copy by which no file is open keeps nothing, whoever ends the mount, and gives errors
// from then on. What was written and not flushed is on disk.
func TestIdleCopy(t *testing.T) {
	for _, how := range []string{"umount", "umount by the disk", "umount after umount(8)", "umount --lazy", "SIGTERM"} {
		t.Run(how, func(t *testing.T) {
			dir, mnt := mounted(t, 4<<20, 1<<20)
			disk := dir + "/vm.raw.varve"
			f, err := os.OpenFile(mnt+"/disk.raw", os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte("not flushed"), 0); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			pid := namespace(t, dir, "true")
			daemon := processEnd(daemonOf(t, disk))
			defer daemon.close()
			switch how {
			case "umount":
				must(t, dir, "umount", "mnt")
			case "umount by the disk":
				must(t, dir, "umount", "vm.raw")
			case "umount after umount(8)":
				tool(t, dir, "umount", "mnt")
				must(t, dir, "umount", "vm.raw")
			case "umount --lazy":
				must(t, dir, "umount", "--lazy", "mnt")
			default:
				if err := daemon.terminate(); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "the disk is let go", func() bool { return vv(t, dir, "check", "vm.raw").code == exitDone })
			out, err := exec.Command("nsenter", "--target", strconv.Itoa(pid), "--mount", "cat", mnt+"/disk.raw").CombinedOutput()
			if err == nil || !strings.Contains(string(out), "Transport endpoint is not connected") {
				t.Errorf("the copy says %.100q, %v", out, err)
			}
			must(t, dir, "mount", "--read-only", "vm.raw", "mnt")
			if got := get(t, mnt+"/disk.raw", 0, 11); got != "not flushed" {
				t.Errorf("disk.raw has %q", got)
			}
			must(t, dir, "umount", "mnt")
		})
	}
}
