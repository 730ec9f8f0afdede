package fs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"varve/chain"
)

// TestFallocateAsAPlainFile: what fallocate does to the size of disk.raw is what it does
// to that of a plain file on the host, ext4 or the like, and its errors are the same.
// The calls build on each other, as both files grow.
func TestFallocateAsAPlainFile(t *testing.T) {
	const keep, punch, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	at := t.TempDir()
	disk := filepath.Join(at, "d.varve")
	if _, err := chain.Create(disk, chain.CreateOptions{Size: 4 * mib}); err != nil {
		t.Fatal(err)
	}
	dir, _ := realMount(t, disk)
	raw := open(t, filepath.Join(dir, nameDisk), os.O_RDWR)
	plain := open(t, filepath.Join(at, "plain"), os.O_RDWR|os.O_CREATE)
	if err := plain.Truncate(4 * mib); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		mode   uint32
		off, n int64
		want   int64 // the size, for whoever reads this
	}{
		{keep, 3 * mib, 2 * mib, 4 * mib},
		{keep, 8 * mib, mib, 4 * mib},
		{0, mib, mib, 4 * mib},
		{0, 3*mib + 512, mib, 4*mib + 512},
		{0, 8 * mib, mib, 9 * mib},
		{zero | keep, 8 * mib, 2 * mib, 9 * mib},
		{zero, 8 * mib, 2 * mib, 10 * mib},
		{zero, 11 * mib, 512, 11*mib + 512},
		{punch | keep, 10 * mib, 20 * mib, 11*mib + 512},
		{punch | keep, 20 * mib, mib, 11*mib + 512},
		{punch, 0, mib, 11*mib + 512},
		{0, 0, 0, 11*mib + 512},
		{0, -1, mib, 11*mib + 512},
		{0, 0, 1<<63 - 1, 11*mib + 512},
		{0, 1<<63 - 2, 10, 11*mib + 512},
	} {
		t.Run(fmt.Sprintf("mode %d, %d from %d", c.mode, c.n, c.off), func(t *testing.T) {
			want := unix.Fallocate(int(plain.Fd()), c.mode, c.off, c.n)
			if got := unix.Fallocate(int(raw.Fd()), c.mode, c.off, c.n); got != want {
				t.Errorf("%v; a plain file: %v", got, want)
			}
			got, size := stat(t, raw.Name()).Size, stat(t, plain.Name()).Size
			if got != size || size != c.want {
				t.Errorf("%d bytes; a plain file has %d; want %d", got, size, c.want)
			}
		})
	}
	if got, want := raw.Truncate(1<<63-1), plain.Truncate(1<<63-1); errnoIn(got) != unix.EFBIG || errnoIn(want) != unix.EFBIG {
		t.Errorf("truncate: %v; a plain file: %v", got, want)
	}
}

func errnoIn(err error) error {
	if e, ok := err.(*os.PathError); ok {
		return e.Err
	}
	return err
}

// TestReservationWithoutRoom: a disk that grows never shrinks again, so a reservation
// behind its end that the host has no room for leaves size and host as they were.
func TestReservationWithoutRoom(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "d.varve")
	if _, err := chain.Create(disk, chain.CreateOptions{Size: 4 * mib}); err != nil {
		t.Fatal(err)
	}
	dir, _ := realMount(t, disk)
	raw := open(t, filepath.Join(dir, nameDisk), os.O_RDWR)
	var host unix.Statfs_t
	if err := unix.Statfs(disk, &host); err != nil {
		t.Fatal(err)
	}
	// Twice all that the host has: what others free meanwhile cannot be enough.
	if err := unix.Fallocate(int(raw.Fd()), 0, mib, 2*int64(host.Blocks)*host.Bsize); err != unix.ENOSPC {
		t.Errorf("%v, want ENOSPC", err)
	}
	if st := stat(t, raw.Name()); st.Size != 4*mib || st.Blocks != 0 {
		t.Errorf("%d bytes in %d blocks", st.Size, st.Blocks)
	}
}
