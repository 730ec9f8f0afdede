// Package mountfile opens the files of varve mounts. It is the only place of this program
// that does.
//
// Any user can mount a program of their own as fuse.varve, at any place that is theirs and
// under the name of any disk, and let root in. So nothing that a mount shows is taken for
// what a varve shows there: no symbolic link is followed, what is opened is a regular file,
// and it and every directory above it are of the mount itself, by the number of its device.
// Nothing is read to an end that the mount alone decides.
//
// Whoever opens a file may wait for the mount's daemon. All functions are safe for
// concurrent use.
package mountfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"varve/chain/mounts"
)

// How many bytes of a file of a mount are read at most: more than a varve ever shows.
const (
	MostStatus  = 64 << 20 // status.json, of the 30,000 layers that chain.json can have
	MostMap     = 1 << 20  // map.svg, which has less than 300 KB
	MostMetrics = 1 << 20  // metrics, some 20 KiB
	MostAnswer  = 16 << 20 // what a control file says after a write
	mostNames   = 100_000  // in a directory
)

// ErrForeign is that something in a mount is not as in any mount of varve's.
var ErrForeign = errors.New("not of a varve")

// foreignError is an ErrForeign in its own words.
type foreignError string

func (e foreignError) Error() string        { return string(e) }
func (e foreignError) Is(target error) bool { return target == ErrForeign }

// Place is where a mount is reached.
type Place struct {
	Root   string // a path that leads to the mount's root
	Device uint64 // of the mount's files
	Name   string // what the mount is called in errors: its mountpoint
}

// At is the place of a whole mount that can be reached.
func At(m mounts.Mount) Place { return Place{Root: m.Path(), Device: m.Device, Name: m.Mountpoint} }

func (p Place) foreign(file, what string) error {
	return foreignError(fmt.Sprintf("%s %s, so %s is not a varve mount, although it calls itself one", file, what, p.Name))
}

// Open opens a regular file of the mount with os.O_* flags, without making one. The
// elements are names, from the root down; without any, the root is the file, as of a bind
// mount of disk.raw. Errors are *os.PathError and ErrForeign.
func (p Place) Open(flag int, elements ...string) (*os.File, error) {
	return p.open(flag, unix.S_IFREG, "is no regular file", elements)
}

func (p Place) open(flag int, kind uint32, isNot string, elements []string) (*os.File, error) {
	path := filepath.Join(append([]string{p.Name}, elements...)...)
	fail := func(err error) (*os.File, error) {
		if errors.Is(err, ErrForeign) {
			return nil, err
		}
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	if slices.ContainsFunc(elements, func(e string) bool {
		return e == "" || e == "." || e == ".." || strings.ContainsAny(e, "/\x00")
	}) {
		return fail(unix.EINVAL)
	}
	// Each is the mount's own, and not what was mounted over it since.
	dir, at, last := unix.AT_FDCWD, "", p.Root
	defer func() {
		if dir >= 0 {
			unix.Close(dir) // of O_PATH: nothing can be lost
		}
	}()
	for _, name := range elements {
		next, err := openAt(dir, last, unix.O_PATH|p.noFollow(at))
		if err != nil {
			return fail(err)
		}
		if dir >= 0 {
			unix.Close(dir)
		}
		dir = next
		if err := p.check(dir, unix.S_IFDIR, filepath.Join(p.Name, at), "is no directory"); err != nil {
			return fail(err)
		}
		last, at = name, filepath.Join(at, name)
	}
	// What is no file must not make it wait, and is looked at before anything is asked of it.
	look, err := openAt(dir, last, unix.O_PATH|p.noFollow(at))
	if err != nil {
		return fail(err)
	}
	err = p.check(look, kind, path, isNot)
	unix.Close(look)
	if err != nil {
		return fail(err)
	}
	flag = flag&^(os.O_CREATE|os.O_TRUNC) | p.noFollow(at)
	fd, err := openAt(dir, last, flag|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err == nil {
		if err = p.check(fd, kind, path, isNot); err == nil {
			_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flag&(unix.O_APPEND|unix.O_DIRECT))
		}
		if err != nil {
			unix.Close(fd) // nothing was read or written
		}
	}
	if err != nil {
		return fail(err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// noFollow is O_NOFOLLOW for what is in the mount. The way to its root can be a link, such as
// to a descriptor.
func (p Place) noFollow(at string) int {
	if at == "" {
		return 0
	}
	return unix.O_NOFOLLOW
}

// check refuses what is of another file system than the mount, or of another kind. It asks
// the kernel for what that knows already.
func (p Place) check(fd int, kind uint32, path, isNot string) error {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return err
	}
	switch is := uint32(st.Mode) & unix.S_IFMT; {
	case is == unix.S_IFLNK:
		return p.foreign(path, "is a symbolic link")
	case unix.Mkdev(st.Dev_major, st.Dev_minor) != p.Device:
		return p.foreign(path, "leads out of the mount")
	case is != kind:
		return p.foreign(path, isNot)
	}
	return nil
}

// openAt is openat(2), again as long as a signal interrupts it.
func openAt(dir int, name string, flag int) (fd int, err error) {
	for {
		if fd, err = unix.Openat(dir, name, flag|unix.O_CLOEXEC, 0); err != unix.EINTR {
			return fd, err
		}
	}
}

// Read reads a file of the mount. One that has more than most bytes is an ErrForeign.
func (p Place) Read(most int64, elements ...string) ([]byte, error) {
	f, err := p.Open(os.O_RDONLY, elements...)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only
	return p.ReadOpen(f, most)
}

// ReadOpen reads what an open file of the mount says from its beginning on, as Read does.
func (p Place) ReadOpen(f *os.File, most int64) ([]byte, error) {
	text, err := io.ReadAll(io.NewSectionReader(f, 0, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(text)) > most {
		return nil, p.foreign(f.Name(), fmt.Sprintf("has more than %d bytes", most))
	}
	return text, nil
}

// Names lists a directory of the mount, in its order.
func (p Place) Names(elements ...string) ([]string, error) {
	f, err := p.open(os.O_RDONLY|unix.O_DIRECTORY, unix.S_IFDIR, "is no directory", elements)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only
	var list []string
	for len(list) < mostNames {
		some, err := f.Readdirnames(1024)
		list = append(list, some...)
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, p.foreign(f.Name(), fmt.Sprintf("has more than %d names", mostNames))
}

// errand is what Errand writes.
type errand struct {
	Place
	Elements []string
}

// Errand is a file of the mount in one word, for a process that is sent to open it
// (ParseErrand).
func (p Place) Errand(elements ...string) string {
	text, err := json.Marshal(errand{p, elements})
	if err != nil {
		panic(err) // strings and a number
	}
	return string(text)
}

// ParseErrand is the inverse of Errand.
func ParseErrand(word string) (p Place, elements []string, err error) {
	var e errand
	if err := json.Unmarshal([]byte(word), &e); err != nil || len(e.Elements) == 0 {
		return Place{}, nil, fmt.Errorf("%q is no file of a mount", word)
	}
	return e.Place, e.Elements, nil
}
