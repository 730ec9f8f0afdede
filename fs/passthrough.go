package fs

import (
	"fmt"
	"log/slog"
	"os"
	"sync"

	"varve/fs/device"
)

// passthrough lets the kernel read a layer that is wholly one file of the host
// from that file, without asking us: a base that is a raw image, at the speed of
// the file itself (Linux 6.9, mounted by root). disk.raw is never read like that:
// its file changes at a snapshot, and the kernel takes one file for an inode as
// long as that is open.
type passthrough struct {
	mu     sync.Mutex // guards all below, and what a backing counts
	kernel *device.Conn
	log    *slog.Logger
	nodes  map[uint64]*backing // nil where there is no passing through
}

// backing is a host file that the kernel knows, for the opens of one node.
type backing struct {
	owner *passthrough
	node  uint64
	id    int32
	opens int
}

// begin allows it. Before that, and without it, open gives nil.
func (p *passthrough) begin(kernel *device.Conn, log *slog.Logger) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kernel, p.log, p.nodes = kernel, log, make(map[uint64]*backing)
}

// open is for an open of a node; nil when the kernel has to ask us.
func (p *passthrough) open(node uint64, v view) *backing {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nodes == nil {
		return nil
	}
	if b := p.nodes[node]; b != nil {
		b.opens++
		return b
	}
	host := v.HostFile()
	if host == nil || host.Fd() < 0 {
		return nil
	}
	id, err := p.register(host.Fd())
	if err != nil {
		// For good: an inode cannot be open both ways.
		p.log.Info("the kernel does not read the base by itself", "error", err)
		p.nodes = nil
		return nil
	}
	b := &backing{owner: p, node: node, id: id, opens: 1}
	p.nodes[node] = b
	return b
}

// register makes a file known to the kernel, by a description of its own: image
// locks belong to a description, and go with it (M18).
func (p *passthrough) register(fd int) (int32, error) {
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return 0, err
	}
	defer f.Close() // the kernel keeps it as long as it needs it
	return p.kernel.Backing(int(f.Fd()))
}

// release ends an open. It may be called on nil.
func (b *backing) release() {
	if b == nil {
		return
	}
	p := b.owner
	p.mu.Lock()
	defer p.mu.Unlock()
	if b.opens--; b.opens > 0 {
		return
	}
	delete(p.nodes, b.node)
	if err := p.kernel.ReleaseBacking(b.id); err != nil {
		p.log.Warn("the kernel keeps a file open", "error", err)
	}
}
