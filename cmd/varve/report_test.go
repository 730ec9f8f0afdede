package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"unicode/utf8"

	"varve/chain"
)

// What comes from a name or a header reaches no terminal as it is, and a quoted word
// stays whole.
func TestReportWriterWords(t *testing.T) {
	var b strings.Builder
	w := &reportWriter{out: &b}
	name := strings.Repeat("my  disk ", 8)
	w.wrapped("  → ", "say where libvirt's image is, and that it's there: varve mount "+chain.ShellWord(name)+"; a name\x1b[31m of \xff\n\u202e�, é")
	got := b.String()
	if !strings.Contains(got, "\n    '"+name+"';\n") || !strings.Contains(got, `name\x1b[31m of \xff\n\u202e�, é`) {
		t.Errorf("got %s", got)
	}
	for line := range strings.Lines(got) {
		if !strings.Contains(line, "my") && utf8.RuneCountInString(line) > reportWidth+1 {
			t.Errorf("too long: %q", line)
		}
	}
}

// One cause makes many findings: the first of a kind are shown, and how many more there
// are.
func TestReportOfManyAlike(t *testing.T) {
	r := chain.CheckReport{Disk: "/d", Findings: []chain.CheckFinding{{Severity: chain.SeverityNote, File: "/a", Text: "marked", WayOut: "mend it"}}}
	add := func(n int, kind chain.FindingKind, file, wayOut string) {
		for i := range n {
			r.Findings = append(r.Findings, chain.CheckFinding{Severity: chain.SeverityError, Kind: kind, File: file, Text: fmt.Sprintf("%s%d", kind, i), WayOut: wayOut})
		}
	}
	add(100, chain.KindRefcount, "/a", "mend it")
	add(4, chain.KindTable, "/a", "mend it")
	add(5, "", "/a", "other")
	add(5, chain.KindTable, "/b", "other")
	var b strings.Builder
	if err := writeReport(&b, r); err != nil {
		t.Fatal(err)
	}
	want := `/a
  note   marked
  error  refcount0
  error  refcount1
  error  refcount2
         … and 97 more like these
  error  table0
  error  table1
  error  table2
  error  table3
         → mend it
  error  0
  error  1
  error  2
  error  3
  error  4
         → other
/b
  error  table0
  error  table1
  error  table2
         … and 2 more like these
         → other
0 layers: no errors, no leaked clusters
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// A hostile backing file's name is no command when its way out is pasted.
func TestDoctorQuotes(t *testing.T) {
	dir := hostDir(t)
	tool(t, dir, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "x; touch pwn #\x1b[31m", "-F", "raw", "my top.qcow2", "1M")
	r := vv(t, dir, "doctor", "my top.qcow2")
	if strings.Contains(r.stdout, "\x1b") {
		t.Errorf("an escape sequence: %q", r.stdout)
	}
	if err := os.WriteFile(dir+"/x; touch pwn #\x1b[31m", make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, dir, "qemu-img", "rebase", "-u", "-b", "gone/x; touch pwn #\x1b[31m", "-F", "raw", "my top.qcow2")
	r = vv(t, dir, "doctor", "my top.qcow2")
	_, command, found := strings.Cut(strings.Join(strings.Fields(r.stdout), " "), "if that is it: ")
	command, _, _ = strings.Cut(command, " 1 problem")
	if !found {
		t.Fatalf("says %s", r.stdout)
	}
	tool(t, dir, "bash", "-c", command)
	tool(t, dir, "test", "!", "-e", "pwn")
	says(t, dir, []string{"my top.qcow2"})
}

// A command that a message names works when it is pasted, also with a blank in a path.
func TestMessagesQuote(t *testing.T) {
	dir := hostDir(t)
	if err := os.Mkdir(dir+"/my mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	image(t, dir+"/my disk.raw", 1<<20, 0)
	fails(t, dir, exitFailed, []string{`"varve mount 'my disk.raw' MOUNTPOINT" makes one`}, "snapshot", "my disk.raw", "one")
	must(t, dir, "mount", "my disk.raw", "my mnt")
	fails(t, dir, exitFailed, []string{`"varve umount '` + dir + `/my mnt'"`}, "rebase", "my disk.raw.varve", "--base", "x.raw")
}

// A mountpoint, an image or a program can be anybody's: its name gives the terminal of
// who reads about it no orders.
func TestMessagesAreText(t *testing.T) {
	dir, mnt := mounted(t, 1<<20, 0)
	const name = "x\x1b[31m"
	if err := os.Mkdir(dir+"/"+name, 0o700); err != nil {
		t.Fatal(err)
	}
	image(t, dir+"/"+name+".raw", 1<<20, 0)
	must(t, dir, "mount", name+".raw", name)
	shell := exec.Command("bash", "-c", `printf '\e[31m' > /proc/self/comm; echo; read`)
	shell.Dir = mnt
	in, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := shell.StdoutPipe()
	if err == nil {
		err = shell.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); shell.Wait() }()
	out.Read(make([]byte, 1)) // it has its name
	for _, args := range [][]string{{"list"}, {"umount", "mnt"}, {"snapshot", name, "?"}, {"create", name + ".raw.varve", "--size", "1M"}, {"clone", name, "base", "clone" + name}} {
		r := vv(t, dir, args...)
		if text := r.stdout + r.stderr; strings.Contains(text, "\x1b") || !strings.Contains(text, `\x1b[31m`) && !strings.Contains(text, "?[31m") {
			t.Errorf("%q says %q", args, text)
		}
	}
	must(t, dir, "umount", name)
}
