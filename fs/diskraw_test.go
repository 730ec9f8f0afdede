package fs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/overlay"
	"varve/overlay/qcow2"
)

const mib = 1 << 20

func TestDiskReadsAndWrites(t *testing.T) {
	dir, d, _ := mounted(t, 4*mib, Options{})
	file := open(t, filepath.Join(dir, nameDisk), os.O_RDWR)
	for _, c := range []struct {
		off  int64
		size int
	}{{0, 1}, {511, 1025}, {4096, 4096}, {3 * mib, mib}, {4*mib - 7, 7}, {100, 2 * mib}} {
		want := bytes.Repeat([]byte{byte(c.off + 3)}, c.size)
		if n, err := file.WriteAt(want, c.off); err != nil || n != c.size {
			t.Fatalf("write %d at %d: %d, %v", c.size, c.off, n, err)
		}
		if got := d.bytes(c.off, int64(c.size)); !bytes.Equal(got, want) {
			t.Errorf("the disk does not hold what was written at %d", c.off)
		}
		got := make([]byte, c.size)
		if _, err := file.ReadAt(got, c.off); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read back at %d: %v", c.off, err)
		}
	}
	if n, err := file.ReadAt(make([]byte, 100), 4*mib-10); n != 10 || err != io.EOF {
		t.Errorf("read over the end: %d, %v; want 10, EOF", n, err)
	}
	if n, err := file.ReadAt(make([]byte, 100), 9*mib); n != 0 || err != io.EOF {
		t.Errorf("read behind the end: %d, %v; want 0, EOF", n, err)
	}
}

func TestDiskEndIsADevicesEnd(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{})
	file := open(t, filepath.Join(dir, nameDisk), os.O_RDWR)
	n, err := unix.Pwrite(int(file.Fd()), bytes.Repeat([]byte{1}, 8192), mib-4096)
	if n != 4096 || err != nil {
		t.Errorf("write over the end: %d, %v; want 4096", n, err)
	}
	if _, err := unix.Pwrite(int(file.Fd()), []byte{1}, mib); err != unix.ENOSPC {
		t.Errorf("write behind the end: %v, want ENOSPC", err)
	}
	if d.Size() != mib {
		t.Errorf("the disk's size became %d", d.Size())
	}
}

// M9: with FOPEN_DIRECT_IO no FSYNC follows a synchronous write.
func TestSynchronousWritesFlush(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{})
	path := filepath.Join(dir, nameDisk)
	data := make([]byte, 4096)
	for _, c := range []struct {
		name  string
		flag  int
		rwf   int
		flush bool
	}{
		{"plain", 0, 0, false},
		{"O_DSYNC", unix.O_DSYNC, 0, true},
		{"O_SYNC", unix.O_SYNC, 0, true},
		{"O_DIRECT and O_DSYNC", unix.O_DIRECT | unix.O_DSYNC, 0, true},
		{"RWF_DSYNC", 0, unix.RWF_DSYNC, true},
		{"RWF_SYNC", 0, unix.RWF_SYNC, true},
		{"O_DIRECT and RWF_DSYNC", unix.O_DIRECT, unix.RWF_DSYNC, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := open(t, path, os.O_RDWR|c.flag)
			d.history()
			if n, err := unix.Pwritev2(int(file.Fd()), [][]byte{aligned(data)}, 8192, c.rwf); n != len(data) || err != nil {
				t.Fatalf("%d, %v", n, err)
			}
			// The write has been answered: all that it promises is done.
			want := []string{"WriteAt"}
			if c.flush {
				want = append(want, "Flush")
			}
			if got := d.history(); !slices.Equal(got, want) {
				t.Errorf("calls %v, want %v", got, want)
			}
			if !c.flush {
				return
			}
			d.failWith("Flush", fmt.Errorf("flush: %w", overlay.ErrFailed))
			defer d.failWith("Flush", nil)
			if _, err := unix.Pwritev2(int(file.Fd()), [][]byte{aligned(data)}, 8192, c.rwf); err != unix.EIO {
				t.Errorf("a synchronous write whose flush fails: %v, want EIO", err)
			}
		})
	}
}

// aligned copies p to where O_DIRECT may read it.
func aligned(p []byte) []byte {
	buf := make([]byte, len(p)+4096)
	skip := 4096 - int(uintptr(unsafe.Pointer(&buf[0]))%4096)
	return buf[skip : skip+copy(buf[skip:skip+len(p)], p)]
}

func TestFsync(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{})
	file := open(t, filepath.Join(dir, nameDisk), os.O_RDWR)
	for i, call := range []func(int) error{unix.Fsync, unix.Fdatasync} {
		if err := call(int(file.Fd())); err != nil {
			t.Fatal(err)
		}
		if n := d.count("Flush"); n != i+1 {
			t.Errorf("%d flushes after %d calls", n, i+1)
		}
	}
	// A failure must not make the kernel believe that there is no fsync.
	d.failWith("Flush", errors.New("something unheard of"))
	for range 2 {
		if err := unix.Fsync(int(file.Fd())); err != unix.EIO {
			t.Errorf("fsync: %v, want EIO", err)
		}
	}
	d.failWith("Flush", nil)
	if err := unix.Fsync(int(file.Fd())); err != nil {
		t.Error(err)
	}
	if n := d.count("Flush"); n != 5 {
		t.Errorf("%d flushes, want 5", n)
	}
	if err := unix.Fsync(int(open(t, filepath.Join(dir, nameLayers, "base.raw"), os.O_RDONLY).Fd())); err != nil {
		t.Errorf("fsync of a layer: %v", err)
	}
	if err := unix.Fsync(int(open(t, filepath.Join(dir, nameLayers), os.O_RDONLY).Fd())); err != nil {
		t.Errorf("fsync of a directory: %v", err)
	}
}

func TestTruncate(t *testing.T) {
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	dir, d, _ := mounted(t, mib, Options{Log: slog.New(slog.NewTextHandler(log, nil))})
	path := filepath.Join(dir, nameDisk)
	for range 100 {
		if err := os.Truncate(path, mib-512); !errors.Is(err, unix.EPERM) {
			t.Errorf("shrink: %v, want EPERM", err)
		}
		for _, flags := range []int{os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_CREATE | os.O_TRUNC, os.O_RDWR | os.O_TRUNC | unix.O_DIRECT | unix.O_SYNC} {
			if file, err := os.OpenFile(path, flags, 0); !errors.Is(err, unix.EPERM) {
				t.Errorf("O_TRUNC with flags %#o: %v, want EPERM", flags, err)
				file.Close()
			}
		}
	}
	// One line says why and names the way out; it is not written 400 times.
	said := content(t, log.Name())
	if n := bytes.Count(said, []byte("disk.raw was not truncated")); n == 0 || n > 20 ||
		!bytes.Contains(said, []byte(fmt.Sprintf("pid=%d ", os.Getpid()))) || !bytes.Contains(said, []byte("varve import")) {
		t.Errorf("%d lines in the log:\n%s", n, said)
	}
	for _, size := range []int64{mib, mib - 1} { // whole sectors either way
		if err := os.Truncate(path, size); err != nil {
			t.Errorf("to the same size, %d: %v", size, err)
		}
	}
	if d.count("Resize") != 0 {
		t.Error("a resize happened")
	}
	file := open(t, path, os.O_RDWR)
	if err := os.Truncate(path, 3*mib+17); err != nil {
		t.Fatal(err)
	}
	if size := stat(t, path).Size; size != 3*mib+512 {
		t.Errorf("size %d", size)
	}
	if end, err := file.Seek(0, io.SeekEnd); end != 3*mib+512 || err != nil {
		t.Errorf("SEEK_END of an open file: %d, %v", end, err)
	}
	if n, err := file.WriteAt([]byte("end"), 3*mib+509); n != 3 || err != nil {
		t.Errorf("write to the new end: %d, %v", n, err)
	}
	if got := d.history(); !slices.Contains(got, "Resize") {
		t.Errorf("calls %v", got)
	}
}

func TestFallocate(t *testing.T) {
	const keep, punch, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	for _, c := range []struct {
		name     string
		mode     uint32
		off, n   int64
		want     error
		size     int64 // afterwards, in MiB
		discards int
		reserved string
	}{
		{"reserve", 0, 0, mib, nil, 4, 0, "Reserve 0+1048576"},
		{"reserve past the end", 0, 3 * mib, 2 * mib, nil, 5, 0, "Reserve 3145728+2097152"},
		{"reserve, keep size", keep, 3 * mib, 2 * mib, nil, 4, 0, "Reserve 3145728+1048576"},
		{"reserve behind the end, keep size", keep, 8 * mib, mib, nil, 4, 0, ""},
		{"punch", punch | keep, mib, mib, nil, 4, 1, ""},
		{"punch over the end", punch | keep, 3 * mib, 9 * mib, nil, 4, 1, ""},
		{"punch behind the end", punch | keep, 9 * mib, mib, nil, 4, 0, ""},
		{"zero", zero, mib, mib, nil, 4, 1, ""},
		{"zero past the end", zero, 3 * mib, 2 * mib, nil, 5, 1, ""},
		{"zero, keep size", zero | keep, 3 * mib, 2 * mib, nil, 4, 1, ""},
		{"collapse", unix.FALLOC_FL_COLLAPSE_RANGE, 0, mib, unix.EOPNOTSUPP, 4, 0, ""},
		{"insert", unix.FALLOC_FL_INSERT_RANGE, 0, mib, unix.EOPNOTSUPP, 4, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, d, _ := mounted(t, 4*mib, Options{})
			file := open(t, filepath.Join(dir, nameDisk), os.O_RDWR)
			if _, err := file.WriteAt(bytes.Repeat([]byte{7}, 4*mib), 0); err != nil {
				t.Fatal(err)
			}
			d.history()
			if err := unix.Fallocate(int(file.Fd()), c.mode, c.off, c.n); err != c.want {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if d.Size() != c.size*mib {
				t.Errorf("size %d, want %d MiB", d.Size(), c.size)
			}
			if size := stat(t, file.Name()).Size; size != c.size*mib {
				t.Errorf("st_size %d, want %d MiB", size, c.size)
			}
			if n := d.count("Discard"); n != c.discards {
				t.Errorf("%d discards, want %d", n, c.discards)
			}
			if c.reserved != "" && d.count(c.reserved) != 1 {
				t.Errorf("calls %v, want %s", d.history(), c.reserved)
			}
			if c.discards > 0 {
				if c := d.bytes(min(c.off, 4*mib-1), 1)[0]; c != 0 {
					t.Errorf("the range reads %d", c)
				}
			}
		})
	}
}

func TestSeekAndBlocks(t *testing.T) {
	dir, d, _ := mounted(t, 4*mib, Options{})
	file := open(t, filepath.Join(dir, nameDisk), os.O_RDWR)
	if _, err := file.WriteAt(make([]byte, 8192), mib); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		off    int64
		whence int
		want   int64
		err    error
	}{
		{0, unix.SEEK_DATA, mib, nil},
		{mib + 5, unix.SEEK_DATA, mib + 5, nil},
		{mib, unix.SEEK_HOLE, mib + 8192, nil},
		{0, unix.SEEK_HOLE, 0, nil},
		{2 * mib, unix.SEEK_DATA, 0, unix.ENXIO},
		{4 * mib, unix.SEEK_HOLE, 0, unix.ENXIO},
		{4 * mib, unix.SEEK_DATA, 0, unix.ENXIO},
	} {
		got, err := unix.Seek(int(file.Fd()), c.off, c.whence)
		if err != c.err || err == nil && got != c.want {
			t.Errorf("seek %d whence %d: %d, %v; want %d, %v", c.off, c.whence, got, err, c.want, c.err)
		}
	}
	if blocks := stat(t, file.Name()).Blocks; blocks != 16 {
		t.Errorf("st_blocks %d, want 16", blocks)
	}
	if err := unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, mib, 4096); err != nil {
		t.Fatal(err)
	}
	if blocks := stat(t, file.Name()).Blocks; blocks != 8 {
		t.Errorf("st_blocks %d at once after a punch, want 8", blocks)
	}
	d.mu.Lock()
	d.mapped = map[int64]bool{}
	d.mu.Unlock()
	if pos, err := unix.Seek(int(file.Fd()), 0, unix.SEEK_HOLE); pos != 0 || err != nil {
		t.Errorf("SEEK_HOLE of a hole: %d, %v", pos, err)
	}
}

func TestDiskTimesModeOwner(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{Umask: 0o027, UID: 12, GID: 34})
	path := filepath.Join(dir, nameDisk)
	st := stat(t, path)
	if st.Mode != unix.S_IFREG|0o640 || st.Uid != 12 || st.Gid != 34 || st.Ino != nodeDisk || st.Nlink != 1 || st.Blksize != 128<<10 {
		t.Errorf("%+v", st)
	}
	if got := time.Unix(st.Mtim.Unix()); !got.Equal(d.ModTime()) || st.Ctim != st.Mtim {
		t.Errorf("mtime %v, ctime %v, want %v", st.Mtim, st.Ctim, d.ModTime())
	}
	before := st
	file := open(t, path, os.O_RDWR)
	if _, err := file.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	if st = stat(t, path); st.Mtim == before.Mtim {
		t.Error("a write did not change mtime")
	}
	if err := os.Chmod(path, 0o4604); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, 65534, 65533); err != nil {
		t.Fatal(err)
	}
	atime, mtime := time.Unix(1000, 5), time.Unix(2000, 6)
	if err := os.Chtimes(path, atime, mtime); err != nil {
		t.Fatal(err)
	}
	st = stat(t, path)
	if st.Mode != unix.S_IFREG|0o604 || st.Uid != 65534 || st.Gid != 65533 {
		t.Errorf("mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
	}
	if !time.Unix(st.Mtim.Unix()).Equal(mtime) || !time.Unix(st.Atim.Unix()).Equal(atime) || !d.ModTime().Equal(mtime) {
		t.Errorf("atime %v, mtime %v", st.Atim, st.Mtim)
	}
	if err := os.Chown(path, -1, 7); err != nil {
		t.Fatal(err)
	}
	if st = stat(t, path); st.Uid != 65534 || st.Gid != 7 {
		t.Errorf("chgrp gave %d:%d", st.Uid, st.Gid)
	}
	var stx unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &stx); err != nil {
		t.Fatal(err)
	}
	created := d.layer(0).status.Created
	if stx.Mask&unix.STATX_BTIME == 0 || stx.Btime.Sec != created.Unix() || stx.Btime.Nsec != 5 || stx.Size != mib || stx.Ino != nodeDisk {
		t.Errorf("statx %+v", stx)
	}
}

func TestMappingsOfTheDisk(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{})
	path := filepath.Join(dir, nameDisk)
	runHelper(t, "mmap-write", path, "through a mapping")
	if got := d.bytes(8192, 17); string(got) != "through a mapping" {
		t.Errorf("the disk holds %q", got)
	}
	// What the kernel cached for a mapping goes with a revert.
	first := runHelper(t, "mmap", path)
	if err := write(t, filepath.Join(dir, "control/snapshot"), "one"); err != nil {
		t.Fatal(err)
	}
	file := open(t, path, os.O_RDWR)
	if _, err := file.WriteAt([]byte("new"), 8192); err != nil {
		t.Fatal(err)
	}
	if second := runHelper(t, "mmap", path); second == first {
		t.Error("a mapping does not see a write")
	}
	file.Close()
	waitFor(t, "the handles to go", func() bool { return write(t, filepath.Join(dir, "control/revert"), "one") == nil })
	if third := runHelper(t, "mmap", path); third != first {
		t.Error("a mapping does not see a revert")
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 200 {
		if done() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("waited in vain for %s", what)
}

func TestManyOpensAtOnce(t *testing.T) {
	dir, d, _ := mounted(t, 4*mib, Options{})
	path := filepath.Join(dir, nameDisk)
	var all sync.WaitGroup
	for worker := range 16 {
		all.Go(func() {
			for i := range 20 {
				file, err := os.OpenFile(path, os.O_RDWR, 0)
				if err != nil {
					t.Error(err)
					return
				}
				off := int64(worker*20+i) * 8192
				want := bytes.Repeat([]byte{byte(worker + 1)}, 8192)
				if _, err := file.WriteAt(want, off); err != nil {
					t.Error(err)
				}
				got := make([]byte, 8192)
				if _, err := file.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
					t.Errorf("worker %d reads back otherwise: %v", worker, err)
				}
				file.Close()
			}
		})
	}
	all.Wait()
	waitFor(t, "the last handle to be closed", func() bool {
		return len(d.opens()) == 0
	})
}

func TestOpenSaysWho(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{})
	open(t, filepath.Join(dir, nameDisk), os.O_RDWR)
	open(t, filepath.Join(dir, "layers/base.raw"), os.O_RDONLY)
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	command := string(bytes.TrimSpace(comm))
	want := []chain.OpenStatus{
		{File: "disk.raw", PID: os.Getpid(), Command: command, Write: true},
		{File: "layers/base.raw", PID: os.Getpid(), Command: command},
	}
	if got := d.opens(); !slices.Equal(got, want) {
		t.Errorf("open: %+v, want %+v", got, want)
	}
}

func TestErrnosReachTheCaller(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{})
	file := open(t, filepath.Join(dir, nameDisk), os.O_RDWR)
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{fmt.Errorf("allocate: %w", &os.PathError{Op: "fallocate", Path: "x", Err: unix.ENOSPC}), unix.ENOSPC},
		{fmt.Errorf("write: %w", overlay.ErrFailed), unix.EIO},
		{errors.New("anything"), unix.EIO},
		{fmt.Errorf("host: %w", unix.ENOSYS), unix.EIO},
		// QEMU stops a VM for ENOSPC alone.
		{fmt.Errorf("allocate: %w", &os.PathError{Op: "write", Path: "x", Err: unix.EDQUOT}), unix.ENOSPC},
		{fmt.Errorf("allocate: %w", &os.PathError{Op: "truncate", Path: "x", Err: unix.EFBIG}), unix.ENOSPC},
	} {
		for call, do := range map[string]func() error{
			"WriteAt": func() error { _, err := unix.Pwrite(int(file.Fd()), []byte{1}, 0); return err },
			"Flush":   func() error { return unix.Fsync(int(file.Fd())) },
			"Discard": func() error {
				return unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
			},
		} {
			d.failWith(call, c.err)
			if err := do(); err != c.want {
				t.Errorf("%s that fails with %q: %v, want %v", call, c.err, err, c.want)
			}
			d.failWith(call, nil)
		}
	}
	d.failWith("ReadAt", fmt.Errorf("L2 table: %w", qcow2.ErrCorrupt))
	if _, err := unix.Pread(int(file.Fd()), make([]byte, 10), 0); err != unix.EIO {
		t.Errorf("read: %v, want EIO", err)
	}
}

func TestPanicBecomesEIO(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{})
	file := open(t, filepath.Join(dir, nameDisk), os.O_RDWR)
	buf := make([]byte, 4096)
	for _, c := range []struct {
		call string
		do   func() error
	}{
		{"ReadAt", func() error { _, err := unix.Pread(int(file.Fd()), buf, 0); return err }},
		{"WriteAt", func() error { _, err := unix.Pwrite(int(file.Fd()), buf, 0); return err }},
		{"Flush", func() error { return unix.Fsync(int(file.Fd())) }},
		{"Discard", func() error {
			return unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
		}},
		{"Snapshot", func() error { return write(t, filepath.Join(dir, "control/snapshot"), "x") }},
		{"OpenView", func() error {
			f, err := os.Open(filepath.Join(dir, "layers/base.raw"))
			f.Close()
			return err
		}},
		{"Status", func() error { _, err := os.ReadFile(filepath.Join(dir, nameStatus)); return err }},
	} {
		d.panicIn(c.call, true)
		for range 3 {
			if err := c.do(); !errors.Is(err, unix.EIO) {
				t.Errorf("panic in %s: %v, want EIO", c.call, err)
			}
		}
		d.panicIn(c.call, false)
		if err := c.do(); err != nil {
			t.Errorf("%s after its panic: %v", c.call, err)
		}
	}
}

func TestReadOnlyDisk(t *testing.T) {
	top := t.TempDir()
	d := newFakeDisk(top, mib)
	if err := d.Snapshot("one"); err != nil {
		t.Fatal(err)
	}
	d.readOnly = true
	dir := filepath.Join(top, "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	serve(t, d, dir, Options{})
	for name, err := range map[string]error{
		"open for writing": func() error {
			f, err := os.OpenFile(filepath.Join(dir, nameDisk), os.O_RDWR, 0)
			f.Close()
			return err
		}(),
		"control": write(t, filepath.Join(dir, "control/snapshot"), "two"),
		"grow":    os.Truncate(filepath.Join(dir, nameDisk), 2*mib),
		"chmod":   os.Chmod(filepath.Join(dir, nameDisk), 0o600),
		"rename":  os.Rename(filepath.Join(dir, "layers/one.raw"), filepath.Join(dir, "layers/two.raw")),
		"remove":  os.Remove(filepath.Join(dir, "layers/one.raw")),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v, want EROFS", name, err)
		}
	}
	// Nothing can be set here, which libvirt must learn before it tries.
	if _, err := unix.Getxattr(filepath.Join(dir, nameDisk), rememberedPrefix+"security.dac", make([]byte, 64)); err != unix.EOPNOTSUPP {
		t.Errorf("asking for the owner of before: %v, want EOPNOTSUPP", err)
	}
	for _, name := range []string{nameDisk, "layers/one.raw", nameStatus, nameStatusJSON, "control/snapshot"} {
		if _, err := os.ReadFile(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}
