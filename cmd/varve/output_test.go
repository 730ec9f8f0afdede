package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What a command is told to write by name goes through links, which stay, and into
// devices and pipes, which stay too.
func TestOutputGoesWhereItWasTold(t *testing.T) {
	dir, _ := mounted(t, 4<<20, 1<<20)
	must(t, dir, "snapshot", "mnt", "one")
	view := tool(t, dir, "cat", "mnt/layers/one.raw")
	for _, c := range []struct {
		name string
		args []string // OUT is the last word
		is   func(text string) bool
	}{
		{"export", []string{"export", "mnt", "one", "--force"}, func(text string) bool { return text == view }},
		{"metrics", []string{"metrics", "mnt", "-o"}, func(text string) bool { return strings.HasPrefix(text, "# HELP varve_") }},
		{"map", []string{"map", "mnt", "-o"}, func(text string) bool { return strings.Contains(text, "<svg ") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			to := func(out string) []string { return append(append([]string{}, c.args...), out) }
			link := c.name + ".link"
			if err := os.Symlink("files/"+c.name, filepath.Join(dir, link)); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Join(dir, "files"), 0o700); err != nil {
				t.Fatal(err)
			}
			for _, what := range []string{"a dangling link", "a link"} {
				must(t, dir, to(link)...)
				if target, err := os.Readlink(filepath.Join(dir, link)); err != nil || target != "files/"+c.name {
					t.Errorf("%s: it leads to %q, %v", what, target, err)
				}
				if text := tool(t, dir, "cat", "files/"+c.name); !c.is(text) {
					t.Errorf("%s: the file has %d other bytes", what, len(text))
				}
			}
			// A device of the tests' own: who replaced the real one would harm the machine.
			if err := unix.Mknod(filepath.Join(dir, c.name+".null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil && !errors.Is(err, unix.EPERM) {
				t.Fatal(err)
			} else if err == nil {
				must(t, dir, to(c.name+".null")...)
				if info, err := os.Stat(filepath.Join(dir, c.name+".null")); err != nil || info.Mode()&os.ModeCharDevice == 0 {
					t.Errorf("the device is %v now, %v", info, err)
				}
			}
			stdout := filepath.Join(dir, c.name+".stdout")
			if err := os.Symlink("/proc/self/fd/1", stdout); err != nil {
				t.Fatal(err)
			}
			if r := must(t, dir, to(stdout)...); !c.is(r.stdout) {
				t.Errorf("standard output has %d other bytes", len(r.stdout))
			}
			pipe := filepath.Join(dir, c.name+".pipe")
			if err := unix.Mkfifo(pipe, 0o600); err != nil {
				t.Fatal(err)
			}
			reader := exec.Command("cat", pipe)
			var got strings.Builder
			reader.Stdout = &got
			if err := reader.Start(); err != nil {
				t.Fatal(err)
			}
			must(t, dir, to(pipe)...)
			if err := reader.Wait(); err != nil || !c.is(got.String()) {
				t.Errorf("the pipe gave %d other bytes, %v", got.Len(), err)
			}
		})
	}
}
