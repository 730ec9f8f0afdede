package fs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A file open with O_DIRECT refuses what is not aligned to sectors, in data and in holes,
// of the disk, of views and of partitions, and takes the rest; behind the end a read is
// empty. integration's TestDirectLikeAFile compares it with ext4 and xfs.
func TestDirectIsAligned(t *testing.T) {
	const size = 8*mib + 512
	data := partitioned(t, 8*mib, mbrScript)
	dir, _, _ := withDisk(t, append(data, make([]byte, 512)...), Options{})
	buf := aligned(make([]byte, 8192))
	for path, end := range map[string]int64{nameDisk: size, "layers/base.raw": size, "disk.d/p2.raw": 1024, "layers/base.d/p2.raw": 1024} {
		direct := open(t, filepath.Join(dir, path), os.O_RDONLY|unix.O_DIRECT)
		plain := open(t, filepath.Join(dir, path), os.O_RDONLY)
		for _, c := range []struct {
			off   int64
			n     int
			want  int
			wrong bool
		}{
			{0, 1, 1, true}, {0, 512, 512, false}, {0, 1023, 1023, true}, {1, 512, 512, true},
			{end - 512, 512, 512, false}, {end - 512, 4096, 512, false}, {end - 512, 513, 512, true}, {end - 1, 512, 1, true},
			{end, 512, 0, false}, {end + 1, 1, 0, false}, {end - 1, 0, 0, false},
		} {
			if n, err := unix.Pread(int(plain.Fd()), buf[:c.n], c.off); n != c.want || err != nil {
				t.Errorf("%s: read %d at %d: %d, %v", path, c.n, c.off, n, err)
			}
			n, err := unix.Pread(int(direct.Fd()), buf[:c.n], c.off)
			if c.wrong && err != unix.EINVAL || !c.wrong && (n != c.want || err != nil) {
				t.Errorf("%s: read %d at %d with O_DIRECT: %d, %v", path, c.n, c.off, n, err)
			}
		}
	}
	file := open(t, filepath.Join(dir, nameDisk), os.O_RDWR|unix.O_DIRECT)
	for _, c := range []struct {
		off int64
		n   int
		err error
	}{{0, 512, nil}, {0, 100, unix.EINVAL}, {100, 512, unix.EINVAL}, {size - 512, 512, nil}, {size - 512, 1024, nil}, {size, 512, unix.ENOSPC}, {size, 100, unix.EINVAL}} {
		if _, err := unix.Pwrite(int(file.Fd()), buf[:c.n], c.off); err != c.err {
			t.Errorf("write %d at %d with O_DIRECT: %v, want %v", c.n, c.off, err, c.err)
		}
	}
	// The kernel's own requests carry the flag too: a mapping of an uneven range, and reading
	// ahead of a file in the page cache.
	mapped, err := unix.Mmap(int(file.Fd()), 0, 4097, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	mapped[0], mapped[4096] = mapped[4096]+1, 7
	if err := unix.Munmap(mapped); err != nil {
		t.Error(err)
	}
	layer := open(t, filepath.Join(dir, "layers/base.raw"), os.O_RDONLY|unix.O_DIRECT)
	if mapped, err = unix.Mmap(int(layer.Fd()), 8*mib-4096, 4096+512, unix.PROT_READ, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	if mapped[4096+511] != 0 {
		t.Error("the last byte of a mapping is another one")
	}
	if err := unix.Munmap(mapped); err != nil {
		t.Error(err)
	}
	for name, flags := range map[string]int{"status": os.O_RDONLY, "control/resize": os.O_RDONLY} {
		if n, err := open(t, filepath.Join(dir, name), flags|unix.O_DIRECT).Read(buf[:7]); n != 7 || err != nil {
			t.Errorf("%s with O_DIRECT: %d, %v", name, n, err) // these are no images
		}
	}
}
