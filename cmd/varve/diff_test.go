package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"varve/integration/turn"
)

// diffDocument is what diff --json prints.
type diffDocument struct {
	Version   int
	A, B      struct{ Name, ID string }
	Exact     bool
	Extents   []struct{ Start, Length int64 }
	Count     int64
	Bytes     int64
	Differing *int64 `json:"differing_bytes"`
}

func diffJSONOf(t *testing.T, dir string, args ...string) diffDocument {
	t.Helper()
	r := must(t, dir, append([]string{"diff", "--json"}, args...)...)
	var doc diffDocument
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil {
		t.Fatalf("%v in %s", err, r.stdout)
	}
	sum := int64(0)
	for _, x := range doc.Extents {
		sum += x.Length
	}
	if sum != doc.Bytes || int64(len(doc.Extents)) != doc.Count || doc.Version != 1 {
		t.Errorf("%v: the sums are not right: %s", args, r.stdout)
	}
	return doc
}

// cmpBytes counts as cmp does the bytes that differ, and checks that each lies in
// one of the extents.
func cmpBytes(t *testing.T, dir, a, b string, doc diffDocument) (n int64) {
	t.Helper()
	cmd := exec.Command("cmp", "-l", a, b)
	cmd.Dir = dir
	out, _ := cmd.Output() // 1 where they differ
	for line := range strings.Lines(string(out)) {
		at, err := strconv.ParseInt(strings.Fields(line)[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		n++
		inside := false
		for _, x := range doc.Extents {
			inside = inside || at-1 >= x.Start && at-1 < x.Start+x.Length
		}
		if !inside {
			t.Fatalf("byte %d differs and is not listed", at-1)
		}
	}
	return n
}

// Each pair of views, mounted and not, and mounted read-only: the lists are the same,
// and what cmp finds is in them and counted as cmp counts.
func TestDiff(t *testing.T) {
	dir, want := exportDisk(t)
	pairs := [][2]string{{"base", "one"}, {"one", "leaf"}, {"leaf", "base"}, {"one", "one"}}
	lists := map[[2]string]string{}
	for n, state := range []string{"mounted", "not mounted", "read-only"} {
		disk := "mnt"
		switch state {
		case "not mounted":
			must(t, dir, "umount", "mnt")
			disk = "vm.raw.varve"
		case "read-only":
			must(t, dir, "mount", "--read-only", "vm.raw", "mnt")
		}
		for i, p := range pairs {
			if turn.Of(i+n, 2) != 0 && os.Getenv("VARVE_LONG") == "" {
				continue // each pair has its turn in one state at least
			}
			a, b := want[p[0]], want[p[1]]
			tables := diffJSONOf(t, dir, disk, p[0], p[1])
			cmpBytes(t, dir, a, b, tables)
			exact := diffJSONOf(t, dir, disk, p[0], p[1], "--exact")
			n := cmpBytes(t, dir, a, b, exact)
			if exact.Differing == nil || *exact.Differing != n || tables.Differing != nil || exact.Bytes > tables.Bytes {
				t.Errorf("%s, %v: exact %+v, tables %+v, cmp finds %d", state, p, exact, tables, n)
			}
			if (n > 0) != (p[0] != p[1]) {
				t.Errorf("%v: cmp finds %d", p, n)
			}
			text := must(t, dir, "diff", disk, p[0], p[1]).stdout
			if last := lists[p]; last != "" && last != text {
				t.Errorf("%s, %v:\n%sbefore:\n%s", state, p, text, last)
			}
			lists[p] = text
		}
	}
	t.Logf("\n%s%s", lists[pairs[0]], lists[pairs[1]])
	if text := lists[pairs[0]]; !strings.HasPrefix(strings.TrimSpace(text), "START") || !strings.Contains(text, "may differ; --exact compares the data\n") {
		t.Errorf("says\n%s", text)
	}
	if text := lists[pairs[3]]; text != "one and one are the same\n" {
		t.Errorf("says %q", text)
	}
}

func TestDiffRefused(t *testing.T) {
	dir, _ := exportDisk(t)
	check := func(disk string) {
		t.Helper()
		fails(t, dir, exitFailed, []string{"snapshot two: does not exist"}, "diff", disk, "one", "two")
		fails(t, dir, exitFailed, []string{"../x"}, "diff", disk, "../x", "one")
		fails(t, dir, exitUsage, []string{"B is missing"}, "diff", disk, "one")
	}
	check("mnt")
	must(t, dir, "resize", "mnt", "22M")
	doc := diffJSONOf(t, dir, "mnt", "one", "leaf", "--exact")
	if x := doc.Extents[len(doc.Extents)-1]; x.Start != 21<<20+512 || x.Length != 1<<20-512 {
		t.Errorf("grown: %+v", doc)
	}
	if r := must(t, dir, "diff", "mnt", "one", "leaf"); !strings.Contains(r.stdout, "leaf is 1048064 bytes (1024 KiB) longer than one; all of that counts as differing\n") {
		t.Errorf("grown:\n%s", r.stdout)
	}
	must(t, dir, "umount", "mnt")
	check("vm.raw.varve")
}

// What --force would take from a disk is refused: its base, another disk's image, a
// place among another disk's files.
func TestExportReplacesNoImageInUse(t *testing.T) {
	dir, _ := exportDisk(t)
	image(t, dir+"/other.raw", 1<<20, 1<<20)
	must(t, dir, "create", "other.raw.varve", "--base", "other.raw")
	for _, disk := range []string{"mnt", "vm.raw.varve"} {
		fails(t, dir, exitFailed, []string{"vm.raw is a file of this disk (base)"}, "export", disk, "one", "vm.raw", "--force")
		fails(t, dir, exitFailed, []string{"other.raw is the image of the disk"}, "export", disk, "one", "other.raw", "--force")
		fails(t, dir, exitFailed, []string{"which holds only that disk's own files; name another place"}, "export", disk, "one", "other.raw.varve/layers/000077.qcow2")
		if disk == "mnt" {
			must(t, dir, "umount", "mnt")
		}
	}
	must(t, dir, "mount", "vm.raw", "mnt")
	must(t, dir, "umount", "mnt")
}
