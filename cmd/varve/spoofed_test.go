package main

import (
	"os"
	"strings"
	"testing"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A mount that calls itself one of a disk that is mounted elsewhere, as any user can make
// one, has umount do nothing to that disk.
func TestUmountOfASpoofedMount(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	fake := dir + "/fake"
	if err := os.Mkdir(fake, 0o700); err != nil {
		t.Fatal(err)
	}
	server, err := gofs.Mount(fake, &gofs.Inode{}, &gofs.Options{MountOptions: fuse.MountOptions{
		FsName: dir + "/vm.raw.varve", Name: "varve", DirectMount: true,
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Unmount(fake, unix.MNT_DETACH) // it may have gone
		server.Wait()
	})
	daemon := daemonOf(t, dir+"/vm.raw.varve")
	namespace(t, dir, "true") // its copy of the fake mount would have the daemon told to end
	for _, flags := range [][]string{nil, {"--lazy"}, {"--wait", "--timeout", "10s"}} {
		r := vv(t, dir, append([]string{"umount", fake}, flags...)...)
		if r.code != exitFailed || !strings.Contains(r.stderr, "vm.raw.varve, but that disk is mounted elsewhere, by pid ") {
			t.Errorf("umount %v: %+v", flags, r)
		}
	}
	if daemonOf(t, dir+"/vm.raw.varve") != daemon {
		t.Error("another daemon has the disk now")
	}
	put(t, mnt, "data", 0)
	must(t, dir, "snapshot", "mnt", "one")
}
