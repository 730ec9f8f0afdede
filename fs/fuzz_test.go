package fs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/fs/control"
	"varve/integration/patience"
)

// hangLimit is far above what any input takes.
var hangLimit = patience.Hang

// writeErrnos are what a write to a control file may fail with as long as the
// host is well.
var writeErrnos = []fuse.Status{
	fuse.OK, fuse.EINVAL, fuse.ENOENT, fuse.Status(unix.EEXIST), fuse.EBUSY, fuse.Status(unix.EFBIG),
}

// FuzzControlWrite writes any bytes to every control file of a real disk, in
// one write or in two. No answer is one that a caller would misunderstand, the
// outcome can be read again, and what chain.json holds is a disk.
func FuzzControlWrite(f *testing.F) {
	names := []string{"one", "two"}
	for file := range byte(len(commands())) {
		for _, text := range []string{
			"one\n", "one", "base", "leaf", "", "\n", "#", "one two\n", "one  two", "--unnamed\n", "64M\n", "1.5G", "0", "-1", "1", "1e9", "99999999999999999999999T",
			"\x00", "\xff", "\u00e4\n", "a\nb\n", strings.Repeat("n", 129), strings.Repeat("n", 4097), ".", "-x", "..", "a/b", "two one",
			"1152921504606846976", "9223372036854775807", "1152921504606846976T",
		} {
			f.Add(file, []byte(text), uint16(0xffff), uint64(0), uint32(0))
		}
		f.Add(file, []byte("one\ntwo\n"), uint16(4), uint64(4), uint32(0))
		f.Add(file, []byte("onetwo"), uint16(3), uint64(3), uint32(0))
		f.Add(file, []byte("onetwo"), uint16(3), ^uint64(0), uint32(unix.O_APPEND))
	}
	top := f.TempDir()
	var d *chain.Disk
	var fs *fileSystem
	f.Cleanup(func() {
		if d != nil {
			d.Close()
		}
	})
	inputs := 0
	renew := func(t *testing.T) {
		if d != nil {
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			d = nil
		}
		dir := filepath.Join(top, "vm.varve")
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := chain.Create(dir, chain.CreateOptions{Size: 8 << 20}); err != nil {
			t.Fatal(err)
		}
		var err error
		if d, err = chain.Open(dir, chain.OpenOptions{}); err != nil {
			t.Fatal(err)
		}
		fs = newFileSystem(chainDisk{d}, Options{})
		for _, name := range names {
			if err := d.Snapshot(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	f.Fuzz(func(t *testing.T, file byte, data []byte, cut uint16, offset uint64, flags uint32) {
		timer := time.AfterFunc(hangLimit, func() { panic("hang: this input takes more than " + hangLimit.String()) })
		defer timer.Stop()
		if inputs++; d == nil || inputs%50 == 0 {
			renew(t)
		}
		i := int(file) % len(commands())
		node := nodeCommand + uint64(i)
		o := fs.openControl(node, commands()[i]).(*controlFile)
		defer o.close()
		first := data[:min(int(cut), len(data))]
		for k, part := range [][]byte{first, data[len(first):]} {
			if k == 1 && len(part) == 0 {
				continue
			}
			in := &fuse.WriteIn{Flags: flags}
			if k == 1 {
				in.Offset = offset
			}
			n, status := fs.writeControl(o, in, part)
			if !slices.Contains(writeErrnos, status) {
				t.Fatalf("%q to %s: %v", part, o.name, status)
			}
			if want := uint32(len(part)); status.Ok() && n != want || !status.Ok() && n != 0 {
				t.Fatalf("%q to %s: %d bytes taken, %v", part, o.name, n, status)
			}
			text := string(o.text())
			for line := range strings.Lines(text) {
				if !strings.HasPrefix(line, "# ") || !strings.HasSuffix(line, "\n") {
					t.Fatalf("the file reads %q", text)
				}
			}
			outcome, ok := control.ParseOutcome(text)
			if !ok || fuse.Status(outcome.Errno) != status {
				t.Fatalf("%q to %s: %v, and the file reads %q", part, o.name, status, text)
			}
			if line := strings.TrimSuffix(string(part), "\n"); len(part) <= maxCommand && outcome.Line != line {
				t.Fatalf("%q to %s was taken for %q", part, o.name, outcome.Line)
			}
		}
		judgeTree(t, d)
	})
}

// judgeTree checks that the disk is one that could be opened again.
func judgeTree(t *testing.T, d *chain.Disk) {
	t.Helper()
	status, err := d.Status()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, l := range status.Layers {
		if l.Name == "" {
			continue
		}
		if err := chain.CheckName(l.Name); err != nil {
			t.Fatal(err)
		}
		if seen[l.Name] {
			t.Fatalf("two layers are named %q", l.Name)
		}
		seen[l.Name] = true
	}
}
