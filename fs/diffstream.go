package fs

import (
	"bytes"
	"context"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/fs/control"
)

// diffPatience is how long a read waits for the next difference.
const diffPatience = 100 * time.Millisecond

// diffStream is what is read after a write to control/diff, line by line as package control
// has them. It is made as it is read, so it can be as long as it has to be, and is read from
// front to end.
type diffStream struct {
	mu      sync.Mutex // guards all below; held while the chain compares
	diff    diff       // nil when it is closed
	pending []byte     // made and not read yet
	list    []chain.Difference
	base    int64 // the offset of the first read; -1 before it
	pos     int64 // bytes read
	count   int64 // differences
	bytes   int64
	ended   bool
}

// beginDiff opens two views; what they differ in follows on what the file reads.
func (f *fileSystem) beginDiff(o *controlFile, line string, pid uint32) error {
	words := control.Words(line)
	if len(words) != 2 {
		return refuse(unix.EINVAL, "diff takes two names with one space between them")
	}
	d, err := f.disk.Diff(context.Background(), words[0], words[1], openerOf(pid))
	if err != nil {
		return err
	}
	a, b := d.Views()
	s := &diffStream{diff: d, base: -1}
	s.pending = control.AppendDiffHead(nil, a, b)
	o.setStream(s)
	return nil
}

// setStream replaces the stream by another, nil for none.
func (o *controlFile) setStream(s *diffStream) {
	o.mu.Lock()
	old := o.stream
	o.stream = s
	o.mu.Unlock()
	old.close()
}

// close may be called on nil.
func (s *diffStream) close() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end()
}

// end lets go of the views. mu is held.
func (s *diffStream) end() {
	if s.diff != nil {
		s.diff.Close()
	}
	s.diff, s.list, s.ended = nil, nil, true
}

// readControl reads a control file.
func (f *fileSystem) readControl(o *controlFile, buf []byte, off int64) ([]byte, fuse.Status) {
	o.mu.Lock()
	s, head := o.stream, o.content
	o.mu.Unlock()
	if s == nil {
		return readText(head, buf, off), fuse.OK
	}
	data, err := s.read(head, buf, off, func(err error) fuse.Status { return f.status("compare two views", err) })
	if err != nil {
		return nil, f.status("read control/diff", err)
	}
	return data, fuse.OK
}

// read gives what follows on what was read before. A shell that has written to the
// file begins to read where the write ended.
func (s *diffStream) read(head, buf []byte, off int64, log func(error) fuse.Status) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.base < 0 {
		s.base = off
		s.pending = append(bytes.Clone(head), s.pending...)
	}
	if off-s.base != s.pos {
		return nil, refuse(unix.ESPIPE, "what diff gives can only be read in order")
	}
	if len(s.pending) == 0 && !s.ended {
		s.more(log)
	}
	n := copy(buf, s.pending)
	s.pending = s.pending[n:]
	s.pos += int64(n)
	return buf[:n], nil
}

// more makes at least one line. log takes what goes wrong. mu is held.
func (s *diffStream) more(log func(error) fuse.Status) {
	list, more, err := s.diff.Next(s.list[:0], time.Now().Add(diffPatience))
	s.list = list
	s.pending = nil
	for _, d := range list {
		s.pending = control.AppendDifference(s.pending, d)
		s.bytes += d.Length
	}
	s.count += int64(len(list))
	switch {
	case err != nil:
		s.pending = control.AppendDiffError(s.pending, syscall.Errno(log(err)), err.Error())
		s.end()
	case !more:
		s.pending = control.AppendDiffEnd(s.pending, s.count, s.bytes)
		s.end()
	case len(list) == 0:
		s.pending = control.AppendDiffAt(s.pending, s.diff.Done())
	}
}
