package main

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// slowFile is an image on a host file system that takes its time over each
// read, once asked to: what copies it can be met under way, however fast the
// machine is.
type slowFile struct {
	fs.Inode
	size  int64
	pause atomic.Int64 // nanoseconds for each read, of 128 KiB at most
}

var (
	_ fs.NodeOpener    = (*slowFile)(nil)
	_ fs.NodeReader    = (*slowFile)(nil)
	_ fs.NodeGetattrer = (*slowFile)(nil)
)

func (f *slowFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *slowFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size, out.Mtime = 0o600, uint64(f.size), 1
	out.Blocks, out.Blksize = uint64(f.size)/512, 4096
	return 0
}

func (f *slowFile) Read(ctx context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	select {
	case <-time.After(time.Duration(f.pause.Load())):
	case <-ctx.Done():
		return nil, syscall.EINTR
	}
	p = p[:max(0, min(int64(len(p)), f.size-off))]
	for i := range p {
		p[i] = byte((off + int64(i)) >> 12)
	}
	return fuse.ReadResultData(p), 0
}

// slowDisk mounts a disk at dir/mnt whose disk directory is dir/vm.varve, with
// a snapshot "one" right on a base that becomes slow to copy at slow, and fast
// again at fast.
func slowDisk(t *testing.T) (dir string, fast func()) {
	t.Helper()
	dir = hostDir(t)
	for _, d := range []string{"host", "mnt"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	file := &slowFile{size: 96 << 20}
	root := &fs.Inode{}
	server, err := fs.Mount(filepath.Join(dir, "host"), root, &fs.Options{OnAdd: func(ctx context.Context) {
		root.AddChild("vm.raw", root.NewPersistentInode(ctx, file, fs.StableAttr{Mode: syscall.S_IFREG}), true)
	}})
	if err != nil {
		t.Fatal(err)
	}
	fast = func() { file.pause.Store(0) }
	t.Cleanup(func() { server.Unmount() })
	t.Cleanup(func() {
		fast()
		vv(t, dir, "umount", "vm.varve")
	})
	must(t, dir, "mount", "host/vm.raw", "mnt", "--disk", "vm.varve")
	must(t, dir, "snapshot", "mnt", "one")
	file.pause.Store(int64(10 * time.Millisecond))
	return dir, fast
}
