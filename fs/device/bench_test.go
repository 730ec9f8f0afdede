package device

import (
	"os"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// BenchmarkAnswer is what a request of 4 KiB costs here: understanding it, counting
// it, and a reply that goes nowhere.
func BenchmarkAnswer(b *testing.B) {
	null, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	f := &oneFile{data: make([]byte, 1<<20)}
	c := &Conn{fs: f, fd: int(null.Fd()), maxWrite: 1 << 20, o: benchOptions(f)}
	w, err := c.newWorker()
	if err != nil {
		b.Fatal(err)
	}
	defer w.free()
	read := fuse.ReadIn{InHeader: fuse.InHeader{Opcode: opRead, NodeId: fileNode}, Size: 4096}
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			*(*fuse.ReadIn)(unsafe.Pointer(&w.buf[requestAt])) = read
			w.answer(int(unsafe.Sizeof(read)))
		}
	})
	write := fuse.WriteIn{InHeader: fuse.InHeader{Opcode: opWrite, NodeId: fileNode}, Size: 4096}
	b.Run("write", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			*(*fuse.WriteIn)(unsafe.Pointer(&w.buf[requestAt])) = write
			w.answer(writeBytes + 4096)
		}
	})
}

func benchOptions(f *oneFile) Options {
	return Options{Fuse: &fuse.MountOptions{PanicHandler: func(any) fuse.Status { return fuse.EIO }}, Meter: &f.meter}
}
