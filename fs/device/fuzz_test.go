package device

import (
	"bytes"
	"encoding/binary"
	"io"
	"log"
	"log/slog"
	"math"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/integration/patience"
)

// A stream is requests as a hostile kernel could give them, each behind its length in two
// bytes, little endian. The length in a request's own header may be another one.

func streamOf(requests ...[]byte) (stream []byte) {
	for _, r := range requests {
		stream = binary.LittleEndian.AppendUint16(stream, uint16(len(r)))
		stream = append(stream, r...)
	}
	return stream
}

// requestsOf takes a stream apart; the last request may be cut off.
func requestsOf(stream []byte) (requests [][]byte) {
	for len(stream) >= 2 {
		n := min(int(binary.LittleEndian.Uint16(stream)), len(stream)-2)
		requests = append(requests, stream[2:2+n])
		stream = stream[2+n:]
	}
	return requests
}

// bytesOf is a request of go-fuse's, with what stands behind it.
func bytesOf[T any](request T, more ...byte) []byte {
	p := bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&request)), unsafe.Sizeof(request)))
	return append(p, more...)
}

func header(opcode uint32, node uint64) fuse.InHeader {
	return fuse.InHeader{Opcode: opcode, NodeId: node, Unique: 7, Length: uint32(unsafe.Sizeof(fuse.InHeader{}))}
}

// seedStreams are lengths, opcodes, offsets and names at their edges.
func seedStreams() [][]byte {
	const top = uint64(1) << 63
	write := func(offset uint64, size uint32, data ...byte) []byte {
		return bytesOf(fuse.WriteIn{InHeader: header(opWrite, fileNode), Offset: offset, Size: size}, data...)
	}
	read := func(offset uint64, size uint32) []byte {
		return bytesOf(fuse.ReadIn{InHeader: header(opRead, fileNode), Offset: offset, Size: size})
	}
	streams := [][]byte{
		streamOf(write(0, 4, 1, 2, 3, 4), read(0, 4), read(2, 8192)),
		streamOf(write(fuzzFile-2, 4, 1, 2, 3, 4), write(fuzzFile, 1, 9), read(fuzzFile-2, 1<<31)),
		streamOf(write(0, 1<<32-1, 1), write(0, 5, 1, 2, 3, 4), write(0, 0), write(^uint64(0), 1, 1), write(top, 1, 1), write(top-1, 1, 1)),
		streamOf(read(^uint64(0), 1), read(top, 1<<32-1), read(0, 1<<32-1), read(0, 0)),
		streamOf(bytesOf(fuse.FsyncIn{InHeader: header(opFsync, fileNode)}), bytesOf(fuse.FsyncIn{InHeader: header(opFsync, top)})),
		streamOf(bytesOf(fuse.WriteIn{InHeader: header(opWrite, fileNode), Size: 1, Flags: unix.O_DSYNC}, 5), read(0, 1)),
		streamOf(bytesOf(fuse.FallocateIn{InHeader: header(opFallocate, fileNode), Length: top, Mode: unix.FALLOC_FL_PUNCH_HOLE})),
	}
	// Every request of the kernel's, and some that are none: the header alone, with a body of
	// zeros and of ones, with names that do not end, that are empty, and too many of them.
	for opcode := range uint32(56) {
		if opcode == 55 {
			opcode = 4096 // CUSE_INIT
		}
		h := bytesOf(header(opcode, fileNode))
		root := bytesOf(header(opcode, fuse.FUSE_ROOT_ID))
		streams = append(streams,
			streamOf(h, root, append(bytes.Clone(h), make([]byte, 128)...), append(bytes.Clone(root), bytes.Repeat([]byte{0xff}, 200)...)),
			streamOf(append(bytes.Clone(root), "file\x00"...), append(bytes.Clone(root), "file"...), append(bytes.Clone(root), 0),
				append(bytes.Clone(root), "a\x00b\x00c\x00"...), append(bytes.Clone(root), bytes.Repeat([]byte{'n'}, 5000)...)))
	}
	return append(streams,
		streamOf(bytesOf(header(1<<31, fileNode)), bytesOf(header(1<<32-1, ^uint64(0)))),
		streamOf(bytesOf(fuse.InitIn{InHeader: header(opInit, 0), Major: 7, Minor: 45, Flags: 1<<32 - 1})),
		streamOf(bytesOf(fuse.InterruptIn{InHeader: header(opInterrupt, 0), Unique: 7})),
		streamOf(bytesOf(header(opRead, fileNode))[:39], nil, []byte{1}))
}

const (
	fuzzFile     = 1 << 16 // bytes
	fuzzMaxWrite = 1 << 13
)

// FuzzDeviceStream gives the transport any stream of requests. Every reply is one that the
// kernel would take, and answers the request; reads and writes are those of a byte model;
// and nothing is written beside the places of a request and of a reply.
func FuzzDeviceStream(f *testing.F) {
	log.SetOutput(io.Discard) // go-fuse's, of each request that is too short
	for _, s := range seedStreams() {
		f.Add(s)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		f.Fatal(err)
	}
	kernel, ours := pair[0], pair[1]
	f.Cleanup(func() { unix.Close(kernel); unix.Close(ours) })
	reply := make([]byte, fuzzMaxWrite+1<<16)
	f.Fuzz(func(t *testing.T, stream []byte) {
		timer := time.AfterFunc(patience.Hang, func() { panic("hang: this input takes more than " + patience.Hang.String()) })
		defer timer.Stop()
		one := &oneFile{RawFileSystem: fuse.NewDefaultRawFileSystem(), data: make([]byte, fuzzFile)}
		options := &fuse.MountOptions{
			MaxWrite: fuzzMaxWrite, Logger: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
			PanicHandler: func(v any) fuse.Status { t.Errorf("a handler panicked: %v", v); return fuse.EIO },
		}
		c := newConn(one, ours, Options{Fuse: options, Log: slog.New(slog.DiscardHandler), Meter: &one.meter})
		c.crew.base = math.MinInt32 // no worker but this one takes requests
		w, err := c.newWorker()
		if err != nil {
			t.Fatal(err)
		}
		defer w.free()
		const canary = 0xa5
		below, above := w.buf[:requestAt], w.buf[dataAt+fuzzMaxWrite+slack:][:1<<12]
		fill(below, canary)
		fill(above, canary)
		model := make([]byte, fuzzFile)
		for _, request := range requestsOf(stream) {
			if len(request) == 0 || len(request) > dataAt+fuzzMaxWrite+slack-requestAt {
				continue // a socket gives the end for the first, and the kernel refuses a buffer too small for the second
			}
			if _, err := unix.Write(kernel, request); err != nil {
				t.Fatal(err)
			}
			n, errno := c.receive(w)
			if errno != 0 || n != len(request) {
				t.Fatalf("receive: %d bytes of %d, %v", n, len(request), errno)
			}
			if !w.answer(n) {
				if n >= int(unsafe.Sizeof(fuse.InHeader{})) {
					t.Fatalf("a request of %d bytes ends the connection", n)
				}
				continue
			}
			judge(t, request, model, replies(t, kernel, reply))
		}
		if !bytes.Equal(one.data, model) {
			t.Error("the file is not what was written")
		}
		if bytes.Count(below, []byte{canary}) != len(below) || bytes.Count(above, []byte{canary}) != len(above) {
			t.Error("written beside the request and its reply")
		}
	})
}

func fill(p []byte, value byte) {
	for i := range p {
		p[i] = value
	}
}

// replies takes what was sent, at most one reply; nil for none.
func replies(t *testing.T, kernel int, buf []byte) []byte {
	n, err := unix.Read(kernel, buf)
	if err == unix.EAGAIN {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	if more, err := unix.Read(kernel, make([]byte, 1)); err != unix.EAGAIN {
		t.Fatalf("a second reply: %d bytes, %v", more, err)
	}
	return buf[:n]
}

// judge holds a reply against its request as the kernel does (fuse_dev_do_write), and
// against the model.
func judge(t *testing.T, request, model, reply []byte) {
	h := *(*fuse.InHeader)(unsafe.Pointer(&request[0]))
	const forget, batchForget, notifyReply = 2, 42, 41
	if reply == nil {
		if h.Opcode != forget && h.Opcode != batchForget && h.Opcode != notifyReply && h.Opcode != opInterrupt {
			t.Fatalf("opcode %d has no reply", h.Opcode)
		}
		return
	}
	if len(reply) < replyBytes {
		t.Fatalf("opcode %d: a reply of %d bytes", h.Opcode, len(reply))
	}
	r := *(*replyHeader)(unsafe.Pointer(&reply[0]))
	switch {
	case int(r.length) != len(reply) || r.unique != h.Unique:
		t.Fatalf("opcode %d: the reply's header says %d bytes of %d, to %d instead of %d", h.Opcode, r.length, len(reply), r.unique, h.Unique)
	case r.status > 0 || r.status <= -512:
		t.Fatalf("opcode %d: status %d", h.Opcode, r.status)
	case r.status != 0 && len(reply) != replyBytes:
		t.Fatalf("opcode %d: an error with %d bytes of data", h.Opcode, len(reply)-replyBytes)
	}
	switch {
	case h.Opcode == opWrite && r.status == 0:
		in := *(*fuse.WriteIn)(unsafe.Pointer(&request[0]))
		out := *(*fuse.WriteOut)(unsafe.Pointer(&reply[replyBytes]))
		data := request[writeBytes:]
		if out.Size > in.Size || int(out.Size) > len(data) || in.Offset > fuzzFile || in.Offset+uint64(out.Size) > fuzzFile {
			t.Fatalf("a write of %d bytes at %d says %d", in.Size, in.Offset, out.Size)
		}
		copy(model[in.Offset:], data[:out.Size])
	case h.Opcode == opRead && r.status == 0:
		in := *(*fuse.ReadIn)(unsafe.Pointer(&request[0]))
		want := []byte{}
		if in.Offset < fuzzFile {
			want = model[in.Offset:][:min(uint64(in.Size), fuzzMaxWrite, fuzzFile-in.Offset)]
		}
		if !bytes.Equal(reply[replyBytes:], want) {
			t.Fatalf("a read of %d bytes at %d gives %d others", in.Size, in.Offset, len(reply)-replyBytes)
		}
	}
}
