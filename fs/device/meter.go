package device

import (
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/overlay/measure"
)

// Content is what a node of a file system holds.
type Content uint8

// Only requests to disks and layers count as reads, writes, flushes and discards.
const (
	Words Content = iota // text, directories, commands
	Disk                 // a disk that is written
	Layer                // a view that never changes, or a part of one
)

// Op is a class of requests.
type Op uint8

// The classes. Other takes in all that has no class of its own.
const (
	DiskRead Op = iota
	DiskWrite
	DiskFlush   // fsync
	DiskDiscard // fallocate that makes zeros
	LayerRead
	Other
	Ops // how many there are
)

// Meter counts requests and what became of them. The zero value has counted none.
// Safe for concurrent use.
type Meter struct{ ops [Ops]opMeter }

type opMeter struct {
	took          measure.Histogram
	bytes, errors measure.Counter
}

// Figures are those of a class of requests.
type Figures struct {
	// Took is how long they were here: from when they were read from the kernel
	// until their replies were with it.
	Took   measure.Distribution
	Bytes  int64 // read, written or discarded; 0 for other classes
	Errors int64 // of Other only EIO: a name that is not there is an answer too
}

// Load gives the figures of a class so far.
func (m *Meter) Load(op Op) Figures {
	o := &m.ops[op]
	return Figures{Took: o.took.Load(), Bytes: o.bytes.Load(), Errors: o.errors.Load()}
}

// outcome is what became of a request.
type outcome struct {
	bytes     int64
	status    fuse.Status
	uncounted bool
}

func (m *Meter) count(op Op, begun time.Duration, o outcome) {
	if o.uncounted {
		return
	}
	k := &m.ops[op]
	switch {
	case o.status == fuse.OK:
		if o.bytes > 0 {
			k.bytes.Add(o.bytes)
		}
	case op != Other || o.status == fuse.EIO:
		k.errors.Inc()
	}
	k.took.Observe(measure.Now() - begun)
}

// opOf is the class of a request, which has a header at least.
func (c *Conn) opOf(request []byte) Op {
	h := (*fuse.InHeader)(unsafe.Pointer(&request[0]))
	switch h.Opcode {
	case opRead, opWrite, opFsync, opFallocate:
	default:
		return Other
	}
	switch content := c.fs.Content(h.NodeId); {
	case content == Layer && h.Opcode == opRead:
		return LayerRead
	case content != Disk:
		return Other
	}
	switch h.Opcode {
	case opRead:
		return DiskRead
	case opWrite:
		return DiskWrite
	case opFsync:
		return DiskFlush
	}
	const zeros = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE
	if in, ok := fallocateOf(request); ok && in.Mode&zeros != 0 {
		return DiskDiscard
	}
	return Other
}

func fallocateOf(request []byte) (*fuse.FallocateIn, bool) {
	if len(request) < int(unsafe.Sizeof(fuse.FallocateIn{})) {
		return nil, false
	}
	return (*fuse.FallocateIn)(unsafe.Pointer(&request[0])), true
}

// outcomeOf reads what go-fuse answered to a request of a class.
func outcomeOf(op Op, request, reply []byte) outcome {
	o := outcome{status: fuse.Status(-(*replyHeader)(unsafe.Pointer(&reply[0])).status)}
	if o.status != fuse.OK {
		return o
	}
	switch body := reply[replyBytes:]; op {
	case DiskRead, LayerRead:
		o.bytes = int64(len(body))
	case DiskWrite:
		if len(body) >= int(unsafe.Sizeof(fuse.WriteOut{})) {
			o.bytes = int64((*fuse.WriteOut)(unsafe.Pointer(&body[0])).Size)
		}
	case DiskDiscard:
		if in, ok := fallocateOf(request); ok {
			o.bytes = int64(in.Length)
		}
	}
	return o
}
