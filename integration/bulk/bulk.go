// Package bulk compares contents of many megabytes in tests. The race detector notes
// each byte that is touched, which takes ten times as long as the comparing: what
// stands here is not instrumented, since a test's own bytes are nobody else's.
package bulk

import "sync"

// chunk is how many bytes Differ reads at a time: what fits into a processor's cache.
const chunk = 256 << 10

var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// Equal says whether a and b hold the same bytes.
//
//go:norace
func Equal(a, b []byte) bool { return string(a) == string(b) }

// First gives the index of the first byte that is not the same, len(b) or len(a) when
// one is the beginning of the other, and -1 when they are the same.
//
//go:norace
func First(a, b []byte) int {
	if Equal(a, b) {
		return -1
	}
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// Differing counts the bytes that are not the same in a and b, which have one length.
//
//go:norace
func Differing(a, b []byte) (n int64) {
	if Equal(a, b) {
		return 0
	}
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

// IsZero says whether all bytes are zeros.
//
//go:norace
func IsZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// Differ compares what read gives from offset 0 on with want, and gives the offset of
// the first byte that is not the same, -1 for none. The error is read's.
func Differ(read func(p []byte, off int64) error, want []byte) (int64, error) {
	buffer := chunks.Get().(*[chunk]byte)
	defer chunks.Put(buffer)
	for off := 0; off < len(want); off += chunk {
		p := buffer[:min(chunk, len(want)-off)]
		if err := read(p, int64(off)); err != nil {
			return 0, err
		}
		if i := First(p, want[off:off+len(p)]); i >= 0 {
			return int64(off + i), nil
		}
	}
	return -1, nil
}
