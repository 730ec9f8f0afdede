package imagetest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/integration/patience"
)

// Tool runs a program that must succeed and gives its standard output.
func Tool(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	cmd := exec.Command(name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		tb.Fatalf("%s %q: %v\n%s%s", name, args, err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.String()
}

// QemuImg runs qemu-img in the directory of a test.
func QemuImg(tb testing.TB, args ...string) string {
	tb.Helper()
	return Tool(tb, "qemu-img", args...)
}

// QemuIO runs qemu-io commands on a qcow2 image.
func QemuIO(tb testing.TB, path string, commands ...string) {
	tb.Helper()
	args := []string{"-f", "qcow2"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	Tool(tb, "qemu-io", append(args, path)...)
}

// New makes an image with qemu-img and gives its path.
func New(tb testing.TB, options, size string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "image.qcow2")
	args := []string{"create", "-q", "-f", "qcow2"}
	if options != "" {
		args = append(args, "-o", options)
	}
	QemuImg(tb, append(args, path, size)...)
	return path
}

// Truth is the content as qemu-img reads it.
func Truth(tb testing.TB, path string) []byte {
	tb.Helper()
	raw := filepath.Join(tb.TempDir(), "truth.raw")
	QemuImg(tb, "convert", "-f", "qcow2", "-O", "raw", path, raw)
	content, err := os.ReadFile(raw)
	if err != nil {
		tb.Fatal(err)
	}
	return content
}

// CopyOf copies a file, so that a test can damage it.
func CopyOf(tb testing.TB, path string) string {
	tb.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	copied := filepath.Join(tb.TempDir(), filepath.Base(path))
	if err := os.WriteFile(copied, content, 0o600); err != nil {
		tb.Fatal(err)
	}
	return copied
}

// Patch overwrites bytes of a file.
func Patch(tb testing.TB, path string, off int64, b ...byte) {
	tb.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := f.WriteAt(b, off); err != nil {
		tb.Fatal(err)
	}
	if err := f.Close(); err != nil {
		tb.Fatal(err)
	}
}

// keptOpen is a program that waits on its standard input with a file open.
type Kept struct {
	tb    testing.TB
	cmd   *exec.Cmd
	stdin io.WriteCloser
	once  sync.Once
	out   bytes.Buffer
	ended chan error
}

// KeepOpen starts qemu-io and waits until it holds the image open.
func KeepOpen(tb testing.TB, path string, args ...string) *Kept {
	tb.Helper()
	k := &Kept{tb: tb, cmd: exec.Command("qemu-io", append(args, path)...), ended: make(chan error, 1)}
	stdout, err := k.cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	k.cmd.Stderr = &k.out
	if k.stdin, err = k.cmd.StdinPipe(); err != nil {
		tb.Fatal(err)
	}
	if err := k.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(k.Stop)
	// qemu-io prints its prompt once the image is open.
	prompt := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(stdout, make([]byte, len("qemu-io> ")))
		prompt <- err
		_, _ = io.Copy(io.Discard, stdout)
		k.ended <- k.cmd.Wait()
	}()
	select {
	case err := <-prompt:
		if err != nil {
			tb.Fatalf("qemu-io did not open %s: %v\n%s", path, err, k.out.Bytes())
		}
	case <-time.After(patience.Hang):
		tb.Fatalf("qemu-io did not open %s", path)
	}
	return k
}

// Pid is the number of its process.
func (k *Kept) Pid() int { return k.cmd.Process.Pid }

// Stop ends the program and waits for it, so that its locks are gone.
func (k *Kept) Stop() {
	k.once.Do(func() {
		if err := k.stdin.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			k.tb.Error(err)
		}
		if err := <-k.ended; err != nil {
			k.tb.Errorf("qemu-io: %v\n%s", err, k.out.Bytes())
		}
	})
}

func JudgeError(t *testing.T, err, is error, says ...string) {
	t.Helper()
	if !errors.Is(err, is) {
		t.Fatalf("error %v, want %v", err, is)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q does not say %q", err, s)
		}
	}
}

// BE32 and BE64 are numbers as they stand in an image.
func BE32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func BE64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// PatchUnseen changes bytes of a file and puts its modification time back, so that
// only the content can give the change away.
func PatchUnseen(tb testing.TB, path string, off int64, data []byte) {
	tb.Helper()
	info, err := os.Stat(path)
	if err != nil {
		tb.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		tb.Fatal(err)
	}
	_, err = f.WriteAt(data, off)
	if err := errors.Join(err, f.Close(), os.Chtimes(path, time.Time{}, info.ModTime())); err != nil {
		tb.Fatal(err)
	}
}

// Sparse makes a file of zeros that takes no blocks.
func Sparse(tb testing.TB, path string, size int64) {
	tb.Helper()
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		tb.Fatal(err)
	}
}
