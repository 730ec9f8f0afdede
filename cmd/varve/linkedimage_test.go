package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// linked makes two images and a link to the first, which is mounted by the link; the VM
// writes to it.
func linked(t *testing.T, link string) (dir string) {
	t.Helper()
	dir = hostDir(t)
	for _, d := range []string{"mnt", "images"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	image(t, dir+"/images/a.raw", 4<<20, 1<<20)
	image(t, dir+"/images/b.raw", 4<<20, 1<<20)
	relink(t, "images/a.raw", filepath.Join(dir, link))
	return dir
}

func relink(t *testing.T, to, link string) {
	t.Helper()
	if err := os.RemoveAll(link); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(to, link); err != nil {
		t.Fatal(err)
	}
}

// A link that was made to lead to another image makes no new, empty disk without a word of
// consent, and the line names the disk that has the VM's data.
func TestLinkToAnotherImage(t *testing.T) {
	dir := linked(t, "current.raw")
	fails(t, dir, exitFailed, []string{"it is a symbolic link to " + dir + "/images/a.raw, which has no disk yet", "name that file or say --new", "stands beside that file"}, "mount", "current.raw", "mnt")
	must(t, dir, "mount", "--new", "current.raw", "mnt")
	put(t, dir+"/mnt", "the guest's", 0)
	must(t, dir, "umount", "current.raw")
	must(t, dir, "mount", "current.raw", "mnt") // the disk is there: nothing to consent to
	must(t, dir, "umount", "mnt")

	relink(t, "images/b.raw", dir+"/current.raw")
	want := []string{"it is a symbolic link to " + dir + "/images/b.raw, which has no disk yet", "if the VM's disk is " + dir + "/images/a.raw.varve, mount that directory"}
	fails(t, dir, exitFailed, want, "mount", "current.raw", "mnt")
	relink(t, dir+"/current.raw", dir+"/by-a-second-link")
	fails(t, dir, exitFailed, want, "mount", "by-a-second-link", "mnt")
	if _, err := os.Stat(dir + "/images/b.raw.varve"); !os.IsNotExist(err) {
		t.Fatalf("a mount that was refused made a disk: %v", err)
	}
	must(t, dir, "mount", "images/a.raw.varve", "mnt")
	if got := get(t, dir+"/mnt/disk.raw", 0, 11); got != "the guest's" {
		t.Errorf("disk.raw has %q", got)
	}
	must(t, dir, "umount", "mnt")

	// Each of the ways out makes a disk of the new image's.
	must(t, dir, "mount", "current.raw", "mnt", "--disk", "elsewhere.varve")
	must(t, dir, "umount", "mnt")
	fails(t, dir, exitFailed, []string{"belongs to another image, " + dir + "/images/b.raw"}, "mount", "images/a.raw", "mnt", "--disk", "elsewhere.varve")
	must(t, dir, "mount", "images/b.raw", "mnt")
	if got := get(t, dir+"/mnt/disk.raw", 0, 11); got == "the guest's" {
		t.Error("another image's disk has what the guest wrote")
	}
	must(t, dir, "umount", "mnt")
}

// The image was moved and a link left in its place: the disk directory stays beside the
// link, under its name.
func TestImageMovedBehindALink(t *testing.T) {
	dir := linked(t, "unused.raw")
	must(t, dir, "mount", "images/a.raw", "mnt")
	must(t, dir, "umount", "mnt")
	if err := os.Rename(dir+"/images/a.raw", dir+"/a.raw"); err != nil {
		t.Fatal(err)
	}
	relink(t, "../a.raw", dir+"/images/a.raw")
	if err := os.Mkdir(dir+"/other", 0o700); err != nil {
		t.Fatal(err)
	}
	fails(t, dir, exitFailed, []string{"if the VM's disk is " + dir + "/images/a.raw.varve, mount that directory"}, "mount", "images/a.raw", "other")
	must(t, dir, "rebase", "images/a.raw.varve", "--base", "a.raw")
	must(t, dir, "mount", "images/a.raw.varve", "other")
	must(t, dir, "umount", "other")
}

// What a link is called and where it stands says nothing: the same file has the same disk.
// A mount that writes nothing asks for no consent.
func TestLinksToTheSameImage(t *testing.T) {
	dir := linked(t, "current.raw")
	if r := must(t, dir, "mount", "--read-only", "current.raw", "mnt"); strings.Contains(r.stderr, "symbolic link") {
		t.Errorf("says %q", r.stderr)
	}
	must(t, dir, "umount", "mnt")
	must(t, dir, "mount", "images/a.raw", "mnt")
	put(t, dir+"/mnt", "the guest's", 0)
	must(t, dir, "umount", "mnt")
	relink(t, "images", dir+"/by-directory")
	relink(t, "images/a.raw", dir+"/renamed.raw")
	for _, path := range []string{"current.raw", "renamed.raw", "by-directory/a.raw", dir + "/renamed.raw"} {
		must(t, dir, "mount", path, "mnt")
		if got := get(t, dir+"/mnt/disk.raw", 0, 11); got != "the guest's" {
			t.Errorf("by %s disk.raw has %q", path, got)
		}
		must(t, dir, "umount", path)
	}
}
