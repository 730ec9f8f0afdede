package chain

import (
	"path/filepath"
	"testing"

	"varve/chain/manifest"
	"varve/integration/interleave"
	"varve/overlay/hostfs"
)

// TestOrderOfHostCalls goes through every operation, with each call to the host
// held against the rules: what chain.json names is durable before it is named,
// content and name; a file goes when neither chain.json nor a header names it;
// no layer is written that chain.json does not say is being written; none is
// called settled that is not durable; no hole is punched before the copy of what
// was in it is durable; no number comes twice (M1, M11, M15, M16).
func TestOrderOfHostCalls(t *testing.T) {
	d, fs := watchedDisk(t, 20<<20)
	fs.audit(d.Dir())
	step := func(what string, err error) {
		t.Helper()
		must(t, err)
		fs.verdict(t, what)
	}
	job := func(what string) func(id string, err error) {
		return func(id string, err error) {
			t.Helper()
			finish(t, d, id, err)
			fs.verdict(t, what)
			must(t, d.Flush())
		}
	}
	write := func(value byte, off, n int64) {
		t.Helper()
		put(t, d, value, off, n)
		step("flush", d.Flush())
	}
	write(1, 0, 1<<20)
	step("snapshot", d.Snapshot("one"))
	write(2, 64<<10, 64<<10)
	step("snapshot", d.Snapshot("two"))
	write(3, 1<<20, 128<<10)
	step("snapshot", d.Snapshot("three"))
	write(4, 18<<20, 64<<10)
	step("rename", d.Rename("three", "drei"))
	step("resize", d.Resize(24<<20))
	write(5, 22<<20, 4096)
	job("delete downwards, between frozen layers")(d.Delete("one"))
	if got := at(t, d, 100<<10); got != 2 {
		t.Errorf("got %d", got)
	}
	step("snapshot", d.Snapshot("four"))
	write(6, 2<<20, 2<<20)
	job("delete upwards, into the leaf")(d.Delete("four"))
	write(7, 0, 4096)
	step("snapshot", d.Snapshot("five"))
	write(8, 0, 4096)
	job("delete downwards, of the leaf")(d.Delete("five"))
	step("snapshot", d.Snapshot("six"))
	write(9, 4<<20, 4096)
	step("revert", d.Revert("drei"))
	write(10, 4<<20, 4096)
	step("revert", d.Revert("six"))
	write(11, 4<<20, 4096)
	job("flatten of a snapshot")(d.Flatten("drei"))
	job("flatten of the leaf")(d.Flatten(manifest.LeafName))
	step("discard", d.Discard(0, 1<<20))
	step("flush", d.Flush())
	step("close", d.Close())
	d = openWatched(t, fs, d.Dir())
	fs.verdict(t, "open")
	write(12, 0, 4096)
	if a, b := at(t, d, 0), at(t, d, 4<<20); a != 12 || b != 11 {
		t.Errorf("got %d and %d", a, b)
	}
	step("close", d.Close())
}

// TestLockComesFirst: a layer's file is locked before a byte of it is believed,
// its fingerprint included (M18).
func TestLockComesFirst(t *testing.T) {
	d, fs := watchedDisk(t, 4<<20)
	put(t, d, 1, 0, 4096)
	must(t, d.Snapshot("one"))
	put(t, d, 2, 0, 4096)
	must(t, d.Close())
	m, _ := d.tree()
	layers := map[string]bool{}
	for _, l := range m.Layers {
		layers[l.Path(d.Dir())] = true
	}
	var early []string
	looked := map[string]bool{}
	fs.Watch(func(c interleave.Call) {
		if c.Op == "read" && !c.Done && layers[c.Path] {
			looked[c.Path] = true
			fs.mu.Lock()
			if fs.account(c.Path).locked == hostfs.LockNone {
				early = append(early, filepath.Base(c.Path))
			}
			fs.mu.Unlock()
		}
	})
	d = openWatched(t, fs, d.Dir())
	fs.Watch(nil)
	if len(looked) != 3 {
		t.Errorf("%d layers were looked at, want 3", len(looked))
	}
	if len(early) > 0 {
		t.Errorf("read before they were locked: %v", early)
	}
	_ = d
}
