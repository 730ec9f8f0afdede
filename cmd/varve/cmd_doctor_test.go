package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"varve/cmd/varve/internal/doctor"
	"varve/integration/harness"
	"varve/integration/turn"
	"varve/overlay/qcow2"
)

// asked asks the doctor, as JSON and in words, and gives the findings as lines, except
// those about room on this machine. The words are checked for their width.
func asked(t *testing.T, dir string, args ...string) (code int, lines string) {
	t.Helper()
	r := vv(t, dir, append([]string{"doctor", "--json"}, args...)...)
	var report doctor.Report
	if err := json.Unmarshal([]byte(r.stdout), &report); err != nil {
		t.Fatalf("%v: %q, %q", err, r.stdout, r.stderr)
	}
	problems := 0
	for _, f := range report.Findings {
		if f.Check != "host-space" {
			lines += fmt.Sprintf("%s %s %s: %s; %s\n", f.Severity, f.Check, f.Subject, f.What, f.Fix)
		}
		if f.Severity == doctor.Problem {
			problems++
		}
	}
	if report.Version != 1 || report.Problems != problems || report.Checks == 0 || (problems > 0) != (r.code == exitFailed) {
		t.Errorf("exit %d, %+v", r.code, report)
	}
	words := vv(t, dir, append([]string{"doctor"}, args...)...)
	if words.code != r.code || (problems > 0) != strings.Contains(words.stderr, "each says the way out") {
		t.Errorf("exit %d, not %d, says %q", words.code, r.code, words.stderr)
	}
	if len(report.Findings) == 0 && !strings.HasPrefix(words.stdout, "no trouble found (") {
		t.Errorf("says %q", words.stdout)
	}
	for line := range strings.Lines(words.stdout) {
		text := strings.TrimRight(line, "\n")
		if utf8.RuneCountInString(text) > 79 && strings.HasPrefix(text, " ") && len(strings.Fields(text)) > 3 {
			t.Errorf("%d columns: %s", utf8.RuneCountInString(text), text)
		}
		if strings.Contains(text, "\x1b") {
			t.Errorf("colours in a pipe: %q", text)
		}
	}
	return r.code, lines
}

// says checks that exactly the given lines are found, by their beginnings.
func says(t *testing.T, dir string, args []string, want ...string) {
	t.Helper()
	_, lines := asked(t, dir, args...)
	got := strings.Split(strings.TrimSuffix(lines, "\n"), "\n")
	if lines == "" {
		got = nil
	}
	ok := len(got) == len(want)
	for _, w := range want {
		ok = ok && slices.ContainsFunc(got, func(line string) bool { return strings.HasPrefix(line, w) })
	}
	if !ok {
		t.Errorf("doctor %v finds\n%s\nnot\n%s", args, lines, strings.Join(want, "\n"))
	}
}

// A disk that is in order has no trouble, whichever way it is named, mounted and not,
// also while a snapshot, a revert or a job has just been.
func TestDoctorOfAHealthyDisk(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	check := func(names ...string) {
		t.Helper()
		for _, name := range names {
			says(t, dir, []string{name})
		}
	}
	put(t, mnt, "one", 0)
	must(t, dir, "snapshot", "mnt", "one")
	put(t, mnt, "two", 8192)
	must(t, dir, "snapshot", "mnt", "two")
	put(t, mnt, "three", 1<<20)
	// Names of the disk, which take turns.
	for i, name := range []string{"mnt", mnt, "vm.raw", "vm.raw.varve", "vm.raw.varve/layers", "mnt/layers/one.raw", "vm.raw.varve/layers/000002.qcow2", "vm.raw.varve/chain.json"} {
		if turn.Of(i, 3) == 0 || os.Getenv("VARVE_LONG") != "" {
			check(name)
		}
	}
	must(t, dir, "delete", "mnt", "one")
	check("mnt")
	must(t, dir, "umount", "mnt")
	check("vm.raw", "vm.raw.varve/layers/000003.qcow2")
	must(t, dir, "mount", "--read-only", "vm.raw", "mnt")
	check("mnt")
}

// What is wrong with a mount is found and does not hold up the rest.
func TestDoctorOfAMount(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	disk := dir + "/vm.raw.varve"
	pid := daemonOf(t, disk)

	goOn := stopped(t, pid)
	says(t, dir, []string{"mnt"}, fmt.Sprintf("problem no-answer %s: its daemon gives no answer within 5s: pid %d", mnt, pid))
	goOn()

	tool(t, dir, "mount", "-t", "tmpfs", "none", mnt)
	says(t, dir, []string{"vm.raw"}, "warning hidden-mount "+mnt+": none (tmpfs) is mounted over it")
	tool(t, dir, "umount", mnt)
	says(t, dir, []string{"vm.raw"})

	program := exec.Command("sh", "-c", "exec 3<mnt/disk.raw && echo ready && read line")
	program.Dir = dir
	end := harness.Keep(t, program)
	tool(t, dir, "fusermount3", "-uz", mnt)
	says(t, dir, []string{"vm.raw"}, fmt.Sprintf("warning hidden-mount %s: pid %d ", disk, pid))
	end()
	eventually(t, "the lock is free", func() bool { return vv(t, dir, "mount", "vm.raw", "mnt").code == exitDone })

	killed(t, disk)
	says(t, dir, []string{mnt}, "problem stale-mount "+mnt+": its daemon is gone", "note unclean "+disk)
	// Without an argument it is among what is found on this machine.
	if r := vv(t, dir, "doctor"); r.code != exitFailed || !strings.Contains(r.stdout, mnt+"\n  problem  its daemon is gone") {
		t.Errorf("exit %d, finds\n%s", r.code, r.stdout)
	}
	must(t, dir, "mount", "vm.raw", "mnt")
	says(t, dir, []string{"mnt"})

	// Another disk's mount, even one whose disk directory is gone, is its own.
	if err := os.Mkdir(dir+"/other", 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "create", "other.varve", "--size", "1M")
	must(t, dir, "mount", "other.varve", "other")
	killed(t, dir+"/other.varve")
	if err := os.RemoveAll(dir + "/other.varve"); err != nil {
		t.Fatal(err)
	}
	says(t, dir, []string{"mnt"})
	says(t, dir, []string{"other"}, "problem stale-mount "+dir+"/other: ", "problem chain-json "+dir+"/other.varve: its chain.json is not there")

	// A disk that has another name is the same.
	if err := os.Symlink("vm.raw.varve", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	killed(t, disk)
	says(t, dir, []string{"link"}, "problem stale-mount "+mnt+": ", "note unclean "+disk)
}

// A clone stands on layers that the daemon of another disk has open to write, also one
// in a container, which has another pid there.
func TestDoctorOfAClone(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	put(t, mnt, "one", 0)
	must(t, dir, "snapshot", "mnt", "one")
	must(t, dir, "clone", "mnt", "one", "clone.varve")
	if err := os.Mkdir(dir+"/clone", 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "mount", "clone.varve", "clone")
	says(t, dir, []string{"clone"})
	must(t, dir, "umount", "mnt")
	says(t, dir, []string{"clone"})

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	container := exec.Command("unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", self+" mount vm.raw mnt >&2 && echo ready && read line")
	container.Dir, container.Env = dir, command(dir).Env
	end := harness.Keep(t, container)
	says(t, dir, []string{"clone"})
	end()

	writer := exec.Command("sh", "-c", "exec 3<>vm.raw.varve/layers/000002.qcow2 && echo ready && read line")
	writer.Dir = dir
	end = harness.Keep(t, writer)
	says(t, dir, []string{"clone"}, "problem open-files "+dir+"/clone.varve: pid ")
	end()
}

// What is wrong with the files of a mounted disk is found under the mount.
func TestDoctorOfFiles(t *testing.T) {
	dir, _ := mounted(t, 4<<20, 1<<20)
	disk := dir + "/vm.raw.varve"
	must(t, dir, "snapshot", "mnt", "one")
	if err := os.WriteFile(disk+"/layers/junk", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	now := "2001-01-01"
	tool(t, dir, "touch", "-d", now, "vm.raw")
	says(t, dir, []string{"mnt"}, "warning unowned-file "+disk+"/layers/junk: ", "problem changed-layer "+dir+"/vm.raw: base was changed since it was frozen")
	r := vv(t, dir, "doctor", "mnt")
	if !strings.HasPrefix(r.stdout, dir+"/vm.raw (base)\n  problem  base was changed") || !strings.HasSuffix(r.stdout, "\n1 problem, 1 warning, no notes\n") {
		t.Errorf("says %s", r.stdout)
	}
}

// An image that is no disk's yet: what a mount would refuse, before it does.
func TestDoctorOfAnImage(t *testing.T) {
	dir := hostDir(t)
	image(t, dir+"/base.raw", 4<<20, 1<<20)
	tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "top.qcow2")
	says(t, dir, []string{"base.raw"})
	says(t, dir, []string{"top.qcow2"})
	data, err := os.ReadFile(dir + "/top.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(data), string(binary.BigEndian.AppendUint32(nil, qcow2.ExtensionBackingFormat)))
	if at < 0 {
		t.Fatal("no format in the header")
	}
	binary.BigEndian.PutUint32(data[at:], 1)
	if err := os.WriteFile(dir+"/top.qcow2", data, 0o600); err != nil {
		t.Fatal(err)
	}
	says(t, dir, []string{"top.qcow2"}, "problem backing-format "+dir+`/top.qcow2: its header names the backing file "base.raw" without a format`)
	// What it says helps.
	tool(t, dir, "qemu-img", "rebase", "-u", "-b", "base.raw", "-F", "raw", dir+"/top.qcow2")
	says(t, dir, []string{"top.qcow2"})
	if err := os.Rename(dir+"/base.raw", dir+"/elsewhere.raw"); err != nil {
		t.Fatal(err)
	}
	says(t, dir, []string{"top.qcow2"}, "problem backing-file "+dir+"/top.qcow2: ")
	if made, _ := filepath.Glob(dir + "/*.varve"); len(made) > 0 {
		t.Errorf("it made %v", made)
	}
}

// Who may not look is told what was not looked at.
func TestDoctorOfAnothersDisk(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r := asUser(t, nobody, dir, dir, "doctor", mnt)
	want := "note not looked at, for want of rights: " + dir + "/vm.raw.varve; inside " + mnt + ", which uid 0 mounted"
	if text := strings.Join(strings.Fields(r.stdout), " "); r.code != exitDone || !strings.HasPrefix(text, dir+"/vm.raw.varve "+want) ||
		!strings.HasSuffix(text, "no problems, no warnings, 1 note") {
		t.Errorf("exit %d, says %s%s", r.code, r.stdout, r.stderr)
	}
	// Nor is an image without a disk what may be one with a disk.
	if err := os.Chmod(dir+"/vm.raw", 0o644); err != nil {
		t.Fatal(err)
	}
	r = asUser(t, nobody, dir, dir, "doctor", "--json", "vm.raw")
	if r.code != exitDone || !strings.Contains(r.stdout, "for want of rights: ") || !strings.Contains(r.stdout, dir+"/vm.raw.varve") || !strings.Contains(r.stdout, `"notes": 1`) {
		t.Errorf("exit %d, says %s%s", r.code, r.stdout, r.stderr)
	}
	r = asUser(t, nobody, dir, dir, "doctor", "vm.raw.varve")
	if r.code != exitFailed || !strings.Contains(r.stderr, "permission denied") {
		t.Errorf("exit %d, says %s%s", r.code, r.stdout, r.stderr)
	}
}

func TestDoctorRefuses(t *testing.T) {
	dir := hostDir(t)
	fails(t, dir, exitFailed, []string{"doctor none.raw: no such disk directory, mountpoint or image"}, "doctor", "none.raw")
	fails(t, dir, exitFailed, []string{"doctor .: it is neither a disk directory (it has no chain.json) nor a varve mount"}, "doctor", ".")
	fails(t, dir, exitUsage, []string{"one argument too many"}, "doctor", "a", "b")
	fails(t, dir, exitUsage, []string{"DISK is empty"}, "doctor", "")
	if err := syscall.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, dir, exitFailed, []string{"doctor fifo: it is neither a file nor a block device"}, "doctor", "fifo")
	fails(t, dir, exitFailed, []string{"doctor /dev/zero: it is neither a file nor a block device"}, "doctor", "/dev/zero")
	image(t, dir+"/base.raw", 4<<20, 1<<20)
	loop := strings.TrimSpace(tool(t, dir, "losetup", "--find", "--show", "--read-only", "base.raw"))
	t.Cleanup(func() { exec.Command("losetup", "--detach", loop).Run() })
	says(t, dir, []string{loop})
}

// On a terminal there are colours, unless NO_COLOR is set, and the width is the same.
func TestDoctorColours(t *testing.T) {
	dir := hostDir(t)
	tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "gone.raw", "-F", "raw", "top.qcow2", "1M")
	master, slave := terminal(t, 80, 24)
	shown := begin(t, dir, master, slave, "doctor", "top.qcow2").until("the sum", has("1 problem, "))
	if !strings.Contains(shown, "  \x1b[1;31mproblem\x1b[0m  its backing file") {
		t.Errorf("shows %q", shown)
	}
	plain := vv(t, dir, "doctor", "top.qcow2").stdout
	if got := strings.NewReplacer("\r", "", "\x1b[1;31m", "", "\x1b[0m", "").Replace(shown); got != plain {
		t.Errorf("shows %q, a pipe gets %q", got, plain)
	}
	t.Setenv("NO_COLOR", "1")
	master, slave = terminal(t, 80, 24)
	if shown := begin(t, dir, master, slave, "doctor", "top.qcow2").until("the sum", has("1 problem, ")); strings.Contains(shown, "\x1b") {
		t.Errorf("shows %q", shown)
	}
}

// A host's file system that fills up is told of, the earlier the milder.
func TestDoctorOfAFullHost(t *testing.T) {
	host := smallHost(t, hostDir(t), 2<<30)
	must(t, host, "create", "small.varve", "--size", "1M")
	must(t, host, "create", "large.varve", "--size", "3G")
	for _, c := range []struct {
		left, small, large string // of the host in MiB; what is said of each disk
		code               int
	}{
		{"1000", "", "note     the guest can still write ", exitDone},
		{"80", "", "warning  the host's file system is nearly full: ", exitDone},
		{"0", "problem  the host's file system is full: ", "problem  the host's file system is full: ", exitFailed},
	} {
		if err := os.RemoveAll(host + "/filled"); err != nil {
			t.Fatal(err)
		}
		free := strings.Fields(tool(t, host, "stat", "-f", "-c", "%f %S", "."))
		if c.left == "0" {
			fill(t, host+"/filled")
		} else {
			tool(t, host, "sh", "-c", fmt.Sprintf("fallocate -l $((%s * %s - (%s << 20))) filled", free[0], free[1], c.left))
		}
		for disk, want := range map[string]string{"small.varve": c.small, "large.varve": c.large} {
			r := vv(t, host, "doctor", disk)
			got, _ := strings.CutPrefix(r.stdout, host+"/"+disk+"\n  ")
			if want == "" {
				want = "no trouble found ("
			}
			code := c.code
			if want == "no trouble found (" {
				code = exitDone
			}
			if r.code != code || !strings.HasPrefix(got, want) {
				t.Errorf("%s MiB left: %s: exit %d, says %s", c.left, disk, r.code, r.stdout)
			}
		}
	}
}
