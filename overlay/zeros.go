package overlay

import "bytes"

// ZeroUnit is the unit in bytes in which a copy looks for zeros that are written as
// data: a subcluster of varve's own layers, a block of most file systems, and what
// qemu-img convert takes by default.
const ZeroUnit = 4096

var zeroUnit [ZeroUnit]byte

// isZeros says whether p, of any length, holds zeros only. bytes.Equal compares some
// 15 GB/s in a core's own cache, and stops at the first other byte.
func isZeros(p []byte) bool {
	for len(p) > ZeroUnit {
		if !bytes.Equal(p[:ZeroUnit], zeroUnit[:]) {
			return false
		}
		p = p[ZeroUnit:]
	}
	return bytes.Equal(p, zeroUnit[:len(p)])
}

// EachRun cuts p into the longest runs of whole units that hold zeros only, or not,
// and calls f for each in order, with its offset and length in p in bytes. The last
// unit may be a part of one. It ends with f's first error.
func EachRun(p []byte, f func(off, n int64, zero bool) error) error {
	for start := 0; start < len(p); {
		end := min(start+ZeroUnit, len(p))
		zero := isZeros(p[start:end])
		for end < len(p) {
			next := min(end+ZeroUnit, len(p))
			if isZeros(p[end:next]) != zero {
				break
			}
			end = next
		}
		if err := f(int64(start), int64(end-start), zero); err != nil {
			return err
		}
		start = end
	}
	return nil
}
