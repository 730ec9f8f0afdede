package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"varve/chain"
	"varve/chain/mounts"
)

// What people get wrong, as the command line shows it: one line that says what,
// where and the way out, the exit code that fits, and nothing left behind.

func TestBadNames(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	must(t, dir, "snapshot", "mnt", "one")
	check := func(disk string) {
		t.Helper()
		for name, words := range map[string]string{
			"one":                    "snapshot one: exists already",
			"a/b":                    `the name "a/b" has a character other than A-Z a-z 0-9 . _ -`,
			"..":                     `the name ".." begins with "."`,
			"-x":                     `the name "-x" begins with "-"`,
			"two words":              "has a character other than",
			"\u00e9t\u00e9":          "has a character other than",
			"line\nbreak":            "",
			"base":                   `the name "base" is taken by varve itself`,
			"leaf":                   `the name "leaf" is taken by varve itself`,
			strings.Repeat("x", 129): "the name has 129 characters, at most 128 are allowed",
		} {
			fails(t, dir, exitFailed, []string{"varve: snapshot " + disk + ": ", words}, "snapshot", disk, "--", name)
			if name != "one" { // a name that stays is no error
				fails(t, dir, exitFailed, []string{"varve: rename " + disk + ": "}, "rename", disk, "--", "one", name)
			}
		}
		fails(t, dir, exitUsage, []string{"NAME is empty"}, "snapshot", disk, "")
		for _, command := range []string{"revert", "delete", "flatten"} {
			fails(t, dir, exitFailed, []string{"varve: " + command + " " + disk + ": ", "missing"}, command, disk, "missing")
		}
		must(t, dir, "snapshot", disk, strings.Repeat("x", 128))
		must(t, dir, "delete", disk, strings.Repeat("x", 128))
		if names := named(document(t, dir, disk)); names != "base one" {
			t.Errorf("the snapshots are now %s", names)
		}
	}
	check("mnt")
	// The control files themselves say it in an errno.
	for command, lines := range map[string]map[string]syscall.Errno{
		"snapshot": {"one": syscall.EEXIST, "": syscall.EINVAL, "a/b": syscall.EINVAL, "a\nb": syscall.EINVAL, "#a": syscall.EINVAL, strings.Repeat("x", 129): syscall.EINVAL},
		"revert":   {"missing": syscall.ENOENT},
		"delete":   {"missing": syscall.ENOENT, "base": syscall.EINVAL},
		"flatten":  {"base": syscall.EINVAL},
		"resize":   {"1": syscall.EINVAL, "much": syscall.EINVAL},
		"cancel":   {"1": syscall.ENOENT},
	} {
		for line, want := range lines {
			err := os.WriteFile(filepath.Join(mnt, "control", command), []byte(line+"\n"), 0)
			if pe, ok := err.(*os.PathError); !ok || pe.Err != want {
				t.Errorf("write %q to control/%s: %v, want %v", line, command, err, want)
			}
		}
	}
	must(t, dir, "umount", "mnt")
	check("vm.raw.varve")
}

func TestBadMountpoint(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	for _, d := range []string{"empty", "full/inner", "vm.raw.varve/inside", "around"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"sly": "vm.raw.varve/inside", "slyaround": "around"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	image(t, dir+"/other.raw", 4<<20, 1<<20)
	pid := fmt.Sprintf("(pid %d ", daemonOf(t, dir+"/vm.raw.varve"))
	for _, c := range []struct{ args, words string }{
		{"vm.raw empty", dir + "/vm.raw.varve is mounted already at " + mnt + " " + pid},
		{"vm.raw.varve empty", dir + "/vm.raw.varve is mounted already at " + mnt + " " + pid},
		{"other.raw mnt", "at mnt the disk " + dir + "/vm.raw.varve is mounted already"},
		{"other.raw gone", "the mountpoint gone does not exist; make it with mkdir"},
		{"other.raw full", `the mountpoint full is not empty (it has "inner" in it)`},
		{"other.raw other.raw", "the mountpoint other.raw is not a directory"},
		{"vm.raw vm.raw.varve/inside", "the mountpoint " + dir + "/vm.raw.varve/inside lies inside the disk directory"},
		{"vm.raw sly", "the mountpoint " + dir + "/vm.raw.varve/inside lies inside the disk directory"},
		{"other.raw around --disk around/d", "the disk directory " + dir + "/around/d lies inside the mountpoint"},
		{"other.raw slyaround --disk around/d", "the disk directory " + dir + "/around/d lies inside the mountpoint"},
		{"other.raw around --disk slyaround", "the mountpoint " + dir + "/around lies inside the disk directory"},
	} {
		fails(t, dir, exitFailed, []string{"varve: mount " + strings.Fields(c.args)[0] + ": ", c.words}, append([]string{"mount"}, strings.Fields(c.args)...)...)
	}
	if _, err := os.Stat(dir + "/other.raw.varve"); err == nil {
		t.Error("a mount that was refused made a disk directory")
	}
	if got := get(t, mnt+"/disk.raw", 0, 16); got != get(t, dir+"/vm.raw", 0, 16) {
		t.Error("the mount that was there does not work any more")
	}
}

// badImage is an image that cannot be a base, and what is said of it.
type badImage struct {
	name  string
	words []string
	make  func(t *testing.T, dir, path string)
}

// patch changes bytes of a file.
func patch(t *testing.T, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func newQcow2(args ...string) func(*testing.T, string, string) {
	return func(t *testing.T, dir, path string) {
		tool(t, dir, "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, args...), path, "4M")...)
	}
}

func badImages() []badImage {
	return []badImage{
		{name: "gone.raw", words: []string{"no such"}, make: func(*testing.T, string, string) {}},
		{name: "dir.raw", words: []string{"directory"}, make: func(t *testing.T, _, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "empty.raw", words: []string{"empty.raw"}, make: func(t *testing.T, _, path string) { image(t, path, 0, 0) }},
		{name: "cut.qcow2", words: []string{"cut.qcow2"}, make: func(t *testing.T, dir, path string) {
			newQcow2()(t, dir, path)
			if err := os.Truncate(path, 50); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "nomagic.qcow2", words: []string{"nomagic.qcow2", "magic"}, make: func(t *testing.T, _, path string) { image(t, path, 1<<20, 1<<20) }},
		{name: "hidden.raw", words: []string{"hidden.raw", "qcow2", "--format"}, make: func(t *testing.T, dir, path string) { newQcow2()(t, dir, path) }},
		// qcow2 specification, "Header": incompatible features at byte 72.
		{name: "future.qcow2", words: []string{"future.qcow2", "incompatible", "40"}, make: func(t *testing.T, dir, path string) {
			newQcow2()(t, dir, path)
			patch(t, path, 72, binary.BigEndian.AppendUint64(nil, 1<<40))
		}},
		// qcow2 specification, "Header": crypt_method at byte 32, 1 is AES.
		{name: "crypt.qcow2", words: []string{"crypt.qcow2", "encrypt"}, make: func(t *testing.T, dir, path string) {
			newQcow2()(t, dir, path)
			patch(t, path, 32, binary.BigEndian.AppendUint32(nil, 1))
		}},
		{name: "split.qcow2", words: []string{"split.qcow2", "external data file"}, make: func(t *testing.T, dir, path string) {
			newQcow2("-o", "data_file="+dir+"/split.data")(t, dir, path)
		}},
		{name: "orphan.qcow2", words: []string{"nobase.raw", "no such file"}, make: func(t *testing.T, dir, path string) {
			newQcow2("-u", "-b", "nobase.raw", "-F", "raw")(t, dir, path)
		}},
		{name: "noformat.qcow2", words: []string{"noformat.qcow2", "format", "qemu-img rebase"}, make: func(t *testing.T, dir, path string) {
			image(t, dir+"/b.raw", 1<<20, 1<<20)
			newQcow2("-b", "b.raw", "-F", "raw")(t, dir, path)
			// qcow2 specification, "Header extensions": the backing format's
			// type, after the 112 bytes of a version 3 header, becomes one
			// that readers skip.
			patch(t, path, 112, []byte{0x12, 0x34, 0x56, 0x78})
		}},
		{name: "loop.qcow2", words: []string{"loop"}, make: func(t *testing.T, dir, path string) {
			newQcow2("-u", "-b", "loop2.qcow2", "-F", "qcow2")(t, dir, path)
			newQcow2("-u", "-b", "loop.qcow2", "-F", "qcow2")(t, dir, dir+"/loop2.qcow2")
		}},
		{name: "net.qcow2", words: []string{"nbd:"}, make: func(t *testing.T, dir, path string) {
			newQcow2("-u", "-b", "nbd:localhost:1", "-F", "raw")(t, dir, path)
		}},
		{name: "vmdk.qcow2", words: []string{"vmdk"}, make: func(t *testing.T, dir, path string) {
			tool(t, dir, "qemu-img", "create", "-q", "-f", "vmdk", "b.vmdk", "1M")
			newQcow2("-b", "b.vmdk", "-F", "vmdk")(t, dir, path)
		}},
	}
}

func TestBadBase(t *testing.T) {
	for _, b := range badImages() {
		t.Run(b.name, func(t *testing.T) {
			dir := hostDir(t)
			if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
				t.Fatal(err)
			}
			b.make(t, dir, filepath.Join(dir, b.name))
			before := directoryState(t, dir)
			for _, args := range [][]string{
				{"create", "d.varve", "--base", b.name},
				{"mount", b.name, "mnt"},
				{"mount", "--read-only", b.name, "mnt"},
			} {
				fails(t, dir, exitFailed, append([]string{"varve: " + args[0] + " "}, b.words...), args...)
			}
			if after := directoryState(t, dir); after != before {
				t.Errorf("before\n%s\nafter\n%s", before, after)
			}
		})
	}
}

// A base that a QEMU has open for writing is refused, with its pid.
func TestBaseOpenInQEMU(t *testing.T) {
	dir := hostDir(t)
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	image(t, dir+"/vm.raw", 4<<20, 1<<20)
	qemu := exec.Command("qemu-io", "-f", "raw", dir+"/vm.raw")
	in, err := qemu.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := qemu.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); qemu.Wait() })
	fmt.Fprintln(in, "read 0 512")
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it is open
		t.Fatal(err)
	}
	holder := fmt.Sprintf("pid %d qemu-io", qemu.Process.Pid)
	fails(t, dir, exitFailed, []string{"mount vm.raw: ", dir + "/vm.raw", holder}, "mount", "vm.raw", "mnt")
	fails(t, dir, exitFailed, []string{"create d.varve: ", dir + "/vm.raw", holder}, "create", "d.varve", "--base", "vm.raw")
	for _, d := range []string{"vm.raw.varve", "d.varve"} {
		if _, err := os.Stat(filepath.Join(dir, d)); err == nil {
			t.Errorf("%s was made", d)
		}
	}
	in.Close()
	qemu.Wait()
	must(t, dir, "mount", "vm.raw", "mnt")
}

func TestBaseOfAnother(t *testing.T) {
	dir, _ := mounted(t, 4<<20, 1<<20)
	must(t, dir, "snapshot", "mnt", "one")
	if err := os.Mkdir(dir+"/mnt2", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"mnt/layers/one.raw", "mnt/disk.raw"} {
		fails(t, dir, exitFailed, []string{"varve mount"}, "create", "d.varve", "--base", file)
		fails(t, dir, exitFailed, []string{"varve mount"}, "mount", file, "mnt2", "--disk", "d.varve")
	}
	layer := "vm.raw.varve/layers/000002.qcow2"
	fails(t, dir, exitFailed, []string{"layer"}, "create", "d.varve", "--base", layer)
	must(t, dir, "umount", "mnt")
	fails(t, dir, exitFailed, []string{"layer"}, "mount", layer, "mnt2", "--disk", "d.varve")
}

// nobody is a user who has a name, as fusermount3 wants it, and no rights.
const nobody = 65534

func TestBaseUnreadable(t *testing.T) {
	dir := hostDir(t)
	image(t, dir+"/vm.raw", 4<<20, 1<<20)
	home := dir + "/home"
	for _, d := range []string{home, home + "/mnt"} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(d, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	for path, mode := range map[string]os.FileMode{dir: 0o755, dir + "/vm.raw": 0o600} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"create", "d.varve", "--base", "../vm.raw"},
		{"mount", "../vm.raw", "mnt", "--disk", "d.varve"},
		{"mount", "-r", "../vm.raw", "mnt"},
	} {
		r := asUser(t, nobody, home, dir, args...)
		if r.code != exitFailed || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "vm.raw: permission denied") {
			t.Errorf("%v: exit %d, says %q", args, r.code, r.stderr)
		}
	}
	// With the right to read it, a user mounts without root's help.
	if err := os.Chmod(dir+"/vm.raw", 0o644); err != nil {
		t.Fatal(err)
	}
	if !mounts.OthersAllowed("/etc/fuse.conf") {
		r := asUser(t, nobody, home, dir, "mount", "../vm.raw", "mnt", "--allow-other", "--disk", "d.varve")
		if r.code != exitFailed || r.stderr != "varve: mount ../vm.raw: allow_other needs a line \"user_allow_other\" in /etc/fuse.conf\n" {
			t.Errorf("allow_other: exit %d, says %q", r.code, r.stderr)
		}
		if _, err := os.Stat(home + "/d.varve"); err == nil {
			t.Error("a mount that was refused made a disk directory")
		}
	}
	for _, args := range []string{"mount ../vm.raw mnt --disk d.varve", "snapshot mnt one", "list mnt", "umount mnt"} {
		if r := asUser(t, nobody, home, dir, strings.Fields(args)...); r.code != exitDone {
			t.Errorf("%s: exit %d, says %q", args, r.code, r.stderr)
		}
	}
}

// asUser runs varve as another user; there is a copy of it at home that he may
// execute.
func asUser(t *testing.T, uid uint32, dir, home string, args ...string) result {
	t.Helper()
	cmd := command(dir, args...)
	exe := home + "/varve"
	if _, err := os.Stat(exe); err != nil {
		copyFile(t, cmd.Path, exe, 0o755)
	}
	cmd.Path = exe
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return finish(t, cmd)
}

func TestBadChange(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	must(t, dir, "snapshot", "mnt", "one")
	fails(t, dir, exitFailed, []string{"resize mnt: ", "4194304", "shrink"}, "resize", "mnt", "1M")
	fails(t, dir, exitUsage, []string{"is no size"}, "resize", "mnt", "much")
	if err := os.Truncate(mnt+"/disk.raw", 1<<20); !errors.Is(err, syscall.EPERM) {
		t.Errorf("truncate: %v, want EPERM", err)
	}
	f, err := os.OpenFile(mnt+"/disk.raw", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	who := fmt.Sprintf("disk.raw is open (pid %d ", os.Getpid())
	fails(t, dir, exitFailed, []string{"varve: revert mnt: " + who}, "revert", "mnt", "one")
	if f, err := os.OpenFile(mnt+"/layers/one.raw", os.O_RDWR, 0); err == nil {
		f.Close()
		t.Error("a layer can be opened for writing")
	}
	if err := exec.Command("rm", "-rf", mnt+"/layers", mnt+"/disk.raw", mnt+"/control").Run(); err == nil {
		t.Error("rm -rf in the mount succeeds")
	}
	if st := document(t, dir, "mnt"); named(st) != "base one" || st.Size != 4<<20 {
		t.Errorf("status says %+v", st)
	}
}

// A full host is said to be full, and nothing is lost by it.
func TestFullHost(t *testing.T) {
	dir := hostDir(t)
	host := smallHost(t, dir, 32<<20)
	for _, d := range []string{"mnt", "mnt2"} {
		if err := os.Mkdir(filepath.Join(host, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	image(t, host+"/vm.raw", 64<<20, 0)
	image(t, host+"/other.raw", 1<<20, 0)
	must(t, host, "mount", "vm.raw", "mnt")
	put(t, host+"/mnt", "kept", 0)
	must(t, host, "snapshot", "mnt", "one")
	fill(t, host+"/filler")

	full := []string{"no space left on device"}
	fails(t, host, exitFailed, full, "snapshot", "mnt", "two")
	fails(t, host, exitFailed, full, "create", "d.varve", "--size", "1G")
	fails(t, host, exitFailed, full, "mount", "other.raw", "mnt2")
	for _, d := range []string{"d.varve", "other.raw.varve"} {
		if _, err := os.Stat(filepath.Join(host, d)); err == nil {
			t.Errorf("%s was made", d)
		}
	}
	if names := named(document(t, host, "mnt")); names != "base one" {
		t.Errorf("the snapshots are now %s", names)
	}
	if err := os.Remove(host + "/filler"); err != nil {
		t.Fatal(err)
	}
	must(t, host, "snapshot", "mnt", "two")
	must(t, host, "umount", "mnt")
	must(t, host, "mount", "vm.raw", "mnt")
	if got := get(t, host+"/mnt/layers/two.raw", 0, 4); got != "kept" {
		t.Errorf("two has %q", got)
	}
	must(t, host, "umount", "mnt")
}

// A disk whose last writes cannot be written says so when it is unmounted.
func TestFailedCloseIsAnError(t *testing.T) {
	dir := hostDir(t)
	// The host's device promises more than the tmpfs below it can hold.
	small := dir + "/small"
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(small, syscall.MNT_DETACH) })
	host := smallHost(t, small, 64<<20)
	if err := os.Mkdir(host+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	image(t, host+"/vm.raw", 64<<20, 0)
	must(t, host, "mount", "vm.raw", "mnt")
	f, err := os.OpenFile(host+"/mnt/disk.raw", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	for i := range int64(24) {
		for j := range block {
			block[j] = byte(i) + 1
		}
		if _, err := f.WriteAt(block, i<<20); err != nil {
			break // the daemon flushes by itself too
		}
	}
	f.Close()
	fails(t, host, exitFailed, []string{"umount mnt: unmounted, but the daemon could not close the disk in order", "may be lost", host + "/vm.raw.varve/varve.log says why"}, "umount", "mnt")
	log, err := os.ReadFile(host + "/vm.raw.varve/varve.log")
	if err != nil || !strings.Contains(string(log), "the disk was not closed in order") {
		// The host's file system may have become read-only by then.
		if writeErr := os.WriteFile(host+"/new", nil, 0o600); writeErr == nil {
			t.Errorf("the log: %v\n%s", err, log)
		}
	}
}

// smallHost makes an ext4 of its own in dir, on a loop device, mounted.
func smallHost(t *testing.T, dir string, size int64) string {
	t.Helper()
	file, host := dir+"/host.ext4", dir+"/host"
	image(t, file, size, 0)
	tool(t, dir, "mkfs.ext4", "-q", "-F", file)
	if err := os.Mkdir(host, 0o700); err != nil {
		t.Fatal(err)
	}
	tool(t, dir, "mount", "-o", "loop", file, host)
	t.Cleanup(func() {
		// After the varve mounts inside have gone; the loop device goes with it.
		exec.Command("umount", "-R", "-l", host).Run()
	})
	return host
}

// fill takes all the space that a file system has left.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4096, 512} {
		for block := make([]byte, size); ; {
			if _, err := f.Write(block); err != nil {
				break
			}
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// A job that the host has no room for is refused before it begins, and can be done
// when there is room.
func TestJobOnAFullHost(t *testing.T) {
	dir := hostDir(t)
	host := smallHost(t, dir, 64<<20)
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	image(t, dir+"/vm.raw", 24<<20, 24<<20)
	must(t, dir, "mount", "vm.raw", "mnt", "--disk", "host/vm")
	must(t, dir, "snapshot", "mnt", "one")
	fill(t, host+"/filler")
	info, err := os.Stat(host + "/filler")
	if err != nil {
		t.Fatal(err)
	}
	// Room for the record of a job.
	if err := os.Truncate(host+"/filler", info.Size()-2<<20); err != nil {
		t.Fatal(err)
	}
	fails(t, dir, exitFailed, []string{"varve: flatten mnt: it needs ", " bytes free on the host at least, and ", "no space left on device"}, "flatten", "mnt", "one")
	st := document(t, dir, "mnt")
	if st.Layers[1].Parent == nil || named(st) != "base one" || st.Job != nil {
		t.Errorf("status says %+v, job %+v", st, st.Job)
	}
	if got := get(t, dir+"/mnt/layers/one.raw", 0, 24<<20); got != get(t, dir+"/vm.raw", 0, 24<<20) {
		t.Error("the layer has another content")
	}
	if err := os.Remove(host + "/filler"); err != nil {
		t.Fatal(err)
	}
	// A file whose flush has failed is not trusted until it is opened again
	// (M10); the unmount may say so.
	vv(t, dir, "umount", "mnt")
	must(t, dir, "mount", "host/vm", "mnt")
	eventually(t, "no job is under way", func() bool {
		st := document(t, dir, "mnt")
		return st.Job == nil || st.Job.State != chain.JobRunning
	})
	must(t, dir, "flatten", "mnt", "one")
	must(t, dir, "umount", "mnt")
	tool(t, dir, "qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", "vm.raw", "host/vm/layers/000002.qcow2")
	tool(t, dir, "qemu-img", "check", "-q", "host/vm/layers/000002.qcow2")
}
