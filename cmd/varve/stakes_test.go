package main

import (
	"os"
	"strings"
	"testing"

	"varve/cmd/varve/internal/doctor"
)

// An image of QEMU's that stands on disk.raw is left what it stands on: a revert and an
// undo are refused, and a snapshot says what it lacks.
func TestOverlayOnDiskRaw(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	put(t, mnt, "before", 0)
	must(t, dir, "snapshot", "mnt", "one")
	put(t, mnt, "after!", 0)
	tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "mnt/disk.raw", "-F", "raw", "x1.qcow2")
	tool(t, dir, "qemu-io", "-c", "write -P 7 1M 64k", "x1.qcow2")

	r := must(t, dir, "snapshot", "mnt", "two")
	if want := "varve: snapshot mnt: " + dir + "/x1.qcow2, which stands on disk.raw, lies beside the disk: what the guest wrote there is not in the snapshot; with no VM running: qemu-img commit "; !strings.HasPrefix(r.stderr, want) {
		t.Errorf("snapshot says %q", r.stderr)
	}
	words := []string{dir + "/x1.qcow2, which stands on disk.raw, lies beside the disk: that image would then stand on another disk content; ", "qemu-img commit"}
	fails(t, dir, exitFailed, append(words, "revert mnt: "), "revert", "mnt", "one")
	fails(t, dir, exitFailed, append(words, "revert mnt: "), "revert", "mnt", "one", "--discard-saved-state")
	says(t, dir, []string{"mnt"}, "problem vm-overlay "+dir+"/vm.raw.varve: "+dir+"/x1.qcow2, which stands on disk.raw, lies beside the disk: a snapshot by varve lacks what is in it, and a revert destroys it; ")
	image(t, dir+"/img", 1<<20, 1<<20)
	fails(t, dir, exitFailed, append(words, "import mnt: "), "import", "img", "mnt")
	// Also of a disk that is not mounted: the path is that of the last mount.
	must(t, dir, "umount", "mnt")
	fails(t, dir, exitFailed, append(words, "revert vm.raw: "), "revert", "vm.raw", "one")
	must(t, dir, "mount", "vm.raw", "mnt")
	if got := get(t, mnt+"/disk.raw", 0, 6); got != "after!" {
		t.Errorf("disk.raw has %q", got)
	}

	tool(t, dir, "qemu-img", "commit", "-q", "x1.qcow2") // the way out
	if got := get(t, mnt+"/disk.raw", 1<<20, 2); got != "\a\a" {
		t.Errorf("the commit left %q", got)
	}
	if err := os.Remove(dir + "/x1.qcow2"); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "revert", "mnt", "one")
	tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "mnt/disk.raw", "-F", "raw", "x1.qcow2")
	fails(t, dir, exitFailed, append(words, "undo mnt: "), "undo", "mnt")
	must(t, dir, "resize", "mnt", "8M") // which nothing on top of it notices
}

// Memory is given up only when nothing else is in the way: with an image on disk.raw the
// revert is refused all the same.
func TestNothingIsGivenUpForARefusal(t *testing.T) {
	memory, image := doctor.Stake{Saved: true, What: "memory"}, doctor.Stake{What: "image"}
	for _, c := range []struct {
		name              string
		discard, overlays bool
		stakes            []doctor.Stake
		words             string
	}{
		{"nothing", false, true, nil, ""},
		{"memory", false, true, []doctor.Stake{memory}, "memory: on another disk content that would destroy"},
		{"memory, given up", true, true, []doctor.Stake{memory}, ""},
		{"an image behind memory that is given up", true, true, []doctor.Stake{memory, image}, "image: that image would then stand on another disk content"},
		{"an image that does not matter", true, false, []doctor.Stake{image}, ""},
	} {
		err := (&savedStateFlag{discard: c.discard}).refuse(c.stakes, c.overlays)
		if (err == nil) != (c.words == "") || err != nil && !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want %q", c.name, err, c.words)
		}
	}
}

// What root runs as another user has that user's environment, and nothing of root's.
func TestCommandAsAnotherUser(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/0")
	t.Setenv("PASSWORD", "root's")
	c, err := commandAs("nobody", []string{"sh", "-c", "id -u; pwd; env; echo into the terminal >/dev/tty"})
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.CombinedOutput()
	if err == nil || !strings.HasPrefix(string(out), "65534\n/\n") || !strings.Contains(string(out), "\nUSER=nobody\n") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, of := range []string{"PASSWORD", "/run/user/0", "/root"} {
		if strings.Contains(string(out), of) {
			t.Errorf("%s is there:\n%s", of, out)
		}
	}
	if _, err := commandAs("no such user", []string{"true"}); err == nil {
		t.Error("no error")
	}
}
