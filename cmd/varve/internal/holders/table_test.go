package holders

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"varve/integration/harness"
)

// TestTable: what is open, mapped or attached is found with how, by name and by
// identity.
func TestTable(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	file, other := filepath.Join(dir, "x.raw"), filepath.Join(dir, "y.raw")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(file, other); err != nil {
		t.Fatal(err)
	}
	reader := harness.KeepShell(t, "exec 7<"+file)
	writer := harness.KeepShell(t, "exec 7<>"+other)
	id, ok := Identify(file)
	if !ok {
		t.Fatal("the file has no identity")
	}
	got := map[int]bool{}
	for _, h := range ReadTable("/").Of(func(h Handle) bool { return h.ID == id }) {
		write, locked := h.Mode()
		if h.Command != "sh" || locked || h.Mapped || h.Device != "" {
			t.Errorf("got %+v", h)
		}
		got[h.PID] = write
		if want := map[bool]string{false: file, true: other}[write]; h.Path != want {
			t.Errorf("%d has %s, not %s", h.PID, h.Path, want)
		}
	}
	if len(got) != 2 || got[reader] || !got[writer] {
		t.Errorf("got %v; reader %d, writer %d", got, reader, writer)
	}
}

// TestTableOfTree: mappings, loop devices and processes that cannot be seen, in a
// tree in place of /proc and /sys.
func TestTableOfTree(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"proc/7/comm":                       "cat\n",
		"proc/7/maps":                       "7f00-7f01 r--s 00000000 fe:01 12 /srv/base.raw\n7f02-7f03 r--p 00000000 fe:01 13 /usr/lib/libc.so.6\n7f04-7f05 rw-p 0 00:00 0\n",
		"proc/7/fd/.keep":                   "",
		"sys/block/loop3/loop/backing_file": "/srv/base.raw\n",
		"sys/block/loop3/ro":                "0\n",
		"sys/block/loop4/loop/backing_file": "/srv/base.raw\n",
		"sys/block/loop4/ro":                "1\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, h := range ReadTable(root).Of(func(h Handle) bool { return h.Path == "/srv/base.raw" }) {
		write, _ := h.Mode()
		how := "reads"
		if write {
			how = "writes"
		}
		if h.Mapped {
			how = "maps"
		}
		got = append(got, h.Device+h.Command+" "+how)
	}
	slices.Sort(got)
	if want := []string{"/dev/loop3 writes", "/dev/loop4 reads", "cat maps"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestIsWriteLock: lines as fdinfo has them for QEMU 7.2.
func TestIsWriteLock(t *testing.T) {
	for line, want := range map[string]bool{
		"lock:\t1: OFDLCK ADVISORY  READ -1 fe:01:393249 100 101\n":  true,
		"lock:\t2: OFDLCK ADVISORY  READ -1 fe:01:393249 100 100\n":  false,
		"lock:\t2: OFDLCK ADVISORY  READ -1 fe:01:393249 201 201\n":  false,
		"lock:\t2: OFDLCK ADVISORY  WRITE -1 fe:01:393249 0 EOF\n":   true,
		"lock:\t1: POSIX  ADVISORY  WRITE 77 fe:01:393249 100 101\n": false,
		"flags:\t0100002\n": false,
	} {
		if isWriteLock(line) != want {
			t.Errorf("%q", line)
		}
	}
}

// A file system that does not answer is waited for once, and the others are identified.
func TestTableOfADeadFileSystem(t *testing.T) {
	dead, lives := t.TempDir(), t.TempDir()
	for _, path := range []string{dead + "/one", dead + "/two", lives + "/three"} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pid := harness.KeepShell(t, "exec 7<"+dead+"/one 8<"+dead+"/two 9<"+lives+"/three")
	hang := make(chan bool)
	t.Cleanup(func() { close(hang) })
	ids := &identifier{slow: []string{"/nothing", dead}, dead: map[string]bool{}, identify: func(link string) (Identity, bool) {
		if path, err := os.Readlink(link); err == nil && strings.HasPrefix(path, dead) {
			<-hang
		}
		return Identify(link)
	}}
	table := readTable("/", ids)
	if !ids.dead[dead] || len(ids.dead) != 1 {
		t.Errorf("dead are %v", ids.dead)
	}
	known := map[string]bool{}
	for _, h := range table.Of(func(h Handle) bool { return h.PID == pid }) {
		known[filepath.Base(h.Path)] = h.ID != (Identity{})
	}
	for name, want := range map[string]bool{"one": false, "two": false, "three": true} {
		if got, there := known[name]; !there || got != want {
			t.Errorf("%s: there %v, identified %v", name, there, got)
		}
	}
}
