package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// varve runs a command line in this process.
func varve(args ...string) (code int, stdout, stderr string) {
	var out, words bytes.Buffer
	code = run(args, &out, &words)
	return code, out.String(), words.String()
}

func TestWrongUse(t *testing.T) {
	for _, c := range []struct {
		args  string
		words string // all of stderr
	}{
		{"", `which command? "varve help" lists them`},
		{"snapshto x y", `unknown command "snapshto"; did you mean "snapshot"?; "varve help" lists the commands`},
		{"frobnicate", `unknown command "frobnicate"; "varve help" lists the commands`},
		{"--frobnicate", `unknown flag: --frobnicate; "varve help" says more`},
		{"snapshot", `snapshot: DISK is missing; "varve snapshot --help" says more`},
		{"snapshot vm1", `snapshot: NAME is missing; "varve snapshot --help" says more`},
		{"snapshot vm1 a b", `snapshot: "b" is one argument too many; "varve snapshot --help" says more`},
		{"snapshot --now vm1 a", `snapshot: unknown flag: --now; "varve snapshot --help" says more`},
		{"revert vm1", `revert: NAME is missing; "varve revert --help" says more`},
		{"delete vm1", `delete: NAME is missing; "varve delete --help" says more`},
		{"delete vm1 one --unnamed", `delete: "one" is one argument too many; "varve delete --help" says more`},
		{"flatten vm1", `flatten: NAME is missing; "varve flatten --help" says more`},
		{"rename vm1 a", `rename: NEW is missing; "varve rename --help" says more`},
		{"resize vm1", `resize: SIZE is missing; "varve resize --help" says more`},
		{"cancel", `cancel: DISK is missing; "varve cancel --help" says more`},
		{"cancel vm1 3 4", `cancel: "4" is one argument too many; "varve cancel --help" says more`},
		{"list a b", `list: "b" is one argument too many; "varve list --help" says more`},
		{"status", `status: DISK is missing; "varve status --help" says more`},
		{"accept vm1", `accept: LAYER is missing; "varve accept --help" says more`},
		{"version now", `version: "now" is one argument too many; "varve version --help" says more`},
		{"umount", `umount: DISK is missing; "varve umount --help" says more`},
		{"unmount /mnt --timeout -1s", `umount: the timeout -1s is negative; "varve umount --help" says more`},
		{"mount vm1", `mount: MOUNTPOINT is missing; "varve mount --help" says more`},
		{"mount vm1 /mnt --format vmdk", `mount: the format "vmdk" is neither raw nor qcow2; "varve mount --help" says more`},
		{"mount vm1 /mnt -o frob", `mount: unknown mount option "frob"; "varve mount --help" says more`},
		{"create", `create: DIR is missing; "varve create --help" says more`},
		{"create a.varve", `create: say --size for a blank disk, or --base for one on an image; "varve create --help" says more`},
		{"create a.varve --base=", `create: --base is empty; "varve create --help" says more`},
		{"create a.varve --size 1G --format raw", `create: --format is the image's and needs --base; "varve create --help" says more`},
		{"create a.varve --base x --format vdi", `create: the format "vdi" is neither raw nor qcow2; "varve create --help" says more`},
	} {
		t.Run(c.args, func(t *testing.T) {
			code, out, words := varve(strings.Fields(c.args)...)
			if want := "varve: " + c.words + "\n"; code != exitUsage || out != "" || words != want {
				t.Errorf("code %d, stdout %q\nstderr %swant   %s", code, out, words, want)
			}
		})
	}
}

func TestEmptyArgument(t *testing.T) {
	code, _, words := varve("snapshot", "", "one")
	if code != exitUsage || !strings.HasPrefix(words, "varve: snapshot: DISK is empty;") {
		t.Errorf("code %d, %q", code, words)
	}
}

// A bad number is wrong use before the disk is looked at.
func TestBadSizes(t *testing.T) {
	for _, size := range []string{"0", "10X", "-5", "1.0001", "9999999T", "G", " 1G"} {
		for _, args := range [][]string{{"resize", "/nowhere", "--", size}, {"create", "/nowhere/x", "--size=" + size}} {
			code, _, words := varve(args...)
			if code != exitUsage || strings.Count(words, "\n") != 1 || strings.Contains(words, "/nowhere") {
				t.Errorf("%q: code %d, %q", args, code, words)
			}
		}
	}
}

func TestReport(t *testing.T) {
	for _, c := range []struct {
		err   error
		code  int
		words string
	}{
		{nil, 0, ""},
		{errors.New("no"), 1, "varve: no\n"},
		{errors.Join(errors.New("one"), errors.New("two")), 1, "varve: one; two\n"},
		{errors.New("words of another program\n"), 1, "varve: words of another program\n"},
		{wrapped(&cobra.Command{Use: "revert D"}, "vm1", errors.New("no")), 1, "varve: revert vm1: no\n"},
		{wrapped(&cobra.Command{Use: "mount"}, "vm1", reportedError{2}), 2, ""},
		{usagef("no"), 2, "varve: no\n"},
	} {
		var words bytes.Buffer
		if code := report(&words, c.err); code != c.code || words.String() != c.words {
			t.Errorf("%v: code %d, %q", c.err, code, words.String())
		}
	}
}

// Every command has its help, fit for a terminal of 80 columns.
func TestHelp(t *testing.T) {
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Name() == "help" || strings.HasPrefix(c.CommandPath(), "varve completion") {
			return // cobra's own words
		}
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		code, text, words := varve(args...)
		if code != exitDone || words != "" {
			t.Errorf("%v: code %d, stderr %q", args, code, words)
		}
		if c.Short == "" || c.Long == "" || c.Example == "" {
			t.Errorf("%s lacks words: short %q, long %q, example %q", c.CommandPath(), c.Short, c.Long, c.Example)
		}
		for line := range strings.Lines(text) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 {
				t.Errorf("%s --help has a line of %d columns: %s", c.CommandPath(), n, line)
			}
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(newRootCommand())
}
