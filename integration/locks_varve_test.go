package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"varve/integration/harness"
	"varve/integration/turn"
)

// What varve refuses because of QEMU, and because of other varves.

// varveTry is a command of varve's on a disk that is not mounted. DISK is its
// directory, BASE the image that it stands on, LAYER one of its layers, POINT an
// empty directory, NEW a path where nothing is.
type varveTry struct {
	name, command string
	opens         string // base, one layer, all layers, or leaf: all, and that for writing
}

// varveTryKinds begin at these of varveTries: those of the base or a layer, those that
// look or mount, those that change the disk and need each other.
var varveTryKinds = []int{0, 4, 9, len(varveTries)}

var varveTries = []varveTry{
	{"first mount", "mount --disk NEW BASE POINT", "base"},
	{"create", "create NEW --base BASE", "base"},
	{"read-only mount of the image", "mount --read-only --disk NEW BASE POINT", "base"},
	{"accept", "accept DISK LAYER", "layer"},
	{"list", "list DISK", "all"},
	{"status", "status DISK --json", "all"},
	{"read-only mount", "mount --read-only DISK POINT", "all"},
	{"mount", "mount DISK POINT", "leaf"},
	{"mount of the image", "mount BASE POINT", "leaf"},
	{"snapshot", "snapshot DISK three", "leaf"},
	{"rename", "rename DISK three drei", "leaf"},
	{"delete", "delete DISK drei", "leaf"},
	{"resize", "resize DISK 72M", "leaf"},
	{"flatten", "flatten DISK two", "leaf"},
	{"revert", "revert DISK one", "leaf"},
}

// varveTriesOf are the commands whose turn it is with the i-th holder: of those that it
// makes varve refuse one in three, of the others those of one kind.
func varveTriesOf(i int, refused func(varveTry) bool) (chosen []varveTry) {
	if harness.Long() {
		return varveTries
	}
	kind := turn.Of(i, len(varveTryKinds)-1)
	for k, try := range varveTries {
		if refused(try) && turn.Of(i+k, 3) == 0 || !refused(try) && k >= varveTryKinds[kind] && k < varveTryKinds[kind+1] {
			chosen = append(chosen, try)
		}
	}
	return chosen
}

// tryVarve runs commands, and leaves no mount. refused tells which must be
// refused, and says are words that a refusal must have.
func tryVarve(t *testing.T, tries []varveTry, disk, base, layer string, refused func(varveTry) bool, says ...string) {
	t.Helper()
	for _, try := range tries {
		point, fresh := t.TempDir(), filepath.Join(t.TempDir(), "new.varve")
		names := strings.NewReplacer("DISK", disk, "BASE", base, "LAYER", layer, "POINT", point, "NEW", fresh)
		var args []string
		for _, arg := range strings.Fields(try.command) { // before: the names may have spaces
			args = append(args, names.Replace(arg))
		}
		r := harness.Try(t, harness.Varve(), args...)
		switch want := refused(try); {
		case want && r.Code != 1:
			t.Errorf("%s: exit code %d, wanted a refusal\n%s", try.name, r.Code, r.Stderr)
		case !want && r.Code != 0:
			t.Errorf("%s: exit code %d\n%s", try.name, r.Code, r.Stderr)
		case want:
			for _, words := range says {
				if !strings.Contains(r.Stderr, words) {
					t.Errorf("%s: says %q and not %q", try.name, r.Stderr, words)
				}
			}
			if _, err := os.Stat(fresh); err == nil {
				t.Errorf("%s: was refused, and made a disk", try.name)
			}
		}
		if strings.Contains(try.command, "POINT") && r.Code == 0 {
			harness.Run(t, harness.Varve(), "umount", point)
		}
	}
}

// closedDisk makes a disk with two snapshots that is not mounted. It gives the
// files of its layers by name; the leaf's is "".
func closedDisk(t *testing.T, base string) (disk string, files map[string]string) {
	t.Helper()
	m := harness.MountDisk(t, base)
	overwrite(t, m.Raw(), 2<<20, 1<<20, '1')
	m.Do("snapshot", "one")
	overwrite(t, m.Raw(), 3<<20, 1<<20, '2')
	m.Do("snapshot", "two")
	overwrite(t, m.Raw(), 4<<20, 1<<20, '3')
	files = map[string]string{}
	for _, layer := range m.Status().Layers {
		files[layer.Name] = layer.File
	}
	m.Unmount()
	return m.Disk, files
}

// TestVarveRefusesWhatIsOpen: what a program of QEMU's has open, varve leaves
// alone, says who it is, and goes on when that is gone. The commands take turns.
func TestVarveRefusesWhatIsOpen(t *testing.T) {
	const writing, reading = "is open for writing in pid ", "which lets nobody write it"
	all := func(varveTry) bool { return true }
	theDisk := func(try varveTry) bool { return try.opens != "base" }
	theLeaf := func(try varveTry) bool { return try.opens == "all" || try.opens == "leaf" }
	changes := func(try varveTry) bool { return try.opens == "leaf" }
	none := func(varveTry) bool { return false }
	asRaw := func(program func(file, format string, options ...string) []string, options ...string) func(*testing.T, string) []string {
		return func(_ *testing.T, file string) []string { return program(file, "raw", options...) }
	}
	asQcow2 := func(program func(file, format string, options ...string) []string, options ...string) func(*testing.T, string) []string {
		return func(_ *testing.T, file string) []string { return program(file, "qcow2", options...) }
	}
	daemon := func(format string, writable bool) func(*testing.T, string) []string {
		return func(t *testing.T, file string) []string { return harness.StorageDaemon(t, file, format, writable) }
	}
	tests := []struct {
		name    string
		base    string // raw, qcow2, chain
		held    string // a layer's name; "" is the leaf
		holder  func(t *testing.T, file string) []string
		refused func(varveTry) bool
		says    string
	}{
		{"base, a VM", "raw", "base", asRaw(harness.VM), all, writing},
		{"base, qemu-io", "raw", "base", asRaw(harness.IO), all, writing},
		{"base, a storage daemon", "raw", "base", daemon("raw", true), all, writing},
		{"base, a VM that reads", "raw", "base", asRaw(harness.VM, "readonly=on"), none, ""},
		{"base, qemu-io that reads", "raw", "base", asRaw(harness.IO, "-r"), none, ""},
		{"base, a storage daemon that reads", "raw", "base", daemon("raw", false), none, ""},
		{"qcow2 base, a VM", "qcow2", "base", asQcow2(harness.VM), all, writing},
		{"qcow2 base, a VM that reads", "qcow2", "base", asQcow2(harness.VM, "readonly=on"), none, ""},
		{"adopted top, a VM", "chain", "adopted", asQcow2(harness.VM), all, writing},
		{"adopted bottom, qemu-io", "chain", "base", asQcow2(harness.IO), all, writing},
		{"frozen, a VM", "raw", "one", asQcow2(harness.VM), theDisk, writing},
		{"frozen, qemu-io", "raw", "two", asQcow2(harness.IO), theDisk, writing},
		{"leaf, a VM", "raw", "", asQcow2(harness.VM), theLeaf, writing},
		{"leaf, a storage daemon", "raw", "", daemon("qcow2", true), theLeaf, writing},
		{"leaf, a VM that reads", "raw", "", asQcow2(harness.VM, "readonly=on"), changes, reading},
		{"leaf, qemu-io that reads", "raw", "", asQcow2(harness.IO, "-r"), changes, reading},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			base := lockBase(t)
			switch test.base {
			case "qcow2":
				harness.Convert(t, base, "raw", base+".qcow2", "qcow2")
				base += ".qcow2"
			case "chain":
				base = harness.ChainOfThree(t, base, 64<<20)[0]
			}
			harness.Guard(t, base)
			disk, files := closedDisk(t, base)
			file := files[test.held]
			layer := test.held
			if layer == "" {
				layer = "base" // accept is not for the leaf
			}
			h := harness.Hold(t, test.holder(t, file)...)
			tryVarve(t, varveTriesOf(i, test.refused), disk, base, layer, test.refused, test.says, fmt.Sprintf("pid %d %s", h.PID, h.Comm), file)
			h.Stop()
			if test.says != "" { // else nothing has been refused
				tries := varveTries
				if !harness.Long() { // one kind of commands after each holder
					kind := turn.Of(i+1, len(varveTryKinds)-1)
					tries = tries[varveTryKinds[kind]:varveTryKinds[kind+1]]
				}
				tryVarve(t, tries, disk, base, layer, none)
			}
			harness.Judge(t, disk, nil)
		})
	}
}

// TestVarveLooksAtEveryByte: one byte of those that a base must not have held is
// enough for a refusal. No program of QEMU's holds all of them one at a time.
func TestVarveLooksAtEveryByte(t *testing.T) {
	base := lockBase(t)
	harness.Guard(t, base)
	disk, _ := closedDisk(t, base)
	for at, refused := range map[int64]bool{100: false, 101: true, 103: true, 200: true, 201: false, 203: false} {
		f, err := os.Open(base)
		if err != nil {
			t.Fatal(err)
		}
		if !harness.TakeLock(f, at) {
			t.Fatalf("byte %d is not to be had", at)
		}
		r := harness.Try(t, harness.Varve(), "list", disk)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if said := strings.Contains(r.Stderr, fmt.Sprintf("pid %d", os.Getpid())); (r.Code == 1) != refused || said != refused {
			t.Errorf("byte %d: exit code %d, says %q", at, r.Code, r.Stderr)
		}
	}
	harness.Judge(t, disk, nil)
}

// mountAttempt is a `varve mount` of several at once.
type mountAttempt struct {
	point  string
	stderr bytes.Buffer
	err    error
}

// mountAtOnce starts n mounts of one source and gives those that worked and
// those that did not. The end of the test unmounts.
func mountAtOnce(t *testing.T, n int, args ...string) (won, lost []*mountAttempt) {
	t.Helper()
	attempts := make([]*mountAttempt, n)
	var all sync.WaitGroup
	for i := range attempts {
		a := &mountAttempt{point: t.TempDir()}
		attempts[i] = a
		cmd := exec.Command(harness.Varve(), append(append([]string{"mount"}, args...), a.point)...)
		cmd.Stderr = &a.stderr
		all.Go(func() { a.err = cmd.Run() })
	}
	all.Wait()
	for _, a := range attempts {
		if a.err != nil {
			lost = append(lost, a)
			continue
		}
		won = append(won, a)
		t.Cleanup(func() { harness.Try(t, harness.Varve(), "umount", a.point) })
	}
	return won, lost
}

// oneWins fails the test unless one mount worked and the others say who has it.
func oneWins(t *testing.T, won, lost []*mountAttempt, others int) {
	t.Helper()
	if len(won) != 1 || len(lost) != others {
		t.Errorf("%d mounts worked, %d failed", len(won), len(lost))
	}
	for _, a := range lost {
		said := a.stderr.String()
		if len(won) > 0 && !(strings.Contains(said, won[0].point) && strings.Contains(said, "(pid ") || strings.Contains(said, "pid ") && strings.Contains(said, " varve")) {
			t.Errorf("a mount that lost says %q; the disk is mounted at %s", said, won[0].point)
		}
	}
}

// TestOneMountWins starts eight mounts of one disk at once.
func TestOneMountWins(t *testing.T) {
	const rounds, others = 3, 7
	t.Run("of a disk", func(t *testing.T) {
		base := lockBase(t)
		harness.Guard(t, base)
		disk, _ := closedDisk(t, base)
		for range rounds {
			won, lost := mountAtOnce(t, 1+others, disk)
			oneWins(t, won, lost, others)
			for _, a := range won {
				overwrite(t, filepath.Join(a.point, "disk.raw"), 8<<20, 1<<20, 'w')
				harness.Run(t, harness.Varve(), "umount", a.point)
			}
		}
		harness.Judge(t, disk, nil)
	})
	t.Run("of an image, for the first time", func(t *testing.T) {
		for range rounds {
			base := lockBase(t)
			harness.Guard(t, base)
			won, lost := mountAtOnce(t, 1+others, base)
			oneWins(t, won, lost, others)
			for _, a := range won {
				overwrite(t, filepath.Join(a.point, "disk.raw"), 8<<20, 1<<20, 'w')
				harness.Run(t, harness.Varve(), "umount", a.point)
			}
			names, err := filepath.Glob(filepath.Join(filepath.Dir(base), "*"))
			hidden, hiddenErr := filepath.Glob(filepath.Join(filepath.Dir(base), ".*"))
			if err != nil || hiddenErr != nil {
				t.Fatal(err, hiddenErr)
			}
			if got := strings.Join(append(names, hidden...), " "); got != base+" "+base+".varve" {
				t.Errorf("beside the base there is: %s", got)
			}
			harness.Judge(t, base+".varve", nil)
		}
	})
}

// TestMountedDiskUnderOtherNames: a mounted disk is found to be mounted under
// every name that it has, and commands go through its mount.
func TestMountedDiskUnderOtherNames(t *testing.T) {
	base := lockBase(t)
	harness.Guard(t, base)
	m := harness.MountDisk(t, base)
	dir := t.TempDir()
	link, imageLink, bound := filepath.Join(dir, "link"), filepath.Join(dir, "link.raw"), filepath.Join(dir, "bound")
	for path, to := range map[string]string{link: m.Disk, imageLink: base} {
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(bound, 0o700); err != nil {
		t.Fatal(err)
	}
	harness.Run(t, "mount", "--bind", m.Disk, bound)
	t.Cleanup(func() { unmount(t, bound) })

	for i, name := range []string{base, m.Disk, link, imageLink, bound} {
		for _, flags := range [][]string{nil, {"--read-only"}} {
			args := append(append([]string{"mount"}, flags...), name, t.TempDir())
			r := harness.Try(t, harness.Varve(), args...)
			if want := fmt.Sprintf("is mounted already at %s (pid %d varve)", m.Point, m.PID); r.Code != 1 || !strings.Contains(r.Stderr, want) {
				t.Errorf("mount %v of %s: exit code %d, says %q, wanted %q", flags, name, r.Code, r.Stderr, want)
			}
		}
		snapshot := fmt.Sprintf("s%d", i)
		harness.Run(t, harness.Varve(), "snapshot", name, snapshot)
		if _, err := os.Stat(m.Layer(snapshot)); err != nil {
			t.Errorf("a snapshot of %s: %v", name, err)
		}
		r := harness.Try(t, harness.Varve(), "accept", name, "base")
		if r.Code != 1 || !strings.Contains(r.Stderr, "it is mounted at "+m.Point) {
			t.Errorf("accept of %s: exit code %d, says %q", name, r.Code, r.Stderr)
		}
	}
	// The mountpoint is a name too, but for no mount.
	if r := harness.Try(t, harness.Varve(), "mount", m.Disk, m.Point); r.Code != 1 || !strings.Contains(r.Stderr, "mounted already") {
		t.Errorf("mount on its own mountpoint: exit code %d, says %q", r.Code, r.Stderr)
	}
	views := m.SaveViews()
	m.Unmount()
	harness.Judge(t, m.Disk, views)
}

// TestMountRightAfter: fusermount3 returns before the daemon has flushed and
// gone; whoever comes then waits for it.
func TestMountRightAfter(t *testing.T) {
	base := lockBase(t)
	harness.Guard(t, base)
	disk, _ := closedDisk(t, base)
	point := t.TempDir()
	t.Cleanup(func() { harness.Try(t, harness.Varve(), "umount", point) })
	for i := range 5 {
		harness.Run(t, harness.Varve(), "mount", disk, point)
		overwrite(t, filepath.Join(point, "disk.raw"), 8<<20, 16<<20, byte('a'+i))
		harness.Run(t, "fusermount3", "-u", point)
		harness.Run(t, harness.Varve(), "snapshot", disk, fmt.Sprintf("after%d", i))
	}
	harness.Judge(t, disk, nil)
}

// TestKilledDaemon: its lock is free, also while its dead mount is there, and so
// are the images.
func TestKilledDaemon(t *testing.T) {
	base := lockBase(t)
	harness.Guard(t, base)
	m := harness.MountDisk(t, base)
	overwrite(t, m.Raw(), 2<<20, 1<<20, '1')
	m.Do("snapshot", "one")
	if err := syscall.Kill(m.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	again := harness.MountDisk(t, m.Disk)
	if names := again.Status().Layers; len(names) != 3 {
		t.Errorf("layers: %+v", names)
	}
	views := again.SaveViews()
	again.Unmount()
	harness.Hold(t, harness.VM(base, "raw")...).Stop()
	m.Crash()
	harness.Judge(t, m.Disk, views)
}

// TestManyDisksOnOneBase mounts ten disks on one base at once, writes something
// else into each, and goes on with nine while one is pruned, and one goes.
func TestManyDisksOnOneBase(t *testing.T) {
	const disks = 10
	base := lockBase(t)
	harness.Guard(t, base)
	dir := t.TempDir()
	plain := func(i int) string { return filepath.Join(dir, fmt.Sprintf("plain%d", i)) }
	letter := func(i int) byte { return byte('A' + i) }
	var mounts []*harness.Mount
	for i := range disks {
		harness.Run(t, "cp", "--sparse=always", base, plain(i))
		mounts = append(mounts, harness.MountDisk(t, base, "--disk", filepath.Join(dir, fmt.Sprintf("vm%d.varve", i))))
	}
	both := func(i int, off, length int64) {
		overwrite(t, plain(i), off, length, letter(i))
		overwrite(t, mounts[i].Raw(), off, length, letter(i))
	}
	verify := func() {
		t.Helper()
		for i, m := range mounts {
			harness.Run(t, "cmp", plain(i), m.Raw())
			harness.Run(t, "cmp", base, m.Layer("base"))
		}
	}
	for i, m := range mounts {
		both(i, int64(i)<<20, 3<<20)
		m.Do("snapshot", "one")
		both(i, int64(40+i)<<20, 2<<20)
	}
	verify()
	others := newLockTrier()
	others.file(t, lockedFile{what: "the base of ten", file: base, format: "raw"})

	mounts[0].Do("flatten", "leaf")
	mounts[1].Do("delete", "one")
	for i := 2; i < disks; i++ {
		both(i, int64(20+i)<<20, 1<<20)
	}
	mounts[0].FinishJob(jobLimit)
	mounts[1].FinishJob(jobLimit)
	verify()
	last := mounts[disks-1]
	last.Unmount()
	if err := os.RemoveAll(last.Disk); err != nil {
		t.Fatal(err)
	}
	mounts = mounts[:disks-1]
	verify()
	others.file(t, lockedFile{what: "the base of nine", file: base, format: "raw"})
	for _, m := range mounts {
		views := m.SaveViews()
		m.Unmount()
		harness.Judge(t, m.Disk, views)
	}
	// Nobody has it now.
	harness.Hold(t, harness.VM(base, "raw")...).Stop()
}

// TestTwoVMs: locks on the files in the mount are the kernel's (M19), so QEMU
// keeps a second QEMU off disk.raw.
func TestTwoVMs(t *testing.T) {
	base := lockBase(t)
	harness.Guard(t, base)
	m := harness.MountDisk(t, base)
	m.Do("snapshot", "one")
	vm := harness.Hold(t, harness.VM(m.Raw(), "raw", "cache=none")...)
	for what, command := range map[string][]string{
		"a second VM":             harness.VM(m.Raw(), "raw"),
		"a second VM, as a qcow2": harness.VM(m.Raw(), "qcow2"),
		"qemu-io":                 harness.IO(m.Raw(), "raw"),
		"a storage daemon":        harness.StorageDaemon(t, m.Raw(), "raw", true),
		"a VM that wants to read": harness.VM(m.Raw(), "raw", "readonly=on"),
	} {
		h, words := harness.TryHold(t, command...)
		if h != nil {
			t.Errorf("%s has disk.raw open too", what)
			h.Stop()
		} else if !strings.Contains(words, " lock") {
			t.Errorf("%s was refused for another reason: %s", what, words)
		}
	}
	harness.Run(t, "qemu-img", "info", "-U", "-f", "raw", m.Raw())
	for _, name := range []string{"base", "one"} { // many may read the layers
		a := harness.Hold(t, harness.VM(m.Layer(name), "raw", "readonly=on")...)
		b := harness.Hold(t, harness.VM(m.Layer(name), "raw", "snapshot=on")...)
		a.Stop()
		b.Stop()
	}
	r := harness.Try(t, harness.Varve(), "revert", m.Point, "one")
	if want := fmt.Sprintf("disk.raw is open (pid %d %s)", vm.PID, vm.Comm); r.Code != 1 || !strings.Contains(r.Stderr, want) {
		t.Errorf("revert under a VM: exit code %d, says %q, wanted %q", r.Code, r.Stderr, want)
	}
	m.Do("snapshot", "two") // the lock stays the VM's
	if h, _ := harness.TryHold(t, harness.VM(m.Raw(), "raw")...); h != nil {
		t.Error("a second VM has disk.raw open after a snapshot")
		h.Stop()
	}
	vm.Stop()
	harness.Run(t, harness.Varve(), "revert", m.Point, "one")
	harness.Hold(t, harness.VM(m.Raw(), "raw")...).Stop()
	views := m.SaveViews()
	m.Unmount()
	harness.Judge(t, m.Disk, views)
}

// TestSnapshotsBesideTries takes snapshots while somebody tries without end to
// open the layers' files for writing, as QEMU does: locks first, a look then.
// Every layer must be readable afterwards.
func TestSnapshotsBesideTries(t *testing.T) {
	const snapshots = 30
	base := lockBase(t)
	harness.Guard(t, base)
	m := harness.MountDisk(t, base)
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		tries := 0
		for {
			files, _ := filepath.Glob(filepath.Join(m.Disk, "layers", "*"))
			for _, file := range files {
				tries += tryToWrite(file)
			}
			select {
			case <-stop:
				done <- tries
				return
			default:
			}
		}
	}()
	for i := range snapshots {
		overwrite(t, m.Raw(), 2<<20, 64<<10, byte('a'+i))
		m.Do("snapshot", fmt.Sprintf("s%d", i))
	}
	m.Do("delete", "s3")
	m.FinishJob(jobLimit)
	close(stop)
	if tries := <-done; tries < snapshots {
		t.Errorf("only %d tries", tries)
	}
	status := m.Status()
	for _, layer := range status.Layers {
		if layer.ID != status.Leaf && harness.Locked(t, layer.File, 101) {
			t.Errorf("layer %s (%s) is not frozen", layer.ID, layer.Name)
		}
	}
	views := m.SaveViews()
	m.Unmount()
	harness.Judge(t, m.Disk, views)
}

// tryToWrite takes the bytes that a writer holds, for a moment.
func tryToWrite(file string) int {
	f, err := os.Open(file)
	if err != nil {
		return 0 // just gone
	}
	defer f.Close() // gives the locks back
	if !harness.TakeLock(f, 101) || !harness.TakeLock(f, 103) {
		return 0
	}
	time.Sleep(time.Millisecond)
	return 1
}
