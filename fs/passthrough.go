package fs

import (
	"fmt"
	"log/slog"
	"os"

	"varve/fs/device"
	"varve/overlay/hostfs"
)

// passthrough lets the kernel read a layer that is wholly one file of the host
// from that file, without asking us: a base that is a raw image, at the speed of
// the file itself (Linux 6.9, mounted by root). disk.raw is never read like that:
// its file changes at a snapshot, and the kernel takes one file for an inode as
// long as that is open.
//
// The kernel takes such files from CAP_SYS_ADMIN alone, which a daemon does not
// keep. So it is told of all when the mount is made: no later operation makes
// another one. It holds them until the connection ends, also that of a layer which
// is gone by then.
type passthrough struct {
	backings map[uint64]int32 // by node; not changed after begin
}

// begin tells the kernel of the files of a disk. An inode cannot be open both ways, so
// it comes before the first open.
func (p *passthrough) begin(kernel *device.Conn, d disk, log *slog.Logger) {
	p.backings = map[uint64]int32{}
	d.EachHostFile(func(id string, host hostfs.File) {
		node, err := layerNode(id)
		if err != nil || host.Fd() < 0 {
			return
		}
		backing, err := register(kernel, host.Fd())
		if err != nil {
			log.Info("the kernel does not read the base by itself", "error", err)
			return
		}
		p.backings[node] = backing
	})
}

// of is the number by which an open of a node names the file; ok is false where the kernel
// has to ask us.
func (p *passthrough) of(node uint64) (backing int32, ok bool) {
	backing, ok = p.backings[node]
	return backing, ok
}

// register makes a file known to the kernel, by a description of its own: image
// locks belong to a description, and go with it (M18).
func register(kernel *device.Conn, fd int) (int32, error) {
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return 0, err
	}
	defer f.Close() // the kernel keeps it as long as it needs it
	return kernel.Backing(int(f.Fd()))
}
