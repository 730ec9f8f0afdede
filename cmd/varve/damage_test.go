package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// mbr is a sector with one partition from 1 MiB to the end of a disk.
func mbr(size int64) string {
	p := make([]byte, 512)
	p[446+4] = 0x83
	binary.LittleEndian.PutUint32(p[446+8:], 2048)
	binary.LittleEndian.PutUint32(p[446+12:], uint32(size/512-2048))
	p[510], p[511] = 0x55, 0xaa
	return string(p)
}

// flipEntry makes an offset in an L2 entry of the first table of a layer of varve's
// one that is not aligned.
func flipEntry(t *testing.T, path string, entry int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var p [8]byte
	read := func(at int64) int64 {
		if _, err := f.ReadAt(p[:], at); err != nil {
			t.Fatal(err)
		}
		return int64(binary.BigEndian.Uint64(p[:]))
	}
	at := read(read(40))&0x00fffffffffffe00 + 16*entry
	binary.BigEndian.PutUint64(p[:], uint64(read(at))^1<<12)
	if _, err := f.WriteAt(p[:], at); err != nil {
		t.Fatal(err)
	}
}

// prints runs varve and expects an exit code, and words in what it prints.
func prints(t *testing.T, dir string, code int, words []string, args ...string) {
	t.Helper()
	r := vv(t, dir, args...)
	if r.code != code {
		t.Errorf("varve %v: exit %d, want %d: %s", args, r.code, code, r.stderr)
	}
	// Findings are wrapped to the width of a terminal.
	text := strings.Join(strings.Fields(r.stdout+r.stderr), " ")
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("varve %v: says %q, lacks %q", args, text, w)
		}
	}
}

// A damaged entry of a snapshot costs its own bytes: the disk mounts and is told of, and
// all else of it can be read, written and saved.
func TestDamagedDisk(t *testing.T) {
	const size, cluster, at = 20 << 20, 128 << 10, 80 * 128 << 10
	dir := hostDir(t)
	if err := os.Mkdir(dir+"/m", 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "create", "d.varve", "--size", "20M")
	must(t, dir, "mount", "d.varve", "m")
	put(t, dir+"/m", mbr(size), 0)
	put(t, dir+"/m", strings.Repeat("some data of the guest\n", 700_000), 4096)
	must(t, dir, "snapshot", "m", "s1")
	must(t, dir, "snapshot", "m", "s2")
	want, err := os.ReadFile(dir + "/m/disk.raw")
	if err != nil {
		t.Fatal(err)
	}
	must(t, dir, "umount", "m")
	flipEntry(t, dir+"/d.varve/layers/000001.qcow2", 80)
	prints(t, dir, exitFailed, []string{"L2 entry at 0x80500, of guest offset 0xa00000", "no multiple of the cluster size", "varve export --skip-damaged"}, "check", "d.varve")
	must(t, dir, "accept", "d.varve", "s1")
	must(t, dir, "mount", "d.varve", "m")

	names, err := os.ReadDir(dir + "/m")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if _, err := name.Info(); err != nil {
			t.Error(err)
		}
	}
	// It is read in pieces of 64 KiB, as a guest would.
	lost := 0
	f, err := os.Open(dir + "/m/disk.raw")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 64<<10)
	for off := int64(0); off < size; off += int64(len(p)) {
		_, err := f.ReadAt(p, off)
		switch {
		case err != nil && (off < at || off >= at+cluster):
			t.Errorf("a read at %d: %v", off, err)
		case err != nil:
			lost++
		case string(p) != string(want[off:off+int64(len(p))]):
			t.Errorf("another content at %d", off)
		}
	}
	if lost != cluster/len(p) {
		t.Errorf("%d pieces are lost, want %d", lost, cluster/len(p))
	}
	damage := fmt.Sprintf("damaged: 128 KiB at %d (p1) cannot be read", at)
	for _, command := range [][]string{{"list", "m"}, {"tree", "m"}, {"status", "m"}} {
		if out := must(t, dir, command...).stdout; !strings.Contains(out, damage) || !strings.Contains(out, "at least ") {
			t.Errorf("%v: %s", command, out)
		}
	}
	if out := must(t, dir, "map", "m").stdout; !strings.Contains(out, "128 KiB are damaged and cannot be read") || !strings.Contains(out, ">damaged<") {
		t.Errorf("map: %s", out)
	}
	if out := must(t, dir, "metrics", "m").stdout; !strings.Contains(out, `name="s1"} 131072`) {
		t.Errorf("metrics: %s", out)
	}
	if out := vv(t, dir, "doctor", "m").stdout; !strings.Contains(out, "problem  layer s1") {
		t.Errorf("doctor: %s", out)
	}
	text, err := os.ReadFile(filepath.Join(dir, "d.varve", "varve.log"))
	if err != nil || strings.Count(string(text), "a layer is damaged") != 1 {
		t.Errorf("%v, the log: %s", err, text)
	}
	if out := must(t, dir, "diff", "m", "s1", "leaf").stdout; !strings.Contains(out, "are the same") {
		t.Errorf("diff: %s", out)
	}

	// What can be read is saved, mounted and not, and the rest is zeros.
	saved := string(want[:at]) + strings.Repeat("\x00", cluster) + string(want[at+cluster:])
	for i, disk := range []string{"m", "d.varve"} {
		if disk == "d.varve" {
			f.Close()
			must(t, dir, "umount", "m")
		}
		prints(t, dir, exitFailed, []string{"--skip-damaged writes zeros"}, "export", disk, "s2", "no.raw")
		out := fmt.Sprintf("out%d", i)
		prints(t, dir, exitSkipped, []string{fmt.Sprintf("%d bytes at %d (p1) cannot be read, and are zeros: ", cluster, at), "1 place of 131072 bytes in all could not be read, and are zeros in " + out},
			"export", disk, "s2", out, "--skip-damaged")
		if got, err := os.ReadFile(filepath.Join(dir, out)); err != nil || string(got) != saved {
			t.Errorf("%s: another content (%v)", disk, err)
		}
	}

	// A job that needs what is lost stops there; one that does not goes on.
	prints(t, dir, exitFailed, []string{"guest offset 0xa00000", "it stops at this damage, and every view is as it was"}, "flatten", "d.varve", "s2")
	must(t, dir, "delete", "d.varve", "s1")
	must(t, dir, "mount", "d.varve", "m")
	put(t, dir+"/m", "a write", 18<<20)
	if got := get(t, dir+"/m/disk.raw", 18<<20, 7); got != "a write" {
		t.Errorf("a write reads as %q", got)
	}
}
