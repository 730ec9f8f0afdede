package fs

import (
	"io"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// partFile is an open of a partition: a range of disk.raw or of a view, which
// stays the one that the table said when it was opened.
type partFile struct {
	source partSource
	start  int64  // bytes
	length int64  // bytes
	end    func() // ends the open
}

// partSource is what a partition lies in.
type partSource interface {
	ReadAt(p []byte, off int64) error
	seeker
}

func (o *partFile) close() { o.end() }

// openPart opens the disk or the view, which is then in use as when it is opened as
// a whole, and looks at its table only after that: no revert comes between the two.
func (f *fileSystem) openPart(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) (openFile, error) {
	p, l, err := f.part(in.NodeId)
	if err != nil {
		return nil, err
	}
	ctx := &fuse.Context{Caller: in.Caller, Cancel: cancel}
	who := openerOf(in.Pid)
	who.Part = partName(p.Number)
	if l.ID != "" {
		v, err := f.disk.OpenView(ctx, l.ID, who)
		if err != nil {
			return nil, err
		}
		out.OpenFlags = layerOpenFlags
		return &partFile{source: v, start: p.Start, length: p.Length, end: v.Close}, nil
	}
	h, err := f.disk.OpenDisk(ctx, who, false)
	if err != nil {
		return nil, err
	}
	if p, _, err = f.part(in.NodeId); err != nil {
		h.Close()
		return nil, err
	}
	// The guest writes to it: nothing of it is kept in the kernel's cache.
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	return &partFile{source: f.disk, start: p.Start, length: p.Length, end: h.Close}, nil
}

func (f *fileSystem) readPart(in *fuse.ReadIn, o *partFile, buf []byte, off int64) ([]byte, fuse.Status) {
	buf, status := clipRead(in, buf, off, o.length)
	if len(buf) > 0 {
		if err := o.source.ReadAt(buf, o.start+off); err != nil {
			return nil, f.status("read a partition", err)
		}
	}
	return buf, status
}

// SeekData is chain.Disk's within the partition.
func (o *partFile) SeekData(off int64) (int64, error) {
	if off >= o.length {
		return 0, io.EOF
	}
	pos, err := o.source.SeekData(o.start + off)
	if err != nil {
		return 0, err
	}
	if pos >= o.start+o.length {
		return 0, io.EOF
	}
	return pos - o.start, nil
}

// SeekHole is chain.Disk's within the partition, whose end is a hole.
func (o *partFile) SeekHole(off int64) (int64, error) {
	if off >= o.length {
		return 0, io.EOF
	}
	pos, err := o.source.SeekHole(o.start + off)
	if err == io.EOF { // a raw base ends within the last sector
		return off, nil
	}
	if err != nil {
		return 0, err
	}
	return min(pos-o.start, o.length), nil
}
