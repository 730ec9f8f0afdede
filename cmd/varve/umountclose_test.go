package main

import (
	"strings"
	"syscall"
	"testing"

	"varve/chain/dirlock"
	"varve/chain/mounts"
)

// umount says what became of its own mount, though somebody has mounted the disk again before
// it looked.
func TestUmountBeforeAQuickMount(t *testing.T) {
	for _, c := range []struct {
		name  string
		kill  bool
		words string // of umount; "" for success
	}{
		{"in order", false, ""},
		{"killed", true, "the daemon could not close the disk in order"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, mnt := mounted(t, 4<<20, 1<<20)
			put(t, mnt, "data", 0)
			pid := daemonOf(t, dir+"/vm.raw.varve")
			goOn := stopped(t, pid)
			umount := command(dir, "umount", "mnt")
			var words strings.Builder
			umount.Stderr = &words
			if err := umount.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is unmounted", func() bool {
				_, there, err := mounts.At(mnt)
				return err == nil && !there
			})
			// It waits for the daemon; what comes now it finds when it goes on.
			if err := umount.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			if c.kill {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			goOn()
			eventually(t, "the daemon has let go", func() bool {
				_, _, held, err := dirlock.Holder(dir + "/vm.raw.varve")
				return err == nil && !held
			})
			must(t, dir, "mount", "vm.raw", "mnt")
			if err := umount.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			err := umount.Wait()
			if (err == nil) != (c.words == "") || !strings.Contains(words.String(), c.words) || c.words == "" && words.Len() > 0 {
				t.Errorf("umount: %v, says %q", err, words.String())
			}
			must(t, dir, "umount", "mnt")
		})
	}
}

// Of a disk directory that was moved umount says what is true: nothing where all was closed in
// order, also with a copy in its place; and what was lost where the daemon was killed.
func TestUmountOfAMovedDirectory(t *testing.T) {
	for _, plant := range []string{"mv vm.raw.varve moved", "mv vm.raw.varve moved; cp -a moved vm.raw.varve"} {
		dir, mnt := mounted(t, 4<<20, 1<<20)
		put(t, mnt, "data", 0)
		tool(t, dir, "sh", "-ec", plant)
		if r := must(t, dir, "umount", "mnt"); r.stderr != "" {
			t.Errorf("after %q: %q", plant, r.stderr)
		}
		if clean, err := dirlock.ClosedInOrder(dir + "/moved"); !clean || err != nil {
			t.Errorf("after %q: %v, %v", plant, clean, err)
		}
	}
	dir, mnt := mounted(t, 4<<20, 1<<20)
	put(t, mnt, "data", 0)
	pid := daemonOf(t, dir+"/vm.raw.varve")
	goOn := stopped(t, pid)
	tool(t, dir, "mv", "vm.raw.varve", "moved")
	umount := command(dir, "umount", "mnt")
	var words strings.Builder
	umount.Stderr = &words
	if err := umount.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is unmounted", func() bool {
		_, there, err := mounts.At(mnt)
		return err == nil && !there
	})
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	goOn()
	if err := umount.Wait(); err == nil || !strings.Contains(words.String(), "could not close the disk in order") || !strings.Contains(words.String(), dir+"/moved/varve.log says why") {
		t.Errorf("umount: %v, says %q", err, words.String())
	}
}
