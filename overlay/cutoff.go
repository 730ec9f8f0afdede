package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxBlocksForEnd bounds how many blocks of refcounts CutOff reads. An image has one
// or two that are empty at its end, not hundreds.
const maxBlocksForEnd = 16

// CutOff looks whether the file of a qcow2 image ends before what it holds: before
// an L2 table, or before the last cluster with a refcount. at is where that should
// stand, what says what it is; "" when nothing is missing. It reads the L1 table and a
// few blocks of the refcounts, not the L2 tables: a file that passes may still have
// errors, which Check finds. It takes no lock. The errors are ParseHeader's and the
// file's.
func CutOff(fs FS, path string) (at int64, what string, err error) {
	f, err := openImageFile(fs, path)
	if err != nil {
		return 0, "", err
	}
	defer f.Close() // read only
	return cutOff(f)
}

func cutOff(f File) (at int64, what string, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, "", err
	}
	h, err := readHeader(f, info.Size)
	if err != nil {
		return 0, "", err
	}
	l1, err := readL1(f, h)
	if err != nil {
		return 0, "", err
	}
	last, err := lastCounted(f, h)
	if err != nil {
		return 0, "", err
	}
	// The file may be growing: its end is looked at last.
	if info, err = f.Stat(); err != nil {
		return 0, "", err
	}
	for _, entry := range l1 {
		if table := int64(entry & offsetMask); table >= info.Size {
			return table, "an L2 table", nil
		}
	}
	if last >= info.Size && info.Mode&os.ModeDevice == 0 {
		return last, "a cluster that its refcounts have in use", nil
	}
	return 0, "", nil
}

// lastCounted is the offset of the last cluster whose refcount is not 0, or of the
// block that should count it and lies behind the end of the file; 0 for none. (qcow2
// specification, "Host cluster management".)
func lastCounted(f File, h *Header) (int64, error) {
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
		at := int64(binary.BigEndian.Uint64(table[i*8:]) & offsetMask)
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
			if cluster := i*perBlock + k; cluster <= offsetMask>>h.ClusterBits {
				return cluster << h.ClusterBits, nil
			}
		}
	}
	return 0, nil
}
