package main

import (
	"os"
	"strings"
	"testing"

	"varve/chain/mounts"
	"varve/cmd/varve/internal/where"
	"varve/integration/harness"
)

// The device number of a mount that is gone is given to the next one: what is seen there
// is no user of the disk.
func TestDeviceNumberOfAnotherDisk(t *testing.T) {
	dir := t.TempDir()
	for _, disk := range []string{"one", "two"} {
		write := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		write(os.Mkdir(dir+"/"+disk, 0o700))
		write(os.WriteFile(dir+"/"+disk+"/chain.json", []byte("{}"), 0o600))
	}
	if err := os.Symlink("one", dir+"/same"); err != nil {
		t.Fatal(err)
	}
	for source, want := range map[string]bool{"one": false, "same": false, "moved away": false, "two": true} {
		places := []mounts.Mount{{Mountpoint: "/mnt", Root: "/", Source: dir + "/" + source}}
		if got := (where.Target{Dir: dir + "/one"}).NumberIsAnothers(places); got != want {
			t.Errorf("a mount of %s: %v, want %v", source, got, want)
		}
	}
}

// TestTerminateAsksVarvesOnly: a process that a lock file says to be the daemon, and that is
// none, gets no signal.
func TestTerminateAsksVarvesOnly(t *testing.T) {
	other := processEnd(harness.KeepShell(t, "true"))
	defer other.close()
	if err := other.terminate(); err == nil || !strings.Contains(err.Error(), "it is sh, and no varve") {
		t.Errorf("%v", err)
	}
}
