package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"varve/chain/mounts"
)

// TestUmountKeepsWhatWasRemoved: what removes files beneath a mount (a cleaner of /tmp, a
// hand that slips) takes nothing from the disk while the daemon has them open. So umount
// does not end that, and says how to get it out.
func TestUmountKeepsWhatWasRemoved(t *testing.T) {
	for _, what := range []string{"layers/000003.qcow2", "."} {
		t.Run(filepath.Base(what), func(t *testing.T) {
			dir, mnt := mounted(t, 8<<20, 1<<20)
			put(t, mnt, "first", 1<<20)
			must(t, dir, "snapshot", "mnt", "one")
			put(t, mnt, "second", 2<<20)
			if err := os.RemoveAll(filepath.Join(dir, "vm.raw.varve", what)); err != nil {
				t.Fatal(err)
			}
			way := "varve flatten "
			if what == "." {
				way = "copy disk.raw"
			}
			fails(t, dir, exitFailed, []string{"vm.raw.varve/", way, "--lazy"}, "umount", "mnt")
			if what != "." {
				if r := vv(t, dir, "doctor", "mnt"); r.code != exitFailed || !strings.Contains(strings.Join(strings.Fields(r.stdout), " "), "do not unmount the disk: its daemon still has the file open") {
					t.Errorf("doctor: exit %d, says %s", r.code, r.stdout)
				}
			}
			tool(t, dir, "cp", "--sparse=auto", "mnt/disk.raw", "rescued.raw")
			must(t, dir, "umount", "--lazy", "mnt")
			rescued, err := os.ReadFile(dir + "/rescued.raw")
			if err != nil {
				t.Fatal(err)
			}
			for off, text := range map[int]string{1 << 20: "first", 2 << 20: "second"} {
				if !bytes.HasPrefix(rescued[off:], []byte(text)) {
					t.Errorf("%q is not rescued", text)
				}
			}
		})
	}
}

// TestRemovedLayersAreRescued: nothing is built on a layer whose file was removed, or replaced,
// beneath a mount, everybody who looks is told, and a flatten of the leaf keeps what the guest
// has written.
func TestRemovedLayersAreRescued(t *testing.T) {
	for _, c := range []struct {
		what, file, layer string
		replace           bool
	}{
		{"the leaf's, removed", "layers/000003.qcow2", "the leaf", false},
		{"the leaf's, replaced", "layers/000003.qcow2", "the leaf", true},
		{"a snapshot's", "layers/000002.qcow2", "one", false},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir, mnt := mounted(t, 8<<20, 1<<20)
			path := filepath.Join(dir, "vm.raw.varve", c.file)
			put(t, mnt, "first", 1<<20)
			must(t, dir, "snapshot", "mnt", "one")
			put(t, mnt, "second", 2<<20)
			if c.replace {
				image(t, dir+"/other", 1<<20, 1<<20)
				tool(t, dir, "mv", "other", path)
			} else {
				tool(t, dir, "rm", path)
			}
			for _, command := range [][]string{{"snapshot", "mnt", "two"}, {"snapshot", "mnt", "--auto"}} {
				fails(t, dir, exitFailed, []string{"the file of " + c.layer + ", " + path + ", was re", "varve flatten " + dir + "/vm.raw.varve leaf"}, command...)
			}
			fails(t, dir, exitFailed, []string{path, "removed or replaced", "varve flatten ", "--lazy"}, "umount", "mnt")
			if r := vv(t, dir, "doctor", "mnt"); r.code != exitFailed || !strings.Contains(strings.Join(strings.Fields(r.stdout), " "), "do not unmount the disk: its daemon still has the file open") {
				t.Errorf("doctor: exit %d, says %s", r.code, r.stdout)
			}
			for _, command := range []string{"status", "list", "tree"} {
				if r := must(t, dir, command, "mnt"); !strings.Contains(r.stdout, "its file was removed: do not unmount") {
					t.Errorf("%s says %s", command, r.stdout)
				}
			}
			for _, l := range document(t, dir, "mnt").Layers {
				if l.Lost != (l.File == path) {
					t.Errorf("status.json: %+v", l)
				}
			}
			daemon := daemonOf(t, dir+"/vm.raw.varve")
			if err := syscall.Kill(daemon, syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the log says why it is not unmounted", func() bool {
				return strings.Contains(logOf(t, dir+"/vm.raw.varve"), "not unmounted: files of the disk were removed or replaced")
			})
			put(t, mnt, "third", 3<<20)
			if c.layer == "one" {
				must(t, dir, "export", "mnt", "one", "one.raw")
				if got := get(t, dir+"/one.raw", 1<<20, 5); got != "first" {
					t.Errorf("one has %q", got)
				}
			}
			must(t, dir, "flatten", "mnt", "leaf")
			if c.layer == "one" {
				fails(t, dir, exitFailed, []string{path}, "umount", "mnt")
				must(t, dir, "delete", "mnt", "one")
			}
			must(t, dir, "snapshot", "mnt", "two")
			must(t, dir, "umount", "mnt")
			must(t, dir, "check", "vm.raw.varve")
			must(t, dir, "export", "vm.raw.varve", "leaf", "leaf.raw")
			for off, text := range map[int64]string{1 << 20: "first", 2 << 20: "second", 3 << 20: "third"} {
				if got := get(t, dir+"/leaf.raw", off, len(text)); got != text {
					t.Errorf("at %d there is %q, not %q", off, got, text)
				}
			}
			tool(t, dir, "cmp", "-n", "1048576", "leaf.raw", "vm.raw")
		})
	}
}

// TestSecondSignalOfALostDisk: a second SIGTERM unmounts a disk whose files were removed, and
// the end says what was lost; a base counts like a layer.
func TestSecondSignalOfALostDisk(t *testing.T) {
	dir, mnt := mounted(t, 8<<20, 1<<20)
	daemon := daemonOf(t, dir+"/vm.raw.varve")
	tool(t, dir, "rm", "vm.raw")
	fails(t, dir, exitFailed, []string{dir + "/vm.raw was removed"}, "umount", "mnt")
	for range 2 {
		if err := syscall.Kill(daemon, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the signal is answered", func() bool {
			return strings.Contains(logOf(t, dir+"/vm.raw.varve"), "not unmounted: files of the disk")
		})
	}
	eventually(t, "the daemon ends", func() bool { return gone(daemon) })
	if text := logOf(t, dir+"/vm.raw.varve"); !strings.Contains(text, "vm.raw, was removed while the disk was mounted, and what was in it is lost") {
		t.Errorf("the log says\n%s", text)
	}
	if _, there, err := mounts.At(mnt); err != nil || there {
		t.Errorf("it is mounted still (%v)", err)
	}
}

// TestRemovedBeneathAReadOnlyMount: such a mount has the last copy as well, and shows the way to
// have the disk copied out.
func TestRemovedBeneathAReadOnlyMount(t *testing.T) {
	dir, mnt := mounted(t, 8<<20, 1<<20)
	put(t, mnt, "kept", 1<<20)
	must(t, dir, "umount", "mnt")
	must(t, dir, "mount", "--read-only", "vm.raw", "mnt")
	tool(t, dir, "rm", "vm.raw.varve/layers/000002.qcow2")
	fails(t, dir, exitFailed, []string{"layers/000002.qcow2 was removed or replaced", "varve export " + mnt + " leaf OUT"}, "umount", "mnt")
	must(t, dir, "export", "mnt", "leaf", "out.raw")
	if got := get(t, dir+"/out.raw", 1<<20, 4); got != "kept" {
		t.Errorf("the copy has %q", got)
	}
	must(t, dir, "umount", "--lazy", "mnt")
}

// A file that is removed while umount waits is noticed before the unmount, and so is one that
// was moved away with a copy put in its place: the daemon goes on writing into the one that
// was moved.
func TestUmountMeetsALostFile(t *testing.T) {
	dir, mnt := mounted(t, 8<<20, 1<<20)
	must(t, dir, "snapshot", "mnt", "one")
	put(t, mnt, "first", 1<<20)
	leaf := dir + "/vm.raw.varve/layers/000003.qcow2"
	f, err := os.Open(mnt + "/disk.raw")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
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
	tool(t, dir, "mv", leaf, "moved")
	tool(t, dir, "cp", "moved", leaf)
	f.Close()
	if err := <-ended; err == nil || !strings.Contains(words.String(), leaf+" was removed or replaced") {
		t.Errorf("umount --wait: %v, %s", err, words.String())
	}
	put(t, mnt, "second", 2<<20)
	tool(t, dir, "mv", "moved", leaf)
	must(t, dir, "umount", "mnt")
	must(t, dir, "export", "vm.raw.varve", "leaf", "leaf.raw")
	if got := get(t, dir+"/leaf.raw", 2<<20, 6); got != "second" {
		t.Errorf("the leaf has %q", got)
	}
}
