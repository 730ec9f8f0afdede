package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOtherFormats: an image of another format is refused wherever it is given for the
// first time, by its name and with the command that makes a raw one of it; --format raw
// takes it as it is, once and for all.
func TestOtherFormats(t *testing.T) {
	dir := hostDir(t)
	if err := os.Mkdir(dir+"/mnt", 0o755); err != nil {
		t.Fatal(err)
	}
	image(t, dir+"/src.raw", 4<<20, 1<<20)
	tool(t, dir, "qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", "src.raw", "a b.vmdk")
	tool(t, dir, "qemu-img", "convert", "-O", "vpc", "-o", "subformat=fixed,force_size", "src.raw", "c.img")
	tool(t, dir, "gzip", "-k", "src.raw")
	for file, words := range map[string][]string{
		"a b.vmdk":   {"a VMDK image", "qemu-img convert -f vmdk -O raw '" + dir + "/a b.vmdk' '" + dir + "/a b.raw'"},
		"c.img":      {"a VHD image of a fixed size", "qemu-img convert -f vpc -O raw " + dir + "/c.img " + dir + "/c.raw"},
		"src.raw.gz": {"compressed with gzip", "gzip -dc " + dir + "/src.raw.gz > " + dir + "/src-2.raw"},
	} {
		refused := append([]string{"--format raw"}, words...)
		fails(t, dir, exitFailed, refused, "mount", file, "mnt")
		fails(t, dir, exitFailed, refused, "mount", "--read-only", file, "mnt")
		fails(t, dir, exitFailed, refused, "create", "d.varve", "--base", file)
		fails(t, dir, exitFailed, words, "mount", "--format", "qcow2", file, "mnt")
		r := vv(t, dir, "doctor", file)
		said := strings.Join(strings.Fields(r.stdout), " ")
		if r.code != exitFailed || !strings.Contains(said, words[0]) || !strings.Contains(said, words[1]) {
			t.Errorf("doctor %s: %d: %s%s", file, r.code, r.stdout, r.stderr)
		}
		for _, made := range []string{dir + "/" + file + ".varve", dir + "/d.varve"} {
			if _, err := os.Stat(made); err == nil {
				t.Errorf("%s was made", made)
			}
		}
	}

	must(t, dir, "mount", "--format", "raw", "c.img", "mnt")
	tool(t, dir, "cmp", "c.img", "mnt/disk.raw")
	must(t, dir, "umount", "mnt")
	must(t, dir, "mount", "c.img", "mnt")
	must(t, dir, "umount", "mnt")
	must(t, dir, "doctor", "c.img")
}

// TestGuestWritesOtherFormats: what a guest writes to both ends of its own disk is never
// taken for a format, by a later mount, a clone, a rebase or a disk that a header calls
// raw.
func TestGuestWritesOtherFormats(t *testing.T) {
	dir := hostDir(t)
	if err := os.Mkdir(dir+"/mnt", 0o755); err != nil {
		t.Fatal(err)
	}
	image(t, dir+"/vm.raw", 4<<20, 1<<20)
	must(t, dir, "mount", "vm.raw", "mnt")
	put(t, dir+"/mnt", "KDMV", 0)
	put(t, dir+"/mnt", "conectix", 4<<20-512)
	must(t, dir, "snapshot", "mnt", "one")
	must(t, dir, "clone", "mnt", "one", "clone.varve")
	must(t, dir, "umount", "mnt")
	for _, disk := range []string{"vm.raw", "clone.varve"} {
		must(t, dir, "mount", disk, "mnt")
		if got := get(t, dir+"/mnt/disk.raw", 0, 4) + get(t, dir+"/mnt/disk.raw", 4<<20-512, 8); got != "KDMVconectix" {
			t.Errorf("%s: %q", disk, got)
		}
		must(t, dir, "umount", "mnt")
		must(t, dir, "check", disk)
	}

	// As the base of another disk it was given for the first time, with consent, and may
	// be moved.
	image(t, dir+"/base.raw", 4<<20, 1<<20)
	patch(t, dir+"/base.raw", 0, []byte("\x1f\x8b\x08"))
	must(t, dir, "create", "on.varve", "--base", "base.raw", "--format", "raw")
	if err := os.Rename(dir+"/base.raw", dir+"/moved.raw"); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "rebase", "on.varve", "--base", "moved.raw")
	must(t, dir, "mount", "on.varve", "mnt")
	must(t, dir, "umount", "mnt")

	// A header that calls it raw is a word of consent, and is named.
	tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "moved.raw", "-F", "raw", "top.qcow2")
	r := must(t, dir, "mount", "top.qcow2", "mnt")
	if !strings.Contains(r.stderr, "note: "+dir+"/moved.raw is read as raw, as "+dir+"/top.qcow2 says of it, and looks like another thing: compressed with gzip") {
		t.Errorf("mount says %s", r.stderr)
	}
	must(t, dir, "umount", "mnt")
	if err := os.RemoveAll(dir + "/top.qcow2.varve"); err != nil {
		t.Fatal(err)
	}
	said := strings.Join(strings.Fields(vv(t, dir, "doctor", "top.qcow2").stdout), " ")
	if !strings.Contains(said, "is raw, and that looks like another thing: compressed with gzip") {
		t.Errorf("doctor says %s", said)
	}
}

// TestLUKS: a disk that a guest, or QEMU, has encrypted as a whole is a raw disk, and a
// mount says so; an ISO image is one as well.
func TestLUKS(t *testing.T) {
	dir := hostDir(t)
	if err := os.Mkdir(dir+"/mnt", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "data.raw"), append([]byte("LUKS\xba\xbe\x00\x02"), make([]byte, 1<<20-8)...), 0o600); err != nil {
		t.Fatal(err)
	}
	r := must(t, dir, "mount", "data.raw", "mnt")
	if !strings.Contains(r.stderr, "note: "+dir+"/data.raw is a LUKS container") {
		t.Errorf("mount says %s", r.stderr)
	}
	must(t, dir, "umount", "mnt")
	must(t, dir, "doctor", "data.raw")

	iso := append(bytes.Repeat([]byte{0}, 32768), append([]byte("\x01CD001\x01"), make([]byte, 1<<20)...)...)
	if err := os.WriteFile(filepath.Join(dir, "live.iso"), iso[:1<<20], 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, dir, exitFailed, []string{"it does not begin with its magic", "--format raw"}, "mount", "--format", "qcow2", "live.iso", "mnt")
	must(t, dir, "mount", "live.iso", "mnt")
	must(t, dir, "umount", "mnt")
}
