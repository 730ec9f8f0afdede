// Package partition reads the partition table of a disk: MBR with its logical
// partitions, and GPT. It gives what Linux would show of the disk, under the same
// numbers.
//
// The tables are parsed by go-diskfs, the library that is kept best of those that
// read both kinds. What it leaves open stands here: which of the two tables counts,
// the chain of extended partitions, sectors of 4,096 bytes, and that a table, which
// a guest writes as it likes, can neither make us read without end nor fill memory.
package partition

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
)

// Partition is one partition of a disk. It lies within the disk and is not empty.
type Partition struct {
	Number int   // as Linux counts, 1 to MaxNumber
	Start  int64 // bytes from the disk's start
	Length int64 // bytes
}

// MaxNumber is the highest number of a partition; Linux has no room for more.
const MaxNumber = 255

// ErrNone says that a disk has no partition table: it is blank, or holds a file
// system as a whole.
var ErrNone = errors.New("no partition table")

// ErrBroken says that a disk has a table which breaks a rule of its kind.
var ErrBroken = errors.New("the partition table is broken")

// Disk is what a table is read from. It fills p or fails; bytes past the disk's
// end read as zeros.
type Disk interface {
	ReadAt(p []byte, off int64) error
}

// ReadFunc is a function as a Disk.
type ReadFunc func(p []byte, off int64) error

// ReadAt calls f.
func (f ReadFunc) ReadAt(p []byte, off int64) error { return f(p, off) }

// Read gives the partitions of a disk of size bytes in the order of their numbers.
// Errors are ErrNone, ErrBroken with the reason, and those of the disk. A table
// without partitions is no error. Some partitions may lie over each other: then
// each is what its entry says.
func Read(d Disk, size int64) (list []Partition, err error) {
	r := &reader{disk: d, size: size}
	// The library is given checked input only; a mistake in that must not end the
	// process that a guest's disk depends on.
	defer func() {
		if bug := recover(); bug != nil {
			list, err = nil, fmt.Errorf("%w: it cannot be parsed: %v", ErrBroken, bug)
		}
	}()
	list, err = r.read()
	if r.failed != nil {
		return nil, fmt.Errorf("read the partition table: %w", r.failed)
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b Partition) int { return cmp.Compare(a.Number, b.Number) })
	return list, nil
}

// read looks at the first sector, which says what kind of table there is.
func (r *reader) read() ([]Partition, error) {
	var first [sector]byte
	if r.size < sector {
		return nil, ErrNone
	}
	if err := r.fill(first[:], 0); err != nil {
		return nil, err
	}
	switch {
	case !signed(first[:]):
		return nil, ErrNone
	case protective(first[:]):
		return r.readGPT()
	}
	return r.readMBR(first[:])
}

// within cuts a partition at the disk's end, as Linux does. ok is false when
// nothing is left of it, or its number is too high.
func (r *reader) within(number int, start, length int64) (p Partition, ok bool) {
	if number < 1 || number > MaxNumber || start < 0 || length <= 0 || start >= r.size {
		return Partition{}, false
	}
	return Partition{Number: number, Start: start, Length: min(length, r.size-start)}, true
}

// bytesOf is a number of sectors in bytes, and MaxInt64 where that is too much.
func bytesOf(sectors uint64, size int64) int64 {
	if sectors > uint64(math.MaxInt64/size) {
		return math.MaxInt64
	}
	return int64(sectors) * size
}
