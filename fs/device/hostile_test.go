package device

import (
	"log/slog"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/integration/patience"
)

// attached connects f with a kernel that the test plays, which has the other end.
func attached(t *testing.T, f *oneFile, first []byte) (c *Conn, kernel int, err error) {
	t.Helper()
	f.RawFileSystem = fuse.NewDefaultRawFileSystem()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(pair[0]); unix.Close(pair[1]) })
	limit := unix.NsecToTimeval(patience.Hang.Nanoseconds())
	if err := unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(pair[0], first); err != nil {
		t.Fatal(err)
	}
	options := &fuse.MountOptions{MaxWrite: fuzzMaxWrite, PanicHandler: func(any) fuse.Status { return fuse.EIO }}
	c, err = Attach(f, pair[1], Options{Fuse: options, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Meter: &f.meter})
	return c, pair[0], err
}

func initRequest() []byte {
	return bytesOf(fuse.InitIn{InHeader: header(opInit, 0), Major: 7, Minor: 45, Flags: 1<<31 - 1})
}

// A connection does not begin with anything but a whole INIT, and has no second one, which
// would change what requests under way go by.
func TestInitComesOnceAndFirst(t *testing.T) {
	for _, first := range [][]byte{initRequest()[:41], bytesOf(header(opInit, 0))[:39], bytesOf(header(opFsync, fileNode), make([]byte, 100)...)} {
		if _, _, err := attached(t, new(oneFile), first); err == nil {
			t.Errorf("a connection begins with %d bytes, opcode %d", len(first), first[4])
		}
	}
	f := new(oneFile)
	c, kernel, err := attached(t, f, initRequest())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); c.Serve() }()
	reply := make([]byte, 1<<16)
	ask := func(request []byte) (status int32) {
		t.Helper()
		if _, err := unix.Write(kernel, request); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.Read(kernel, reply); err != nil || n < replyBytes {
			t.Fatalf("%d bytes, %v", n, err)
		}
		return (*replyHeader)(unsafe.Pointer(&reply[0])).status
	}
	if n, err := unix.Read(kernel, reply); err != nil || n <= replyBytes { // to INIT
		t.Fatalf("%d bytes, %v", n, err)
	}
	if status := ask(initRequest()); status != -int32(unix.EIO) {
		t.Errorf("the second INIT has the status %d", status)
	}
	if status := ask(bytesOf(fuse.FsyncIn{InHeader: header(opFsync, fileNode)})); status != 0 {
		t.Errorf("after it FSYNC has the status %d", status)
	}
	// What is too short for a header has no number to answer to: the mount has ended.
	if _, err := unix.Write(kernel, make([]byte, 39)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Shutdown(kernel, unix.SHUT_WR); err != nil { // for the other workers
		t.Fatal(err)
	}
	wait(t, "Serve to end", func() bool { return closed(ended) })
	if n, _, err := unix.Recvfrom(kernel, reply, unix.MSG_DONTWAIT); n > 0 {
		t.Errorf("an answer of %d bytes (%v)", n, err)
	}
}
