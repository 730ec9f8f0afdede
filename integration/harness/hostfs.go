package harness

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// SmallHost mounts a new file system of its own, on a loop device, and gives the
// directory: a host that can be full. kind is ext4, xfs, btrfs or "btrfs mixed". The end
// of the test takes it away.
func SmallHost(t testing.TB, kind string, size int64) string {
	t.Helper()
	// Not t.TempDir: that cannot remove what is mounted in it.
	dir, err := os.MkdirTemp("", "host-")
	if err != nil {
		t.Fatal(err)
	}
	file, host := filepath.Join(dir, "file"), filepath.Join(dir, "host")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close(), os.Mkdir(host, 0o755)); err != nil {
		t.Fatal(err)
	}
	make, flags, _ := strings.Cut(map[string]string{"ext4": "ext4 -q -F -m 0", "xfs": "xfs -q", "btrfs": "btrfs -q", "btrfs mixed": "btrfs -q --mixed"}[kind], " ")
	Run(t, "mkfs."+make, append(strings.Fields(flags), file)...)
	Run(t, "mount", "-o", "loop", file, host)
	t.Cleanup(func() {
		if r := Try(t, "umount", host); r.Code != 0 {
			t.Errorf("umount %s: %s", host, r.Stderr)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return host
}

// Filler is a file that takes a file system's space. It is made while there is
// some: a full xfs has no room for an inode.
type Filler struct {
	t    testing.TB
	host string
	f    *os.File
	end  int64
}

// NewFiller makes an empty filler on a host.
func NewFiller(t testing.TB, host string) *Filler {
	t.Helper()
	f, err := os.CreateTemp(host, "filler-")
	if err != nil {
		t.Fatal(err)
	}
	filler := &Filler{t: t, host: host, f: f}
	t.Cleanup(filler.Remove)
	return filler
}

// Fill takes all the space that is left, but for about so many bytes; 0 for all.
func (f *Filler) Fill(left int64) {
	f.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(f.host, &st); err != nil {
		f.t.Fatal(err)
	}
	for piece := max(4096, int64(st.Bavail)*st.Bsize-left); piece >= 4096; {
		err := unix.Fallocate(int(f.f.Fd()), 0, f.end, piece)
		switch {
		case err == nil:
			f.end += piece
			if left > 0 {
				return
			}
		case errors.Is(err, unix.ENOSPC):
			piece /= 2
		case !errors.Is(err, unix.EINTR):
			f.t.Fatal(err)
		}
	}
}

// Remove makes room again. Calling it again does nothing.
func (f *Filler) Remove() {
	if f.f == nil {
		return
	}
	if err := errors.Join(os.Remove(f.f.Name()), f.f.Close()); err != nil {
		f.t.Error(err)
	}
	f.f = nil
}
