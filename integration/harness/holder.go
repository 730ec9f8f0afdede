package harness

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Holder is a program of QEMU's that has an image open.
type Holder struct {
	PID  int
	Comm string // the name that the kernel has of it: 15 bytes at most
	t    testing.TB
	cmd  *exec.Cmd
	out  *bytes.Buffer // standard error; to be read when ended is closed
	end  chan struct{}
	once sync.Once
}

// VM is the command line of a QEMU that has an image as its drive and never
// runs: it opens the image as a VM does, and waits. options go to -drive.
func VM(file, format string, options ...string) []string {
	drive := append([]string{"if=none", "id=d", "file=" + qemuValue(file), "format=" + format}, options...)
	return []string{"qemu-system-x86_64", "-accel", "tcg", "-m", "16M", "-S", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio",
		"-drive", strings.Join(drive, ","), "-device", "virtio-blk-pci,drive=d"}
}

// IO is the command line of a qemu-io that has an image open.
func IO(file, format string, options ...string) []string {
	return append(append([]string{"qemu-io", "-f", format}, options...), file)
}

// qemuValue is a value in a list of options of QEMU's.
func qemuValue(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// StorageDaemon is the command line of a qemu-storage-daemon that exports an
// image, writable or not, over NBD on a socket of its own.
func StorageDaemon(t testing.TB, file, format string, writable bool) []string {
	t.Helper()
	off, on := "on", "off" // of read-only and writable
	if writable {
		off, on = on, off
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	driver := "file"
	if info.Mode()&os.ModeDevice != 0 {
		driver = "host_device"
	}
	socket := filepath.Join(t.TempDir(), "nbd")
	return []string{"qemu-storage-daemon", "--chardev", "stdio,id=q", "--monitor", "chardev=q",
		"--blockdev", "driver=" + driver + ",node-name=f,filename=" + qemuValue(file) + ",read-only=" + off,
		"--blockdev", "driver=" + format + ",node-name=d,file=f,read-only=" + off,
		"--nbd-server", "addr.type=unix,addr.path=" + qemuValue(socket),
		"--export", "type=nbd,id=e,node-name=d,writable=" + on}
}

// TryHold starts a program and returns when it has opened its images. When it
// ends before, the Holder is nil and its words come back. The end of the test
// ends it.
func TryHold(t testing.TB, command ...string) (*Holder, string) {
	t.Helper()
	h := &Holder{t: t, cmd: exec.Command(command[0], command[1:]...), out: &bytes.Buffer{}, end: make(chan struct{})}
	h.cmd.Stderr = h.out
	stdout, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := h.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", command[0], err)
	}
	t.Cleanup(h.Stop)
	h.PID, h.Comm = h.cmd.Process.Pid, filepath.Base(command[0])
	h.Comm = h.Comm[:min(15, len(h.Comm))]
	// qemu-io prints its prompt once the image is open. QMP's greeting comes
	// before that, an answer after.
	ready := "qemu-io> "
	if h.Comm != "qemu-io" {
		ready = `"return"`
		_, _ = io.WriteString(stdin, `{"execute":"qmp_capabilities"}`+"\n") // fails when it has ended
	}
	opened := make(chan bool, 1)
	go func() {
		opened <- saysAtLast(stdout, ready)
		_, _ = io.Copy(io.Discard, stdout)
		_ = h.cmd.Wait() // an end by a signal, or its own complaint
		close(h.end)
	}()
	select {
	case ok := <-opened:
		if ok {
			return h, ""
		}
		<-h.end
		return nil, h.out.String()
	case <-time.After(commandLimit):
		t.Fatalf("%s: neither ready nor gone after %v", strings.Join(command, " "), commandLimit)
		return nil, ""
	}
}

// saysAtLast reads until some words have come; false when the end comes first.
func saysAtLast(r io.Reader, words string) bool {
	in := bufio.NewReader(r)
	var said []byte
	for !bytes.HasSuffix(said, []byte(words)) {
		b, err := in.ReadByte()
		if err != nil {
			return false
		}
		said = append(said, b)
	}
	return true
}

// Hold is TryHold that must succeed.
func Hold(t testing.TB, command ...string) *Holder {
	t.Helper()
	h, words := TryHold(t, command...)
	if h == nil {
		t.Fatalf("%s: ended at once\n%s", strings.Join(command, " "), indent(words))
	}
	return h
}

// Stop ends the program and waits for it, so that its locks are gone.
func (h *Holder) Stop() {
	h.once.Do(func() {
		_ = h.cmd.Process.Kill() // fails when it has ended
		<-h.end
	})
}

// Locked says whether anybody holds a lock on a byte of a file.
func Locked(t testing.TB, file string, at int64) bool {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // read only
	want := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
	for {
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &want)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		t.Fatalf("ask for the lock on byte %d of %s: %v", at, file, err)
	}
	return want.Type != unix.F_UNLCK
}

// TakeLock takes a shared lock on a byte of a file, until that is closed; false
// when it is not to be had.
func TakeLock(f *os.File, at int64) bool {
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: at, Len: 1})
		if err != unix.EINTR {
			return err == nil
		}
	}
}
