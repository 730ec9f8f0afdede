package fs

import (
	"encoding/binary"
	"io"
	"log"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/fs/device"
	"varve/overlay/hostfs"
)

// From linux/fuse.h: requests that have no reply, or need none.
var unanswered = map[uint32]bool{2: true, 36: true, 41: true, 42: true} // FORGET, INTERRUPT, NOTIFY_REPLY, BATCH_FORGET

// requestSeeds are streams as FuzzRequests reads them: requests, each behind its length in
// two bytes, little endian.
func requestSeeds(nodes []uint64) (seeds [][]byte) {
	const top = uint64(1) << 63
	number := func(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }
	request := func(opcode uint32, node uint64, body ...[]byte) []byte {
		h := fuse.InHeader{Opcode: opcode, NodeId: node, Unique: 1}
		p := slices.Concat(append([][]byte{unsafe.Slice((*byte)(unsafe.Pointer(&h)), unsafe.Sizeof(h))}, body...)...)
		binary.LittleEndian.PutUint32(p, uint32(len(p)))
		return slices.Concat(binary.LittleEndian.AppendUint16(nil, uint16(len(p))), p)
	}
	for _, node := range nodes {
		const opcodes, together = 54, 9
		var seed []byte
		for opcode := range uint32(opcodes) {
			if opcode%together == 0 && seed != nil {
				seeds, seed = append(seeds, seed), nil
			}
			if opcode == 26 { // INIT
				continue
			}
			for _, body := range [][]byte{nil, make([]byte, 16), make([]byte, 160), slices.Repeat([]byte{0xff}, 160), []byte("base.raw\x00"), []byte("one\x00two\x00"), []byte("name without an end")} {
				seed = append(seed, request(opcode, node, body)...)
			}
		}
		seeds = append(seeds, seed)
		// Opened, used by the handle that it has then, at offsets that are negative to others.
		const open, read, write, release, fallocate, lseek = 14, 15, 16, 18, 43, 46
		seed = request(open, node, number(unix.O_RDWR))
		for _, at := range []uint64{0, 1, 1<<20 - 1, 1 << 20, top - 1, top, ^uint64(0)} {
			for _, size := range []uint64{0, 1, 4096, 1<<32 - 1} {
				seed = append(seed, request(read, node, number(1), number(at), number(size), number(0), number(0))...)
				seed = append(seed, request(write, node, number(1), number(at), number(size), number(0), number(0), []byte("data"))...)
			}
			for _, mode := range []uint64{0, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE, 0xff} {
				seed = append(seed, request(fallocate, node, number(1), number(at), number(at), number(mode))...)
			}
			for whence := range uint64(6) {
				seed = append(seed, request(lseek, node, number(1), number(at), number(whence))...)
			}
		}
		seeds = append(seeds, append(seed, request(release, node, number(1), number(0), number(0))...))
	}
	return seeds
}

// smallHost is the host's file system with little room, on which nothing is waited for: who
// may write a disk may also grow it and reserve all of it.
type smallHost struct{ hostfs.FS }

type smallFile struct{ hostfs.File }

const smallRoom = 16 << 20 // bytes of a file

func (h smallHost) Open(path string, flag int, perm os.FileMode) (hostfs.File, error) {
	f, err := h.FS.Open(path, flag, perm)
	if err != nil {
		return nil, err
	}
	return smallFile{f}, nil
}

func (f smallFile) Allocate(off, length int64) error {
	if off > smallRoom || length > smallRoom-off {
		return unix.ENOSPC
	}
	return f.File.Allocate(off, length)
}

func (f smallFile) Sync() error     { return nil }
func (f smallFile) Datasync() error { return nil }

// FuzzRequests gives a whole file system, over a real disk, any stream of requests by the
// way of the kernel's. Every request that needs a reply gets one that the kernel would take,
// the daemon goes on, and the disk is a disk afterwards.
func FuzzRequests(f *testing.F) {
	log.SetOutput(io.Discard) // go-fuse's, of each request that is too short
	for _, seed := range requestSeeds([]uint64{nodeRoot, nodeDisk, nodeLayers, nodeStatusJSON, nodeCommand, nodeLayer + 1, nodePart, ^uint64(0)}) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		timer := time.AfterFunc(hangLimit, func() { panic("hang: this input takes more than " + hangLimit.String()) })
		defer timer.Stop()
		dir := filepath.Join(t.TempDir(), "vm.varve")
		host := smallHost{hostfs.OS()}
		if _, err := chain.Create(dir, chain.CreateOptions{FS: host, Size: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		d, err := chain.Open(dir, chain.OpenOptions{FS: host})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Snapshot("one"); err != nil {
			t.Fatal(err)
		}
		k := attach(t, chainDisk{d})
		for len(stream) >= 2 {
			n := min(int(binary.LittleEndian.Uint16(stream)), len(stream)-2)
			k.ask(stream[2 : 2+n])
			stream = stream[2+n:]
		}
		k.end()
		if err := d.Close(); err != nil {
			t.Fatalf("the disk cannot be closed: %v", err)
		}
		if again, err := chain.Open(dir, chain.OpenOptions{FS: host}); err != nil {
			t.Fatalf("the disk cannot be opened again: %v", err)
		} else if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// hostileKernel is the other end of a connection.
type hostileKernel struct {
	t      *testing.T
	fd     int
	next   uint64
	open   map[uint64]uint32 // opcodes of what has no reply yet, by their numbers
	buf    []byte
	server *Server
}

// attach connects a file system over d with a kernel that the test plays.
func attach(t *testing.T, d disk) *hostileKernel {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	k := &hostileKernel{t: t, fd: pair[0], open: map[uint64]uint32{}, buf: make([]byte, 2<<20)}
	f := newFileSystem(d, Options{Log: slog.New(slog.DiscardHandler)})
	k.server = &Server{fs: f, identified: make(chan struct{}), done: make(chan struct{})}
	close(k.server.identified)
	options, err := k.server.fuseOptions(d, Options{})
	if err != nil {
		t.Fatal(err)
	}
	options.MaxWrite = 64 << 10 // a socket takes no message of the usual 1 MiB
	options.PanicHandler = func(v any) fuse.Status {
		t.Errorf("a handler panicked: %v", v)
		return fuse.EIO
	}
	in := fuse.InitIn{InHeader: fuse.InHeader{Opcode: 26, Unique: 1}, Major: 7, Minor: 45, MaxReadAhead: 1 << 17, Flags: 1<<31 - 1}
	in.Length = uint32(unsafe.Sizeof(in))
	if _, err := unix.Write(k.fd, unsafe.Slice((*byte)(unsafe.Pointer(&in)), unsafe.Sizeof(in))); err != nil {
		t.Fatal(err)
	}
	if k.server.kernel, err = device.Attach(f, pair[1], device.Options{Fuse: options, Log: f.log, Meter: &f.requests}); err != nil {
		t.Fatal(err)
	}
	k.open[1] = 26
	d.OnChange(f.changed)
	go f.notify.run(f.tell(k.server.kernel))
	go k.server.serve()
	return k
}

// ask sends a request under a number of its own, and returns when one that was sent after it
// is answered.
func (k *hostileKernel) ask(request []byte) {
	if len(request) < int(unsafe.Sizeof(fuse.InHeader{})) {
		return // the end of the connection, see end
	}
	request = slices.Clone(request)
	h := (*fuse.InHeader)(unsafe.Pointer(&request[0]))
	k.next++
	h.Unique = k.next<<1 + 1<<40
	k.send(request, h.Unique, h.Opcode)
	const getattr = 3
	last := fuse.GetAttrIn{InHeader: fuse.InHeader{Opcode: getattr, NodeId: nodeRoot, Unique: h.Unique + 1}}
	last.Length = uint32(unsafe.Sizeof(last))
	k.send(unsafe.Slice((*byte)(unsafe.Pointer(&last)), unsafe.Sizeof(last)), last.Unique, getattr)
	for k.open[last.Unique] != 0 {
		k.take()
	}
}

func (k *hostileKernel) send(p []byte, unique uint64, opcode uint32) {
	if _, err := unix.Write(k.fd, p); err != nil {
		k.t.Fatal(err)
	}
	k.open[unique] = opcode
}

// take takes one reply or notification; false at the end.
func (k *hostileKernel) take() bool {
	n, err := unix.Read(k.fd, k.buf)
	if err != nil {
		k.t.Fatal(err)
	}
	if n == 0 {
		return false
	}
	const size = 16 // of struct fuse_out_header
	length, status, unique := binary.LittleEndian.Uint32(k.buf), int32(binary.LittleEndian.Uint32(k.buf[4:])), binary.LittleEndian.Uint64(k.buf[8:])
	if n < size || int(length) != n {
		k.t.Fatalf("a reply of %d bytes says that it has %d", n, length)
	}
	if unique == 0 { // a notification
		return true
	}
	opcode, asked := k.open[unique]
	switch {
	case !asked:
		k.t.Fatalf("a reply to request %d, which was not asked or is answered", unique)
	case status > 0 || status <= -512 || status != 0 && n != size:
		k.t.Fatalf("opcode %d: status %d with %d bytes", opcode, status, n)
	case status == -int32(unix.ENOSYS) && opcode == 20:
		k.t.Fatal("ENOSYS to FSYNC, after which the kernel would ask no more")
	}
	delete(k.open, unique)
	return true
}

// end ends the connection, and looks that everything was answered.
func (k *hostileKernel) end() {
	if err := unix.Shutdown(k.fd, unix.SHUT_WR); err != nil {
		k.t.Fatal(err)
	}
	for k.take() {
	}
	k.server.Wait()
	unix.Close(k.fd)
	maps.DeleteFunc(k.open, func(_ uint64, opcode uint32) bool { return unanswered[opcode] })
	if len(k.open) > 0 {
		k.t.Fatalf("no replies to requests with the opcodes %v", slices.Collect(maps.Values(k.open)))
	}
}
