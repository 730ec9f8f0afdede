package fs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/fs/control"
	"varve/overlay/qcow2"
)

// pieces are differences of two pieces, with a pause between.
func pieces() [][]chain.Difference {
	return [][]chain.Difference{
		{{Start: 4096, Length: 8192, A: "000001", B: "000100"}, {Start: 65536, Length: 512, A: "zeros", B: "000100"}},
		{},
		{{Start: 1 << 20, Length: 1000, A: "end", B: "000100"}},
	}
}

const wholeList = `# a: one 000001 1048576
# b: leaf 000100 1048576
# start length a b
4096 8192 000001 000100
65536 512 zeros 000100
# at 2000
1048576 1000 end 000100
# end: 3 differences, 9704 bytes
`

func TestDiffStream(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{})
	d.pieces = pieces()
	path := filepath.Join(dir, "control/diff")
	if text := string(content(t, path)); !strings.Contains(text, "# diff: write A B") || strings.Contains(text, "# a:") {
		t.Errorf("it reads %q before anything is written", text)
	}
	for _, size := range []int{1, 7, 4096, 1 << 20} {
		f := open(t, path, os.O_RDWR)
		if _, err := f.WriteString("one leaf\n"); err != nil {
			t.Fatal(err)
		}
		// On from where the write ended, as a shell does, or from the front.
		if size == 7 {
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
		}
		var text strings.Builder
		if _, err := io.CopyBuffer(struct{ io.Writer }{&text}, struct{ io.Reader }{f}, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		head, list, _ := strings.Cut(text.String(), ": \"one leaf\": ok\n")
		if list != wholeList || !strings.HasPrefix(head, "# diff: write") {
			t.Errorf("read by %d bytes:\n%s", size, text.String())
		}
		if n, err := f.Read(make([]byte, 10)); n != 0 || err != io.EOF {
			t.Errorf("behind the end: %d, %v", n, err)
		}
		if n := d.openDiffs(); n != 0 {
			t.Errorf("%d views are open after the end", n)
		}
	}
	// By the shell alone.
	out, err := exec.Command("sh", "-c", `exec 3<>"$1"; echo one leaf >&3; grep -v '^#' <&3`, "sh", path).CombinedOutput()
	if want := "4096 8192 000001 000100\n65536 512 zeros 000100\n1048576 1000 end 000100\n"; err != nil || string(out) != want {
		t.Errorf("%v: %s", err, out)
	}
}

func TestDiffStreamEndsEarly(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{})
	d.pieces = pieces()
	path := filepath.Join(dir, "control/diff")
	begin := func() *os.File {
		t.Helper()
		f := open(t, path, os.O_RDWR)
		if _, err := f.WriteString("one leaf\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Read(make([]byte, 500)); err != nil {
			t.Fatal(err)
		}
		return f
	}
	count := func() int {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.diffs
	}

	f := begin()
	if _, err := f.ReadAt(make([]byte, 10), 3); !errors.Is(err, unix.ESPIPE) {
		t.Errorf("a read out of order: %v, want ESPIPE", err)
	}
	if n := count(); n != 1 {
		t.Fatalf("%d views are open", n)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the views to be closed", func() bool { return count() == 0 })

	// A write ends what the one before began, also when it is refused.
	f = begin()
	if _, err := f.WriteAt([]byte("one\n"), 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("one name: %v", err)
	}
	if n := count(); n != 0 {
		t.Errorf("%d views are open after a refusal", n)
	}
	text := make([]byte, 4096)
	n, err := f.ReadAt(text, 0)
	if outcome, ok := control.ParseOutcome(string(text[:n])); err != io.EOF || !ok || outcome.Errno != unix.EINVAL || outcome.Reason != "diff takes two names with one space between them" {
		t.Errorf("%+v, %v", outcome, err)
	}

	// What goes wrong on the way stands in the last line.
	d.failWith("Next", fmt.Errorf("L2 table at 0x1000 of x:\nbad: %w", qcow2.ErrCorrupt))
	f = open(t, path, os.O_RDWR)
	if _, err := f.WriteString("one leaf\n"); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(f)
	if want := "# at 2000\n# error EIO: L2 table at 0x1000 of x: bad: image is corrupt\n"; err != nil || !strings.HasSuffix(string(all), want) {
		t.Errorf("%v\n%s", err, all)
	}
	d.failWith("Diff none leaf", fmt.Errorf("snapshot none: %w", chain.ErrNotExist))
	if _, err := f.WriteAt([]byte("none leaf\n"), 0); !errors.Is(err, unix.ENOENT) {
		t.Errorf("%v, want ENOENT", err)
	}
}
