package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/cmd/varve/internal/confine"
	"varve/cmd/varve/internal/outside"
	"varve/fs"
	"varve/fs/device"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// What a daemon that has confined itself has done outside. The process there believes it
// nothing but what the daemon says at the beginning, before it serves anybody.
const (
	outsideBegin   = "begin"
	outsideUnmount = "unmount"
	outsideUsers   = "users"
	outsideChain   = "chain"
	outsideClone   = "clone"
	outsideHolder  = "holder"
)

// outsideKinds are errors that mean the same on both sides.
func outsideKinds() []error {
	return []error{fs.ErrNotMounted, chain.ErrExist, chain.ErrNotExist, chain.ErrInvalid, chain.ErrBusy, chain.ErrInUse,
		chain.ErrChanged, chain.ErrReadOnly, chain.ErrTooLarge, hostfs.ErrLocked, qcow2.ErrCorrupt, qcow2.ErrUnsupported,
		os.ErrPermission}
}

// outsideTask is what the process outside is for, which its daemon says once.
type outsideTask struct {
	Place  fs.Place
	Disk   chain.DirectoryID // zero for an image alone
	Daemon int               // pid

	connection uint64 // see connectionOf; 0 where it cannot be told
}

// lockQuestion asks who has a byte of a file locked.
type lockQuestion struct {
	File string
	At   int64
	FD   int
}

// outsideHandlers are what is done outside.
func outsideHandlers() map[string]outside.Handler {
	var task atomic.Pointer[outsideTask]
	begun := func(do func(t *outsideTask, request []byte) (any, error)) outside.Handler {
		return func(request []byte) (any, error) {
			t := task.Load()
			if t == nil {
				return nil, errors.New("nobody has said what for")
			}
			return do(t, request)
		}
	}
	return map[string]outside.Handler{
		outsideBegin: func(request []byte) (any, error) {
			t := new(outsideTask)
			if err := json.Unmarshal(request, t); err != nil {
				return nil, err
			}
			t.connection = connectionOf(t.Place.Device)
			if !task.CompareAndSwap(nil, t) {
				return nil, errors.New("it has begun already")
			}
			return nil, nil
		},
		outsideUnmount: begun(func(t *outsideTask, _ []byte) (any, error) { return nil, t.unmount() }),
		outsideUsers: begun(func(t *outsideTask, _ []byte) (any, error) {
			return usersOfOwn(t.Place), nil
		}),
		outsideChain: begun(func(t *outsideTask, request []byte) (any, error) {
			var other string
			if err := json.Unmarshal(request, &other); err != nil {
				return nil, err
			}
			return chain.ReadOtherChain(t.Disk, other)
		}),
		outsideClone: begun(func(t *outsideTask, request []byte) (any, error) {
			var order chain.CloneOrder
			if err := json.Unmarshal(request, &order); err != nil {
				return nil, err
			}
			order.Disk = t.Disk
			return cloneApart(order)
		}),
		outsideHolder: begun(func(t *outsideTask, request []byte) (any, error) {
			var q lockQuestion
			if err := json.Unmarshal(request, &q); err != nil {
				return nil, err
			}
			return hostfs.LockHolder(q.File, q.At, t.Daemon, q.FD), nil
		}),
	}
}

// unmount unmounts the mount of the task. When that is gone the kernel gives its number to
// the next one, which is another disk's perhaps.
func (t *outsideTask) unmount() error {
	if t.connection != 0 && connectionOf(t.Place.Device) != t.connection {
		return fs.ErrNotMounted
	}
	return t.Place.Unmount()
}

// connectionOf is what no other FUSE connection of this host has that has the same device: the
// inode of its control directory. It is 0 where there is none.
func connectionOf(dev uint64) uint64 {
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("%s/%d", device.Connections, unix.Minor(dev)), &st); err != nil {
		return 0
	}
	return st.Ino
}

// outsideProcess is the process outside, as the daemon asks it. It is what chain.Outside
// says.
type outsideProcess struct{ *outside.Process }

// How long is waited for what a signal, or a request of the guest's, waits for.
const (
	outsideBeginTime   = time.Minute      // to start, on a busy host
	outsideUnmountTime = 30 * time.Second // the kernel may have much to write
	outsideLookTime    = 5 * time.Second
)

func (p outsideProcess) unmount() error { return p.Ask(outsideUnmount, outsideUnmountTime, nil, nil) }

func (p outsideProcess) users() string {
	var who string
	if err := p.Ask(outsideUsers, outsideLookTime, nil, &who); err != nil {
		return err.Error()
	}
	return who
}

func (p outsideProcess) ReadOtherChain(_ chain.DirectoryID, other string) (text []byte, err error) {
	err = p.Ask(outsideChain, 0, other, &text)
	return text, err
}

func (p outsideProcess) MakeClone(o chain.CloneOrder) (made chain.Created, err error) {
	if err = p.Ask(outsideClone, 0, o, &made); errors.Is(err, outside.ErrUnanswered) {
		err = fmt.Errorf("%w: %w", chain.ErrUnfinished, err)
	}
	return made, err
}

func (p outsideProcess) LockHolder(file string, at int64, fd int) string {
	var who string
	if err := p.Ask(outsideHolder, outsideLookTime, lockQuestion{file, at, fd}, &who); err != nil {
		return "another process"
	}
	return who
}

// A clone is made by a process of its own, which reads what the disk is made of, and so is
// confined as well: to the files of the disk, and to the directory in which the clone is to
// stand.

// cloneProcess is what that process is called as.
const cloneProcess = "varve-clone"

// cloneAnswer is what it writes to its parent.
type cloneAnswer struct {
	Made  chain.Created
	Words string // of the error; "" for none
	Errno syscall.Errno
	Kinds []int // of outsideKinds
}

// cloneApart has a clone made.
func cloneApart(order chain.CloneOrder) (chain.Created, error) {
	text, err := json.Marshal(order)
	if err != nil {
		return chain.Created{}, err
	}
	var words bytes.Buffer
	cmd := exec.Cmd{Path: "/proc/self/exe", Args: []string{cloneProcess}, Dir: "/",
		Stdin: bytes.NewReader(text), Stderr: &words}
	said, err := cmd.Output()
	if err != nil {
		return chain.Created{}, fmt.Errorf("make the clone in a process of its own: %w: %s", err, lastLine(words.String()))
	}
	var a cloneAnswer
	if err := json.Unmarshal(said, &a); err != nil {
		return chain.Created{}, fmt.Errorf("make the clone in a process of its own: %w", err)
	}
	if a.Words == "" {
		return a.Made, nil
	}
	return chain.Created{}, outside.Failure(a.Words, a.Errno, a.Kinds, outsideKinds())
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// serveClone is the process that makes a clone, where the program was called as that.
func serveClone(args []string) (code int, ok bool) {
	if len(args) != 1 || args[0] != cloneProcess {
		return 0, false
	}
	var a cloneAnswer
	var order chain.CloneOrder
	err := json.NewDecoder(os.Stdin).Decode(&order)
	if err == nil {
		needs := confine.Needs{
			Writable:     append(alsoWritable(), filepath.Dir(order.Dir)),
			Readable:     append(alwaysReadable(), order.Disk.Path),
			Capabilities: append(diskCapabilities(true), unix.CAP_SETUID, unix.CAP_SETGID),
		}
		for _, f := range order.Files {
			needs.Readable = append(needs.Readable, f.Path)
		}
		_, err = confine.Confine(needs)
	}
	if err == nil {
		a.Made, err = chain.MakeClone(order)
	}
	if err != nil {
		a.Words, a.Errno, a.Kinds = outside.Describe(err, outsideKinds())
	}
	if json.NewEncoder(os.Stdout).Encode(a) != nil {
		return 1, true
	}
	return 0, true
}

// Children serves a process that was started as a child of a daemon, where args say that: the
// one outside, or one that makes a clone.
func Children(args []string) (code int, ok bool) {
	if code, ok := outside.Serve(args, outsideKinds(), outsideHandlers()); ok {
		return code, true
	}
	return serveClone(args)
}
