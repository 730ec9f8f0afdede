package fs

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/fs/control"
)

func TestControlWrites(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{})
	for _, c := range []struct {
		file, text string
		want       error
		call       string
	}{
		{"snapshot", "one\n", nil, "Snapshot"},
		{"snapshot", "two", nil, "Snapshot"},
		{"snapshot", "one\n", unix.EEXIST, "Snapshot"},
		{"snapshot", "a/b\n", unix.EINVAL, "Snapshot"},
		{"snapshot", strings.Repeat("n", 129), unix.EINVAL, "Snapshot"},
		{"snapshot", "leaf", unix.EINVAL, "Snapshot"},
		{"snapshot", "# comment\n", unix.EINVAL, ""},
		{"snapshot", "\n", unix.EINVAL, ""},
		{"snapshot", "   \n", unix.EINVAL, ""},
		{"snapshot", "a\nb\n", unix.EINVAL, ""},
		{"snapshot", "a\n\n", unix.EINVAL, ""},
		{"snapshot", "\na", unix.EINVAL, ""},
		{"snapshot", "a\x00b", unix.EINVAL, ""},
		{"snapshot", "a\xff", unix.EINVAL, ""},
		{"snapshot", "a\r\n", unix.EINVAL, ""},
		{"snapshot", strings.Repeat("n", maxCommand+1), unix.EINVAL, ""},
		{"snapshot", strings.Repeat("n", 200000), unix.EINVAL, ""},
		{"revert", "none", unix.ENOENT, "Revert"},
		{"revert", "one", nil, "Revert"},
		{"delete", "one", nil, "Delete one"},
		{"delete", "--unnamed\n", nil, "DeleteUnnamed"},
		{"delete", "one two", nil, "Delete one+two"},
		{"undo", "leaf", nil, "Undo"},
		{"undo", "--forget", nil, "Forget"},
		{"hold", "one", nil, "Hold one"},
		{"release", "one", nil, "Release one"},
		{"clone", "one /srv/a b", nil, "Clone one /srv/a b"},
		{"plan", "delete one two", nil, "Plan delete one+two"},
		{"plan", "delete", nil, "Plan delete "},
		{"plan", "flatten", unix.EINVAL, ""},
		{"flatten", "leaf", nil, "Flatten leaf"},
		{"rename", "one", unix.EINVAL, ""},
		{"rename", "one  two", unix.EINVAL, ""},
		{"rename", "one two three", unix.EINVAL, ""},
		{"rename", "one uno\n", nil, "Rename"},
		{"resize", "tall", unix.EINVAL, ""},
		{"resize", "2M\n", nil, "Resize"},
		{"resize", "1M", unix.EINVAL, "Resize"},
		{"cancel", "7", nil, "Cancel 7"},
		{"rate", "2M", nil, "SetJobRate 2097152"},
		{"rate", "max", nil, "SetJobRate 0"},
		{"rate", "0", nil, "SetJobRate 0"},
		{"diff", "one leaf\n", nil, "Diff one leaf"},
		{"diff", "one", unix.EINVAL, ""},
		{"diff", "one  leaf", unix.EINVAL, ""},
		{"diff", "one two leaf", unix.EINVAL, ""},
	} {
		d.history()
		err := write(t, filepath.Join(dir, "control", c.file), c.text)
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%.40q to %s: %v, want %v", c.text, c.file, err, c.want)
		}
		got := strings.Join(d.history(), ", ")
		if got != c.call {
			t.Errorf("%.40q to %s called %q, want %q", c.text, c.file, got, c.call)
		}
	}
	if d.Size() != 2*mib {
		t.Errorf("size %d", d.Size())
	}
}

func TestControlFromAShell(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{})
	for _, c := range []struct {
		script string
		ok     bool
		made   []string
	}{
		{"echo a > control/snapshot", true, []string{"a"}},
		{"printf b > control/snapshot", true, []string{"b"}},
		{"echo c >> control/snapshot; echo d >> control/snapshot", true, []string{"c", "d"}},
		{"(echo e; echo f) > control/snapshot", true, []string{"e", "f"}},
		{"echo g | tee control/snapshot", true, []string{"g"}},
		{"echo h > /tmp/varve-test-$$; cp /tmp/varve-test-$$ control/snapshot; s=$?; rm /tmp/varve-test-$$; exit $s", true, []string{"h"}},
		// A line that comes in two writes must not run its second half.
		{"(printf first; printf second) > control/snapshot", false, []string{"first"}},
		{"echo a > control/snapshot", false, nil},
	} {
		had := len(d.layers())
		out, err := shell(t, dir, c.script)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v, %s", c.script, err, out)
		}
		var made []string
		for _, l := range d.layers()[had:] {
			made = append(made, l.status.Name)
		}
		if strings.Join(made, " ") != strings.Join(c.made, " ") {
			t.Errorf("%s made %v, want %v", c.script, made, c.made)
		}
	}
	if out, _ := shell(t, dir, "/bin/echo a > control/snapshot"); !strings.Contains(out, "File exists") {
		t.Errorf("the shell said %q", out)
	}
	open(t, filepath.Join(dir, nameDisk), os.O_RDWR)
	if err := write(t, filepath.Join(dir, "control/revert"), "a"); !errors.Is(err, unix.EBUSY) {
		t.Errorf("revert while disk.raw is open: %v, want EBUSY", err)
	}
}

func TestControlOutcome(t *testing.T) {
	dir, _, _ := mounted(t, mib, Options{})
	path := filepath.Join(dir, "control/snapshot")
	read := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, "# ") || !strings.HasSuffix(line, "\n") {
				t.Errorf("line %q does not begin with '#'", line)
			}
		}
		return string(text)
	}
	if o, ok := control.ParseOutcome(read(path)); ok {
		t.Errorf("an outcome before any write: %+v", o)
	}
	start := time.Now().Truncate(time.Second)
	if err := write(t, path, "one\n"); err != nil {
		t.Fatal(err)
	}
	o, ok := control.ParseOutcome(read(path))
	if !ok || o.Time.Before(start) || o.Time.After(time.Now()) || o.PID != os.Getpid() || o.Line != "one" || o.Errno != 0 || o.Job != "" {
		t.Errorf("%+v in %q", o, read(path))
	}
	if err := write(t, path, "one\n"); err == nil {
		t.Fatal("no error")
	}
	if o, ok = control.ParseOutcome(read(path)); !ok || o.Errno != unix.EEXIST || o.Reason != "layer one exists already" {
		t.Errorf("%+v", o)
	}
	// Bad input is quoted, not passed on to somebody's terminal.
	if err := write(t, path, "\x1b[31mred\nx"); err == nil {
		t.Fatal("no error")
	}
	text := read(path)
	if o, ok = control.ParseOutcome(text); !ok || o.Errno != unix.EINVAL || o.Line != "\x1b[31mred\nx" || strings.Contains(text, "\x1b") {
		t.Errorf("%+v in %q", o, text)
	}
	if err := write(t, filepath.Join(dir, "control/delete"), "one"); err != nil {
		t.Fatal(err)
	}
	if o, ok = control.ParseOutcome(read(filepath.Join(dir, "control/delete"))); !ok || o.Job != "3" {
		t.Errorf("%+v", o)
	}
	if o, ok = control.ParseOutcome(read(path)); !ok || o.Errno != unix.EINVAL {
		t.Errorf("another file's write changed this one: %+v", o)
	}
}

// A program that reads the file that it wrote to gets its own outcome, though
// another one wrote in between.
func TestControlOutcomeOfOnesOwn(t *testing.T) {
	dir, _, _ := mounted(t, mib, Options{})
	path := filepath.Join(dir, "control/snapshot")
	mine := open(t, path, os.O_RDWR)
	early := open(t, path, os.O_RDONLY)
	if _, err := mine.WriteString("-bad"); !errors.Is(err, unix.EINVAL) {
		t.Fatal(err)
	}
	if err := write(t, path, "other"); err != nil {
		t.Fatal(err)
	}
	content := func(file *os.File) string {
		buf := make([]byte, 4096)
		n, err := unix.Pread(int(file.Fd()), buf, 0)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	if o, ok := control.ParseOutcome(content(mine)); !ok || o.Line != "-bad" || o.Errno != unix.EINVAL {
		t.Errorf("%+v", o)
	}
	if _, ok := control.ParseOutcome(content(early)); ok {
		t.Error("what an open file reads changed under it")
	}
}

func TestCommandOutlivesItsWriter(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{})
	hold := make(chan struct{})
	d.mu.Lock() // requests of the mount itself were answered already
	d.hold = hold
	d.mu.Unlock()
	pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", "exec echo slow > " + filepath.Join(dir, "control/snapshot")},
		&syscall.ProcAttr{Env: os.Environ()})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the command to begin", func() bool { return d.count("Snapshot") == 1 })
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // let the interrupt arrive
	close(hold)
	if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the snapshot", func() bool { return d.named("slow") != nil })
	waitFor(t, "its outcome", func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "control/snapshot"))
		o, ok := control.ParseOutcome(string(text))
		return err == nil && ok && o.Line == "slow" && o.Errno == 0
	})
}

func TestStatusFiles(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{})
	for _, script := range []string{
		"cat status.json", "cp status.json $TMP && cat $TMP", "dd if=status.json bs=7 2>/dev/null",
		"cat status.json > $TMP && cat $TMP", "head -c 100000 status.json", "tail -n +1 status.json",
	} {
		tmp := filepath.Join(t.TempDir(), "copy")
		out, err := shell(t, dir, "TMP="+tmp+"; "+script)
		if err != nil {
			t.Fatalf("%s: %v, %s", script, err, out)
		}
		var st chain.Status
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			t.Errorf("%s: %v in %q", script, err, out)
		}
		if st.Version != 1 || st.Disk != d.dir || len(st.Layers) != 2 {
			t.Errorf("%s: %+v", script, st)
		}
	}
	// sendfile(2) goes by the size that stat gives after the open.
	in := open(t, filepath.Join(dir, nameStatusJSON), os.O_RDONLY)
	info, err := in.Stat()
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "sent"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	n, err := unix.Sendfile(int(out.Fd()), int(in.Fd()), nil, 1<<20)
	if err != nil || int64(n) != info.Size() {
		t.Errorf("sendfile: %d of %d bytes, %v", n, info.Size(), err)
	}
	sent, err := os.ReadFile(out.Name())
	if err != nil || !json.Valid(sent) {
		t.Errorf("sendfile gave %q, %v", sent, err)
	}
	// The content is that of the moment of the open.
	if err := d.Snapshot("later"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	got, err := unix.Pread(int(in.Fd()), buf, 0)
	if err != nil || strings.Contains(string(buf[:got]), "later") {
		t.Errorf("%v, %s", err, buf[:max(got, 0)])
	}
	text, err := os.ReadFile(filepath.Join(dir, nameStatus))
	if err != nil || !strings.Contains(string(text), "later") {
		t.Errorf("status: %v, %s", err, text)
	}
	for _, name := range []string{nameStatus, nameStatusJSON} {
		if file, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0); !errors.Is(err, unix.EACCES) {
			t.Errorf("open %s for writing: %v, want EACCES", name, err)
			file.Close()
		}
	}
	if pos, err := unix.Seek(int(in.Fd()), 0, unix.SEEK_HOLE); err != nil || pos != info.Size() {
		t.Errorf("SEEK_HOLE %d, %v", pos, err)
	}
}
