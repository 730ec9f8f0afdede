package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// importImages makes images to import into a disk of importSize bytes, by name: raw
// ones and qcow2, a chain, one with zeros written as data. Each is smaller than the
// disk, one of them by nothing.
func importImages(t *testing.T, dir string) []string {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	image(t, at("full.raw"), importSize, 3<<20)
	tool(t, dir, "qemu-io", "-f", "raw", "-c", "write -z 1M 700k", "-c", "write -P 9 20M 64k", "full.raw")
	tool(t, dir, "dd", "if=/dev/zero", "of=full.raw", "bs=64k", "seek=150", "count=20", "conv=notrunc", "status=none")
	tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "small.qcow2", "9M")
	tool(t, dir, "qemu-io", "-c", "write -P 3 0 1M", "-c", "write -P 4 5000k 3M", "small.qcow2")
	tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "small.qcow2", "-F", "qcow2", "chain.qcow2", "12M")
	tool(t, dir, "qemu-io", "-c", "write -z 256k 300k", "-c", "write -P 5 10M 64k", "chain.qcow2")
	tool(t, dir, "qemu-img", "convert", "-c", "-O", "qcow2", "full.raw", "packed.qcow2")
	return []string{"full.raw", "small.qcow2", "chain.qcow2", "packed.qcow2"}
}

const importSize = 24 << 20

// leafFile is the leaf's file of a disk.
func leafFile(t *testing.T, dir, disk string) string {
	t.Helper()
	st := document(t, dir, disk)
	for _, l := range st.Layers {
		if l.ID == st.Leaf {
			return l.File
		}
	}
	t.Fatalf("%s has no leaf", disk)
	return ""
}

// Every kind of image, mounted and not: qemu-img finds the same bytes, and zeros where
// the image ends; the disk takes no room for them, and what it held is a snapshot.
func TestImport(t *testing.T) {
	dir, mnt := mounted(t, importSize, 16<<20)
	names := importImages(t, dir)
	put(t, mnt, "what was there", 15<<20)
	disk := "mnt"
	for _, isMounted := range []bool{true, false} {
		if !isMounted {
			must(t, dir, "umount", "mnt")
			disk = "vm.raw.varve"
		}
		for i, name := range names {
			before := fmt.Sprintf("before-%s-%v", name, isMounted)
			must(t, dir, "import", name, disk, "--snapshot", before)
			// Strict of sizes would fail; else what is longer must be zeros.
			truth := name
			if i == 0 {
				truth = "full.raw"
			}
			out := "mnt/disk.raw"
			if !isMounted {
				out = "out.raw"
				must(t, dir, "export", disk, "leaf", out, "--force")
			}
			tool(t, dir, "qemu-img", "compare", "-q", "-f", map[bool]string{true: "raw", false: "qcow2"}[filepath.Ext(truth) == ".raw"], "-F", "raw", truth, out)
			var st unix.Stat_t
			if err := unix.Stat(leafFile(t, dir, disk), &st); err != nil || st.Blocks*512 > 6<<20 {
				t.Errorf("%s: the leaf takes %d bytes (%v)", name, st.Blocks*512, err)
			}
		}
	}
	must(t, dir, "check", disk)
	must(t, dir, "export", disk, "before-full.raw-true", "was.raw")
	if got := get(t, dir+"/was.raw", 15<<20, 14); got != "what was there" {
		t.Errorf("the snapshot before the first import has %q", got)
	}
}

// Without a flag a snapshot is taken exactly where something would be lost, and named.
func TestImportKeepsWhatTheDiskHeld(t *testing.T) {
	dir := hostDir(t)
	image(t, dir+"/img", 1<<20, 1<<20)
	for _, isMounted := range []bool{true, false} {
		disk := fmt.Sprintf("d%v.varve", isMounted)
		must(t, dir, "create", disk, "--size", "2M")
		at := disk
		if isMounted {
			if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
				t.Fatal(err)
			}
			must(t, dir, "mount", disk, "mnt")
			at = "mnt"
		}
		if r := must(t, dir, "import", "img", at); strings.Contains(r.stderr, "snapshot") || !strings.Contains(r.stderr, "img has 1 MiB; the rest of the disk, 1 MiB, is zeros") {
			t.Errorf("into a blank disk: %s", r.stderr)
		}
		r := must(t, dir, "import", "img", at)
		kept := named(document(t, dir, at))
		if !strings.HasPrefix(kept, "auto-") || !strings.Contains(r.stderr, "what the disk held is snapshot "+kept) {
			t.Errorf("snapshots %q, says %q", kept, r.stderr)
		}
		must(t, dir, "import", "img", at, "--force")
		must(t, dir, "snapshot", at, "last")
		must(t, dir, "import", "img", at) // nothing is lost by it
		if now := named(document(t, dir, at)); now != kept+" last" {
			t.Errorf("snapshots %q, then %q", kept, now)
		}
		if isMounted {
			must(t, dir, "umount", "mnt")
		}
	}
}

func TestImportRefused(t *testing.T) {
	dir, mnt := mounted(t, 2<<20, 1<<20)
	put(t, mnt, "kept", 1<<20)
	image(t, dir+"/large", 2<<20+1000, 0)
	image(t, dir+"/small", 1<<20, 1<<20)
	if err := os.WriteFile(dir+"/empty", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "odd.img", "1M")
	tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "json:{}", "-F", "raw", "-u", "odd.qcow2", "1M")
	must(t, dir, "snapshot", "mnt", "one")
	put(t, mnt, "kept", 1<<20)
	must(t, dir, "create", "other.varve", "--size", "2M")
	must(t, dir, "snapshot", "other.varve", "theirs")
	for _, c := range []struct {
		args  string
		code  int
		words string
	}{
		{"large mnt", exitFailed, "large has 2098176 bytes and the disk 2097152; make it larger first with \"varve resize mnt 2098176\""},
		{"empty mnt", exitFailed, "empty is empty"},
		{"nowhere mnt", exitFailed, "nowhere: no such file"},
		{"vm.raw.varve mnt", exitFailed, "is a disk directory, not an image"},
		{"odd.img mnt", exitFailed, "begins like a qcow2 but is not named .qcow2"},
		{"odd.qcow2 mnt", exitFailed, "names with a protocol and json: are not followed"},
		{"small mnt --format vmdk", exitUsage, "neither raw nor qcow2"},
		{"small mnt --format qcow2", exitFailed, "is no qcow2"},
		{"small mnt --force --snapshot x", exitUsage, "choose one"},
		{"small mnt --snapshot one", exitFailed, "exists"},
		{"small mnt --snapshot -x", exitFailed, "begins with"},
		{"small nowhere.varve", exitFailed, "no such disk"},
		{"small", exitUsage, "DISK is missing"},
		{"- mnt --format qcow2", exitUsage, "cannot be read from a pipe"},
		{"mnt/disk.raw mnt", exitFailed, "is a file of the disk's own mount"},
		{"mnt/status mnt", exitFailed, "is a file of the disk's own mount"},
		{"mnt/layers/one.raw mnt", exitFailed, "is one of this disk; \"varve revert mnt one\" goes back to it without a copy"},
		{"vm.raw mnt", exitFailed, "is base of this disk; \"varve revert mnt base\""},
		{"vm.raw.varve/layers/000003.qcow2 mnt", exitFailed, "is a file of this disk (leaf)"},
		{"other.varve/layers/000001.qcow2 mnt", exitFailed, "000001.qcow2 is theirs of the varve disk " + dir + "/other.varve and needs the layers below it; import what they show together: \"varve export " + dir + "/other.varve theirs - | varve import - mnt\""},
		{"other.varve/layers/000002.qcow2 mnt", exitFailed, "\"varve export " + dir + "/other.varve leaf - | varve import - mnt\""},
	} {
		fails(t, dir, c.code, []string{c.words}, append([]string{"import"}, strings.Fields(c.args)...)...)
	}
	for text, words := range map[string]string{
		"": "there is nothing on standard input", "QFI\xfb and so on": "begins like a qcow2",
		"\x1f\x8b\x08 and so on": "what comes on standard input is compressed with gzip, not a raw disk;",
	} {
		cmd := command(dir, "import", "-", "mnt")
		cmd.Stdin = strings.NewReader(text)
		if r := finish(t, cmd); r.code != exitFailed || !strings.Contains(r.stderr, words) {
			t.Errorf("%q on standard input: exit %d, %q", text, r.code, r.stderr)
		}
	}
	if got, names := get(t, mnt+"/disk.raw", 1<<20, 4), named(document(t, dir, "mnt")); got != "kept" || names != "base one" {
		t.Errorf("the disk has %q, and snapshots %s", got, names)
	}
	if err := unix.Mkfifo(dir+"/pipe", 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, dir, exitFailed, []string{"pipe is a pipe; name \"-\" instead"}, "import", "pipe", "mnt")
	must(t, dir, "umount", "mnt")
	must(t, dir, "mount", "--read-only", "vm.raw", "mnt")
	fails(t, dir, exitFailed, []string{"is mounted read-only"}, "import", "small", "mnt")
}

// stalled starts an import from a pipe that has given a part of an image, and waits
// until that is in the disk.
func stalled(t *testing.T, dir string, args ...string) (cmd *exec.Cmd, words *bytes.Buffer, rest io.WriteCloser) {
	t.Helper()
	cmd = command(dir, append([]string{"import", "-"}, args...)...)
	words = new(bytes.Buffer)
	cmd.Stderr = words
	rest, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	// What is more than the pipe and all that is read ahead hold has been written.
	if _, err := rest.Write(bytes.Repeat([]byte("new"), 2<<20)); err != nil {
		t.Fatal(err)
	}
	return cmd, words, rest
}

// In the middle of an import: no VM starts, no revert runs; Ctrl-C ends it with the way
// back in words, a kill without; by that way the disk is what it was.
func TestImportInTheMiddle(t *testing.T) {
	dir, mnt := mounted(t, 16<<20, 1<<20)
	put(t, mnt, "kept", 0)
	disk := "mnt"
	for i, c := range []struct {
		signal  os.Signal
		mounted bool
	}{{os.Interrupt, true}, {os.Kill, true}, {syscall.SIGTERM, false}, {os.Kill, false}} {
		if !c.mounted && i == 2 {
			must(t, dir, "umount", "mnt")
			disk = "vm.raw.varve"
		}
		name := fmt.Sprintf("before%d", i)
		cmd, words, rest := stalled(t, dir, disk, "--snapshot", name)
		if c.mounted {
			if out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write 0 512", mnt+"/disk.raw").CombinedOutput(); err == nil || !strings.Contains(string(out), "Failed to get") {
				t.Errorf("a VM may write: %v, %s", err, out)
			}
			if got := get(t, mnt+"/disk.raw", 0, 3); got != "new" {
				t.Errorf("the disk begins with %q", got)
			}
		}
		if err := cmd.Process.Signal(c.signal); err != nil {
			t.Fatal(err)
		}
		if c.signal != os.Kill { // timeout(1) sends it twice
			time.Sleep(10 * time.Millisecond)
			cmd.Process.Signal(c.signal)
		}
		cmd.Wait()
		rest.Close()
		want := fmt.Sprintf("varve: import %s: interrupted; the disk is half written: \"varve revert %s %s\" brings back what it held\n", disk, disk, name)
		if c.signal != os.Kill && (cmd.ProcessState.ExitCode() != exitFailed || notices.ReplaceAllString(words.String(), "") != want) {
			t.Errorf("%v: exit %d, says %q", c.signal, cmd.ProcessState.ExitCode(), words)
		}
		must(t, dir, "revert", disk, name)
		if !c.mounted {
			must(t, dir, "check", disk)
			must(t, dir, "export", disk, "leaf", "out", "--force")
			if got := get(t, dir+"/out", 0, 4); got != "kept" {
				t.Errorf("after the revert the disk begins with %q", got)
			}
		} else if got := get(t, mnt+"/disk.raw", 0, 4); got != "kept" {
			t.Errorf("after the revert the disk begins with %q", got)
		}
	}
}

// Who has the disk open for writing keeps an import away, with locks and without; one
// who comes in the middle is found at the end. An image that somebody writes is not
// read, nor one that changes meanwhile.
func TestImportAndOthers(t *testing.T) {
	dir, mnt := mounted(t, 16<<20, 1<<20)
	image(t, dir+"/img", 1<<20, 1<<20)
	f, err := os.OpenFile(mnt+"/disk.raw", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	who := fmt.Sprintf("disk.raw is open for writing (pid %d ", os.Getpid())
	fails(t, dir, exitFailed, []string{who, "stop that first"}, "import", "img", "mnt")
	f.Close()

	qemu := exec.Command("qemu-io", "-f", "raw", mnt+"/disk.raw")
	in, err := qemu.StdinPipe()
	if err == nil {
		err = qemu.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "qemu-io has the disk open", func() bool { return len(document(t, dir, "mnt").Open) > 0 })
	eventually(t, "qemu-io has its locks", func() bool {
		r := vv(t, dir, "import", "img", "mnt")
		return r.code == exitFailed && strings.Contains(r.stderr, fmt.Sprintf("pid %d qemu-io", qemu.Process.Pid))
	})
	in.Close()
	qemu.Wait()

	cmd, words, rest := stalled(t, dir, "mnt", "--snapshot", "two")
	if f, err = os.OpenFile(mnt+"/disk.raw", os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	rest.Close()
	cmd.Wait()
	f.Close()
	if !strings.Contains(words.String(), who) || !strings.Contains(words.String(), "the disk is half written: \"varve revert mnt two\"") {
		t.Errorf("another writer came in the middle: %s", words)
	}

	tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "busy.qcow2", "1M")
	qemu = exec.Command("qemu-io", dir+"/busy.qcow2")
	if in, err = qemu.StdinPipe(); err == nil {
		err = qemu.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "qemu-io has its locks on the image", func() bool {
		r := vv(t, dir, "import", "busy.qcow2", "mnt", "--force")
		return r.code == exitFailed && strings.Contains(r.stderr, "is open for writing in")
	})
	in.Close()
	qemu.Wait()
}

// A stream that is too long, a table of the image that is broken, a full host: what was
// met and where, and that the disk is half written.
func TestImportFails(t *testing.T) {
	dir := hostDir(t)
	host := smallHost(t, dir, 24<<20)
	if err := os.Mkdir(host+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, host, "create", "d.varve", "--size", "64M")
	must(t, host, "mount", "d.varve", "mnt")
	put(t, host+"/mnt", "kept", 0)
	image(t, dir+"/img", 40<<20, 40<<20)
	half := "what was imported is discarded again: make room and import again, or \"varve revert mnt s\" brings back what it held"
	r := vv(t, host, "import", "../img", "mnt", "--snapshot", "s")
	if r.code != exitFailed || !strings.Contains(r.stderr, "offset ") || !strings.Contains(r.stderr, "no space left on device") || !strings.Contains(r.stderr, half) {
		t.Errorf("a full host: exit %d, %q", r.code, r.stderr)
	}
	eventually(t, "the host has room for a revert", func() bool {
		return vv(t, host, "revert", "mnt", "s").code == exitDone
	})
	if got := get(t, host+"/mnt/disk.raw", 0, 4); got != "kept" {
		t.Errorf("after the revert the disk begins with %q", got)
	}

	cmd := command(host, "import", "-", "mnt")
	cmd.Stdin = io.LimitReader(zeroReader{}, 64<<20+512)
	if r := finish(t, cmd); r.code != exitFailed || !strings.Contains(r.stderr, "the image goes on behind the disk's end at 67108864 bytes; the disk is half written: \"varve revert mnt s\"") || !strings.Contains(r.stderr, "; count the image's bytes with \"wc -c\", make the disk as large with \"varve resize mnt BYTES\", and import again") {
		t.Errorf("a stream that is too long: exit %d, %q", r.code, r.stderr)
	}
	tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "bad.qcow2", "4M")
	tool(t, dir, "qemu-io", "-c", "write 0 1M", "-c", "write 2M 1M", "bad.qcow2")
	f, err := os.OpenFile(dir+"/bad.qcow2", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// Its L2 table is the fifth cluster; the entry of guest offset 2 MiB is odd.
	if _, err := f.WriteAt([]byte{0x80, 0, 0, 0, 0, 0, 0x03, 0}, 4*65536+32*8); err != nil {
		t.Fatal(err)
	}
	if r := vv(t, dir, "import", "bad.qcow2", "host/mnt"); r.code != exitFailed || !strings.Contains(r.stderr, "bad.qcow2") || !strings.Contains(r.stderr, "image is corrupt") || !strings.Contains(r.stderr, "0x") {
		t.Errorf("a corrupt image: exit %d, %q", r.code, r.stderr)
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// A disk of another varve can be read through its mount, while nobody writes it.
func TestImportFromAnotherDisk(t *testing.T) {
	dir, mnt := mounted(t, 2<<20, 1<<20)
	put(t, mnt, "snapshot", 1<<20)
	must(t, dir, "snapshot", "mnt", "one")
	put(t, mnt, "leaf too", 1<<20)
	must(t, dir, "create", "other.varve", "--size", "3M")
	for name, want := range map[string]string{"layers/one.raw": "snapshot", "disk.raw": "leaf too"} {
		must(t, dir, "import", "mnt/"+name, "other.varve", "--force")
		must(t, dir, "export", "other.varve", "leaf", "out", "--force")
		if got := get(t, dir+"/out", 1<<20, 8); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// Imports that follow each other within a second have snapshots of different names.
func TestImportsInOneSecond(t *testing.T) {
	dir, mnt := mounted(t, 1<<20, 0)
	put(t, mnt, "kept", 0)
	image(t, dir+"/img", 64<<10, 64<<10)
	for range 3 {
		must(t, dir, "import", "img", "mnt")
	}
	must(t, dir, "umount", "mnt")
	for range 2 {
		must(t, dir, "import", "img", "vm.raw.varve")
	}
	if names := strings.Fields(named(document(t, dir, "vm.raw.varve"))); len(names) != 6 { // and the base
		t.Errorf("snapshots %q", names)
	}
}
