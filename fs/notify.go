package fs

import (
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"varve/chain"
	"varve/fs/device"
)

// notifier tells the kernel what it must forget, from a goroutine of its own:
// a notification waits for pages that are being read, so nothing may wait for
// it. Safe for concurrent use.
type notifier struct {
	mu      sync.Mutex // guards pending; held for no call
	pending chain.Change
	wake    chan struct{} // holds one token while pending is not empty
	stop    chan struct{}
	stopped chan struct{}
}

func (n *notifier) init() {
	n.wake = make(chan struct{}, 1)
	n.stop = make(chan struct{})
	n.stopped = make(chan struct{})
}

// add notes a change. It never waits.
func (n *notifier) add(c chain.Change) {
	n.mu.Lock()
	n.pending.Size = n.pending.Size || c.Size
	n.pending.Content = n.pending.Content || c.Content
	n.pending.Layers = n.pending.Layers || c.Layers
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *notifier) take() chain.Change {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.pending
	n.pending = chain.Change{}
	return c
}

// run sends notifications until end is called.
func (n *notifier) run(send func(chain.Change)) {
	defer close(n.stopped)
	for {
		select {
		case <-n.stop:
			return
		case <-n.wake:
			send(n.take())
		}
	}
}

// end stops run and waits for it.
func (n *notifier) end() {
	close(n.stop)
	<-n.stopped
}

// changed is told by the chain.
func (f *fileSystem) changed(c chain.Change) {
	if c.Layers {
		f.layersChanged.Store(time.Now().UnixNano())
		f.layers.keep(func(node uint64) bool { _, there := f.layerByNode(node); return there })
	}
	f.notify.add(c)
}

// Offsets that InvalidateInode takes: all pages with the attributes, or the
// attributes alone.
const (
	wholeFile      = 0
	attributesOnly = -1
)

// tell passes a change on to the kernel. Names in layers/ are looked up every
// time, so only the directory's own time is stale.
func (f *fileSystem) tell(kernel *device.Conn) func(chain.Change) {
	return func(c chain.Change) {
		switch {
		case c.Content:
			f.forget(kernel, nodeDisk, wholeFile)
		case c.Size:
			f.forget(kernel, nodeDisk, attributesOnly)
		}
		if c.Layers {
			f.forget(kernel, nodeLayers, attributesOnly)
		}
	}
}

func (f *fileSystem) forget(kernel *device.Conn, node uint64, from int64) {
	// ENOENT: the kernel has no such inode in memory; ENODEV, EBADF: it is
	// being unmounted.
	switch status := kernel.InvalidateInode(node, from); status {
	case fuse.OK, fuse.ENOENT, fuse.ENODEV, fuse.EBADF:
	default:
		f.log.Warn("cannot make the kernel forget what it cached", "node", node, "error", status)
	}
}
