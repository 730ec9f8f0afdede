package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// asConfined has this program confine itself to a directory and try what it may not.
const asConfined = "VARVE_TEST_CONFINED"

func TestMain(m *testing.M) {
	if dir := os.Getenv(asConfined); dir != "" {
		if err := confined(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// try is something that a process does; free says that it may still when it is confined.
type try struct {
	what string
	free bool
	do   func() error
}

// onThreads calls do on many threads at a time, some of which were there before the process
// confined itself, and gives the first error that one of them has and the others have not.
func onThreads(do func() error) error {
	const threads = 8
	errs := make([]error, threads)
	var ready, done sync.WaitGroup
	ready.Add(threads)
	for i := range threads {
		done.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			ready.Done()
			ready.Wait()
			errs[i] = do()
		})
	}
	done.Wait()
	for _, err := range errs {
		if (err == nil) != (errs[0] == nil) {
			return fmt.Errorf("threads differ: %v and %v", errs[0], err)
		}
	}
	return errs[0]
}

// confined is the child: below dir are own, which it keeps, read, which it may read, and
// other.
func confined(dir string) error {
	own, read, other := filepath.Join(dir, "own"), filepath.Join(dir, "read"), filepath.Join(dir, "other")
	kept, err := os.OpenFile(filepath.Join(other, "kept"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	parent, err := os.FindProcess(os.Getppid())
	if err != nil {
		return err
	}
	write := func(path string) error { return os.WriteFile(path, []byte("text"), 0o600) }
	open := func(path string) error {
		f, err := os.Open(path)
		if err == nil {
			f.Close()
		}
		return err
	}
	before := threadStates()
	tries := []try{
		{"write a file of its own", true, func() error { return write(filepath.Join(own, "file")) }},
		{"put one in the place of another", true, func() error {
			return errors.Join(write(filepath.Join(own, "new")), os.Rename(filepath.Join(own, "new"), filepath.Join(own, "file")))
		}},
		{"make and remove a directory", true, func() error {
			return errors.Join(os.Mkdir(filepath.Join(own, "d"), 0o700), os.Remove(filepath.Join(own, "d")))
		}},
		{"list its own", true, func() error { _, err := os.ReadDir(own); return err }},
		{"read what it may read", true, func() error { return open(filepath.Join(read, "file")) }},
		{"write what it has open", true, func() error { _, err := kept.WriteAt([]byte("more"), 0); return errors.Join(err, kept.Truncate(2)) }},
		{"read its own status", true, func() error { return open("/proc/self/status") }},
		{"read another file", false, func() error { return open(filepath.Join(other, "file")) }},
		{"list another directory", false, func() error { _, err := os.ReadDir(other); return err }},
		{"write another file", false, func() error { return write(filepath.Join(other, "file")) }},
		{"write what it may read", false, func() error { return write(filepath.Join(read, "file")) }},
		{"truncate another file", false, func() error { return os.Truncate(filepath.Join(other, "file"), 0) }},
		{"remove another file", false, func() error { return os.Remove(filepath.Join(other, "file")) }},
		{"follow a link out of its own", false, func() error { return open(filepath.Join(own, "link")) }},
		{"move a file out of its own", false, func() error { return os.Rename(filepath.Join(own, "file"), filepath.Join(other, "stolen")) }},
		{"read through /proc", false, func() error { return open("/proc/self/root" + filepath.Join(other, "file")) }},
		{"make a socket", false, func() error {
			l, err := net.Listen("unix", filepath.Join(own, "socket"))
			if err == nil {
				l.Close()
			}
			return err
		}},
		{"run a program", false, func() error { return exec.Command("/bin/true").Run() }},
		{"run a program of its own", false, func() error { return exec.Command(filepath.Join(own, "true")).Run() }},
		{"signal another process", false, func() error { return parent.Signal(unix.Signal(0)) }},
		{"see what another process has open", false, func() error {
			_, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/0", os.Getppid()))
			return err
		}},
		{"connect over TCP", false, func() error { return connect() }},
		{"mount", false, func() error { return unix.Mount("none", own, "tmpfs", 0, "") }},
	}
	if _, err := Confine(Needs{Writable: []string{own, filepath.Join(dir, "missing")}, Readable: []string{read, "/proc"}, Capabilities: []int{unix.CAP_DAC_OVERRIDE}}); err != nil {
		return err
	}
	var wrong []string
	for _, t := range tries {
		if slices.Contains([]string{"put one in the place of another", "make and remove a directory"}, t.what) {
			err = t.do()
		} else {
			err = onThreads(t.do)
		}
		switch {
		case t.free && err != nil:
			wrong = append(wrong, fmt.Sprintf("%s: %v", t.what, err))
		case !t.free && err == nil:
			wrong = append(wrong, t.what+": it can")
		case !t.free && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, unix.EXDEV):
			wrong = append(wrong, fmt.Sprintf("%s: %v, which is another reason", t.what, err))
		}
	}
	want := uint64(0)
	if os.Geteuid() == 0 {
		want = 1 << unix.CAP_DAC_OVERRIDE
	}
	states := threadStates()
	if len(states) < 2 || len(before) < 1 {
		wrong = append(wrong, fmt.Sprintf("%d threads", len(states)))
	}
	for thread, s := range states {
		if s["NoNewPrivs"] != "1" || hex(s["CapPrm"]) != want || hex(s["CapEff"]) != want || hex(s["CapInh"]) != 0 || hex(s["CapAmb"]) != 0 ||
			os.Geteuid() == 0 && hex(s["CapBnd"]) != want {
			wrong = append(wrong, fmt.Sprintf("thread %s has %v", thread, s))
		}
	}
	if len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "\n"))
	}
	return nil
}

// connect tries to reach a port at which nobody listens: who may try is told that.
func connect() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: 1, Addr: [4]byte{127, 0, 0, 1}})
	if err == unix.ECONNREFUSED {
		return nil
	}
	return err
}

// threadStates is /proc/PID/status of each thread of this process.
func threadStates() map[string]map[string]string {
	states := map[string]map[string]string{}
	files, _ := filepath.Glob("/proc/self/task/*/status")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		s := map[string]string{}
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && (name == "NoNewPrivs" || strings.HasPrefix(name, "Cap")) {
				s[name] = strings.TrimSpace(value)
			}
		}
		states[filepath.Base(filepath.Dir(file))] = s
	}
	return states
}

func hex(text string) uint64 {
	n, err := strconv.ParseUint(text, 16, 64)
	if err != nil {
		return 1 << 63
	}
	return n
}

// A process that has confined itself is refused what it does not need, on each thread, as
// root and as a user.
func TestConfine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("becomes other users: root only")
	}
	for _, uid := range []int{0, 61001} {
		t.Run(strconv.Itoa(uid), func(t *testing.T) {
			dir, err := os.MkdirTemp("", "varve-confine-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			for _, name := range []string{"own", "read", "other"} {
				if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			program := filepath.Join(dir, "program") // go test's own directory is root's
			for from, to := range map[string]string{exe: program, "/bin/true": filepath.Join(dir, "own/true")} {
				text, err := os.ReadFile(from)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(to, text, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for _, name := range []string{"own/file", "read/file", "other/file"} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte("text"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Symlink("../other/file", filepath.Join(dir, "own/link")); err != nil {
				t.Fatal(err)
			}
			if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
				return errors.Join(err, os.Lchown(path, uid, uid))
			}); err != nil {
				t.Fatal(err)
			}
			c := exec.Command("setpriv", "--reuid", strconv.Itoa(uid), "--regid", strconv.Itoa(uid), "--clear-groups", program)
			if uid == 0 {
				c = exec.Command(program)
			}
			c.Dir, c.Env = "/", append(os.Environ(), asConfined+"="+dir)
			if said, err := c.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, said)
			}
		})
	}
}

// What is confined is what the kernel can confine; what it has no name for stays.
func TestConfig(t *testing.T) {
	config, version := Needs{}.config()
	if version < 1 {
		t.Fatal("this kernel has no Landlock")
	}
	with, _ := Needs{AbstractSockets: true}.config()
	if config.Scoped == with.Scoped || config.HandledAccessFS != with.HandledAccessFS {
		t.Errorf("%v, and with abstract sockets %v", config, with)
	}
	if got := (Confined{Landlock: 7, Capabilities: names(1<<unix.CAP_CHOWN | 1<<62)}).String(); got != "Landlock 7, no_new_privs, capabilities 62 CHOWN" {
		t.Error(got)
	}
	if got := (Confined{Capabilities: names(0)}).String(); got != "this kernel has no Landlock, so files are not confined, no_new_privs, capabilities none" {
		t.Error(got)
	}
}
