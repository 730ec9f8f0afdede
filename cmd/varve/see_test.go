package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/fs/show"
	testpatience "varve/integration/patience"
)

// terminal is a pseudo-terminal: what runs on it, and what it shows.
func terminal(t *testing.T, columns, rows uint16) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}); err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// running is varve in a process of its own that goes on, and what it wrote so far.
type running struct {
	t      *testing.T
	cmd    *exec.Cmd
	out    chan []byte
	text   bytes.Buffer
	stderr bytes.Buffer
}

// begin starts varve with its output on a pipe, or on slave, a terminal.
func begin(t *testing.T, dir string, master, slave *os.File, args ...string) *running {
	t.Helper()
	r := &running{t: t, cmd: command(dir, args...), out: make(chan []byte, 100)}
	r.cmd.Env = append(r.cmd.Env, "TERM=xterm", "LC_ALL=C.UTF-8")
	r.cmd.Stderr = &r.stderr
	read := io.Reader(master)
	if slave != nil {
		r.cmd.Stdout = slave
	} else {
		pipe, err := r.cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		read = pipe
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.cmd.Process.Kill() })
	go func() {
		for {
			b := make([]byte, 64<<10)
			n, err := read.Read(b)
			if n > 0 {
				r.out <- b[:n]
			}
			if err != nil {
				close(r.out)
				return
			}
		}
	}()
	return r
}

// until reads until all that was written since the last call satisfies f.
func (r *running) until(what string, f func(text string) bool) string {
	r.t.Helper()
	late := time.After(testpatience.Hang)
	for {
		if text := r.text.String(); f(text) {
			r.text.Reset()
			return text
		}
		select {
		case b, ok := <-r.out:
			if !ok {
				r.t.Fatalf("it ended before %s; it wrote %q", what, r.text.String())
			}
			r.text.Write(b)
		case <-late:
			r.t.Fatalf("in vain: %s; it wrote %q", what, r.text.String())
		}
	}
}

// interrupt is Ctrl-C; it gives the exit code.
func (r *running) interrupt() int {
	r.t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGINT); err != nil {
		r.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { r.cmd.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(testpatience.Hang):
		r.t.Fatal("it does not end at Ctrl-C")
	}
	return r.cmd.ProcessState.ExitCode()
}

func has(words ...string) func(string) bool {
	return func(text string) bool {
		for _, w := range words {
			if !strings.Contains(text, w) {
				return false
			}
		}
		return true
	}
}

// Elsewhere than on a terminal status --watch prints what has changed, and nothing else.
func TestWatch(t *testing.T) {
	dir, mnt := mounted(t, 16<<20, 1<<20)
	r := begin(t, dir, nil, nil, "status", "mnt", "--watch", "0.1")
	first := r.until("the first table", has("LAYER", "leaf"))
	if strings.Contains(first, "\x1b") || strings.Count(first, "LAYER") != 1 {
		t.Errorf("the first table: %q", first)
	}
	time.Sleep(500 * time.Millisecond) // several looks
	must(t, dir, "snapshot", "mnt", "one")
	second := r.until("the snapshot", has("LAYER", "one", "leaf  "))
	if n := strings.Count(second, "LAYER"); n > 2 { // the tree may have changed between two figures
		t.Errorf("%d tables for one change: %q", n, second)
	}
	if code := r.interrupt(); code != exitDone || r.stderr.Len() > 0 {
		t.Errorf("Ctrl-C: exit code %d, %s", code, r.stderr.String())
	}

	r = begin(t, dir, nil, nil, "status", mnt, "--json", "--watch=0.1")
	line := r.until("a line", func(text string) bool { return strings.HasSuffix(text, "\n") })
	var st chain.Status
	if err := json.Unmarshal([]byte(line), &st); err != nil || strings.Count(line, "\n") != 1 || named(st) != "base one" {
		t.Errorf("%v: %q", err, line)
	}
	must(t, dir, "snapshot", "mnt", "two")
	r.until("another line", has(`"name":"two"`))
	// When what it watches goes away, so does it, and says so.
	must(t, dir, "umount", "mnt")
	for range r.out {
	}
	r.cmd.Wait()
	said := notices.ReplaceAllString(r.stderr.String(), "")
	if code := r.cmd.ProcessState.ExitCode(); code != exitFailed || !strings.HasPrefix(said, "varve: status ") || strings.Count(said, "\n") != 1 {
		t.Errorf("the mount is gone: exit code %d, %q", code, r.stderr.String())
	}
}

// A disk that is not mounted is watched too, also when it is mounted meanwhile.
func TestWatchUnmounted(t *testing.T) {
	dir := hostDir(t)
	must(t, dir, "create", "vm.varve", "--size", "16M")
	r := begin(t, dir, nil, nil, "status", "--watch=0.1", "vm.varve")
	r.until("the disk", has("leaf"))
	must(t, dir, "snapshot", "vm.varve", "one")
	r.until("a snapshot", has("one  "))
	if err := os.Mkdir(filepath.Join(dir, "mnt"), 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "mount", "vm.varve", "mnt")
	must(t, dir, "snapshot", "mnt", "two")
	r.until("a snapshot of the mounted disk", has("two  "))
	must(t, dir, "umount", "mnt")
	must(t, dir, "snapshot", "vm.varve", "three")
	r.until("a snapshot of the unmounted disk", has("three  "))
	if code := r.interrupt(); code != exitDone || r.stderr.Len() > 0 {
		t.Errorf("exit code %d, %s", code, r.stderr.String())
	}
}

// On a terminal it draws in place, and leaves the screen as it found it, with the last
// state below.
func TestWatchOnATerminal(t *testing.T) {
	dir, _ := mounted(t, 16<<20, 1<<20)
	master, slave := terminal(t, 80, 12)
	r := begin(t, dir, master, slave, "status", "mnt", "--watch=0.1")
	first := r.until("a page", has(enterScreen, toHome, "varve status mnt", "Ctrl-C", "LAYER", restOfPage))
	for _, line := range strings.Split(strings.ReplaceAll(first, restOfLine, ""), "\r\n") {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\r")); n > 80+len(enterScreen+toHome) {
			t.Errorf("%d columns: %q", n, line)
		}
	}
	must(t, dir, "snapshot", "mnt", "one")
	r.until("the snapshot", has("one  ", restOfPage))
	if code := r.interrupt(); code != exitDone || r.stderr.Len() > 0 {
		t.Errorf("Ctrl-C: exit code %d, %s", code, r.stderr.String())
	}
	last := r.until("the screen of before", has(leaveScreen, "leaf"))
	if _, after, _ := strings.Cut(last, leaveScreen); !strings.Contains(after, "one  ") {
		t.Errorf("the last state does not stay: %q", after)
	}
}

func TestPage(t *testing.T) {
	text := strings.Repeat("a line of some words\n", 9) + strings.Repeat("w", 90) + "\n"
	for _, c := range []struct{ width, height, lines int }{{80, 24, 12}, {80, 12, 12}, {80, 8, 8}, {30, 5, 5}} {
		got := page("varve status vm1, every 1s; Ctrl-C ends it", "12:34:56", text, c.width, c.height)
		lines := strings.Split(strings.NewReplacer(toHome, "", restOfLine, "", restOfPage, "").Replace(got), "\r\n")
		if len(lines) != c.lines {
			t.Errorf("%+v: %d lines", c, len(lines))
		}
		for _, line := range lines {
			if len(line) > c.width {
				t.Errorf("%+v: %q", c, line)
			}
		}
		if !strings.HasSuffix(lines[0], "  12:34:56") || len(lines[0]) != c.width {
			t.Errorf("%+v: %q", c, lines[0])
		}
		if cut := c.lines < 12; cut != strings.HasPrefix(lines[len(lines)-1], fmt.Sprintf("(%d more lines)", 12-c.height+1)) {
			t.Errorf("%+v: ends with %q", c, lines[len(lines)-1])
		}
	}
}

// Where a disk has more layers than a screen has lines, the newest and who has what open
// are shown.
func TestPageOfManyLayers(t *testing.T) {
	text := "disk  /srv/vm1.varve\njob   none\n\nLAYER  OWN\n" + strings.Repeat("layer\n", 50) + "\n" + strings.Repeat("layer\n", 49) + "leaf\n\nOPEN  PID\ndisk.raw  1\n"
	for height, want := range map[int]string{
		12: "title clock||disk  /srv/vm1.varve|job   none||LAYER  OWN|(99 lines not shown)|layer|leaf||OPEN  PID|disk.raw  1",
		14: "title clock||disk  /srv/vm1.varve|job   none||LAYER  OWN|(97 lines not shown)|layer|layer|layer|leaf||OPEN  PID|disk.raw  1",
		8:  "title clock||disk  /srv/vm1.varve|job   none||LAYER  OWN|layer|(103 more lines)",
	} {
		got := page("title", "clock", text, 80, height)
		got = strings.NewReplacer(toHome, "", restOfLine, "", restOfPage, "", "\r\n", "|").Replace(got)
		if got = regexp.MustCompile("title +clock").ReplaceAllString(got, "title clock"); got != want {
			t.Errorf("%d lines:\n%s\nwant\n%s", height, got, want)
		}
	}
}

func TestTree(t *testing.T) {
	dir, _ := mounted(t, 16<<20, 1<<20)
	put(t, filepath.Join(dir, "mnt"), "some", 0)
	must(t, dir, "snapshot", "mnt", "one")
	run := func(slave *os.File, env ...string) string {
		cmd := command(dir, "tree", "mnt")
		cmd.Env = append(cmd.Env, env...)
		if slave == nil {
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			return string(out)
		}
		cmd.Stdout = slave
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		return ""
	}
	unicode := run(nil, "LC_ALL=", "LC_CTYPE=en_US.UTF-8", "LANG=C")
	if !has("vm.raw.varve, 16 MiB\n", "\n■ base ", "\n● one ", "\n◆ leaf ", "FREES")(unicode) || strings.Contains(unicode, "\x1b") {
		t.Errorf("got\n%s", unicode)
	}
	if ascii := run(nil, "LC_ALL=C", "LANG=en_US.UTF-8"); !has("\n# base ", "\n* one ", "\n@ leaf ")(ascii) {
		t.Errorf("in ASCII\n%s", ascii)
	}
	for _, c := range []struct {
		env   string
		color bool
	}{{"TERM=xterm", true}, {"TERM=dumb", false}, {"NO_COLOR=1", false}, {"NO_COLOR=", true}} {
		master, slave := terminal(t, 100, 30)
		run(slave, "LC_ALL=C.UTF-8", "TERM=xterm", c.env)
		b := make([]byte, 64<<10)
		n, err := master.Read(b)
		if err != nil || strings.Contains(string(b[:n]), "\x1b[") != c.color {
			t.Errorf("%s on a terminal: %v, %q", c.env, err, b[:n])
		}
	}
	var st chain.Status
	r := must(t, dir, "tree", "mnt", "--json")
	if err := json.Unmarshal([]byte(r.stdout), &st); err != nil || len(st.Layers) != 3 || st.Layers[1].Frees == nil {
		t.Errorf("%v in %s", err, r.stdout)
	}
	must(t, dir, "umount", "mnt")
	if again := must(t, dir, "tree", "vm.raw"); !strings.Contains(again.stdout, " one ") {
		t.Errorf("not mounted\n%s", again.stdout)
	}
}

func TestMap(t *testing.T) {
	dir, mnt := mounted(t, 16<<20, 1<<20)
	put(t, mnt, "some", 8<<20)
	must(t, dir, "snapshot", "mnt", "one")
	file, err := os.ReadFile(filepath.Join(mnt, "map.svg"))
	if err != nil || !show.MapComplete(file) {
		t.Errorf("map.svg: %v, %.200s", err, file)
	}
	if r := must(t, dir, "map", "mnt"); r.stdout != string(file) || r.stderr != "" {
		t.Errorf("varve map says something else than map.svg: %s\n%s", r.stdout, file)
	}
	must(t, dir, "map", "mnt", "-o", "map.svg")
	must(t, dir, "map", "mnt", "-o", "map.svg") // over an older picture
	if made, err := os.ReadFile(filepath.Join(dir, "map.svg")); err != nil || !bytes.Equal(made, file) {
		t.Errorf("-o: %v", err)
	}
	must(t, dir, "umount", "mnt")
	if r := must(t, dir, "map", "vm.raw", "--output", "-"); r.stdout != string(file) {
		t.Errorf("not mounted: another picture\n%s", r.stdout)
	}

	before, err := os.ReadFile(filepath.Join(dir, "vm.raw"))
	if err != nil {
		t.Fatal(err)
	}
	fails(t, dir, exitFailed, []string{"map vm.raw: ", "vm.raw is a file of this disk (base)"}, "map", "vm.raw", "-o", "vm.raw")
	fails(t, dir, exitFailed, []string{"only the disk's own files"}, "map", "vm.raw", "-o", "vm.raw.varve/map.svg")
	fails(t, dir, exitFailed, []string{"no such file or directory"}, "map", "vm.raw", "-o", "nowhere/map.svg")
	fails(t, dir, exitFailed, []string{"map nowhere: no such disk"}, "map", "nowhere")
	fails(t, dir, exitUsage, []string{"--output is empty"}, "map", "vm.raw", "-o", "")
	if after, err := os.ReadFile(filepath.Join(dir, "vm.raw")); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the image was changed (%v)", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}

	master, slave := terminal(t, 80, 24)
	cmd := command(dir, "map", "vm.raw")
	var words bytes.Buffer
	cmd.Stdout, cmd.Stderr = slave, &words
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != exitUsage || !strings.Contains(words.String(), "-o map.svg") {
		t.Errorf("to a terminal: %v, %s", err, words.String())
	}
	master.Close()
}

func TestWrongWatch(t *testing.T) {
	for _, c := range []struct {
		args  []string
		words string
	}{
		{[]string{"--watch=0", "vm1"}, `"0" is no number of seconds from 0.1 to 86400`},
		{[]string{"--watch=x", "vm1"}, `"x" is no number of seconds`},
		{[]string{"--watch=NaN", "vm1"}, `"NaN" is no number of seconds`},
		{[]string{"vm1", "--watch", "1e9"}, `"1e9" is no number of seconds`},
		{[]string{"vm1", "--watch", "-1"}, "unknown shorthand flag"},
		{[]string{"vm1", "vm2", "--watch"}, `"vm2" is one argument too many`},
		{[]string{"vm1", "2"}, `"2" is one argument too many`},
		{[]string{"--watch"}, "DISK is missing"},
	} {
		code, out, words := varve(append([]string{"status"}, c.args...)...)
		if code != exitUsage || out != "" || !strings.Contains(words, c.words) || strings.Count(words, "\n") != 1 {
			t.Errorf("%v: code %d, %q, %q", c.args, code, out, words)
		}
	}
}

// What a delete would free is told of a disk that is not mounted too, also of the
// snapshot that the leaf stands on.
func TestFreesOfUnmounted(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	put(t, mnt, strings.Repeat("a", 1<<20), 0)
	must(t, dir, "snapshot", "mnt", "one")
	put(t, mnt, strings.Repeat("b", 512<<10), 0)
	must(t, dir, "umount", "mnt")
	for _, l := range document(t, dir, "vm.raw.varve").Layers {
		switch {
		case l.Frees == nil:
			t.Errorf("layer %s %q: what its delete frees is not known", l.ID, l.Name)
		case l.Name == "one" && *l.Frees != 512<<10:
			t.Errorf("a delete of %s frees %d bytes", l.Name, *l.Frees)
		}
	}
	if r := must(t, dir, "tree", "vm.raw.varve"); strings.Contains(r.stdout, "?") {
		t.Errorf("tree says\n%s", r.stdout)
	}
}
