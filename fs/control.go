package fs

import (
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/fs/control"
)

// controlFile is an open of a file in control/.
//
// One write is one command, at offset 0 or, for a shell that writes several
// lines to one open file, right behind a command that was whole: a write that
// goes on where another stopped in the middle of a line is refused, so that a
// line cut in two never runs its second half. With O_APPEND the offset says
// nothing and is not looked at.
//
// What it reads is made when it is opened, and anew by each write to it, so a
// program that writes and then reads the same open file gets the outcome of
// its own command and of no other's. What diff gives follows that; see diffstream.go.
type controlFile struct {
	node uint64
	command

	mu      sync.Mutex // guards all below; held for no call into the chain
	content []byte
	whole   bool // the last accepted write ended with a newline
	stream  *diffStream
}

func (o *controlFile) close() { o.setStream(nil) }

func (o *controlFile) text() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.content
}

func (f *fileSystem) openControl(node uint64, c command) openFile {
	last := f.last[node-nodeCommand].Load()
	return &controlFile{node: node, command: c, content: controlText(f.disk, c, last)}
}

func controlText(d disk, c command, last *control.Outcome) []byte {
	text := c.usageText(d)
	if last == nil {
		return []byte(text + "# nothing was written here since the disk was mounted\n")
	}
	return []byte(text + last.String() + "\n")
}

// writeControl runs a command. The caller's being interrupted does not stop
// it: it ends as a whole, and its outcome can be read.
func (f *fileSystem) writeControl(o *controlFile, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	o.setStream(nil) // what an earlier one gives ends with the next
	line, err := parseCommand(data)
	if err == nil && !o.accepts(in) {
		err = refuse(unix.EINVAL, "the write continues an earlier one; write each command in one piece")
	}
	var job, answer string
	switch {
	case err != nil:
	case o.command.answer != nil:
		answer, err = o.command.answer(f.disk, line)
	default:
		job, err = o.run(f.disk, line)
	}
	if err == nil && o.name == control.Diff {
		err = f.beginDiff(o, line, in.Pid)
	}
	o.accepted(err == nil && data[len(data)-1] == '\n')

	errno, expected := errnoOf(err)
	outcome := &control.Outcome{Time: time.Now(), PID: openerOf(in.Pid).PID, Line: line, Job: job, Errno: errno}
	if err != nil {
		outcome.Reason = err.Error()
	}
	f.last[o.node-nodeCommand].Store(outcome)
	o.show(f.disk, outcome, answer)

	attrs := []any{"command", o.name, "line", line, "pid", outcome.PID}
	switch {
	case err == nil && job != "":
		f.log.Info("control write", append(attrs, "job", job)...)
	case err == nil:
		f.log.Info("control write", attrs...)
	case expected:
		f.log.Info("control write refused", append(attrs, "errno", control.ErrnoName(errno), "reason", outcome.Reason)...)
	default:
		f.log.Error("control write failed", append(attrs, "errno", control.ErrnoName(errno), "error", err)...)
	}
	if err != nil {
		return 0, fuse.Status(errno)
	}
	return uint32(len(data)), fuse.OK
}

func (o *controlFile) accepts(in *fuse.WriteIn) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return in.Offset == 0 || in.Flags&unix.O_APPEND != 0 || o.whole
}

func (o *controlFile) accepted(whole bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.whole = whole
}

func (o *controlFile) show(d disk, last *control.Outcome, answer string) {
	text := controlText(d, o.command, last)
	if answer != "" {
		text = control.AppendAnswer(text, answer)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.content = text
}
