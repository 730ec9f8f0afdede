package qcow2

import (
	"encoding/binary"
	"fmt"

	"varve/overlay/hostfs"
)

// Walk goes through an L1 table and the L2 tables that it names. What is
// right in them its judges say: recovery, which takes only what varve writes,
// and Check, which takes whatever the format allows. The memory is a cluster
// and a piece of the L1 table.
type Walk struct {
	File   hostfs.File
	Header *Header
	Buf    []byte // one cluster
	// l1 judges entry number i, which is not 0. Without descend its L2 table is
	// left out.
	L1 func(i int64, entry uint64) (descend bool, err error)
	// l2 judges an entry that is not 0 and stands at a host offset; bitmap is
	// the second half of an extended one. guest is what it maps, in bytes.
	L2 func(at, guest int64, word, bitmap uint64) error
	// unread is told of n bytes of a table at a host offset that the host cannot read,
	// which are taken as zeros; nil makes that the walk's error.
	Unread func(table string, at, n int64, reason error) error
}

// read reads a piece of a table; what lies past the end of the file is zeros.
func (w *Walk) read(table string, p []byte, at, entryBytes int64) error {
	if w.Unread == nil {
		return hostfs.ReadPadded(w.File, p, at)
	}
	return ReadPieces(hostfs.ReadPadded, w.File, p, at, entryBytes, func(first, n int64, reason error) error {
		return w.Unread(table, at+first*entryBytes, n*entryBytes, reason)
	})
}

// walk goes through the L1 table at offset. What lies past the end of the file
// is taken as zeros; a judge that wants to know looks at the entry's offset.
func (w *Walk) Run(offset, entries int64) error {
	piece := tableBuffers.Get().(*[64 << 10]byte)
	defer tableBuffers.Put(piece)
	for i := int64(0); i < entries; {
		n := min(entries-i, int64(len(piece))/8)
		at := offset + i*8
		if err := w.read("L1 table", piece[:n*8], at, 8); err != nil {
			return fmt.Errorf("read L1 table at 0x%x of %s: %w", at, w.File.Name(), err)
		}
		for k := range n {
			entry := binary.BigEndian.Uint64(piece[k*8:])
			if entry == 0 {
				continue
			}
			descend, err := w.L1(i+k, entry)
			if err != nil {
				return err
			}
			if descend {
				if err := w.walkL2(i+k, int64(entry&OffsetMask)); err != nil {
					return err
				}
			}
		}
		i += n
	}
	return nil
}

func (w *Walk) walkL2(i, table int64) error {
	size := 8
	if w.Header.ExtendedL2() {
		size = EntrySize
	}
	if err := w.read("L2 table", w.Buf, table, int64(size)); err != nil {
		return fmt.Errorf("read L2 table at 0x%x of %s: %w", table, w.File.Name(), err)
	}
	start := i << (w.Header.ClusterBits + w.Header.l2Bits())
	for j := 0; j < len(w.Buf); j += size {
		word, bitmap := binary.BigEndian.Uint64(w.Buf[j:]), uint64(0)
		if size == EntrySize {
			bitmap = binary.BigEndian.Uint64(w.Buf[j+8:])
		}
		if word|bitmap == 0 {
			continue
		}
		guest := start + int64(j/size)<<w.Header.ClusterBits
		if err := w.L2(table+int64(j), guest, word, bitmap); err != nil {
			return err
		}
	}
	return nil
}
