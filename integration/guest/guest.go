package guest

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/integration/patience"
)

// kernelArguments is the guest kernel's command line.
const kernelArguments = "console=ttyS0 quiet loglevel=5 panic=-1 nokaslr mitigations=off random.trust_cpu=on " +
	// On a busy host the timer seems not to tick, which the kernel takes for the end of it.
	"no_timer_check cryptomgr.notests"

// Options are the options of Boot.
type Options struct {
	// Disk is the image's path, Drive what follows it in QEMU's -drive, such
	// as "cache=none,aio=native". The format is raw.
	Disk  string
	Drive string
	// Device follows the disk's -device, such as "werror=enospc".
	Device string
	// User runs QEMU as another user, by uid; 0 is root.
	User int
}

// Guest is a running guest. Its methods are for one goroutine.
type Guest struct {
	t    testing.TB
	cmd  *exec.Cmd // nil where another program started QEMU
	conn net.Conn
	// lines are what the guest sends, without what its writer reports.
	lines   chan string
	exited  chan struct{}
	exitErr error // valid when exited is closed
	dir     string

	// mu guards what the reader of the serial line and the tests share.
	mu       sync.Mutex
	fsynced  []File
	removed  int
	failures []string
}

// File is a file that the guest wrote and fsynced.
type File struct {
	Name   string // in /data
	SHA256 string // hexadecimal
}

// Boot starts a guest and waits until it takes commands. The end of the test
// kills it if it still runs.
func Boot(t testing.TB, o Options) *Guest {
	t.Helper()
	g := start(t, o)
	g.waitReady()
	return g
}

// waitReady waits until the guest takes commands.
func (g *Guest) waitReady() {
	t := g.t
	t.Helper()
	select {
	case line, ok := <-g.lines:
		if !ok || !strings.HasPrefix(line, "VARVE ready") {
			t.Fatalf("the guest said %q and not that it is ready\n%s", line, g.logs())
		}
	case <-time.After(patience.Hang):
		t.Fatalf("the guest did not boot within %v\n%s", patience.Hang, g.logs())
	}
}

// listen makes a guest's directory and waits at a socket in it for the guest's
// serial line.
func listen(t testing.TB) (dir, socket string, listener net.Listener) {
	t.Helper()
	// Not t.TempDir: the path of a socket holds at most 107 bytes.
	dir, err := os.MkdirTemp("", "guest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket = filepath.Join(dir, "serial")
	if listener, err = net.Listen("unix", socket); err != nil {
		t.Fatal(err)
	}
	return dir, socket, listener
}

func start(t testing.TB, o Options) *Guest {
	t.Helper()
	dir, socket, listener := listen(t)
	defer func() { _ = listener.Close() }()

	drive := "if=none,id=disk,format=raw,discard=unmap,file=" + strings.ReplaceAll(o.Disk, ",", ",,")
	if o.Drive != "" {
		drive += "," + o.Drive
	}
	device := "virtio-blk-pci,drive=disk"
	if o.Device != "" {
		device += "," + o.Device
	}
	args := []string{
		lookPath(t, "qemu-system-x86_64"),
		"-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", kernel(t, dir), "-initrd", initramfs(t, dir),
		"-append", kernelArguments,
		"-drive", drive, "-device", device,
		"-qmp", "unix:" + filepath.Join(dir, qmpSocket) + ",server=on,wait=off",
		"-serial", "file:" + filepath.Join(dir, "console"),
		"-serial", "unix:" + socket,
	}
	if o.User != 0 {
		for _, path := range []string{dir, socket} {
			if err := os.Chown(path, o.User, o.User); err != nil {
				t.Fatal(err)
			}
		}
		uid := fmt.Sprint(o.User)
		args = append([]string{lookPath(t, "setpriv"), "--reuid", uid, "--regid", uid, "--clear-groups", "--"}, args...)
	}
	g := &Guest{t: t, dir: dir, lines: make(chan string, 1000), exited: make(chan struct{})}
	messages, err := os.Create(filepath.Join(dir, "qemu"))
	if err != nil {
		t.Fatal(err)
	}
	g.cmd = exec.Command(args[0], args[1:]...)
	g.cmd.Stdout, g.cmd.Stderr = messages, messages
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Kill)
	go func() {
		g.exitErr = g.cmd.Wait()
		_ = messages.Close()
		_ = listener.Close() // ends Accept when QEMU gave up before connecting
		close(g.exited)
	}()
	if g.conn, err = listener.Accept(); err != nil {
		t.Fatalf("QEMU did not start: %v\n%s", err, g.logs())
	}
	go g.read(g.conn)
	return g
}

// read sorts what the guest sends until the line is closed.
func (g *Guest) read(conn net.Conn) {
	defer close(g.lines)
	scanner := bufio.NewScanner(conn)
	for scanner.Scan() {
		line := strings.TrimRight(scanner.Text(), "\r")
		fields := strings.Fields(line)
		switch {
		case len(fields) == 4 && strings.HasPrefix(line, "VARVE fsynced "):
			g.mu.Lock()
			g.fsynced = append(g.fsynced, File{Name: fields[2], SHA256: fields[3]})
			g.mu.Unlock()
		case len(fields) == 3 && strings.HasPrefix(line, "VARVE removed "):
			g.mu.Lock()
			g.fsynced = slices.DeleteFunc(g.fsynced, func(f File) bool { return f.Name == fields[2] })
			g.removed++
			g.mu.Unlock()
		case strings.HasPrefix(line, "VARVE failed "):
			g.mu.Lock()
			g.failures = append(g.failures, line)
			g.mu.Unlock()
		default:
			g.lines <- line
		}
	}
}

// Run runs a line of shell in the guest, which must succeed, and gives what it
// prints.
func (g *Guest) Run(line string) string {
	g.t.Helper()
	if _, err := fmt.Fprintf(g.conn, "%s\n", line); err != nil {
		g.t.Fatalf("send %q to the guest: %v\n%s", line, err, g.logs())
	}
	var out strings.Builder
	limit := time.After(patience.Hang)
	for {
		select {
		case answer, ok := <-g.lines:
			if !ok {
				g.t.Fatalf("the guest went away during %q\n%s%s", line, out.String(), g.logs())
			}
			if status, done := strings.CutPrefix(answer, "VARVE done "); done {
				if status != "0" {
					g.t.Fatalf("in the guest, %q gave status %s\n%s%s", line, status, out.String(), g.logs())
				}
				return out.String()
			}
			out.WriteString(answer + "\n")
		case <-limit:
			g.t.Fatalf("in the guest, %q took longer than %v\n%s%s", line, patience.Hang, out.String(), g.logs())
		}
	}
}

// StartWriter starts a writer in the guest that makes files named PREFIX.N
// until StopWriter.
func (g *Guest) StartWriter(prefix string) {
	g.t.Helper()
	g.Run("start " + prefix)
}

// StopWriter stops the writer and waits for its last file.
func (g *Guest) StopWriter() {
	g.t.Helper()
	g.Run("stop")
}

// Fsynced gives the files that the guest has written and fsynced so far,
// without those that it has removed or is about to remove.
func (g *Guest) Fsynced() []File {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.fsynced)
}

// written counts the files that the guest has fsynced, removed or not.
func (g *Guest) written() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.fsynced) + g.removed
}

// WaitFsynced waits until the guest has fsynced n files more than it has now:
// the writer is at work.
func (g *Guest) WaitFsynced(n int) {
	g.t.Helper()
	want := g.written() + n
	deadline := time.Now().Add(patience.Hang)
	for g.written() < want {
		if time.Now().After(deadline) {
			g.t.Fatalf("the guest's writer made %d files, not %d, within %v\n%s", g.written(), want, patience.Hang, g.logs())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Verify has the guest read its files from the disk again, past its cache,
// and compare them with their digests.
func (g *Guest) Verify() {
	g.t.Helper()
	out := g.Run("verify")
	if !strings.Contains(out, "verified ") || strings.Contains(out, "verified 0") {
		g.t.Fatalf("the guest verified nothing: %q", out)
	}
	g.t.Logf("guest: %s", strings.TrimSpace(out))
}

// PowerOff shuts the guest down in good order and waits for QEMU to exit.
func (g *Guest) PowerOff() {
	g.t.Helper()
	if _, err := fmt.Fprintln(g.conn, "off"); err != nil {
		g.t.Fatalf("send \"off\" to the guest: %v\n%s", err, g.logs())
	}
	select {
	case <-g.exited:
		if g.exitErr != nil {
			g.t.Fatalf("QEMU: %v\n%s", g.exitErr, g.logs())
		}
	case <-time.After(patience.Hang):
		g.t.Fatalf("the guest is not off after %v\n%s", patience.Hang, g.logs())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.failures) > 0 {
		g.t.Fatalf("writes failed in the guest: %v\n%s", g.failures, g.logs())
	}
}

// Kill is pulling the plug. Calling it again does nothing. Where another program
// started QEMU it only closes the serial line.
func (g *Guest) Kill() {
	if g.cmd != nil {
		_ = g.cmd.Process.Kill()
		<-g.exited
	}
	if g.conn != nil {
		_ = g.conn.Close()
	}
}

// PID is QEMU's process, which Boot started.
func (g *Guest) PID() int { return g.cmd.Process.Pid }

// logs are the guest's kernel messages and QEMU's own.
func (g *Guest) logs() string {
	var out bytes.Buffer
	for _, name := range []string{"qemu", "console"} {
		data, _ := os.ReadFile(filepath.Join(g.dir, name))
		if len(data) > 4000 {
			data = data[len(data)-4000:]
		}
		fmt.Fprintf(&out, "--- %s\n%s\n", name, bytes.TrimSpace(data))
	}
	return out.String()
}
