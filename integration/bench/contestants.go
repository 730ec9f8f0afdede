package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// contestant is one way to a disk. Two of the same value are one.
type contestant struct {
	kind    kind
	depth   int    // files below the writable one; 0 where there is no chain
	written bool   // the whole disk was written before
	fresh   bool   // started anew for each turn, with nothing written
	file    string // in the mount, "" for disk.raw (varve)
	flags   string // of varve mount, one
	quarter bool   // works on a disk of a quarter of the size
}

type kind string

const (
	varveMount kind = "varve"
	qsd        kind = "qemu-storage-daemon"
	qsdExtL2   kind = "qemu-storage-daemon, extended L2"
	nbdfuse    kind = "nbdfuse on qemu-nbd"
	loopback   kind = "loopback" // one file through go-fuse
	rawFile    kind = "raw file"
	loopDevice kind = "loop device"
)

const quarterWords = ", a quarter of the bytes"

func (c contestant) String() string {
	words := []string{string(c.kind)}
	if c.depth > 0 {
		words = append(words, "depth "+strconv.Itoa(c.depth))
	}
	if c.file != "" {
		words = append(words, c.file)
	}
	if c.flags != "" {
		words = append(words, c.flags)
	}
	if c.quarter {
		return strings.Join(words, ", ") + quarterWords
	}
	return strings.Join(words, ", ")
}

// server is a contestant that is ready.
type server struct {
	file       string // to read and write
	pids       []int  // that serve it
	dir        string // its own files, removed at the end; "" for none
	disk       string // the disk directory (varve)
	mountpoint string // a directory (varve, loopback)
	tool       kind   // what works on the file, where nothing serves it
	monitor    string // QMP socket (qemu-storage-daemon)
	hot        int64  // where the hot range begins, see snapshotBigRow
	stop       func() error
}

func (b *bench) start(c contestant) (*server, error) {
	start := map[kind]func(contestant, *server) error{
		varveMount: b.startVarve, varveBig: b.startBig, sparseExport: b.startSparse, sparseCopy: b.startSparse, qsd: b.startQSD, qsdExtL2: b.startQSD, nbdfuse: b.startNBD,
		copyPlain: b.startTool, copySynced: b.startTool, imgConvert: b.startTool, imgRebase: b.startTool, imgCommit: b.startTool,
		opening: b.startOpening, openingBig: b.startOpening, loopback: b.startLoopback, rawFile: b.startRaw, loopDevice: b.startLoop,
	}[c.kind]
	s := &server{dir: b.scratch("run"), stop: func() error { return nil }}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, err
	}
	b.started = append(b.started, s)
	if err := start(c, s); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

func (b *bench) startVarve(c contestant, s *server) error {
	top, err := b.top(c.depth)
	if err != nil {
		return err
	}
	s.disk = filepath.Join(s.dir, "disk.varve")
	return b.mountVarve(c, s, "--disk", s.disk, top)
}

// mountVarve mounts a source that is the last of args.
func (b *bench) mountVarve(c contestant, s *server, args ...string) error {
	s.mountpoint = filepath.Join(s.dir, "mnt")
	if err := os.Mkdir(s.mountpoint, 0o700); err != nil {
		return err
	}
	args = append([]string{"mount", "--foreground"}, args...)
	if c.flags != "" {
		args = append(args, c.flags)
	}
	d, err := launch(filepath.Join(s.dir, "log"), b.varve, append(args, s.mountpoint)...)
	if err != nil {
		return err
	}
	s.stop = func() error {
		_, err := always(b.varve, "umount", s.mountpoint)
		if err != nil {
			return errors.Join(err, d.end(syscall.SIGTERM))
		}
		return d.end(0)
	}
	s.pids = []int{d.cmd.Process.Pid}
	s.file = filepath.Join(s.mountpoint, "disk.raw")
	if c.file != "" {
		s.file = filepath.Join(s.mountpoint, c.file)
	}
	return d.until("mount", exists(s.file))
}

func exists(path string) func() bool {
	return func() bool { _, err := os.Stat(path); return err == nil }
}

// startQSD exports an empty overlay of its own over the chain.
func (b *bench) startQSD(c contestant, s *server) error {
	top, err := b.top(c.depth)
	if err != nil {
		return err
	}
	format := "raw"
	if c.depth > 1 {
		format = "qcow2"
	}
	overlay := filepath.Join(s.dir, "overlay.qcow2")
	create := []string{"create", "-q", "-f", "qcow2", "-b", top, "-F", format}
	if c.kind == qsdExtL2 {
		create = append(create, "-o", "extended_l2=on,cluster_size=128k")
	}
	if _, err := b.command("", "qemu-img", append(create, overlay)...); err != nil {
		return err
	}
	s.file, s.monitor = filepath.Join(s.dir, "export"), filepath.Join(s.dir, "qmp")
	if err := os.WriteFile(s.file, nil, 0o600); err != nil {
		return err
	}
	d, err := launch(filepath.Join(s.dir, "log"), "qemu-storage-daemon",
		"--blockdev", "driver=file,node-name=f,discard=unmap,filename="+overlay,
		"--blockdev", "driver=qcow2,node-name=q,discard=unmap,file=f", // without it a discard does nothing
		"--export", "type=fuse,id=e,node-name=q,mountpoint="+s.file+",writable=on,growable=off",
		"--chardev", "socket,path="+s.monitor+",server=on,wait=off,id=c", "--monitor", "chardev=c")
	if err != nil {
		return err
	}
	s.pids = []int{d.cmd.Process.Pid}
	s.stop = func() error { return d.end(syscall.SIGTERM) }
	return d.until("export", func() bool { return sizeOf(s.file) == b.size() })
}

func sizeOf(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return -1
	}
	return info.Size()
}

func (b *bench) startNBD(c contestant, s *server) error {
	top, err := b.top(c.depth)
	if err != nil {
		return err
	}
	format := "raw"
	if c.depth > 1 {
		format = "qcow2"
	}
	overlay, socket := filepath.Join(s.dir, "overlay.qcow2"), filepath.Join(s.dir, "socket")
	if _, err := b.command("", "qemu-img", "create", "-q", "-f", "qcow2", "-b", top, "-F", format, overlay); err != nil {
		return err
	}
	nbd, err := launch(filepath.Join(s.dir, "log-nbd"), "qemu-nbd", "-t", "-e", "8", "--cache=writeback", "-f", "qcow2", "-k", socket, overlay)
	if err != nil {
		return err
	}
	s.stop = func() error { return nbd.end(syscall.SIGTERM) }
	if err := nbd.until("socket", exists(socket)); err != nil {
		return err
	}
	mountpoint := filepath.Join(s.dir, "mnt")
	if err := os.Mkdir(mountpoint, 0o700); err != nil {
		return err
	}
	s.file = filepath.Join(mountpoint, "nbd")
	fuse, err := launch(filepath.Join(s.dir, "log-nbdfuse"), "nbdfuse", s.file, "--unix", socket)
	if err != nil {
		return err
	}
	s.pids = []int{nbd.cmd.Process.Pid, fuse.cmd.Process.Pid}
	s.stop = func() error {
		return errors.Join(unmount(mountpoint), fuse.end(0), nbd.end(syscall.SIGTERM))
	}
	return fuse.until("mount", func() bool { return sizeOf(s.file) == b.size() })
}

func (b *bench) startLoopback(_ contestant, s *server) error {
	flat, err := b.flat()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	s.mountpoint = filepath.Join(s.dir, "mnt")
	if err := os.Mkdir(s.mountpoint, 0o700); err != nil {
		return err
	}
	d, err := launch(filepath.Join(s.dir, "log"), self, loopbackCommand, flat, s.mountpoint)
	if err != nil {
		return err
	}
	s.pids = []int{d.cmd.Process.Pid}
	s.stop = func() error { return errors.Join(unmount(s.mountpoint), d.end(0)) }
	s.file = filepath.Join(s.mountpoint, loopbackName)
	return d.until("mount", exists(s.file))
}

func (b *bench) startRaw(_ contestant, s *server) (err error) {
	s.file, err = b.flat()
	return err
}

func (b *bench) startLoop(_ contestant, s *server) error {
	flat, err := b.flat()
	if err != nil {
		return err
	}
	device, err := b.command("", "losetup", "--find", "--show", flat)
	if err != nil {
		return err
	}
	s.file = strings.TrimSpace(device)
	s.stop = func() error { _, err := always("losetup", "-d", s.file); return err }
	return nil
}

// unmount waits a moment for what still has a file open.
func unmount(mountpoint string) error {
	var err error
	for range 50 {
		if err = unix.Unmount(mountpoint, 0); err == nil || errors.Is(err, unix.EINVAL) {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return errors.Join(fmt.Errorf("unmount %s: %w", mountpoint, err), unix.Unmount(mountpoint, unix.MNT_DETACH))
}
