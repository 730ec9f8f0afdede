package main

import (
	"errors"
	"os"
	"runtime"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	varvefs "varve/fs"
)

// loopbackCommand as the first argument makes this program serve one file, as a
// process of its own: its processor time is counted as that of the others is.
const (
	loopbackCommand = "serve-loopback"
	loopbackName    = "disk.raw"
	loopbackNode    = 2
)

// loopbackFS is the ceiling for a file system on go-fuse's own server: one file,
// one system call for each request, mounted and opened on varve's terms.
type loopbackFS struct {
	fuse.RawFileSystem
	file *os.File
}

func serveLoopback(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: " + loopbackCommand + " FILE MOUNTPOINT")
	}
	// As many threads as varve gives itself.
	runtime.GOMAXPROCS(max(4, runtime.NumCPU()))
	file, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	options := varvefs.KernelOptions()
	options.FsName, options.Name = args[0], "varve-bench"
	options.Options = []string{"default_permissions"}
	options.DirectMountStrict = true
	server, err := fuse.NewServer(&loopbackFS{fuse.NewDefaultRawFileSystem(), file}, args[1], &options)
	if err != nil {
		return err
	}
	server.Serve()
	return nil
}

func (l *loopbackFS) attr(node uint64, out *fuse.Attr) fuse.Status {
	if node == fuse.FUSE_ROOT_ID {
		out.Ino, out.Mode, out.Nlink = node, unix.S_IFDIR|0o700, 2
		return fuse.OK
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(l.file.Fd()), &stat); err != nil {
		return fuse.ToStatus(err)
	}
	out.Ino, out.Mode, out.Nlink = node, unix.S_IFREG|0o600, 1
	out.Size, out.Blocks, out.Blksize = uint64(stat.Size), uint64(stat.Blocks), 4096
	return fuse.OK
}

func (l *loopbackFS) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if in.NodeId != fuse.FUSE_ROOT_ID || name != loopbackName {
		return fuse.ENOENT
	}
	out.NodeId = loopbackNode
	out.SetEntryTimeout(time.Second)
	out.SetAttrTimeout(time.Second)
	return l.attr(loopbackNode, &out.Attr)
}

func (l *loopbackFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.SetTimeout(time.Second)
	return l.attr(in.NodeId, &out.Attr)
}

func (l *loopbackFS) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = varvefs.DiskOpenFlags
	return fuse.OK
}

func (l *loopbackFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, err := unix.Pread(int(l.file.Fd()), buf, int64(in.Offset))
	if err != nil {
		return nil, fuse.ToStatus(err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (l *loopbackFS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n, err := unix.Pwrite(int(l.file.Fd()), data, int64(in.Offset))
	if err != nil {
		return 0, fuse.ToStatus(err)
	}
	return uint32(n), fuse.OK
}

func (l *loopbackFS) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status {
	return fuse.ToStatus(unix.Fdatasync(int(l.file.Fd())))
}

func (l *loopbackFS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }
func (l *loopbackFS) Release(<-chan struct{}, *fuse.ReleaseIn)         {}

func (l *loopbackFS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	return fuse.ToStatus(unix.Fallocate(int(l.file.Fd()), in.Mode, int64(in.Offset), int64(in.Length)))
}
