package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"varve/chain"
	"varve/integration/harness"
	"varve/integration/patience"
	"varve/integration/turn"
)

// M18, seen from outside: what QEMU's tools may do with the files of a mounted
// disk, on real mounts, and that the files are unharmed by what they tried.

// jobLimit is how long a job of these tests may take on a busy machine.
var jobLimit = patience.Hang

// use is what a try does with the files of a chain.
type use int

const (
	peeks  use = iota // reads without locks (-U)
	reads             // reads the one file
	follow            // reads the file with all that it stands on
	writes
)

// lockTry is what somebody else tries with a layer's file. In the command FILE
// is that file and FORMAT its format, OVERLAY a new overlay on it, OTHER a raw
// image of the same size, OUT a path where nothing is.
type lockTry struct {
	use     use
	formats string
	command string
}

var lockTries = []lockTry{
	{peeks, "raw qcow2", "qemu-img info -U -f FORMAT FILE"},
	{peeks, "raw qcow2", "qemu-img convert -U -f FORMAT -O raw FILE OUT"},
	{peeks, "raw qcow2", "qemu-img create -q -f qcow2 -b FILE -F FORMAT OUT"}, // (seen) takes no lock below it
	{reads, "raw qcow2", "qemu-img info -f FORMAT FILE"},
	{reads, "qcow2", "qemu-img check -f qcow2 FILE"},
	{follow, "raw qcow2", "qemu-img info --backing-chain -f FORMAT FILE"},
	{follow, "raw qcow2", "qemu-img convert -f FORMAT -O raw FILE OUT"},
	{follow, "raw qcow2", "qemu-img compare -f FORMAT -F FORMAT FILE FILE"},
	{follow, "raw qcow2", "qemu-img map --output=json -f FORMAT FILE"},
	{follow, "raw qcow2", "qemu-img measure -f FORMAT -O qcow2 FILE"},
	{follow, "raw qcow2", "qemu-img convert -f qcow2 -O raw OVERLAY OUT"},
	{follow, "raw qcow2", "qemu-io -r -f FORMAT -c quit FILE"},
	{follow, "raw qcow2", "qemu-io -f qcow2 -c 'write 0 64k' OVERLAY"},
	{writes, "raw qcow2", "qemu-io -f FORMAT -c 'write 0 64k' FILE"},
	{writes, "raw qcow2", "qemu-io -f FORMAT -c quit FILE"},
	{writes, "raw qcow2", "qemu-img resize -f FORMAT FILE +1M"},
	{writes, "raw qcow2", "qemu-img commit -f qcow2 OVERLAY"},
	{writes, "raw qcow2", "qemu-img convert -n -f raw -O FORMAT OTHER FILE"},
	{writes, "raw qcow2", "qemu-img convert -f raw -O FORMAT OTHER FILE"},
	{writes, "raw qcow2", "qemu-img create -q -f FORMAT FILE 1M"},
	{writes, "raw qcow2", "qemu-img dd -f raw -O FORMAT if=OTHER of=FILE"},
	{writes, "qcow2", "qemu-img commit -f qcow2 FILE"},
	{writes, "qcow2", "qemu-img check -r leaks -f qcow2 FILE"},
	{writes, "qcow2", "qemu-img check -r all -f qcow2 FILE"},
	{writes, "qcow2", "qemu-img rebase -f qcow2 -b OTHER -F raw FILE"},
	{writes, "qcow2", "qemu-img rebase -u -f qcow2 -b OTHER -F raw FILE"},
	{writes, "qcow2", "qemu-img amend -f qcow2 -o lazy_refcounts=on FILE"},
	{writes, "qcow2", "qemu-img bitmap --add -f qcow2 FILE mark"},
	{writes, "qcow2", "qemu-img snapshot -c inner FILE"},
}

// lockedFile is a layer's file and how varve holds it now.
type lockedFile struct {
	what, file, format string
	writable           bool // the leaf, or written by a job
	onWritable         bool // one of those below it is
}

func (f lockedFile) allows(u use) bool {
	switch u {
	case peeks:
		return true
	case reads:
		return !f.writable
	case follow:
		return !f.writable && !f.onWritable
	}
	return false
}

// lockTrier tries what there is to try on one file after the other.
type lockTrier struct{ files int }

// newLockTrier begins at another place in each turn.
func newLockTrier() *lockTrier { return &lockTrier{turn.Of(0, triesShare)} }

// triesShare is of how many programs of one use a file is tried with one: they open it
// with the same locks. The next file is tried with the next one, so that a test tries each
// program on several files of each state.
const triesShare = 6

// share is what has its turn among the tries of each use; everything in the long tests.
func share(n int, tries []lockTry) (chosen []lockTry) {
	seen := map[use]int{}
	all := map[use]int{}
	for _, try := range tries {
		all[try.use]++
	}
	for _, try := range tries {
		every := min(triesShare, all[try.use])
		if harness.Long() || seen[try.use]%every == n%every {
			chosen = append(chosen, try)
		}
		seen[try.use]++
	}
	return chosen
}

// qemuProgram opens a file and stays.
type qemuProgram struct {
	use     use
	what    string
	command []string
}

// file tries, on a file, each use by the tools whose turn it is, and one of the programs that
// stay: a VM or a storage daemon, as the writer, as a reader, or as the writer of an overlay.
func (l *lockTrier) file(t *testing.T, f lockedFile) {
	t.Helper()
	n := l.files
	l.files++
	// No tool asks for every byte alone.
	for at, held := range map[int64]bool{
		100: true, 101: f.writable, 102: false, 103: f.writable, 200: false, 201: true, 202: false, 203: true,
	} {
		if got := harness.Locked(t, f.file, at); got != held {
			t.Errorf("%s: byte %d is held: %v", f.what, at, got)
		}
	}
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	harness.Run(t, "truncate", "-s", "64M", path("OTHER"))
	judge := func(command string, u use, works bool, words string) {
		t.Helper()
		switch allowed := f.allows(u); {
		case works && !allowed:
			t.Errorf("%s: %s: works", f.what, command)
		case !works && allowed:
			t.Errorf("%s: %s: refused\n%s", f.what, command, words)
		case !works && !strings.Contains(words, " lock"):
			t.Errorf("%s: %s: refused, for another reason\n%s", f.what, command, words)
		}
	}
	newOverlay := func() {
		t.Helper()
		// -u: what it stands on is not looked at.
		harness.Run(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", f.file, "-F", f.format, path("OVERLAY"), "64M")
	}
	names := strings.NewReplacer("FILE", f.file, "FORMAT", f.format, "OVERLAY", path("OVERLAY"), "OTHER", path("OTHER"), "OUT", path("OUT"))
	var tries []lockTry
	for _, try := range lockTries {
		if strings.Contains(try.formats, f.format) {
			tries = append(tries, try)
		}
	}
	for _, try := range share(n, tries) {
		if strings.Contains(try.command, "OVERLAY") {
			newOverlay()
		}
		r := harness.Try(t, "sh", "-c", names.Replace(try.command))
		judge(try.command, try.use, r.Code == 0, r.Stdout+r.Stderr)
		if err := os.RemoveAll(path("OUT")); err != nil {
			t.Fatal(err)
		}
	}
	newOverlay()
	programs := []qemuProgram{
		{writes, "a VM", harness.VM(f.file, f.format)},
		{follow, "a VM that only reads", harness.VM(f.file, f.format, "readonly=on")},
		{follow, "a VM on an overlay", harness.VM(path("OVERLAY"), "qcow2")},
		{writes, "a storage daemon", harness.StorageDaemon(t, f.file, f.format, true)},
		{follow, "a storage daemon that only reads", harness.StorageDaemon(t, f.file, f.format, false)},
	}
	if !harness.Long() { // a start takes as long as those of all the tools
		at := n % len(programs)
		programs = programs[at : at+1]
	}
	for _, program := range programs {
		h, words := harness.TryHold(t, program.command...)
		judge(program.what, program.use, h != nil, words)
		if h != nil {
			h.Stop()
		}
	}
}

// layers is file for every layer of a mounted disk. jobWrites are the ids of the layers
// that a job writes at the moment.
func (l *lockTrier) layers(t *testing.T, status chain.Status, jobWrites ...string) {
	t.Helper()
	layers := map[string]chain.LayerStatus{}
	for _, layer := range status.Layers {
		layers[layer.ID] = layer
	}
	writable := func(id string) bool {
		return id == status.Leaf || strings.Contains(strings.Join(jobWrites, " "), id)
	}
	for _, layer := range status.Layers {
		f := lockedFile{
			what: fmt.Sprintf("%s %s %s", layer.State, layer.ID, layer.Name),
			file: layer.File, format: layer.Format, writable: writable(layer.ID),
		}
		for id := layer.Parent; id != nil; id = layers[*id].Parent {
			f.onWritable = f.onWritable || writable(*id)
		}
		l.file(t, f)
	}
}

// lockDisk makes a raw base of 64 MiB with something in it.
func lockBase(t *testing.T) string {
	t.Helper()
	base := filepath.Join(t.TempDir(), "vm.raw")
	harness.Run(t, "truncate", "-s", "64M", base)
	overwrite(t, base, 0, 1<<20, 'b')
	overwrite(t, base, 40<<20, 4<<20, 'b')
	return base
}

// sameViews fails the test unless the mount shows what it showed.
func sameViews(t *testing.T, m *harness.Mount, views map[string]string) {
	t.Helper()
	for id, now := range m.SaveViews() {
		if before, ok := views[id]; ok {
			harness.Run(t, "cmp", before, now)
		}
	}
}

// TestLocksKeepOthersOut tries the files of all kinds of disks, at rest.
func TestLocksKeepOthersOut(t *testing.T) {
	others := newLockTrier()
	snapshots := func(t *testing.T, m *harness.Mount) {
		overwrite(t, m.Raw(), 2<<20, 1<<20, '1')
		m.Do("snapshot", "one")
		overwrite(t, m.Raw(), 3<<20, 1<<20, '2')
		m.Do("snapshot", "two")
		overwrite(t, m.Raw(), 4<<20, 1<<20, '3')
	}
	tests := []struct {
		name   string
		source func(t *testing.T) []string // the files, top first
		flags  []string
		do     func(t *testing.T, m *harness.Mount)
	}{
		{name: "on a raw base", source: func(t *testing.T) []string { return []string{lockBase(t)} }, do: snapshots},
		{name: "on a qcow2 base", source: func(t *testing.T) []string {
			raw := lockBase(t)
			harness.Convert(t, raw, "raw", raw+".qcow2", "qcow2")
			return []string{raw + ".qcow2"}
		}},
		{name: "an adopted chain", source: func(t *testing.T) []string {
			return harness.ChainOfThree(t, lockBase(t), 64<<20)
		}},
		{name: "on a block device", source: func(t *testing.T) []string {
			return []string{harness.AttachLoop(t, lockBase(t)).Device}
		}, flags: []string{"--disk", "DIR/vm.varve"}},
		{name: "after a revert", source: func(t *testing.T) []string { return []string{lockBase(t)} },
			do: func(t *testing.T, m *harness.Mount) {
				snapshots(t, m)
				m.Do("revert", "one")
				overwrite(t, m.Raw(), 5<<20, 1<<20, '4')
			}},
		{name: "mounted again after a kill", source: func(t *testing.T) []string { return []string{lockBase(t)} },
			do: func(t *testing.T, m *harness.Mount) { snapshots(t, m) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			files := test.source(t)
			harness.Guard(t, files...)
			for i := range test.flags {
				test.flags[i] = strings.ReplaceAll(test.flags[i], "DIR", t.TempDir())
			}
			m := harness.MountDisk(t, files[0], test.flags...)
			if test.do != nil {
				test.do(t, m)
			}
			if strings.Contains(test.name, "kill") {
				m.Crash()
				m = harness.MountDisk(t, m.Disk)
			}
			views := m.SaveViews()
			others.layers(t, m.Status())
			sameViews(t, m, views)
			m.Unmount()
			harness.Judge(t, m.Disk, views)
		})
	}
}

// TestLocksOfReadOnlyMounts: nothing is written, so everything may be read, the
// leaf too.
func TestLocksOfReadOnlyMounts(t *testing.T) {
	others := newLockTrier()
	base := lockBase(t)
	m := harness.MountDisk(t, base)
	overwrite(t, m.Raw(), 2<<20, 1<<20, '1')
	m.Do("snapshot", "one")
	m.Unmount()
	for _, source := range []string{m.Disk, base} {
		m := harness.MountDisk(t, source, "--read-only")
		views := m.SaveViews()
		for _, layer := range m.Status().Layers {
			others.file(t, lockedFile{what: layer.State.String() + " " + layer.Name, file: layer.File, format: layer.Format})
		}
		sameViews(t, m, views)
		m.Unmount()
		harness.Judge(t, m.Disk, views)
	}
	// The image alone, without a disk directory.
	lone := lockBase(t)
	harness.Guard(t, lone)
	harness.MountDisk(t, lone, "--read-only")
	others.file(t, lockedFile{what: "base of none", file: lone, format: "raw"})
}

// stopInJob stops the daemon with a signal at a moment when its job writes the
// files: what it holds then can be looked at in peace. The function goes on.
func stopInJob(t *testing.T, m *harness.Mount, files ...string) (resume func()) {
	t.Helper()
	signal := func(s syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(m.PID, s); err != nil {
			t.Fatal(err)
		}
	}
	stopped := false
	resume = func() {
		if stopped {
			signal(syscall.SIGCONT)
		}
		stopped = false
	}
	t.Cleanup(resume) // or the mount can never go
	deadline := time.Now().Add(jobLimit)
	for {
		signal(syscall.SIGSTOP)
		stopped = true
		harness.Eventually(t, jobLimit, func() error {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.PID))
			if err == nil && !strings.Contains(string(stat), ") T ") {
				err = fmt.Errorf("it has not stopped yet: %s", stat)
			}
			return err
		})
		manifest, err := os.ReadFile(filepath.Join(m.Disk, "chain.json"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(manifest), `"kind"`) {
			t.Fatalf("the job ended, and never held all of %s for writing", strings.Join(files, ", "))
		}
		under := true
		for _, file := range files {
			under = under && harness.Locked(t, file, 101)
		}
		if under {
			return resume
		}
		if time.Now().After(deadline) {
			t.Fatalf("the job never held all of %s for writing", strings.Join(files, ", "))
		}
		resume()
		time.Sleep(time.Millisecond)
	}
}

// TestLocksDuringJobs tries everything while a job is under way, and again when
// it is done: then the layers that it wrote are frozen as before.
func TestLocksDuringJobs(t *testing.T) {
	others := newLockTrier()
	tests := []struct {
		name, control, line string
		fill                [4]int64 // MiB that base, one, two and the leaf get
		writes              []string // layers that the job writes
	}{
		{"delete upwards", "delete", "one", [4]int64{1, 16, 32, 1}, []string{"one", "two"}},
		{"delete downwards", "delete", "one", [4]int64{1, 32, 16, 1}, []string{"one", "two"}},
		{"delete upwards into the leaf", "delete", "two", [4]int64{1, 1, 16, 16}, []string{"two"}},
		{"delete, the leaf moves down", "delete", "two", [4]int64{1, 1, 48, 16}, []string{"two"}},
		{"flatten", "flatten", "two", [4]int64{32, 8, 1, 1}, []string{"two"}},
		{"flatten the leaf", "flatten", "leaf", [4]int64{32, 8, 1, 1}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			base := filepath.Join(t.TempDir(), "vm.raw")
			harness.Run(t, "truncate", "-s", "64M", base)
			overwrite(t, base, 0, test.fill[0]<<20, 'b')
			harness.Guard(t, base)
			m := harness.MountDisk(t, base)
			overwrite(t, m.Raw(), 4<<20, test.fill[1]<<20, '1')
			m.Do("snapshot", "one")
			overwrite(t, m.Raw(), 8<<20, test.fill[2]<<20, '2')
			m.Do("snapshot", "two")
			overwrite(t, m.Raw(), 12<<20, test.fill[3]<<20, '3')
			views, status := m.SaveViews(), m.Status()
			var ids, files []string
			for _, layer := range status.Layers {
				if layer.Name != "" && strings.Contains(strings.Join(test.writes, " "), layer.Name) {
					ids, files = append(ids, layer.ID), append(files, layer.File)
				}
			}

			m.Do("rate", "1M") // on a busy machine the job is over before it is looked at
			m.Do(test.control, test.line)
			resume := stopInJob(t, m, files...)
			others.layers(t, status, ids...)
			resume()
			m.Do("rate", "max")
			m.FinishJob(jobLimit)
			sameViews(t, m, views)

			others.layers(t, m.Status())
			after := m.SaveViews()
			m.Unmount()
			harness.Judge(t, m.Disk, after)
		})
	}
}
