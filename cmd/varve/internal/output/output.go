// Package output finds out where a name leads that a command was told to write to.
//
// A regular file, or a name at which nothing is yet, is written under another name beside
// it and gets its own at the end; where the name is a symbolic link, beside the link's
// target, so that the link stays. Anything else (a device, a pipe, /dev/stdout, an open
// file below /proc) is written as it stands: a rename would put a file in its place.
//
// A whole content goes there with Write; what is too much for that is written to Partial and
// renamed. The package does not know what is written.
package output

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Stdout is the name that stands for standard output.
const Stdout = "-"

// Place is where a name leads.
type Place struct {
	// Path is the file to be made or replaced: the name itself or, where that is a link,
	// what it leads to; "" where that is written as it stands.
	Path string

	name   string
	number int // of the open file of this process that the name stands for; -1 for none
}

// mostLinks is how many symbolic links one name may lead over, as in path_resolution(7).
const mostLinks = 40

// Find follows a name. A link in the place of the file is followed only where it belongs to
// the caller or to root: one that somebody else can put there could lead root anywhere.
// Links in place of directories are followed, whosever they are. The error is one line.
func Find(name string) (Place, error) {
	place := Place{name: name, number: -1}
	path, err := filepath.Abs(name)
	if err != nil {
		return place, err
	}
	file, link := name, false
	for range mostLinks {
		dir, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			return place, place.leads(path, err)
		}
		path = filepath.Join(dir, filepath.Base(path))
		if link {
			file = path
		}
		info, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist) && !isProc(dir):
			place.Path = file
			return place, nil
		case err != nil:
			return place, place.leads(path, err)
		case info.Mode().IsRegular():
			place.Path = file
			return place, nil
		case info.Mode().Type() != fs.ModeSymlink:
			return place, place.checkDirect(info.Mode())
		case isProc(dir):
			// The text of such a link is for people; the kernel follows it to an open file.
			if own, err := filepath.EvalSymlinks("/proc/self/fd"); err == nil && own == dir {
				place.number, err = strconv.Atoi(filepath.Base(path))
				if err != nil {
					return place, place.leads(path, fs.ErrInvalid)
				}
			}
			info, err := os.Stat(path)
			if err != nil {
				return place, place.leads(path, err)
			}
			return place, place.checkDirect(info.Mode())
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
			return place, fmt.Errorf("%s is a symbolic link that belongs to uid %d; name the file itself", path, st.Uid)
		}
		to, err := os.Readlink(path)
		if err != nil {
			return place, place.leads(path, err)
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(dir, to)
		}
		path, file, link = to, to, true
	}
	return place, place.leads(path, syscall.ELOOP)
}

// leads is an error of a name that leads to path.
func (p Place) leads(path string, err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		path, err = at.Path, at.Err
	}
	if abs, _ := filepath.Abs(p.name); abs == path || filepath.Dir(abs) == path {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	return fmt.Errorf("%s leads to %s: %w", p.name, path, err)
}

// checkDirect refuses what cannot be written as it stands.
func (p Place) checkDirect(mode fs.FileMode) error {
	switch {
	case mode.IsDir():
		return fmt.Errorf("%s: %w; name a file in it", p.name, syscall.EISDIR)
	case mode.Type() == fs.ModeSocket && p.number < 0:
		return fmt.Errorf("%s is a socket; name a file, or write to \"-\"", p.name)
	}
	return nil
}

// isProc says whether a directory belongs to a proc file system.
func isProc(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

// Direct says that the name is written as it stands.
func (p Place) Direct() bool { return p.Path == "" }

// Open opens what is written as it stands. The open of a pipe waits for its reader, or for
// the end of ctx. An open file of this process goes on where it is.
func (p Place) Open(ctx context.Context) (*os.File, error) {
	if p.number >= 0 {
		number, err := unix.FcntlInt(uintptr(p.number), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		return os.NewFile(uintptr(number), p.name), nil
	}
	type opened struct {
		f   *os.File
		err error
	}
	result := make(chan opened, 1)
	go func() {
		// O_CREAT would make a file where the device or the pipe has gone meanwhile.
		f, err := os.OpenFile(p.name, os.O_WRONLY|unix.O_NOCTTY, 0)
		result <- opened{f, err}
	}()
	select {
	case r := <-result:
		return r.f, r.err
	case <-ctx.Done():
		go func() { // a reader may come yet
			if r := <-result; r.err == nil {
				r.f.Close() // nothing was written
			}
		}()
		return nil, ctx.Err()
	}
}
