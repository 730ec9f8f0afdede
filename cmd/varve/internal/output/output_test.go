package output

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFind(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir("below", 0o700))
	must(os.WriteFile("below/file", nil, 0o600))
	must(os.Symlink("below/file", "link"))
	must(os.Symlink("link", "second"))
	must(os.Symlink("below/absent", "dangling"))
	must(os.Symlink("gone/absent", "nowhere"))
	must(os.Symlink("loop", "loop"))
	must(os.Symlink("/dev/null", "null"))
	must(os.Symlink("below", "folder"))
	must(unix.Mkfifo("pipe", 0o600))
	must(unix.Mknod("socket", unix.S_IFSOCK|0o600, 0))
	f, err := os.Create("open")
	must(err)
	defer f.Close()
	open := fmt.Sprint("/proc/self/fd/", f.Fd())
	must(os.Symlink(open, "magic"))

	for name, want := range map[string]string{
		"new": "new", "below/file": "below/file", "link": "below/file", "second": "below/file",
		"dangling": "below/absent", "folder/new": "folder/new", "./new": "./new",
	} {
		if name != want { // a link was followed
			want = filepath.Join(dir, want)
		}
		if p, err := Find(name); err != nil || p.Path != want || p.Direct() {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	for _, name := range []string{"null", "/dev/null", "pipe", "/dev/stdout", "/proc/self/fd/1", "/dev/fd/1", open, "magic"} {
		if p, err := Find(name); err != nil || !p.Direct() {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	for name, want := range map[string]error{
		"nowhere": syscall.ENOENT, "gone/new": syscall.ENOENT, "loop": syscall.ELOOP, "below": syscall.EISDIR,
		"folder": syscall.EISDIR, "below/file/x": syscall.ENOTDIR, "/proc/self/fd/900": syscall.ENOENT,
	} {
		if p, err := Find(name); !errors.Is(err, want) || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	if _, err := Find("socket"); err == nil || !strings.Contains(err.Error(), "is a socket") {
		t.Errorf("a socket: %v", err)
	}
	if os.Geteuid() == 0 {
		must(os.Lchown("link", 65534, 65534))
		for _, name := range []string{"link", "second"} {
			if p, err := Find(name); err == nil || !strings.Contains(err.Error(), "belongs to uid 65534; name the file itself") {
				t.Errorf("another's link: %+v, %v", p, err)
			}
		}
	}
}

// An open file goes on where it is; a pipe's open waits for a reader, and no longer than
// it is asked to.
func TestOpen(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "open"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("one "); err != nil {
		t.Fatal(err)
	}
	write := func(name string) {
		t.Helper()
		p, err := Find(name)
		if err != nil {
			t.Fatal(err)
		}
		w, err := p.Open(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.WriteString("two")
		if err := errors.Join(err, w.Close()); err != nil {
			t.Error(err)
		}
	}
	write(fmt.Sprint("/proc/self/fd/", f.Fd()))
	if text, err := os.ReadFile(f.Name()); err != nil || string(text) != "one two" {
		t.Errorf("%q, %v", text, err)
	}

	pipe, other := filepath.Join(dir, "pipe"), filepath.Join(dir, "other")
	for _, name := range []string{pipe, other} {
		if err := unix.Mkfifo(name, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p, err := Find(other)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := p.Open(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	read := make(chan string)
	go func() {
		r, err := os.Open(pipe)
		if err != nil {
			t.Error(err)
		}
		text, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			t.Error(err)
		}
		read <- string(text)
	}()
	write(pipe)
	if got := <-read; got != "two" {
		t.Errorf("%q", got)
	}
}
