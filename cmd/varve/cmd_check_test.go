package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"varve/chain"
	"varve/cmd/varve/internal/process"
	testpatience "varve/integration/patience"
	"varve/integration/turn"
)

// diskToCheck makes a disk with two snapshots that is not mounted, and raw files
// of what its layers show, by the layers' files.
func diskToCheck(t *testing.T) (dir string, views map[string]string) {
	t.Helper()
	dir, mnt := mounted(t, 16<<20, 3<<20)
	put(t, mnt, strings.Repeat("first", 100<<10), 1<<20)
	must(t, dir, "snapshot", "mnt", "one")
	put(t, mnt, strings.Repeat("second", 100<<10), 1<<20+1000)
	must(t, dir, "snapshot", "mnt", "two")
	put(t, mnt, "third", 12<<20)
	must(t, dir, "umount", "mnt")
	return dir, layerViews(t, dir)
}

// layerViews converts every layer of the disk.
func layerViews(t *testing.T, dir string) map[string]string {
	t.Helper()
	views := map[string]string{}
	for _, l := range document(t, dir, "vm.raw").Layers {
		raw := filepath.Join(dir, l.ID+".view")
		tool(t, dir, "qemu-img", "convert", "-f", l.Format, "-O", "raw", l.File, raw)
		views[l.File] = raw
	}
	return views
}

// sameViews has qemu-img compare every layer with what it showed, and check
// those that are varve's.
func sameViews(t *testing.T, dir string, views map[string]string) {
	t.Helper()
	for file, raw := range views {
		format := "qcow2"
		if strings.HasSuffix(file, ".raw") {
			format = "raw"
		} else {
			tool(t, dir, "qemu-img", "check", "-f", format, file)
		}
		tool(t, dir, "qemu-img", "compare", "-f", format, "-F", "raw", file, raw)
	}
}

// leakInto adds n clusters that nothing uses to a layer, and with low makes the
// refcount of its first L2 table 0.
func leakInto(t *testing.T, path string, n int64, low bool) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	word := func(at int64) int64 {
		var p [8]byte
		if _, err := f.ReadAt(p[:], at); err != nil {
			t.Fatal(err)
		}
		return int64(binary.BigEndian.Uint64(p[:]) &^ (1 << 63))
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	clusterSize := int64(1) << (word(16) & 0xff) // cluster_bits is at byte 20
	first := (st.Size() + clusterSize - 1) / clusterSize
	block := word(word(48))
	if err := f.Truncate((first + n) * clusterSize); err != nil {
		t.Fatal(err)
	}
	ones := bytes.Repeat([]byte{0, 1}, int(n))
	if _, err := f.WriteAt(ones, block+2*first); err != nil {
		t.Fatal(err)
	}
	if low {
		if _, err := f.WriteAt([]byte{0, 0}, block+2*(word(word(40))/clusterSize)); err != nil {
			t.Fatal(err)
		}
	}
}

// checkJSON is what check --json says.
func checkJSON(t *testing.T, dir string, code int, args ...string) chain.CheckReport {
	t.Helper()
	r := vv(t, dir, append([]string{"check", "vm.raw", "--json"}, args...)...)
	var doc chain.CheckReport
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil || r.code != code {
		t.Fatalf("check --json %v: exit %d, want %d, %v\n%s%s", args, r.code, code, err, r.stdout, r.stderr)
	}
	return doc
}

// fileOf is the file of the layer with a name, "" for the leaf.
func fileOf(t *testing.T, dir, name string) string {
	t.Helper()
	for _, l := range document(t, dir, "vm.raw").Layers {
		if l.Name == name {
			return l.File
		}
	}
	t.Fatalf("no layer %q", name)
	return ""
}

func TestCheckOfAMountedDisk(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	for _, disk := range []string{"mnt", "vm.raw", "vm.raw.varve"} {
		for _, flag := range []string{"--json", "--repair"} {
			fails(t, dir, exitFailed, []string{"check " + disk + ": it is mounted at " + mnt + `; unmount it first with "varve umount ` + mnt + `"`}, "check", disk, flag)
		}
	}
	fails(t, dir, exitFailed, []string{"check none: no such disk"}, "check", "none")
	fails(t, dir, exitUsage, []string{"check: DISK is missing"}, "check")
	fails(t, dir, exitUsage, []string{"unknown flag: --mend"}, "check", "vm.raw", "--mend")
}

// What check says of a disk in order, as text and as JSON, and by which names.
func TestCheckInOrder(t *testing.T) {
	dir, views := diskToCheck(t)
	for _, disk := range []string{"vm.raw", "vm.raw.varve"} {
		for _, flags := range [][]string{nil, {"--repair"}} {
			r := must(t, dir, append([]string{"check", disk}, flags...)...)
			if r.stdout != "4 layers: no errors, no leaked clusters\n" || r.stderr != "" {
				t.Errorf("check %s %v says %q %q", disk, flags, r.stdout, r.stderr)
			}
		}
	}
	doc := checkJSON(t, dir, exitDone)
	if doc.Version != 1 || doc.Disk != filepath.Join(dir, "vm.raw.varve") || len(doc.Layers) != 4 ||
		doc.Layers[1].Name != "one" || doc.Layers[1].State != chain.StateFrozen || doc.Layers[3].State != chain.StateLeaf {
		t.Errorf("%+v", doc)
	}
	raw := must(t, dir, "check", "vm.raw", "--json").stdout
	for _, want := range []string{`"findings": []`, `"mended": []`, `"errors": 0`, `"leaks": 0`} {
		if !strings.Contains(raw, want) {
			t.Errorf("no %s in %s", want, raw)
		}
	}
	sameViews(t, dir, views)
}

// A disk whose daemon was killed has leaks, exit 3, and is mended.
func TestCheckAfterAKill(t *testing.T) {
	dir, _ := diskToCheck(t)
	must(t, dir, "mount", "vm.raw", "mnt")
	mnt := filepath.Join(dir, "mnt")
	put(t, mnt, strings.Repeat("fourth", 1<<10), 14<<20)
	pid := daemonOf(t, filepath.Join(dir, "vm.raw.varve"))
	daemon := process.Open(pid)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	daemon.Wait(testpatience.Hang)
	daemon.Close()
	if err := syscall.Unmount(mnt, syscall.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	r := vv(t, dir, "check", "vm.raw")
	if r.code != exitLeaks || r.stderr != "" {
		t.Errorf("exit %d, %q\n%s", r.code, r.stderr, r.stdout)
	}
	for _, want := range []string{"layers/000004.qcow2 (the leaf)\n", "  note   the disk was not unmounted cleanly", "  leak   ", "leaked clusters\n"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in\n%s", want, r.stdout)
		}
	}
	views := layerViews(t, dir)
	r = must(t, dir, "check", "vm.raw", "--repair")
	if !strings.HasPrefix(r.stdout, "mended:\n") || !strings.HasSuffix(r.stdout, "\n4 layers: no errors, no leaked clusters\n") {
		t.Errorf("repair says\n%s", r.stdout)
	}
	sameViews(t, dir, views)
	if r := must(t, dir, "check", "vm.raw"); r.stdout != "4 layers: no errors, no leaked clusters\n" {
		t.Errorf("after the repair: %s", r.stdout)
	}
}

// A disk with everything wrong at once: what can be mended is mended once what
// cannot is put right by hand. No line is wider than a terminal.
func TestCheckDamagedDisk(t *testing.T) {
	dir, views := diskToCheck(t)
	one, two, leaf := fileOf(t, dir, "one"), fileOf(t, dir, "two"), fileOf(t, dir, "")
	leakInto(t, one, 3, true)
	must(t, dir, "accept", "vm.raw", "one")
	leakInto(t, leaf, 1, false)
	if err := os.WriteFile(filepath.Join(dir, "vm.raw.varve/layers/000077.qcow2"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(two)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(two, st.ModTime(), st.ModTime().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, flags := range [][]string{nil, {"--repair"}} {
		r := vv(t, dir, append([]string{"check", "vm.raw"}, flags...)...)
		if r.code != exitFailed || r.stderr != "varve: check vm.raw: 2 errors, 4 leaked clusters; the findings say what to do\n" {
			t.Errorf("exit %d, %q\n%s", r.code, r.stderr, r.stdout)
		}
		for _, want := range []string{"layers/000002.qcow2 (one)\n", "refcount 0, used once\n", "affected: two, the leaf", "varve accept " + dir + "/vm.raw.varve two", "layers/000077.qcow2\n"} {
			if !strings.Contains(strings.Join(strings.Fields(r.stdout), " "), strings.TrimSpace(want)) {
				t.Errorf("no %q in\n%s", want, r.stdout)
			}
		}
		for line := range strings.Lines(r.stdout) {
			if utf8.RuneCountInString(strings.TrimSpace(line)) > 80 {
				t.Errorf("a line of %d columns: %s", utf8.RuneCountInString(line), line)
			}
		}
		t.Logf("%s", r.stdout)
	}
	if _, err := os.Stat(filepath.Join(dir, "vm.raw.varve/layers/000077.qcow2")); err != nil {
		t.Errorf("something was mended of a disk that cannot be mounted: %v", err)
	}
	must(t, dir, "accept", "vm.raw", "two")
	if doc := checkJSON(t, dir, exitFailed); doc.Errors != 1 || doc.Leaks != 4 || doc.Layers[1].Errors != 1 || doc.Layers[1].Leaks != 3 || doc.Layers[3].Leaks != 1 {
		t.Errorf("%+v", doc)
	}
	doc := checkJSON(t, dir, exitDone, "--repair")
	if len(doc.Findings) != 0 || len(doc.Mended) < 4 {
		t.Errorf("%+v", doc)
	}
	sameViews(t, dir, views)
	if _, err := os.Stat(filepath.Join(dir, "vm.raw.varve/layers/000077.qcow2")); err == nil {
		t.Error("the stray file is still there")
	}
	must(t, dir, "mount", "vm.raw", "mnt")
	if got := get(t, filepath.Join(dir, "mnt/layers/one.raw"), 1<<20, 10); got != "firstfirst" {
		t.Errorf("%q", got)
	}
	must(t, dir, "umount", "mnt")
}

// kill -9 at any moment of a repair leaves a disk that the next one mends. Twelve moments take turns.
func TestKilledRepair(t *testing.T) {
	dir, views := diskToCheck(t)
	damage := func() {
		for _, name := range []string{"one", "two"} {
			leakInto(t, fileOf(t, dir, name), 500, true)
			must(t, dir, "accept", "vm.raw", name)
		}
		leakInto(t, fileOf(t, dir, ""), 500, true)
	}
	damage()
	started := time.Now()
	must(t, dir, "check", "vm.raw", "--repair")
	took := time.Since(started)
	sameViews(t, dir, views)
	killed := 0
	const rounds = 12
	first, step := 0, 1
	if os.Getenv("VARVE_LONG") == "" { // one in three moments has its turn
		first, step = turn.Of(0, 3), 3
	}
	for i := first; i < rounds; i += step {
		damage()
		c := command(dir, "check", "vm.raw", "--repair")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(took * time.Duration(i) / rounds)
		_ = c.Process.Kill() // it may have ended
		_ = c.Wait()
		if status, ok := c.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			killed++
		}
		must(t, dir, "check", "vm.raw", "--repair")
		sameViews(t, dir, views)
		if r := must(t, dir, "check", "vm.raw"); r.stdout != "4 layers: no errors, no leaked clusters\n" {
			t.Errorf("round %d: %s", i, r.stdout)
		}
	}
	if killed == 0 {
		t.Error("no repair was killed")
	}
	t.Logf("%d of %d repairs were killed; one takes %v", killed, (rounds-first+step-1)/step, took)
}
