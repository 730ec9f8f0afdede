package harness

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// SmallHost mounts a new file system of its own, on a loop device, and gives the
// directory: a host that can be full. kind is ext4, xfs or btrfs. The end of the
// test takes it away.
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
	flags := map[string][]string{"ext4": {"-q", "-F", "-m", "0"}, "xfs": {"-q"}, "btrfs": {"-q"}}[kind]
	Run(t, "mkfs."+kind, append(flags, file)...)
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

// Fill takes the space that a file system has left, but for about so many bytes;
// 0 for all. Removing the file that it gives makes room again.
func Fill(t testing.TB, host string, left int64) (filler string) {
	t.Helper()
	f, err := os.CreateTemp(host, "filler-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // nothing was written
	var st unix.Statfs_t
	if err := unix.Statfs(host, &st); err != nil {
		t.Fatal(err)
	}
	end := int64(0)
	for piece := max(4096, int64(st.Bavail)*st.Bsize-left); piece >= 4096; {
		err := unix.Fallocate(int(f.Fd()), 0, end, piece)
		switch {
		case err == nil:
			end += piece
			if left > 0 {
				return f.Name()
			}
		case errors.Is(err, unix.ENOSPC):
			piece /= 2
		case !errors.Is(err, unix.EINTR):
			t.Fatal(err)
		}
	}
	return f.Name()
}
