package check

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// maxBlocksForEnd bounds how many blocks of refcounts CutOff reads. An image has one
// or two that are empty at its end, not hundreds.
const maxBlocksForEnd = 16

// Missing is what a file ends before.
type Missing struct {
	At   int64  // where it should stand
	What string // "" when nothing is missing
	// Counted says that refcounts alone tell of it. Files of varve's are never left so.
	// QEMU writes refcounts ahead of what they count, and a QEMU that is killed, or is
	// at it, leaves a whole image with refcounts behind its end.
	Counted bool
}

// CutOff looks whether the file of a qcow2 image ends before what it holds: an L2
// table, or the last cluster with a refcount; then also before the data that L2 tables
// name. It reads the L1 table and a few blocks of the refcounts, and the L2 tables only
// where those say that something is missing: a file that passes may still have errors,
// which Check finds. It takes no lock. The errors are ParseHeader's and the file's.
func CutOff(fs hostfs.FS, path string) (Missing, error) {
	f, err := qcow2.OpenFile(fs, path)
	if err != nil {
		return Missing{}, err
	}
	defer f.Close() // read only
	return cutOff(f)
}

func cutOff(f hostfs.File) (Missing, error) {
	info, err := f.Stat()
	if err != nil {
		return Missing{}, err
	}
	h, err := qcow2.HeaderOf(f, info.Size)
	if err != nil {
		return Missing{}, err
	}
	l1, unread, err := qcow2.ReadL1(f, h)
	if err != nil {
		return Missing{}, err
	}
	last, err := lastCounted(f, h)
	if err != nil {
		return Missing{}, err
	}
	// The file may be growing: its end is looked at last.
	if info, err = f.Stat(); err != nil {
		return Missing{}, err
	}
	for i, entry := range l1 {
		if table := int64(entry & qcow2.OffsetMask); table >= info.Size && unread[int64(i)] == nil {
			return Missing{At: table, What: "an L2 table"}, nil
		}
	}
	if last < info.Size || info.Mode&os.ModeDevice != 0 {
		return Missing{}, nil
	}
	if at, err := lastNamed(f, h); err != nil || at >= info.Size {
		return Missing{At: at, What: "a cluster of data"}, err
	}
	return Missing{At: last, What: "a cluster that its refcounts have in use", Counted: true}, nil
}

// HasData says whether a file is a qcow2 image that has L2 tables, as one has in which
// anything was written. A file that is no image, or one that was cut off before its
// tables, has none. It takes no lock. The errors are those of reading.
func HasData(fs hostfs.FS, path string) (bool, error) {
	f, err := qcow2.OpenFile(fs, path)
	if err != nil {
		return false, err
	}
	defer f.Close() // read only
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	var l1 []uint64
	h, err := qcow2.HeaderOf(f, info.Size)
	if err == nil {
		l1, _, err = qcow2.ReadL1(f, h)
	}
	if errors.Is(err, qcow2.ErrCorrupt) || errors.Is(err, io.ErrUnexpectedEOF) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(l1, func(entry uint64) bool { return entry != 0 }), nil
}

// lastNamed is the offset of the last cluster that L2 tables have data in, 0 for none.
// (qcow2 specification, "Cluster mapping"; of a compressed one it is the first byte.)
func lastNamed(f hostfs.File, h *qcow2.Header) (last int64, err error) {
	w := qcow2.Walk{
		File: f, Header: h, Buf: make([]byte, h.ClusterSize()),
		L1: func(int64, uint64) (bool, error) { return true, nil },
		L2: func(_, _ int64, word, bitmap uint64) error {
			switch {
			case word&qcow2.CompressedFlag != 0:
				last = max(last, int64(word&(1<<(70-h.ClusterBits)-1)))
			case h.ExtendedL2() && uint32(bitmap) == 0, !h.ExtendedL2() && word&qcow2.ZeroFlag != 0:
			default:
				last = max(last, int64(word&qcow2.OffsetMask))
			}
			return nil
		},
	}
	err = w.Run(h.L1Offset, int64(h.L1Entries))
	return last, err
}

// lastCounted is the offset of the last cluster whose refcount is not 0, or of the
// block that should count it and lies behind the end of the file; 0 for none. (qcow2
// specification, "Host cluster management".)
func lastCounted(f hostfs.File, h *qcow2.Header) (int64, error) {
	table := make([]byte, int64(h.RefcountTableClusters)<<h.ClusterBits)
	n, err := f.ReadAt(table, h.RefcountTableOffset)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("read refcount table at 0x%x of %s: %w", h.RefcountTableOffset, f.Name(), err)
	}
	clear(table[n:]) // a last cluster may be there in part
	block := make([]byte, h.ClusterSize())
	perBlock := h.ClusterSize() * 8 >> h.RefcountOrder
	blocks := 0
	for i := int64(len(table)/8) - 1; i >= 0 && blocks < maxBlocksForEnd; i-- {
		at := int64(binary.BigEndian.Uint64(table[i*8:]) & qcow2.OffsetMask)
		if at == 0 {
			continue
		}
		blocks++
		n, err := f.ReadAt(block, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("read refcount block at 0x%x of %s: %w", at, f.Name(), err)
		}
		if n == 0 {
			return at, nil
		}
		clear(block[n:])
		for k := perBlock - 1; k >= 0; k-- {
			if refcountAt(block, k, h.RefcountOrder) == 0 {
				continue
			}
			if cluster := i*perBlock + k; cluster <= qcow2.OffsetMask>>h.ClusterBits {
				return cluster << h.ClusterBits, nil
			}
		}
	}
	return 0, nil
}
