package hostfs

import (
	"errors"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"varve/integration/imagetest"
)

// The bytes are QEMU's, and none of them may be missing (M18): each mode holds
// its own, and is refused while somebody else has one that it excludes.
func TestLockBytes(t *testing.T) {
	all := []int64{100, 101, 102, 103, 104, 200, 201, 202, 203, 204}
	for _, m := range []struct {
		mode          LockMode
		holds, refuse []int64
	}{
		{LockFrozen, []int64{100, 201, 203}, []int64{101, 103, 200}},
		{LockWritable, []int64{100, 101, 103, 201, 203}, []int64{101, 103, 200, 201, 203}},
	} {
		path := imagetest.New(t, "", "1M")
		other := openHost(t, path, os.O_RDWR).(*hostFile)
		for _, at := range all {
			f := openHost(t, path, os.O_RDWR).(*hostFile)
			if err := other.setLock(at, unix.F_RDLCK); err != nil {
				t.Fatal(err)
			}
			err := f.Lock(m.mode)
			if refused := errors.Is(err, ErrLocked); refused != slices.Contains(m.refuse, at) {
				t.Errorf("mode %d while somebody else holds byte %d: %v", m.mode, at, err)
			}
			if err != nil && locked(other, 100) && at != 100 {
				t.Errorf("mode %d was refused for byte %d and holds byte 100", m.mode, at)
			}
			if err := other.setLock(at, unix.F_UNLCK); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		f := openHost(t, path, os.O_RDWR).(*hostFile)
		if err := f.Lock(m.mode); err != nil {
			t.Fatal(err)
		}
		for _, at := range all {
			if held := locked(other, at); held != slices.Contains(m.holds, at) {
				t.Errorf("mode %d: byte %d is held: %v", m.mode, at, held)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// fdatasync(2), fsync(2) and the fsync of a directory are made, and what they say
// comes back: the kernel refuses all three here.
func TestSyncReachesTheKernel(t *testing.T) {
	f := openHost(t, "/dev/null", os.O_RDWR)
	if err := f.Datasync(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("fdatasync: %v", err)
	}
	if err := f.Sync(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("fsync: %v", err)
	}
	if err := OS().SyncDir("/proc"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("fsync of a directory: %v", err)
	}
}
