package overlay

import (
	"encoding/binary"
	"fmt"

	"varve/overlay/hostfs"
)

// tableWalk goes through an L1 table and the L2 tables that it names. What is
// right in them its judges say: recovery, which takes only what varve writes,
// and Check, which takes whatever the format allows. The memory is a cluster
// and a piece of the L1 table.
type tableWalk struct {
	file hostfs.File
	h    *Header
	buf  []byte // one cluster
	// l1 judges entry number i, which is not 0. Without descend its L2 table is
	// left out.
	l1 func(i int64, entry uint64) (descend bool, err error)
	// l2 judges an entry that is not 0 and stands at a host offset; bitmap is
	// the second half of an extended one. guest is what it maps, in bytes.
	l2 func(at, guest int64, word, bitmap uint64) error
	// unread is told of n bytes of a table at a host offset that the host cannot read,
	// which are taken as zeros; nil makes that the walk's error.
	unread func(table string, at, n int64, reason error) error
}

// read reads a piece of a table; what lies past the end of the file is zeros.
func (w *tableWalk) read(table string, p []byte, at, entryBytes int64) error {
	if w.unread == nil {
		return hostfs.ReadPadded(w.file, p, at)
	}
	return readPieces(hostfs.ReadPadded, w.file, p, at, entryBytes, func(first, n int64, reason error) error {
		return w.unread(table, at+first*entryBytes, n*entryBytes, reason)
	})
}

// walk goes through the L1 table at offset. What lies past the end of the file
// is taken as zeros; a judge that wants to know looks at the entry's offset.
func (w *tableWalk) walk(offset, entries int64) error {
	piece := tableBuffers.Get().(*[64 << 10]byte)
	defer tableBuffers.Put(piece)
	for i := int64(0); i < entries; {
		n := min(entries-i, int64(len(piece))/8)
		at := offset + i*8
		if err := w.read("L1 table", piece[:n*8], at, 8); err != nil {
			return fmt.Errorf("read L1 table at 0x%x of %s: %w", at, w.file.Name(), err)
		}
		for k := range n {
			entry := binary.BigEndian.Uint64(piece[k*8:])
			if entry == 0 {
				continue
			}
			descend, err := w.l1(i+k, entry)
			if err != nil {
				return err
			}
			if descend {
				if err := w.walkL2(i+k, int64(entry&offsetMask)); err != nil {
					return err
				}
			}
		}
		i += n
	}
	return nil
}

func (w *tableWalk) walkL2(i, table int64) error {
	size := 8
	if w.h.ExtendedL2() {
		size = entrySize
	}
	if err := w.read("L2 table", w.buf, table, int64(size)); err != nil {
		return fmt.Errorf("read L2 table at 0x%x of %s: %w", table, w.file.Name(), err)
	}
	start := i << (w.h.ClusterBits + w.h.l2Bits())
	for j := 0; j < len(w.buf); j += size {
		word, bitmap := binary.BigEndian.Uint64(w.buf[j:]), uint64(0)
		if size == entrySize {
			bitmap = binary.BigEndian.Uint64(w.buf[j+8:])
		}
		if word|bitmap == 0 {
			continue
		}
		guest := start + int64(j/size)<<w.h.ClusterBits
		if err := w.l2(table+int64(j), guest, word, bitmap); err != nil {
			return err
		}
	}
	return nil
}
