// Package sniff recognises files that are no raw disks: images of other formats,
// compressed ones and archives. It goes by the first and the last bytes of a file. A
// guest can write any of them into its own disk, so what is recognised may make an image
// be refused when it is first given, until somebody says what it is; it never chooses a
// format, and a disk that exists is not looked at again.
package sniff

import (
	"bytes"
	"errors"
	"io"
	"strings"
)

// Format is a kind of file other than a raw disk.
type Format struct {
	// Name says what it is, with an article: "a VHD image (Hyper-V, Azure)".
	Name string
	// Qcow2 is set for what varve reads as qcow2.
	Qcow2 bool
	// Raw is set for what may well be a raw disk all the same, for a reason that
	// Name says.
	Raw bool

	wayOut string
}

// WayOut is what makes a raw image of a file: a command, or words. in and out are the
// paths of the file and of the image, as words of a shell's command.
func (f Format) WayOut(in, out string) string {
	return strings.NewReplacer("IN", in, "OUT", out).Replace(f.wayOut)
}

const (
	frontBytes = 4096
	endBytes   = 512
)

// File says what a file of size bytes is recognised as; ok is false for what may be a
// raw disk. It reads 4 KiB at the front and the last 512 bytes.
// The error is that of reading.
func File(r io.ReaderAt, size int64) (f Format, ok bool, err error) {
	p := pieces{size: size}
	if p.front, err = read(r, 0, min(size, frontBytes)); err != nil {
		return Format{}, false, err
	}
	if p.end, err = read(r, max(0, size-endBytes), min(size, endBytes)); err != nil {
		return Format{}, false, err
	}
	f, ok = recognise(p)
	return f, ok, nil
}

// Front is File for what only its beginning is known of.
func Front(b []byte) (f Format, ok bool) {
	return recognise(pieces{front: b[:min(len(b), frontBytes)]})
}

func recognise(p pieces) (f Format, ok bool) {
	for i := range formats {
		if formats[i].matches(p) {
			return formats[i].Format, true
		}
	}
	return Format{}, false
}

// read gives what a file has of a range: it may have become shorter meanwhile.
func read(r io.ReaderAt, off, length int64) ([]byte, error) {
	b := make([]byte, length)
	n, err := r.ReadAt(b, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b[:n], nil
}

// pieces are what is looked at of a file.
type pieces struct {
	front, end []byte
	size       int64
}

// entry is a format with what it is recognised by.
type entry struct {
	Format
	// magic stands at an offset from the file's start, or, where that is below 0, from
	// its end.
	magic string
	at    int
	// also says, where the magic alone is not enough, whether the rest fits; nil for
	// always.
	also func(p pieces) bool
}

func (e *entry) matches(p pieces) bool {
	piece, at := p.front, e.at
	if at < 0 {
		piece, at = p.end, len(p.end)+at
	}
	return at >= 0 && at <= len(piece) && bytes.HasPrefix(piece[at:], []byte(e.magic)) && (e.also == nil || e.also(p))
}
