package guest

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"varve/integration/patience"
)

// Prepared is a guest whose QEMU another program starts, such as libvirt: what
// to boot it from, and where its serial lines go. Any user can get at the files.
type Prepared struct {
	Kernel, Initramfs string // paths
	Arguments         string // the kernel's command line
	Serial            string // path of the socket for the second serial port; QEMU connects
	Console           string // path of the file for the first one

	t        testing.TB
	dir      string
	listener *net.UnixListener
}

// Prepare makes the files. The end of the test removes them.
func Prepare(t testing.TB) *Prepared {
	t.Helper()
	dir, socket, listener := listen(t)
	p := &Prepared{
		Kernel: kernel(t, dir), Initramfs: initramfs(t, dir), Arguments: kernelArguments,
		Serial: socket, Console: filepath.Join(dir, "console"),
		t: t, dir: dir, listener: listener.(*net.UnixListener),
	}
	t.Cleanup(func() { _ = listener.Close() })
	for path, mode := range map[string]os.FileMode{dir: 0o777, socket: 0o777, p.Kernel: 0o644, p.Initramfs: 0o644} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// Wait waits for a QEMU that was just started, and until its guest takes
// commands. It can be called again for the next boot.
func (p *Prepared) Wait() *Guest {
	p.t.Helper()
	if err := p.listener.SetDeadline(time.Now().Add(patience.Hang)); err != nil {
		p.t.Fatal(err)
	}
	g := &Guest{t: p.t, dir: p.dir, lines: make(chan string, 1000), exited: make(chan struct{})}
	var err error
	if g.conn, err = p.listener.Accept(); err != nil {
		p.t.Fatalf("QEMU did not connect the guest's serial line: %v\n%s", err, g.logs())
	}
	p.t.Cleanup(g.Kill)
	go func() {
		g.read(g.conn)
		close(g.exited)
	}()
	g.waitReady()
	return g
}

// Skip takes in the serial line of a QEMU that was started and whose guest does not run,
// so that Wait finds the next one's.
func (p *Prepared) Skip() {
	p.t.Helper()
	if err := p.listener.SetDeadline(time.Now().Add(patience.Hang)); err != nil {
		p.t.Fatal(err)
	}
	conn, err := p.listener.Accept()
	if err != nil {
		p.t.Fatalf("QEMU did not connect the guest's serial line: %v", err)
	}
	p.t.Cleanup(func() { _ = conn.Close() })
}

// WaitGone waits until QEMU has closed the serial line: it has ended.
func (g *Guest) WaitGone() {
	g.t.Helper()
	select {
	case <-g.exited:
	case <-time.After(patience.Hang):
		g.t.Fatalf("the guest is still there after %v\n%s", patience.Hang, g.logs())
	}
}
