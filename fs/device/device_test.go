package device

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/integration/patience"
)

// oneFile is a file system with the file "file", whose reads and writes a test
// can hold up, fail or have panic.
type oneFile struct {
	fuse.RawFileSystem
	mu     sync.Mutex
	data   []byte
	flush  atomic.Int32  // the answer to fsync
	hold   chan struct{} // writes wait until it is closed; nil: they do not
	held   atomic.Int32
	panics atomic.Bool
	meter  Meter
}

const fileNode = 2

func (f *oneFile) String() string { return "test" }

func (f *oneFile) attr(node uint64, a *fuse.Attr) {
	*a = fuse.Attr{Ino: node, Nlink: 1, Mode: unix.S_IFDIR | 0o700}
	if node == fileNode {
		a.Mode, a.Size = unix.S_IFREG|0o600, uint64(len(f.data))
	}
}

func (f *oneFile) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name != "file" {
		return fuse.ENOENT
	}
	out.NodeId, out.Generation = fileNode, 1
	f.attr(fileNode, &out.Attr)
	return fuse.OK
}

func (f *oneFile) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

func (f *oneFile) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	return fuse.OK
}

func (f *oneFile) Content(node uint64) Content {
	if node == fileNode {
		return Disk
	}
	return Words
}

func (f *oneFile) Release(<-chan struct{}, *fuse.ReleaseIn) {}

func (f *oneFile) ReadInto(in *fuse.ReadIn, p []byte) ([]byte, fuse.Status) {
	if f.panics.Load() {
		panic("a bug")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if in.Offset >= uint64(len(f.data)) {
		return nil, fuse.OK
	}
	return p[:copy(p, f.data[in.Offset:])], fuse.OK
}

func (f *oneFile) Write(_ <-chan struct{}, in *fuse.WriteIn, p []byte) (uint32, fuse.Status) {
	if f.hold != nil {
		f.held.Add(1)
		<-f.hold
		f.held.Add(-1)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if size := uint64(len(f.data)); in.Offset > size || uint64(len(p)) > size-in.Offset {
		return 0, fuse.Status(unix.ENOSPC)
	}
	return uint32(copy(f.data[in.Offset:], p)), fuse.OK
}

func (f *oneFile) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status {
	return fuse.Status(f.flush.Load())
}

// served mounts f and gives the path of its file.
func served(t *testing.T, f *oneFile) (path string, c *Conn, ended chan struct{}) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts with mount(2): root only")
	}
	f.RawFileSystem = fuse.NewDefaultRawFileSystem()
	dir := t.TempDir()
	c, err := Mount(f, dir, Options{
		Fuse: &fuse.MountOptions{
			FsName: "test", Name: "test", MaxWrite: 1 << 20, MaxBackground: 64, DirectMountFlags: unix.MS_NOSUID,
			ExtraCapabilities: fuse.CAP_ASYNC_DIO | fuse.CAP_HANDLE_KILLPRIV_V2,
			PanicHandler:      func(any) fuse.Status { return fuse.EIO },
		},
		Log:    slog.New(slog.NewTextHandler(t.Output(), nil)),
		Direct: true,
		Meter:  &f.meter,
	})
	if err != nil {
		t.Fatal(err)
	}
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		c.Serve()
	}()
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
			t.Error(err)
		}
		wait(t, "Serve to end", func() bool { return closed(ended) })
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	path = filepath.Join(dir, "file")
	refusePolls(t, path)
	return path, c, ended
}

// refusePolls has the kernel ask for the first and last time whether files can be
// polled. os.OpenFile asks it too, in a way that the garbage collector waits for and
// that waits, in the same process, for us: both for ever then.
func refusePolls(t *testing.T, path string) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); err != nil {
		t.Fatal(err)
	}
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience.Hang); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func openFile(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// Requests of every size come through whole, and errors as they are.
func TestReadsAndWrites(t *testing.T) {
	f := &oneFile{data: make([]byte, 3<<20)}
	path, _, _ := served(t, f)
	file := openFile(t, path)
	for _, size := range []int{1, 511, 4096, 4097, 100_000, 1 << 20, 2<<20 + 17} {
		want := bytes.Repeat([]byte{byte(size), byte(size >> 8), 3}, size/3+1)[:size]
		if n, err := file.WriteAt(want, 777); err != nil || n != size {
			t.Fatalf("write of %d bytes: %d, %v", size, n, err)
		}
		f.mu.Lock()
		same := bytes.Equal(f.data[777:777+size], want)
		f.mu.Unlock()
		if !same {
			t.Fatalf("%d bytes did not arrive as they were written", size)
		}
		got := make([]byte, size)
		if n, err := file.ReadAt(got, 777); err != nil || n != size || !bytes.Equal(got, want) {
			t.Fatalf("read of %d bytes: %d, %v", size, n, err)
		}
	}
	if _, err := file.WriteAt([]byte("xx"), 3<<20-1); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write over the end: %v, want ENOSPC", err)
	}
	if n, err := file.ReadAt(make([]byte, 10), 3<<20-4); n != 4 {
		t.Errorf("read over the end: %d bytes, %v, want 4", n, err)
	}
	if err := file.Sync(); err != nil {
		t.Error(err)
	}
	f.flush.Store(int32(unix.EDQUOT))
	if err := file.Sync(); !errors.Is(err, unix.EDQUOT) {
		t.Errorf("fsync: %v, want EDQUOT", err)
	}
}

// A handler that panics fails its own request.
func TestPanic(t *testing.T) {
	f := &oneFile{data: make([]byte, 1<<20)}
	path, _, _ := served(t, f)
	file := openFile(t, path)
	f.panics.Store(true)
	for range 20 {
		if _, err := file.ReadAt(make([]byte, 10), 0); !errors.Is(err, unix.EIO) {
			t.Fatalf("%v, want EIO", err)
		}
	}
	f.panics.Store(false)
	if _, err := file.ReadAt(make([]byte, 10), 0); err != nil {
		t.Error(err)
	}
}

// However many requests are held up, others are answered; and when they go on, the
// threads that were needed for that end.
func TestHeldUp(t *testing.T) {
	f := &oneFile{data: make([]byte, 1<<20), hold: make(chan struct{})}
	path, c, _ := served(t, f)
	file := openFile(t, path)
	const writers = 40
	var done sync.WaitGroup
	for i := range writers {
		done.Go(func() {
			if _, err := file.WriteAt([]byte{1}, int64(i)*4096); err != nil {
				t.Error(err)
			}
		})
	}
	wait(t, "all writes to be held up at once", func() bool { return f.held.Load() == writers })
	if _, err := file.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
	close(f.hold)
	done.Wait()
	wait(t, "the threads to end", func() bool {
		_, _ = file.ReadAt(make([]byte, 1), 0)
		return c.crew.active.Load() <= c.crew.base+1
	})
	c.crew.mu.Lock()
	defer c.crew.mu.Unlock()
	if n := len(c.crew.spare); n > mostSpare {
		t.Errorf("%d workers are kept, more than %d", n, mostSpare)
	}
}

// Somebody who is killed while his request is held up asks for its end; the
// kernel repeats that until the request is answered, and must not get an answer at
// once each time.
func TestKilledWhileHeldUp(t *testing.T) {
	f := &oneFile{data: make([]byte, 1<<20), hold: make(chan struct{})}
	path, _, _ := served(t, f)
	dd := exec.Command("dd", "if=/dev/zero", "of="+path, "bs=4096", "count=1", "conv=notrunc", "status=none")
	if err := dd.Start(); err != nil {
		t.Fatal(err)
	}
	wait(t, "the write to be held up", func() bool { return f.held.Load() == 1 })
	if err := dd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var before, after unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
		t.Fatal(err)
	}
	const watched = 500 * time.Millisecond
	time.Sleep(watched)
	if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
		t.Fatal(err)
	}
	used := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	if used > watched/2 {
		t.Errorf("%v of processor time in %v of waiting", used, watched)
	}
	close(f.hold)
	_ = dd.Wait() // killed
	if _, err := openFile(t, path).ReadAt(make([]byte, 1), 0); err != nil {
		t.Error(err)
	}
}

// A connection that is cut while requests are held up ends when they do.
func TestCutWhileHeldUp(t *testing.T) {
	f := &oneFile{data: make([]byte, 1<<20), hold: make(chan struct{})}
	path, _, ended := served(t, f)
	file := openFile(t, path)
	result := make(chan error)
	go func() {
		_, err := file.WriteAt([]byte{1}, 0)
		result <- err
	}()
	wait(t, "the write to be held up", func() bool { return f.held.Load() == 1 })
	if err := unix.Unmount(filepath.Dir(path), unix.MNT_FORCE); err != nil && err != unix.EBUSY {
		t.Fatal(err)
	}
	if err := <-result; err == nil {
		t.Error("the write whose connection was cut succeeded")
	}
	if closed(ended) {
		t.Error("Serve ended before its last request did")
	}
	close(f.hold)
	wait(t, "Serve to end", func() bool { return closed(ended) })
}

// What stands in an option for fusermount3 does not end it.
func TestEscaped(t *testing.T) {
	if got, want := escaped(`context=s0:c1,c2\x`), `context=s0:c1\,c2\\x`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// A descriptor that never comes is an error, and nobody waits for it.
func TestNoDescriptor(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	if err := unix.Close(pair[1]); err != nil {
		t.Fatal(err)
	}
	if fd, err := receiveDescriptor(pair[0]); err == nil {
		t.Errorf("descriptor %d", fd)
	}
}

// A read takes no memory from the heap on its way.
func TestReadsAllocateNothing(t *testing.T) {
	f := &oneFile{data: make([]byte, 1<<20)}
	w, err := (&Conn{fs: f, maxWrite: 1 << 20, o: Options{Fuse: &fuse.MountOptions{}}}).newWorker()
	if err != nil {
		t.Fatal(err)
	}
	defer w.free()
	in := (*fuse.ReadIn)(unsafe.Pointer(&w.buf[requestAt]))
	in.Size = 4096
	if n := testing.AllocsPerRun(100, func() {
		if data, status := w.readInto(in, w.buf[dataAt:dataAt+4096]); len(data) != 4096 || status != fuse.OK {
			t.Errorf("%d bytes, %v", len(data), status)
		}
	}); n != 0 {
		t.Errorf("a read allocates %v times", n)
	}
}
