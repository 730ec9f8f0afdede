package main

import (
	"os"
	"syscall"
	"testing"
	"time"

	"varve/chain/dirlock"
)

// TestCommandsDoNotMeetAnotherDisk: where a disk's mount was, another disk is
// mounted while the first daemon has not gone yet. Commands on the first must
// not reach the second.
func TestCommandsDoNotMeetAnotherDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("each command waits for the lock")
	}
	dir, mnt := mounted(t, 4<<20, 1<<20)
	f, err := os.Open(mnt + "/disk.raw") // keeps the daemon
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		f.Close() // read only
		// Its directory is removed next.
		eventually(t, "the first daemon is gone", func() bool {
			_, _, held, err := dirlock.Holder(dir + "/vm.raw.varve")
			return err == nil && !held
		})
	}()
	if err := syscall.Unmount(mnt, syscall.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "create", "two.varve", "--size", "3M")
	must(t, dir, "mount", "two.varve", "mnt")
	for _, command := range [][]string{
		{"snapshot", "vm.raw.varve", "one"},
		{"umount", "vm.raw", "--timeout", "30s"},
	} {
		fails(t, dir, exitFailed, []string{"that cannot be seen from here"}, command...)
	}
	if got := named(document(t, dir, "mnt")); got != "" {
		t.Errorf("the other disk has the snapshots %q", got)
	}
	must(t, dir, "umount", "two.varve")
}

// TestCommandRightAfterAnUnmount: a daemon that is still writing is waited for.
func TestCommandRightAfterAnUnmount(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	f, err := os.Open(mnt + "/disk.raw") // as if it took long
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Unmount(mnt, syscall.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { f.Close() })
	must(t, dir, "snapshot", "vm.raw.varve", "one")
	if got := named(document(t, dir, "vm.raw.varve")); got != "base one" {
		t.Errorf("layers: %q", got)
	}
}
