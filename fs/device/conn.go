// Package device is the way to the kernel: it mounts, reads requests from
// /dev/fuse and writes the replies. What the requests mean, go-fuse knows
// (fuse.ProtocolServer); reads, writes and flushes, which come by the hundred
// thousand, are handed on from here without a detour.
//
// go-fuse has a server of its own for this, which takes locks for each request,
// writes replies in pieces, and starts a goroutine whenever its last reader gets a
// request. With one file behind each, 4 KiB and 32 at a time, a loop like this one
// did 29 % more reads and 65 % more writes (docs/performance-log.md).
package device

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// FileSystem answers requests. Its methods run concurrently.
type FileSystem interface {
	fuse.RawFileSystem
	// ReadInto answers a READ: p has the size that is asked for, and the result
	// is what of it was filled.
	ReadInto(in *fuse.ReadIn, p []byte) ([]byte, fuse.Status)
	// Content says what a node holds. It takes no lock.
	Content(node uint64) Content
}

// Options of a connection.
type Options struct {
	Fuse *fuse.MountOptions // Logger, PanicHandler and MaxWrite are needed
	Log  *slog.Logger
	// Direct mounts with mount(2), which needs root, else fusermount3 does it.
	Direct bool
	Meter  *Meter // counts the requests; needed
}

// Conn is a mount's connection to the kernel. All methods are safe for
// concurrent use; Close comes last.
type Conn struct {
	fs       FileSystem
	protocol *fuse.ProtocolServer
	o        Options
	log      *slog.Logger
	fd       int
	init     fuse.InitIn
	maxWrite int // bytes of data in one request

	crew crew
}

// Mount mounts at an absolute path and agrees with the kernel on what both can
// do. Requests wait until Serve.
func Mount(fs FileSystem, mountpoint string, o Options) (*Conn, error) {
	fd, err := mount(mountpoint, o)
	if err != nil {
		return nil, err
	}
	c, err := Attach(fs, fd, o)
	if err != nil {
		return nil, errors.Join(err, Unmount(mountpoint, o.Direct), unix.Close(fd))
	}
	return c, nil
}

// Attach agrees with the kernel on what both can do, over the descriptor of a mount that
// has asked nothing yet. The descriptor stays the caller's when it fails. Requests wait
// until Serve.
func Attach(fs FileSystem, fd int, o Options) (*Conn, error) {
	c := newConn(fs, fd, o)
	if err := c.negotiate(); err != nil {
		return nil, fmt.Errorf("the kernel's INIT: %w", err)
	}
	return c, nil
}

func newConn(fs FileSystem, fd int, o Options) *Conn {
	c := &Conn{
		fs:       fs,
		protocol: fuse.NewProtocolServer(fs, o.Fuse),
		o:        o,
		log:      o.Log,
		fd:       fd,
		maxWrite: o.Fuse.MaxWrite,
	}
	c.crew.init()
	return c
}

// negotiate answers INIT, the first request.
func (c *Conn) negotiate() error {
	w, err := c.newWorker()
	if err != nil {
		return err
	}
	defer w.free()
	n, errno := c.receive(w)
	if errno != 0 {
		return errno
	}
	in := (*fuse.InitIn)(unsafe.Pointer(&w.buf[requestAt])) // the buffer has room for it, whatever n is
	if n < int(unsafe.Sizeof(*in)) || in.Opcode != opInit {
		return fmt.Errorf("the first request has opcode %d and %d bytes", in.Opcode, n)
	}
	request := w.request(n)
	c.init = *in
	reply, err := c.protocolReply(w, request)
	if err != nil {
		return err
	}
	if len(reply) == 0 {
		return unix.EPROTO
	}
	if status := (*replyHeader)(unsafe.Pointer(&reply[0])).status; status != 0 {
		return unix.Errno(-status)
	}
	return c.send(reply)
}

// Serve answers requests, and returns when the mount is gone and every request
// was answered.
func (c *Conn) Serve() {
	c.crew.run(c)
}

// Close closes the connection: after Serve, and after the last Notify.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// Can says whether the kernel offered a capability, fuse.CAP_*.
func (c *Conn) Can(capability uint64) bool { return c.init.Flags64()&capability != 0 }

// receive reads a request into the worker's buffer.
func (c *Conn) receive(w *worker) (int, unix.Errno) {
	for {
		n, err := unix.Read(c.fd, w.buf[requestAt:])
		switch err {
		case nil:
			return n, 0
		case unix.EINTR, unix.EAGAIN, unix.ENOENT: // ENOENT: it was given up before we had it
			continue
		}
		errno, ok := err.(unix.Errno)
		if !ok {
			errno = unix.EIO
		}
		return 0, errno
	}
}

// send writes a reply or a notification.
func (c *Conn) send(p []byte) error {
	for {
		_, err := unix.Write(c.fd, p)
		if err != unix.EINTR {
			return err
		}
	}
}

// InvalidateInode makes the kernel forget a file's attributes, and from an
// offset on its pages; with a negative one the attributes alone. It may wait for
// requests to be answered. fuse.ENOENT: the kernel has no such inode in memory.
func (c *Conn) InvalidateInode(node uint64, off int64) fuse.Status {
	const length = uint32(unsafe.Sizeof(replyHeader{}) + unsafe.Sizeof(fuse.NotifyInvalInodeOut{}))
	var p struct {
		replyHeader
		fuse.NotifyInvalInodeOut
	}
	p.replyHeader = replyHeader{length: length, status: notifyInvalidateInode}
	p.NotifyInvalInodeOut = fuse.NotifyInvalInodeOut{Ino: node, Off: off}
	return fuse.ToStatus(c.send(unsafe.Slice((*byte)(unsafe.Pointer(&p)), length)))
}

// Pass through (Linux 6.9, root): the kernel reads a file of the host itself,
// without asking us.

// Backing registers an open file of the host and gives the number with which
// OPEN may name it, for as long as the connection stands. It takes CAP_SYS_ADMIN.
func (c *Conn) Backing(fd int) (int32, error) {
	m := fuse.BackingMap{Fd: int32(fd)}
	for {
		id, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), backingOpen, uintptr(unsafe.Pointer(&m)))
		switch errno {
		case 0:
			return int32(id), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}

// From linux/fuse.h.
const (
	opRead      = 15
	opWrite     = 16
	opFsync     = 20
	opInit      = 26
	opInterrupt = 36
	opFallocate = 43

	notifyInvalidateInode = 2 // FUSE_NOTIFY_INVAL_INODE, in the place of a status

	backingOpen = 0x4010e501 // FUSE_DEV_IOC_BACKING_OPEN
)

// replyHeader is struct fuse_out_header.
type replyHeader struct {
	length uint32
	status int32 // 0, or an errno below 0
	unique uint64
}

// crew is the workers that a connection has at the moment.
type crew struct {
	base    int32         // how many there are when nothing blocks
	active  atomic.Int32  // how many there are
	waiting atomic.Int32  // how many wait for a request
	held    atomic.Int32  // how many are with a request of which that is to be expected
	watched atomic.Bool   // the watch is awake
	alarm   chan struct{} // wakes the watch
	gone    chan struct{} // closed when the mount is gone
	gone1   sync.Once     // closes it

	mu      sync.Mutex // guards workers and spare
	workers map[*worker]struct{}
	spare   []*worker
	done    sync.WaitGroup
}
