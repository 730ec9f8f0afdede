package device

import (
	"fmt"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/overlay/measure"
)

// A worker's buffer takes a request so that the data of a WRITE begins at a page,
// and the data of a READ's reply at the same place. It is not the garbage
// collector's, which would clear and count a megabyte for each.
const (
	dataAt     = 4096
	writeBytes = int(unsafe.Sizeof(fuse.WriteIn{})) // header and body of a WRITE
	requestAt  = dataAt - writeBytes
	replyAt    = dataAt - replyBytes
	replyBytes = int(unsafe.Sizeof(replyHeader{}))
	// slack is what other requests need beyond the data of a WRITE, and what
	// the kernel wants of room at least.
	slack = 2 * 4096
)

// worker answers one request at a time.
type worker struct {
	conn *Conn
	buf  []byte
	out  []byte // for replies of go-fuse's; nil until the first
	huge bool   // buf was asked to be one page
	turn turns

	mapped [][]byte // what buf and out lie in
}

func (c *Conn) newWorker() (*worker, error) {
	w := &worker{conn: c}
	var err error
	w.buf, err = w.newBuffer(dataAt + c.maxWrite + slack)
	return w, err
}

// newBuffer gives a buffer that begins at a multiple of hugePage and has no other
// in its last one.
func (w *worker) newBuffer(n int) ([]byte, error) {
	n = (n + hugePage - 1) &^ (hugePage - 1)
	p, err := unix.Mmap(-1, 0, n+hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("a buffer of %d bytes: %w", n, err)
	}
	w.mapped = append(w.mapped, p)
	skip := -int(uintptr(unsafe.Pointer(&p[0]))) & (hugePage - 1)
	return p[skip : skip+n : skip+n], nil
}

const (
	hugePage = 2 << 20
	// largeData is from where on a request is worth a huge page: the kernel takes
	// hold of each page of a buffer that it copies.
	largeData = 128 << 10
)

// expect makes the buffer one huge page before the first request with much data,
// where the host has them. Most guests ask for little at a time, and then a worker
// takes a few small pages.
func (w *worker) expect(n int) {
	if n >= largeData && !w.huge {
		w.huge = true
		_ = unix.Madvise(w.buf, unix.MADV_COLLAPSE) // Linux 6.1
	}
}

// free gives the buffers back. Their unmapping cannot fail.
func (w *worker) free() {
	for _, p := range w.mapped {
		_ = unix.Munmap(p)
	}
}

func (w *worker) request(n int) []byte { return w.buf[requestAt : requestAt+n] }

// work answers requests until the mount is gone, or the worker is one too many.
func (w *worker) work() (gone bool) {
	c := w.conn
	for {
		c.crew.waiting.Add(1)
		n, errno := c.receive(w)
		if errno != 0 {
			c.crew.waiting.Add(-1)
			if errno != unix.ENODEV { // unmounted
				c.log.Error("cannot read from the kernel; the mount has ended", "error", errno)
			}
			return true
		}
		c.crew.took()
		w.turn.begin()
		understood := w.answer(n)
		w.turn.end()
		if !understood {
			c.log.Error("the kernel sent an incomplete request, so the mount has ended", "bytes", n)
			return true
		}
		if c.crew.leave() {
			return false
		}
	}
}

// answer answers the request of n bytes in the buffer. It is false for what is shorter than
// the header of a request, and so can have no reply.
func (w *worker) answer(n int) bool {
	if n < int(unsafe.Sizeof(fuse.InHeader{})) {
		return false
	}
	begun := measure.Now()
	request := w.request(n)
	op := w.conn.opOf(request)
	w.conn.o.Meter.count(op, begun, w.handle(request, op))
	return true
}

func (w *worker) handle(request []byte, op Op) outcome {
	c, n := w.conn, len(request)
	if !c.o.Fuse.Debug {
		switch h := (*fuse.InHeader)(unsafe.Pointer(&request[0])); {
		case h.Opcode == opRead && n >= int(unsafe.Sizeof(fuse.ReadIn{})):
			return w.read((*fuse.ReadIn)(unsafe.Pointer(h)))
		case h.Opcode == opWrite && n >= writeBytes:
			in := (*fuse.WriteIn)(unsafe.Pointer(h))
			if in.Flags&unix.O_DSYNC != 0 { // a flush goes with it
				c.crew.hold(c)
				defer c.crew.release()
			}
			return w.write(in, request[writeBytes:])
		case h.Opcode == opFsync && n >= int(unsafe.Sizeof(fuse.FsyncIn{})):
			c.crew.hold(c)
			defer c.crew.release()
			return w.fsync((*fuse.FsyncIn)(unsafe.Pointer(h)))
		}
	}
	c.crew.hold(c)
	defer c.crew.release()
	return w.other(request, op)
}

func (w *worker) read(in *fuse.ReadIn) outcome {
	unique := in.Unique // the reply's header overwrites the request
	size := min(int(in.Size), w.conn.maxWrite)
	w.expect(size)
	data, status := w.readInto(in, w.buf[dataAt:dataAt+size])
	if status != fuse.OK {
		return w.end(unique, status)
	}
	if len(data) > 0 && &data[0] != &w.buf[dataAt] {
		copy(w.buf[dataAt:], data)
	}
	w.reply(replyHeader{unique: unique}, w.buf[dataAt:dataAt+len(data)])
	return outcome{bytes: int64(len(data))}
}

// end answers a request with a status alone.
func (w *worker) end(unique uint64, status fuse.Status) outcome {
	w.reply(replyHeader{unique: unique, status: -int32(status)}, nil)
	return outcome{status: status}
}

func (w *worker) readInto(in *fuse.ReadIn, p []byte) (data []byte, status fuse.Status) {
	defer w.conn.recovered(&status)
	return w.conn.fs.ReadInto(in, p)
}

func (w *worker) write(in *fuse.WriteIn, data []byte) outcome {
	unique := in.Unique
	w.expect(len(data))
	if int(in.Size) > len(data) {
		return w.end(unique, fuse.EIO)
	}
	out, status := w.writeFrom(in, data[:in.Size])
	if status != fuse.OK {
		return w.end(unique, status)
	}
	p := w.buf[dataAt : dataAt+int(unsafe.Sizeof(fuse.WriteOut{}))]
	*(*fuse.WriteOut)(unsafe.Pointer(&p[0])) = fuse.WriteOut{Size: out}
	w.reply(replyHeader{unique: unique}, p)
	return outcome{bytes: int64(out)}
}

func (w *worker) writeFrom(in *fuse.WriteIn, data []byte) (n uint32, status fuse.Status) {
	defer w.conn.recovered(&status)
	return w.conn.fs.Write(nil, in, data)
}

func (w *worker) fsync(in *fuse.FsyncIn) outcome {
	unique := in.Unique
	return w.end(unique, w.flush(in))
}

func (w *worker) flush(in *fuse.FsyncIn) (status fuse.Status) {
	defer w.conn.recovered(&status)
	return w.conn.fs.Fsync(nil, in)
}

// recovered is deferred: a bug in a handler is an I/O error of one request.
func (c *Conn) recovered(status *fuse.Status) {
	if v := recover(); v != nil {
		*status = c.o.Fuse.PanicHandler(v)
	}
}

// reply sends a reply whose data, if any, stands at dataAt.
func (w *worker) reply(h replyHeader, data []byte) {
	h.length = uint32(replyBytes + len(data))
	*(*replyHeader)(unsafe.Pointer(&w.buf[replyAt])) = h
	w.sent(w.conn.send(w.buf[replyAt:dataAt+len(data)]), h.unique)
}

// sent looks at how sending a reply ended. ENOENT: who asked has given up, or it
// was the answer to a late word such as RELEASE. ENODEV: the mount is gone.
func (w *worker) sent(err error, unique uint64) {
	if err != nil && err != unix.ENOENT && err != unix.ENODEV {
		w.conn.log.Error("the kernel does not take a reply", "request", unique, "error", err)
	}
}

// other has go-fuse answer a request.
func (w *worker) other(request []byte, op Op) outcome {
	h := *(*fuse.InHeader)(unsafe.Pointer(&request[0]))
	if h.Opcode == opInit {
		// go-fuse would agree anew on what both can do, beside requests under way.
		w.conn.log.Error("the kernel sent a second INIT on a connection in use; it was refused")
		return w.end(h.Unique, fuse.EIO)
	}
	p, err := w.conn.protocolReply(w, request)
	if err != nil {
		w.conn.log.Error("a request was not understood", "opcode", h.Opcode, "error", err)
		return w.end(h.Unique, fuse.EIO)
	}
	if len(p) == 0 { // no reply is due
		return outcome{uncounted: true}
	}
	o := outcomeOf(op, request, p)
	if h.Opcode == opInterrupt && (*replyHeader)(unsafe.Pointer(&p[0])).status == -int32(unix.EAGAIN) {
		// The request is not known to go-fuse: not yet, or it is one of ours,
		// which end soon. The kernel asks again at once.
		time.Sleep(interruptPause)
		o.uncounted = true
	}
	w.sent(w.conn.send(p), h.Unique)
	return o
}

const interruptPause = 10 * time.Millisecond

// protocolReply gives go-fuse's reply, which stands in w.out.
func (c *Conn) protocolReply(w *worker, request []byte) ([]byte, error) {
	if w.out == nil {
		var err error
		if w.out, err = w.newBuffer(c.maxWrite + slack); err != nil {
			return nil, err
		}
	}
	n, status := c.handled(request, w.out)
	if status != fuse.OK {
		return nil, unix.Errno(status)
	}
	return w.out[:n], nil
}

// handled has go-fuse read a request and answer it in out. It recovers from a bug in a
// handler by itself, and here from one in reading the request.
func (c *Conn) handled(request, out []byte) (n int, status fuse.Status) {
	defer c.recovered(&status)
	return c.protocol.HandleRequest([][]byte{request}, [][]byte{out})
}
