package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"varve/cmd/varve/internal/keep"
)

// Undo, hold, clone, prune and dry runs say and do the same on a disk that is mounted
// and on one that is not.
func TestTakingBackMountedOrNot(t *testing.T) {
	for name, disk := range map[string]string{"mounted": "mnt", "not mounted": "vm.raw"} {
		t.Run(name, func(t *testing.T) {
			dir, mnt := mounted(t, 64<<20, 3<<20)
			put(t, mnt, "first", 100)
			must(t, dir, "snapshot", "mnt", "one")
			put(t, mnt, "second", 100)
			if disk != "mnt" {
				must(t, dir, "umount", "mnt")
			}
			for _, c := range []struct {
				code        int
				words, args string
			}{
				{exitFailed, "no leaf is set aside; only a revert does that", "undo DISK"},
				{exitFailed, "no leaf is set aside; only a revert does that", "undo DISK --forget"},
				{exitUsage, "--background is for --forget", "undo DISK --background"},
				{exitFailed, "the leaf cannot be held", "hold DISK leaf"},
				{exitFailed, "the base is never deleted", "hold DISK base"},
				{exitFailed, "snapshot one is not held", "release DISK one"},
				{exitFailed, "does not exist", "hold DISK none"},
				{exitFailed, "take a snapshot and clone that", "clone DISK leaf new.varve"},
				{exitFailed, "only the disk's own files", "clone DISK one vm.raw.varve/new"},
				{exitFailed, "exists already", "clone DISK one vm.raw"},
				{exitFailed, "no such file", "clone DISK one none/new"},
				{exitFailed, "no snapshot has a name like", "prune DISK --all --keep before-*"},
				{exitFailed, "is no pattern", "prune DISK --all --keep [a"},
				{exitUsage, "without a rule every snapshot would be deleted; say what to keep, with --keep-last", "prune DISK"},
				{exitUsage, "without a rule every snapshot would be deleted", "prune DISK --keep-last 0 --all"},
				{exitUsage, "neither a number nor unlimited", "prune DISK --keep-last many"},
				{exitUsage, "write years, months, days and hours", "prune DISK --keep-within 3w"},
				{exitUsage, "--json is for --dry-run", "delete DISK one --json"},
				{exitFailed, "one is named twice", "delete DISK one one"},
				{exitFailed, "does not exist", "delete DISK none --dry-run"},
				{exitUsage, "say with --base", "rebase DISK"},
			} {
				fails(t, dir, c.code, []string{c.words}, strings.Fields(strings.Replace(c.args, "DISK", disk, 1))...)
			}

			// A dry run says what happens then, and does nothing.
			before := document(t, dir, disk)
			r := must(t, dir, "delete", disk, "one", "--dry-run")
			for _, want := range []string{"delete would\n  remove     one (holds ", "before leaf > one > base\nafter  leaf > base\n", "nothing was done\n"} {
				if !strings.Contains(r.stdout, want) {
					t.Errorf("no %q in\n%s", want, r.stdout)
				}
			}
			var plan struct {
				Gone []struct{ Name string }
			}
			if err := json.Unmarshal([]byte(must(t, dir, "delete", disk, "one", "--dry-run", "--json").stdout), &plan); err != nil || len(plan.Gone) != 1 || plan.Gone[0].Name != "one" {
				t.Errorf("%+v, %v", plan, err)
			}
			must(t, dir, "flatten", disk, "leaf", "--dry-run")
			must(t, dir, "revert", disk, "one", "--dry-run")
			if after := document(t, dir, disk); named(after) != named(before) || after.Leaf != before.Leaf {
				t.Errorf("a dry run did something: %s", named(after))
			}

			must(t, dir, "hold", disk, "one")
			fails(t, dir, exitFailed, []string{"snapshot one is held; release it first"}, "delete", disk, "one")
			must(t, dir, "clone", disk, "one", "new.varve")
			must(t, dir, "release", disk, "one")
			fails(t, dir, exitFailed, []string{filepath.Join(dir, "new.varve") + " was cloned from snapshot one"}, "delete", disk, "one")
			if err := os.Mkdir(dir+"/newmnt", 0o700); err != nil {
				t.Fatal(err)
			}
			must(t, dir, "mount", "new.varve", "newmnt")
			if got := get(t, dir+"/newmnt/disk.raw", 100, 5); got != "first" {
				t.Errorf("the clone reads %q", got)
			}
			must(t, dir, "umount", "newmnt")
			if err := os.RemoveAll(dir + "/new.varve"); err != nil {
				t.Fatal(err)
			}
			must(t, dir, "release", disk, "one")

			must(t, dir, "revert", disk, "one")
			must(t, dir, "undo", disk)
			if disk != "mnt" {
				must(t, dir, "mount", "vm.raw", "mnt")
			}
			if got := get(t, mnt+"/disk.raw", 100, 6); got != "second" {
				t.Errorf("after the undo disk.raw reads %q", got)
			}
		})
	}
}

// Automatic snapshots are named by time, two of one second too, and pruned; others and
// those that are held stay.
func TestPruneAutomaticSnapshots(t *testing.T) {
	dir, mnt := mounted(t, 64<<20, 3<<20)
	var names []string
	for i := range 3 {
		put(t, mnt, strings.Repeat("data", 1+i), int64(i)<<20)
		name := strings.TrimSpace(must(t, dir, "snapshot", "mnt", "--auto").stdout)
		if !regexp.MustCompile(`^auto-\d{8}T\d{6}Z$`).MatchString(name) || !keep.IsAuto(name) {
			t.Fatalf("the name is %q", name)
		}
		names = append(names, name)
	}
	must(t, dir, "snapshot", "mnt", "mine")
	fails(t, dir, exitFailed, []string{`no snapshot has a name like "mine"`}, "prune", "mnt", "--keep", "mine") // it is not looked at
	must(t, dir, "hold", "mnt", names[0])
	r := must(t, dir, "prune", "mnt", "--keep-last", "1", "--dry-run")
	for _, want := range []string{names[0] + "  ", "kept: held", "kept: last", "deleted", "nothing was done"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in\n%s", want, r.stdout)
		}
	}
	for line := range strings.Lines(r.stdout) {
		if len(line) > 81 {
			t.Errorf("a line of %d columns: %s", len(line), line)
		}
	}
	var doc pruneDocument
	if err := json.Unmarshal([]byte(must(t, dir, "prune", "mnt", "--keep-last", "1", "--dry-run", "--json").stdout), &doc); err != nil ||
		len(doc.Snapshots) != 3 || doc.Plan == nil || len(doc.Plan.Gone) != 1 || time.Since(doc.Snapshots[0].Time) > time.Hour {
		t.Errorf("%+v, %v", doc, err)
	}
	must(t, dir, "prune", "mnt", "--keep-last", "1")
	if got := named(document(t, dir, "mnt")); got != "base "+names[0]+" "+names[2]+" mine" {
		t.Errorf("left: %s", got)
	}
	if r := must(t, dir, "prune", "mnt", "--keep-last", "1"); !strings.Contains(r.stderr, "nothing to delete") {
		t.Errorf("says %q", r.stderr)
	}
	// A leaf that was set aside is forgotten when it is old enough.
	put(t, mnt, "data", 5<<20)
	must(t, dir, "revert", "mnt", "mine")
	must(t, dir, "prune", "mnt", "--keep-last", "1")
	if st := document(t, dir, "mnt"); !st.Layers[len(st.Layers)-2].SetAside {
		t.Errorf("a leaf that was just set aside is gone: %+v", st.Layers)
	}
	must(t, dir, "prune", "mnt", "--keep-last", "1", "--keep-aside", "0h")
	fails(t, dir, exitFailed, []string{"no leaf is set aside"}, "undo", "mnt")
	must(t, dir, "prune", "mnt", "--all", "--keep-last", "1")
	if got := named(document(t, dir, "mnt")); got != "base "+names[0]+" mine" {
		t.Errorf("left with --all: %s", got)
	}
}

// A base that moved is named anew; the content is the same.
func TestRebaseCommand(t *testing.T) {
	dir, mnt := mounted(t, 8<<20, 3<<20)
	put(t, mnt, "data", 100)
	fails(t, dir, exitFailed, []string{"it is mounted at " + mnt}, "rebase", "mnt", "--base", "vm.raw")
	must(t, dir, "umount", "mnt")
	if err := os.Rename(dir+"/vm.raw", dir+"/moved.raw"); err != nil {
		t.Fatal(err)
	}
	fails(t, dir, exitFailed, []string{"vm.raw"}, "mount", "vm.raw.varve", "mnt")
	fails(t, dir, exitFailed, []string{"is not the file that base was"}, "rebase", "vm.raw.varve", "--base", "vm.raw.varve/README")
	must(t, dir, "rebase", "vm.raw.varve", "--base", "moved.raw")
	must(t, dir, "mount", "vm.raw.varve", "mnt")
	if got := get(t, mnt+"/disk.raw", 100, 4); got != "data" {
		t.Errorf("reads %q", got)
	}
}

// A command waits for all merges of a delete of several, also where they are over in
// no time, and where the disk is not mounted.
func TestDeleteOfSeveralIsWaitedFor(t *testing.T) {
	for name, disk := range map[string]string{"mounted": "mnt", "not mounted": "vm.raw"} {
		t.Run(name, func(t *testing.T) {
			dir, mnt := mounted(t, 64<<20, 3<<20)
			args := []string{"delete", disk}
			for i := range 12 {
				put(t, mnt, "data", int64(i)<<20)
				args = append(args, fmt.Sprint("s", i))
				must(t, dir, "snapshot", "mnt", args[len(args)-1])
			}
			if disk != "mnt" {
				must(t, dir, "umount", "mnt")
			}
			if r := must(t, dir, args...); !strings.HasPrefix(r.stderr, "delete "+disk+": done") {
				t.Errorf("says %q", r.stderr)
			}
			if got := document(t, dir, disk); named(got) != "base" || len(got.Layers) != 2 {
				t.Errorf("left: %+v", got.Layers)
			}
		})
	}
}
