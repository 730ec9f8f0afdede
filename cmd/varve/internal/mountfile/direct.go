package mountfile

import (
	"io"
	"unsafe"

	"golang.org/x/sys/unix"

	"varve/cmd/varve/internal/waiting"
	"varve/overlay/hostfs"
)

// directFile is a file open with O_DIRECT that is read at any offset and length. Of a
// raw base the kernel asks the host's file system itself, which refuses what is not
// aligned (EINVAL), as where the file does not end with a whole sector.
type directFile struct{ hostfs.File }

const (
	// directAlign suits every device: its logical blocks have 512 to 4,096 bytes.
	directAlign = 4096
	directMost  = 1 << 20 // bytes of one read
)

// OpenDirect opens a file of the mount to read it past the page cache, at any offset and
// length. The open, and each call on the file, is a wait for what. Errors are those of Open.
func (p Place) OpenDirect(what waiting.Subject, elements ...string) (hostfs.File, error) {
	defer waiting.For(what)()
	opened, err := p.Open(unix.O_RDONLY|unix.O_DIRECT, elements...)
	if err != nil {
		return nil, err
	}
	f, err := hostfs.FileOf(opened)
	if err != nil {
		return nil, err
	}
	return directFile{Awaited(f, what)}, nil
}

// ReadAt is io.ReaderAt. What is not aligned goes through a buffer that is.
func (f directFile) ReadAt(p []byte, off int64) (n int, err error) {
	if len(p) == 0 || isAligned(uintptr(unsafe.Pointer(&p[0]))|uintptr(off)|uintptr(len(p))) {
		return f.File.ReadAt(p, off)
	}
	buf := alignedBuffer(min(directMost, len(p)+2*directAlign))
	for n < len(p) {
		at := off + int64(n)
		in := int(at % directAlign)
		part := buf[:min(len(buf), (in+len(p)-n+directAlign-1)&^(directAlign-1))]
		got, err := f.File.ReadAt(part, at-int64(in))
		if got > in {
			n += copy(p[n:], part[in:got])
		}
		if err == nil || err == io.EOF && n == len(p) {
			continue
		}
		return n, err
	}
	return n, nil
}

func isAligned(v uintptr) bool { return v%directAlign == 0 }

// alignedBuffer gives at least n bytes, a whole number of blocks, where O_DIRECT can
// read them.
func alignedBuffer(n int) []byte {
	n = (n + directAlign - 1) &^ (directAlign - 1)
	p := make([]byte, n+directAlign)
	skip := -int(uintptr(unsafe.Pointer(&p[0]))) & (directAlign - 1)
	return p[skip : skip+n : skip+n]
}
