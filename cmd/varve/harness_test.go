package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"varve/chain"
	"varve/chain/dirlock"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/aside"
	"varve/cmd/varve/internal/doctor"
	"varve/cmd/varve/internal/process"
	"varve/fs/device"
	testpatience "varve/integration/patience"
)

// asVarve makes this test program be varve: the daemon runs with the race
// detector when the tests do.
const asVarve = "VARVE_TEST_AS_VARVE"

func TestMain(m *testing.M) {
	if places := os.Getenv(asLoopback); places != "" {
		os.Exit(serveLoopback(places))
	}
	if os.Getenv(asVarve) != "" {
		main()
		return
	}
	if places := os.Getenv(asLoopback); places != "" {
		os.Exit(serveLoopback(places))
	}
	if code, ok := aside.Serve(os.Args, doctor.Errands()); ok {
		os.Exit(code)
	}
	for _, tool := range []string{"qemu-img", "qemu-io", "fusermount3", "losetup", "mkfs.ext4", "setpriv", "strace"} {
		if _, err := exec.LookPath(tool); err != nil {
			fmt.Fprintf(os.Stderr, "these tests need %s: %v; make deps installs it\n", tool, err)
			os.Exit(1)
		}
	}
	reports, err := os.MkdirTemp("", "varve-race-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// What the race detector finds in a daemon goes into a file, since nobody
	// reads a daemon's stderr. Without the second setting each process would
	// take a second to end.
	os.Setenv("GORACE", "log_path="+reports+"/race atexit_sleep_ms=0")
	if raceDetector && os.Getenv("VARVE_LONG") == "" {
		if err := buildQuick(reports); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	ended := mountFuseControl()
	code := m.Run()
	ended()
	files, _ := filepath.Glob(reports + "/race*")
	for _, f := range files {
		text, err := os.ReadFile(f)
		fmt.Fprintf(os.Stderr, "%s: %v\n%s\n", f, err, text)
		code = 1
	}
	os.RemoveAll(reports)
	os.Exit(code)
}

// hostDir is a directory on the host's disk (tmpfs is no home for disks). At
// the end nothing that varve mounted in it is left, whatever the test did.
func hostDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "varve-cmd-")
	if err != nil {
		t.Fatal(err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		list, err := mounts.List()
		if err != nil {
			t.Error(err)
		}
		for _, m := range list {
			if mounts.Within(m.Mountpoint, dir) {
				pid, _, _, _ := dirlock.Holder(m.Source)
				daemon := process.Open(pid)
				syscall.Unmount(m.Mountpoint, syscall.MNT_DETACH)
				daemon.Wait(testpatience.Hang)
				daemon.Close()
			}
		}
		below, err := mounts.Below(dir)
		if err != nil {
			t.Error(err)
		}
		for _, m := range below {
			syscall.Unmount(m, syscall.MNT_DETACH)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// result is what a command did.
type result struct {
	code           int
	stdout, stderr string
}

// mountFuseControl mounts FUSE's control file system, as systemd does on every machine:
// with it a user's daemon ends a mount of which another mount namespace has a copy, such as
// that of a VM that another test starts meanwhile. Of several test programs that run at a
// time the last one unmounts what the first one mounted.
func mountFuseControl() (ended func()) {
	const source = "varve-tests" // says who mounted it
	users, err := os.Open(filepath.Dir(device.Connections))
	if err != nil {
		return func() {} // FUSE is not there
	}
	if err := syscall.Flock(int(users.Fd()), syscall.LOCK_SH); err != nil {
		users.Close()
		return func() {}
	}
	if entries, err := os.ReadDir(device.Connections); err == nil && len(entries) == 0 {
		_ = syscall.Mount(source, device.Connections, "fusectl", 0, "") // fails when it is mounted and empty, and without root
	}
	return func() {
		defer users.Close()
		if syscall.Flock(int(users.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
			return // others use it
		}
		if text, err := os.ReadFile("/proc/self/mountinfo"); err == nil && strings.Contains(string(text), " - fusectl "+source+" ") {
			_ = syscall.Unmount(device.Connections, syscall.MNT_DETACH)
		}
	}
}

// quick is varve without the race detector, "" when the tests run without it too, and in
// the long tests.
var quick string

// quickCommands leave the work to the daemon of a mounted disk or to packages whose own
// tests run with the race detector. With it, most of such a command's time would be
// spent on the start of the program, and of doctor's of the processes that it sends.
var quickCommands = []string{
	"create", "doctor", "hold", "list", "rename", "resize", "revert", "snapshot", "status", "tree", "umount", "undo", "version",
}

// buildQuick builds quick into dir.
func buildQuick(dir string) error {
	quick = filepath.Join(dir, "varve")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", quick, ".").CombinedOutput(); err != nil {
		return fmt.Errorf("build varve without the race detector: %w\n%s", err, out)
	}
	return nil
}

// vv runs varve in a process of its own, in dir.
func vv(t *testing.T, dir string, args ...string) result {
	t.Helper()
	cmd := command(dir, args...)
	return finish(t, cmd)
}

func command(dir string, args ...string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	if quick != "" && len(args) > 0 && slices.Contains(quickCommands, args[0]) {
		exe = quick
	}
	cmd := exec.Command(exe, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), asVarve+"=1", "NOTIFY_SOCKET=")
	return cmd
}

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatalf("run %v: %v", cmd.Args[1:], err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), notices.ReplaceAllString(words.String(), "")}
}

// notices are lines of a command that waits for longer than a second, as on a busy host.
var notices = regexp.MustCompile(`(?m)^varve: (waiting for|interrupted, ending) .*\n`)

// must runs varve and expects success.
func must(t *testing.T, dir string, args ...string) result {
	t.Helper()
	r := vv(t, dir, args...)
	if r.code != exitDone {
		t.Fatalf("varve %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r
}

// fails runs varve and expects an exit code and one line of stderr that has
// all the words in it.
func fails(t *testing.T, dir string, code int, words []string, args ...string) {
	t.Helper()
	r := vv(t, dir, args...)
	said := strings.Join(args, " ")
	if len(said) > 100 {
		said = said[:100] + "…"
	}
	if r.code != code || r.stdout != "" {
		t.Errorf("varve %s: exit %d, stdout %q, stderr %q; want exit %d", said, r.code, r.stdout, r.stderr, code)
	}
	if strings.Count(r.stderr, "\n") != 1 || !strings.HasPrefix(r.stderr, "varve: ") {
		t.Errorf("varve %s: not one line: %q", said, r.stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.stderr, w) {
			t.Errorf("varve %s: says %q, lacks %q", said, r.stderr, w)
		}
	}
	t.Logf("varve %s\n\t%s", said, r.stderr)
}

// tool runs a program of others and expects success.
func tool(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// image makes a raw image with a known pattern in its first bytes.
func image(t *testing.T, path string, size, filled int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i*7 + i>>8)
	}
	for off := int64(0); off < filled; off += int64(len(block)) {
		if _, err := f.WriteAt(block[:min(int64(len(block)), filled-off)], off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// put writes text into disk.raw and makes it durable.
func put(t *testing.T, mountpoint, text string, off int64) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(mountpoint, "disk.raw"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// get reads n bytes of a file.
func get(t *testing.T, path string, off int64, n int) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// mounted makes an image and mounts it at dir/mnt.
func mounted(t *testing.T, size, filled int64) (dir, mnt string) {
	t.Helper()
	dir = hostDir(t)
	mnt = filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	image(t, filepath.Join(dir, "vm.raw"), size, filled)
	must(t, dir, "mount", "vm.raw", "mnt")
	return dir, mnt
}

// document is what --json says of a disk.
func document(t *testing.T, dir, disk string) chain.Status {
	t.Helper()
	r := must(t, dir, "status", disk, "--json")
	var st chain.Status
	if err := json.Unmarshal([]byte(r.stdout), &st); err != nil {
		t.Fatalf("%v in %s", err, r.stdout)
	}
	return st
}

// named lists the snapshots of a disk.
func named(st chain.Status) string {
	var names []string
	for _, l := range st.Layers {
		if l.Name != "" {
			names = append(names, l.Name)
		}
	}
	return strings.Join(names, " ")
}

// eventually waits for something to become true.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testpatience.Hang); !f(); {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// daemonOf is the pid that holds a disk directory.
func daemonOf(t *testing.T, dir string) int {
	t.Helper()
	pid, _, held, err := dirlock.Holder(dir)
	if err != nil || !held {
		t.Fatalf("nobody holds %s (%v)", dir, err)
	}
	return pid
}
