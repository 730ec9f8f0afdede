package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"varve/integration/harness"
)

// oddSectors is the size of an image of an odd number of sectors, unevenImage of one
// that ends within a sector, in bytes.
const (
	oddSectors  = 1001 * 512
	unevenImage = oddSectors - 348
)

// syscallFile is a file that the same calls are made on.
type syscallFile struct {
	t    *testing.T
	path string
	buf  []byte // aligned to a page
}

func newSyscallFile(t *testing.T, path string) *syscallFile {
	t.Helper()
	buf, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(buf); err != nil {
			t.Error(err)
		}
	})
	return &syscallFile{t, path, buf}
}

func (f *syscallFile) open(flags int) int {
	f.t.Helper()
	fd, err := unix.Open(f.path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		f.t.Fatal(&os.PathError{Op: "open", Path: f.path, Err: err})
	}
	return fd
}

// told is what a call gave: how many bytes and which, or its errno.
func told(n int, p []byte, err error) string {
	if err != nil {
		return unix.ErrnoName(err.(unix.Errno))
	}
	return fmt.Sprintf("%d %x", n, p)
}

// waysToOpen are how a file gets O_DIRECT, or loses it: the flag counts that it has when
// a call is made.
var waysToOpen = map[string]func(f *syscallFile, flags int) int{
	"buffered": func(f *syscallFile, flags int) int { return f.open(flags) },
	"O_DIRECT": func(f *syscallFile, flags int) int { return f.open(flags | unix.O_DIRECT) },
	"O_DIRECT by fcntl": func(f *syscallFile, flags int) int {
		fd := f.open(flags)
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_DIRECT); err != nil {
			f.t.Fatalf("fcntl of %s: %v", f.path, err)
		}
		return fd
	},
	"O_DIRECT taken away": func(f *syscallFile, flags int) int {
		fd := f.open(flags | unix.O_DIRECT)
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0); err != nil {
			f.t.Fatalf("fcntl of %s: %v", f.path, err)
		}
		return fd
	},
}

// calls makes reads, and where it is to write writes, at every kind of offset and length
// around the start and the end, and gives what each gave.
func (f *syscallFile) calls(way string, size int64, write bool) map[string]string {
	f.t.Helper()
	flags := unix.O_RDONLY
	if write {
		flags = unix.O_RDWR
	}
	fd := waysToOpen[way](f, flags)
	defer unix.Close(fd)
	got := map[string]string{}
	last := size / 512 * 512
	if last == size {
		last -= 512
	}
	for _, off := range []int64{0, 1, 511, 512, 1536, 4096, last - 512, last - 1, last, last + 256, size - 1, size, size + 1, size + 512, (size + 4095) &^ 4095} {
		for _, n := range []int{0, 1, 511, 512, 513, 1024, 4096, 12 << 10} {
			clear(f.buf[:n])
			k, err := unix.Pread(fd, f.buf[:n], off)
			got[fmt.Sprintf("%s: read %d at %d", way, n, off-last)] = told(k, f.buf[:n], err)
			if !write || off+int64(n) > size {
				continue // a disk does not grow by that
			}
			copy(f.buf, bytes.Repeat([]byte{byte(off), byte(n)}, n/2+1))
			k, err = unix.Pwrite(fd, f.buf[:n], off)
			got[fmt.Sprintf("%s: write %d at %d", way, n, off-last)] = told(k, nil, err)
		}
	}
	return got
}

func sameAnswers(t *testing.T, plain, ours map[string]string) {
	t.Helper()
	wrong := 0
	for call, want := range plain {
		if got := ours[call]; got != want {
			if wrong++; wrong < 6 {
				t.Errorf("%s: %.40s, on the plain file %.40s", call, got, want)
			}
		}
	}
	if wrong > 5 || len(ours) != len(plain) {
		t.Errorf("%d of %d calls differ, of %d on the plain file", wrong, len(ours), len(plain))
	}
}

// TestDirectLikeAFile makes the same reads and writes, with O_DIRECT and without, on
// files of ext4 and xfs and on those of a mount, of whole sectors and not: each gives
// the same, by errno, count and content.
func TestDirectLikeAFile(t *testing.T) {
	content := make([]byte, oddSectors)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(content)
	for i, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			host := harness.SmallHost(t, kind, 600<<20) // blocks of 4 KiB
			file := func(name string, size int64) string {
				path := filepath.Join(host, name)
				if err := os.WriteFile(path, content[:size], 0o600); err != nil {
					t.Fatal(err)
				}
				harness.Run(t, "sync", path)
				return path
			}
			frozen, whole, uneven := file("frozen.plain", oddSectors), file("whole.plain", oddSectors), file("uneven.plain", unevenImage)
			m := harness.MountDisk(t, file("whole.raw", oddSectors))
			m.Do("snapshot", "one")
			other := harness.MountDisk(t, file("uneven.raw", unevenImage))
			for way := range waysToOpen {
				sameAnswers(t, newSyscallFile(t, frozen).calls(way, oddSectors, false), newSyscallFile(t, m.Layer("one")).calls(way, oddSectors, false))
				sameAnswers(t, newSyscallFile(t, whole).calls(way, oddSectors, true), newSyscallFile(t, m.Raw()).calls(way, oddSectors, true))
				if strings.HasSuffix(way, "by fcntl") || strings.HasSuffix(way, "taken away") {
					continue // the kernel reads a raw base itself, with the flags of its open
				}
				sameAnswers(t, newSyscallFile(t, uneven).calls(way, unevenImage, false), newSyscallFile(t, other.Layer("base")).calls(way, unevenImage, false))
			}
			harness.Run(t, "cmp", whole, m.Raw())
			if i == 0 {
				sameAsOnFiles(t, whole, m.Raw())
			}
		})
	}
}

// sameAsOnFiles makes the other calls that programs find out with what a file can do.
func sameAsOnFiles(t *testing.T, plain, ours string) {
	t.Helper()
	const blksszget = 0x1268
	answers := func(path string) map[string]string {
		f := newSyscallFile(t, path)
		got := map[string]string{}
		for name, flags := range map[string]int{"read-only": unix.O_RDONLY, "writable": unix.O_RDWR, "direct": unix.O_RDWR | unix.O_DIRECT} {
			fd := f.open(flags)
			for _, request := range []uint{blksszget, unix.BLKGETSIZE64, unix.BLKPBSZGET, unix.BLKIOMIN, unix.BLKDISCARD, 0x5331 /* CDROMEJECT */} {
				_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(&f.buf[0])))
				got[fmt.Sprintf("%s: ioctl 0x%x", name, request)] = fmt.Sprint(errno)
			}
			for _, mode := range []uint32{
				0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE,
				unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE,
				unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE, 1 << 20,
			} {
				for _, r := range [][2]int64{{0, 512}, {1, 1}, {100, 5000}, {0, 0}, {4096, -1}, {-1, 4096}, {oddSectors - 512, 512}, {1<<63 - 4096, 8192}} {
					err := unix.Fallocate(fd, mode, r[0], r[1])
					got[fmt.Sprintf("%s: fallocate 0x%x %d %d", name, mode, r[0], r[1])] = fmt.Sprint(err)
				}
			}
			for _, mode := range []uint32{unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_KEEP_SIZE} {
				err := unix.Fallocate(fd, mode, oddSectors+4096, 4096)
				got[fmt.Sprintf("%s: fallocate 0x%x behind the end", name, mode)] = fmt.Sprint(err)
			}
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				t.Fatal(err)
			}
			got[name+": size"] = fmt.Sprint(st.Size)
			unix.Close(fd)
		}
		return got
	}
	sameAnswers(t, answers(plain), answers(ours))
	harness.Run(t, "cmp", plain, ours)
}

// TestDisksOfAnySize has QEMU, in each way in which it opens a disk, read and write the
// last sector of disks of an odd number of sectors, full of data, blank, and of an image
// that ends within one.
func TestDisksOfAnySize(t *testing.T) {
	dir := t.TempDir()
	full, uneven, blank := filepath.Join(dir, "full.raw"), filepath.Join(dir, "uneven.raw"), filepath.Join(dir, "blank.varve")
	content := make([]byte, oddSectors)
	_, _ = rand.NewChaCha8([32]byte{4}).Read(content)
	for path, size := range map[string]int{full: oddSectors, uneven: unevenImage} {
		if err := os.WriteFile(path, content[:size], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	harness.Run(t, harness.Varve(), "create", blank, "--size", fmt.Sprint(oddSectors))
	for _, source := range []string{full, uneven, blank} {
		t.Run(filepath.Base(source), func(t *testing.T) {
			m := harness.MountDisk(t, source)
			last := fmt.Sprint(oddSectors - 512)
			for i, way := range []string{"-t none", "-t none -i native", "-t none -i io_uring", "-t directsync", "-t directsync -i native", "-t writeback -i io_uring", "-t writethrough"} {
				args := append([]string{"-f", "raw"}, strings.Fields(way)...)
				harness.Run(t, "qemu-io", append(args, "-c", fmt.Sprintf("write -P %d %s 512", i+1, last), "-c", fmt.Sprintf("read -P %d %s 512", i+1, last), "-c", "write 512 1024", m.Raw())...)
			}
			// Both command lines of docs/guide.md: a VM that opens it, and goes no further.
			for _, options := range []string{"cache=none,aio=native,discard=unmap", "cache=none,aio=io_uring"} {
				harness.Hold(t, harness.VM(m.Raw(), "raw", options)...).Stop()
			}
			harness.Hold(t, "qemu-system-x86_64", "-accel", "tcg", "-m", "16M", "-S", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio",
				"-blockdev", "driver=raw,node-name=disk,discard=unmap,file.driver=file,file.filename="+m.Raw()+",file.cache.direct=on,file.aio=native", "-device", "virtio-blk-pci,drive=disk").Stop()
			m.Do("snapshot", "one")
			harness.Run(t, "qemu-io", "-r", "-f", "raw", "-t", "none", "-i", "native", "-c", "read -P 7 "+last+" 512", m.Layer("one"))
			if source == full {
				sameLoops(t, m.Raw())
			}
		})
	}
}

// sameLoops makes loop devices of a file and of a plain copy of it, which are equal.
func sameLoops(t *testing.T, ours string) {
	t.Helper()
	plain := filepath.Join(t.TempDir(), "plain.raw")
	harness.Run(t, "cp", "--sparse=never", ours, plain)
	for _, flags := range [][]string{{"--direct-io=on"}, {"--sector-size", "4096"}, {"--sector-size", "4096", "--direct-io=on"}} {
		about := func(file string) string {
			r := harness.Try(t, "losetup", append([]string{"--find", "--show"}, append(flags, file)...)...)
			if r.Code != 0 {
				return fmt.Sprint("losetup ", r.Code)
			}
			device := strings.TrimSpace(r.Stdout)
			defer harness.Run(t, "losetup", "-d", device)
			harness.Run(t, "dd", "if=/dev/zero", "of="+device, "bs=4k", "count=1", "seek=3", "oflag=direct", "conv=notrunc", "status=none")
			return harness.Run(t, "losetup", "-n", "-O", "DIO,LOG-SEC,RO", device) + harness.Run(t, "blockdev", "--getsize64", "--getss", device) +
				harness.Shell(t, "head -c 512000 "+device+" | sha256sum") // what is less than a block of 4,096 no such device reads
		}
		if got, want := about(ours), about(plain); got != want {
			t.Errorf("losetup %v gives %q, of a plain file %q", flags, got, want)
		}
	}
	harness.Run(t, "cmp", plain, ours)
}

// TestUnevenImage is the life of an image that ends within a sector: what is said, each
// byte in each view and export, mounted and not, and the last sector, which can be
// written.
func TestUnevenImage(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "odd.raw")
	content := make([]byte, unevenImage)
	_, _ = rand.NewChaCha8([32]byte{5}).Read(content)
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	harness.Guard(t, image)
	point := t.TempDir()
	said := harness.Try(t, harness.Varve(), "mount", image, point)
	harness.Run(t, harness.Varve(), "umount", point)
	if want := fmt.Sprintf("the disk has %d bytes: %d were rounded up to whole sectors of 512, with zeros", oddSectors, unevenImage); said.Code != 0 || !strings.Contains(said.Stderr, want) {
		t.Errorf("the first mount says %q", said.Stderr)
	}
	m := harness.MountDisk(t, image)
	m.Do("snapshot", "one")
	for _, mounted := range []bool{true, false} {
		disk := m.Point
		if !mounted {
			m.Unmount()
			disk = m.Disk
		}
		for _, name := range []string{"one", "base"} {
			qcow2, raw, stream := filepath.Join(dir, name+".qcow2"), filepath.Join(dir, name+".raw"), filepath.Join(dir, name+".stream")
			harness.Run(t, harness.Varve(), "export", disk, name, qcow2, "--force", "--format", "qcow2")
			harness.Run(t, harness.Varve(), "export", disk, name, raw, "--force")
			harness.Shell(t, fmt.Sprintf("%s export %s %s - > %s", harness.Varve(), disk, name, stream))
			harness.SameContent(t, image, "raw", qcow2, "qcow2")
			want := int64(oddSectors)
			if name == "base" {
				want = unevenImage
			}
			for _, file := range []string{raw, stream} {
				harness.Run(t, "cmp", "-n", fmt.Sprint(unevenImage), image, file)
				if info, err := os.Stat(file); err != nil || info.Size() != want {
					t.Errorf("%s: %v bytes, %v", file, info.Size(), err)
				}
			}
		}
		if mounted {
			harness.Run(t, "cmp", image, m.Layer("base"))
			harness.Run(t, harness.Varve(), "diff", m.Point, "base", "one", "--exact")
			harness.Run(t, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P 9 %d 512", oddSectors-512), m.Raw())
			m.Do("resize", fmt.Sprint(oddSectors+100))
			if info, err := os.Stat(m.Raw()); err != nil || info.Size() != oddSectors+512 {
				t.Errorf("after a resize: %v, %v", info, err)
			}
		}
	}
	harness.Run(t, harness.Varve(), "check", m.Disk)
	for _, args := range [][]string{{"resize", m.Disk, fmt.Sprint(2*oddSectors + 1)}, {"create", filepath.Join(dir, "new.varve"), "--size", "100"}, {"clone", m.Disk, "base", filepath.Join(dir, "clone.varve")}} {
		if r := harness.Try(t, harness.Varve(), args...); r.Code != 0 || !strings.Contains(r.Stderr, "rounded up to whole sectors of 512") {
			t.Errorf("varve %q: %d, %q", args, r.Code, r.Stderr)
		}
	}
}
