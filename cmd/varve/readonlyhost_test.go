package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDoctorOfAReadOnlyHost: after an error of its device the host's file system goes
// read-only, the log with it.
func TestDoctorOfAReadOnlyHost(t *testing.T) {
	dir := hostDir(t)
	host := smallHost(t, dir, 64<<20)
	must(t, host, "create", "vm.varve", "--size", "8M")
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "mount", "host/vm.varve", "mnt")
	put(t, dir+"/mnt", "hello", 0)
	device := strings.TrimSpace(tool(t, dir, "findmnt", "-nro", "SOURCE", host))
	tool(t, dir, "mount", "-o", "remount,errors=remount-ro", host)
	if err := os.WriteFile("/sys/fs/ext4/"+filepath.Base(device)+"/trigger_fs_error", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	r := vv(t, dir, "doctor", "mnt")
	if r.code != exitFailed || !strings.Contains(strings.Join(strings.Fields(r.stdout), " "), "problem the host's file system is read-only: ") {
		t.Errorf("exit %d, says %s", r.code, r.stdout)
	}
	vv(t, dir, "umount", "mnt") // that it fails is not this test's
}
