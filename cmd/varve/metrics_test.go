package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// twoMounts are two disks of one folder: vm.raw at mnt, two.varve at "mnt two".
func twoMounts(t *testing.T) (dir, mnt, second string) {
	t.Helper()
	dir, mnt = mounted(t, 4<<20, 1<<20)
	second = mnt + " two"
	if err := os.Mkdir(second, 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "create", "two.varve", "--size", "3M")
	must(t, dir, "mount", "two.varve", second)
	return dir, mnt, second
}

// sampleOf is the value of the sample that begins so.
func sampleOf(page, begin string) string {
	for line := range strings.Lines(page) {
		if rest, ok := strings.CutPrefix(line, begin); ok {
			return strings.TrimSpace(rest[strings.LastIndexByte(rest, ' ')+1:])
		}
	}
	return ""
}

// One page for all mounts: each family once, each sample with its disk and place.
func TestMetrics(t *testing.T) {
	dir, mnt, second := twoMounts(t)
	put(t, mnt, "data", 0)
	labels := map[string]string{
		mnt:    `{disk="` + dir + `/vm.raw.varve",mountpoint="` + mnt + `"`,
		second: `{disk="` + dir + `/two.varve",mountpoint="` + second + `"`,
	}
	for _, args := range [][]string{{"metrics", "--all"}, {"metrics", "mnt", second}, {"metrics", "vm.raw", "two.varve", "mnt"}} {
		r := must(t, dir, args...)
		problems, err := promlint.New(strings.NewReader(r.stdout)).Lint()
		others := args[1] == "--all" // mounts of the host that are not ours may hang
		if err != nil || len(problems) > 0 || r.stderr != "" && !others {
			t.Errorf("%v: %v, %v, stderr %q", args, err, problems, r.stderr)
		}
		for _, l := range labels {
			if up := sampleOf(r.stdout, "varve_up"+l+"} "); up != "1" {
				t.Errorf("%v: varve_up%s} is %q", args, l, up)
			}
		}
		if n := sampleOf(r.stdout, `varve_disk_size_bytes`+labels[second]); n != "3145728" {
			t.Errorf("%v: size %q", args, n)
		}
		if n := sampleOf(r.stdout, `varve_request_bytes_total`+labels[mnt]+`,op="write",file="disk"}`); n != "4" {
			t.Errorf("%v: %q bytes were written", args, n)
		}
		seen := map[string]bool{}
		for line := range strings.Lines(r.stdout) {
			if strings.HasPrefix(line, "#") {
				if seen[line] {
					t.Errorf("%v: twice: %s", args, line)
				}
			} else if !strings.Contains(line, `{disk="`) || !strings.Contains(line, `,mountpoint="`) {
				t.Errorf("%v: %s", args, line)
			} else if name, _, _ := strings.Cut(line, " "); seen[line] && strings.Contains(name, dir) {
				t.Errorf("%v: twice: %s", args, line)
			}
			seen[line] = true
		}
	}
	if r := must(t, dir, "metrics", "two.varve"); strings.Contains(r.stdout, mnt+`"`) || sampleOf(r.stdout, "varve_up"+labels[second]) != "1" {
		t.Errorf("of one disk:\n%.500s", r.stdout)
	}
	must(t, dir, "umount", second)
	fails(t, dir, exitFailed, []string{"metrics two.varve: it is not mounted"}, "metrics", "mnt", "two.varve")
	fails(t, dir, exitFailed, []string{"metrics nothing: no such disk"}, "metrics", "nothing")
	fails(t, dir, exitUsage, []string{"DISK is missing", "--all"}, "metrics")
	fails(t, dir, exitUsage, []string{"name disks, or give --all"}, "metrics", "--all", "mnt")
	fails(t, dir, exitUsage, []string{"DISK is empty"}, "metrics", "")
	fails(t, dir, exitUsage, []string{"--output is empty"}, "metrics", "mnt", "-o", "")
}

// The file is there whole, for anybody to read, and nothing beside it.
func TestMetricsFile(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	folder := filepath.Join(dir, "textfile")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(folder, "varve.prom")
	only := func(when string) {
		t.Helper()
		entries, err := os.ReadDir(folder)
		if err != nil || len(entries) != 1 || entries[0].Name() != "varve.prom" {
			t.Errorf("%s: %v, %v", when, entries, err)
		}
	}
	old := syscall.Umask(0o077) // which the command inherits
	defer syscall.Umask(old)
	for range 2 {
		if r := must(t, dir, "metrics", "--all", "-o", file); r.stdout != "" {
			t.Errorf("printed %.200s", r.stdout)
		}
		info, err := os.Stat(file)
		if err != nil || info.Mode() != 0o644 {
			t.Fatal(info, err)
		}
		only("written")
		page, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(page), `mountpoint="`+mnt+`"} 1`) {
			t.Errorf("%v\n%.300s", err, page)
		}
	}
	if r := must(t, dir, "metrics", "mnt", "-o", "-"); !strings.HasPrefix(r.stdout, "# HELP varve_up ") {
		t.Errorf("%.200s", r.stdout)
	}
	for _, c := range []struct {
		out  string
		word string
	}{
		{"vm.raw", "exists already and holds no metrics"},
		{folder, "is a directory; name a file in it"},
		{"nowhere/x.prom", "no such file or directory"},
		{"vm.raw.varve/x.prom", "only the disk's own files"},
		{"vm.raw.varve/layers/x.prom", "only the disk's own files"},
		{"mnt/x.prom", "only the disk's own files"},
	} {
		fails(t, dir, exitFailed, []string{"metrics " + c.out, c.word}, "metrics", "mnt", "-o", c.out)
	}
	only("after refusals")
	// A page that cannot be written leaves the old one, and nothing else.
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cmd := command(dir, "metrics", "mnt", "-o", file)
	cmd.Args = append([]string{"sh", "-c", `ulimit -f 0; trap "" XFSZ; exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	if r := finish(t, cmd); r.code != exitFailed || !strings.Contains(r.stderr, "file too large") {
		t.Errorf("%+v", r)
	}
	only("after a failure")
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("the old page is gone: %v, %d bytes", err, len(after))
	}
	// Of no mounts there is an empty page, which may be replaced again.
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "metrics", "mnt", "-o", file)
	// A power cut may leave zeros of a page that was made without fsync. An image of
	// zeros is none.
	if err := os.WriteFile(file, make([]byte, 20000), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "metrics", "mnt", "-o", file)
	image(t, dir+"/empty.raw", 1<<20, 0)
	fails(t, dir, exitFailed, []string{"exists already and holds no metrics"}, "metrics", "mnt", "-o", "empty.raw")
	trace := dir + "/trace"
	cmd = command(dir, "metrics", "mnt", "-o", file)
	cmd.Args = append([]string{"strace", "-f", "--seccomp-bpf", "-e", "trace=fsync,rename,renameat,renameat2", "-o", trace, cmd.Path}, cmd.Args[1:]...)
	if cmd.Path, err = exec.LookPath("strace"); err != nil {
		t.Fatal(err)
	}
	if r := finish(t, cmd); r.code != exitDone {
		t.Fatalf("%+v", r)
	}
	calls, err := os.ReadFile(trace)
	if synced, renamed := strings.Index(string(calls), "fsync("), strings.Index(string(calls), "varve.prom"); err != nil || synced < 0 || renamed < synced {
		t.Errorf("it is renamed before it is durable: %v\n%s", err, calls)
	}
}

// A mount that hangs, or whose daemon is gone, holds up nothing, and says 0.
func TestMetricsOfADeadMount(t *testing.T) {
	dir, mnt, second := twoMounts(t)
	third := mnt + "3"
	if err := os.Mkdir(third, 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "create", "three.varve", "--size", "5M")
	must(t, dir, "mount", "three.varve", third)
	stopped(t, daemonOf(t, dir+"/vm.raw.varve"))
	killed(t, dir+"/two.varve")
	r := must(t, dir, "metrics", "--all")
	for place, want := range map[string]string{
		`vm.raw.varve",mountpoint="` + mnt: "0", `two.varve",mountpoint="` + second: "0", `three.varve",mountpoint="` + third: "1",
	} {
		if up := sampleOf(r.stdout, `varve_up{disk="`+dir+"/"+place+`"}`); up != want {
			t.Errorf("%s is up: %q, want %s\n%.1000s", place, up, want, r.stdout)
		}
	}
	if n := sampleOf(r.stdout, `varve_disk_size_bytes{disk="`+dir+`/three.varve"`); n != "5242880" {
		t.Errorf("the one that lives has size %q", n)
	}
	for _, word := range []string{"metrics " + mnt + ": no answer within 5s", "metrics " + second + ": the daemon of " + second + " is gone"} {
		if !strings.Contains(r.stderr, word) {
			t.Errorf("stderr lacks %q: %s", word, r.stderr)
		}
	}
	// Who names it is told by the exit code too.
	if r := vv(t, dir, "metrics", "mnt", third); r.code != exitFailed || !strings.Contains(r.stderr, "metrics mnt: no answer within 5s") || sampleOf(r.stdout, `varve_up{disk="`+dir+`/vm.raw.varve"`) != "0" ||
		sampleOf(r.stdout, `varve_up{disk="`+dir+`/three.varve"`) != "1" {
		t.Errorf("by name: exit %d, %s\n%.500s", r.code, r.stderr, r.stdout)
	}
	if r := vv(t, dir, "metrics", second, "-o", "page"); r.code != exitFailed || r.stdout != "" {
		t.Errorf("into a file: %+v", r)
	}
	if page, err := os.ReadFile(dir + "/page"); err != nil || sampleOf(string(page), `varve_up{disk="`+dir+`/two.varve"`) != "0" {
		t.Errorf("the file has %v\n%.500s", err, page)
	}
}

// What others have mounted is not for everybody: of all mounts it is left out, named
// it is refused.
func TestMetricsOfOthers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("becomes another user: root only")
	}
	dir, mnt := mounted(t, 4<<20, 1<<20)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "varve")
	copied, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(exe, copied, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	asOther := func(args ...string) result {
		cmd := command(dir, args...)
		cmd.Path = exe
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		return finish(t, cmd)
	}
	if r := asOther("metrics", "--all"); r.code != exitDone || strings.Contains(r.stdout+r.stderr, mnt) {
		t.Errorf("%+v", r)
	}
	if r := asOther("metrics", mnt); r.code != exitFailed || r.stdout != "" || !strings.Contains(r.stderr, "metrics "+mnt+": only uid 0, who mounted") {
		t.Errorf("%+v", r)
	}
}
