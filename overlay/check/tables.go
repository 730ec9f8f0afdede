package check

import (
	"encoding/binary"
	"fmt"

	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// countUses goes through everything that names clusters, and counts those of
// the present part of the file.
func (c *checker) countUses() error {
	c.use("header", 0, c.h.ClusterSize(), usedByTable)
	for _, r := range c.ranges {
		c.use(r.name, r.offset, r.length, usedByTable)
	}
	for i, e := range c.refcountTable {
		if e != 0 && !c.badBlock[i] {
			c.counts.add(int64(e)>>c.h.ClusterBits, int64(e)>>c.h.ClusterBits, usedByTable)
		}
	}
	for _, t := range c.bitmaps {
		if err := c.countBitmap(t); err != nil {
			return err
		}
	}
	for _, t := range c.l1Tables {
		c.use(t.name, t.offset, t.entries*8, usedByTable)
		judge := l1Judge{c, t}
		w := qcow2.Walk{File: c.file, Header: c.h, Buf: c.buf, L1: judge.l1, L2: judge.l2, Unread: c.unread}
		if err := w.Run(t.offset, t.entries); err != nil {
			return err
		}
	}
	return nil
}

// use counts a range of the file as used by what is called name. It may end
// less than a cluster past the end of the file.
func (c *checker) use(name string, offset, length int64, flags uint32) {
	if length <= 0 {
		return
	}
	if offset < 0 || offset > c.fileSize || offset+length-c.fileSize >= c.h.ClusterSize() {
		c.entryError(offset, "%s at 0x%x: it is behind the end of the file at 0x%x", name, uint64(offset), c.fileSize)
		return
	}
	bits := c.h.ClusterBits
	c.counts.add(offset>>bits, (offset+length-1)>>bits, flags)
}

// unread notes that the host cannot read a piece of a table.
func (c *checker) unread(table string, at, n int64, reason error) error {
	c.entryError(at, "%s: %d bytes at 0x%x cannot be read: %v", table, n, at, reason)
	return nil
}

// entryError notes what is wrong with an entry, in the first pass only.
func (c *checker) entryError(offset int64, format string, args ...any) {
	if c.first {
		c.errorf(offset, format, args...)
	}
}

// l1Judge judges the entries of one L1 table and of its L2 tables (qcow2
// specification, "Cluster mapping").
type l1Judge struct {
	*checker
	table l1Table
}

// copied says as what an entry's COPIED flag counts: of internal snapshots it
// has no meaning.
func (j l1Judge) copied(entry uint64) uint32 {
	switch {
	case !j.table.active:
		return 0
	case entry&qcow2.CopiedFlag != 0:
		return usedByCopied
	}
	return usedByUncopied
}

func (j l1Judge) l1(i int64, entry uint64) (bool, error) {
	if err := j.ctx.Err(); err != nil {
		return false, err
	}
	j.advance()
	at := j.table.offset + i*8
	table := int64(entry & qcow2.OffsetMask)
	if bits := entry & qcow2.L1Reserved; bits != 0 {
		j.entryError(at, "%s: entry %d has reserved bits 0x%x set", j.table.name, i, bits)
	}
	switch {
	case table == 0:
		if entry&qcow2.CopiedFlag != 0 {
			j.entryError(at, "%s: entry %d has the COPIED flag and names no L2 table", j.table.name, i)
		}
		return false, nil
	case table&(j.h.ClusterSize()-1) != 0:
		j.entryError(at, "%s: entry %d: the L2 table's offset 0x%x is no multiple of the cluster size", j.table.name, i, table)
		return false, nil
	case table > j.fileSize-j.h.ClusterSize():
		// A table whose end is missing is not read as zeros.
		j.entryError(at, "%s: entry %d: the L2 table at 0x%x ends behind the end of the file at 0x%x", j.table.name, i, table, j.fileSize)
		return false, nil
	}
	cluster := table >> j.h.ClusterBits
	j.counts.add(cluster, cluster, usedByL2|j.copied(entry))
	return true, nil
}

func (j l1Judge) l2(at, guest int64, word, bitmap uint64) error {
	wrong := func(format string, args ...any) error {
		if j.first {
			j.errorf(at, "L2 entry at 0x%x, of guest offset 0x%x: %s", at, guest, fmt.Sprintf(format, args...))
		}
		return nil
	}
	if word&qcow2.CompressedFlag != 0 {
		return j.compressed(wrong, word, bitmap)
	}
	if bits := word & qcow2.L2Reserved; bits != 0 {
		wrong("reserved bits 0x%x are set", bits)
	}
	allocated, zero := uint32(bitmap), uint32(bitmap>>32)
	if word&qcow2.ZeroFlag != 0 {
		switch {
		case j.checker.l2.Extended:
			wrong("reserved bit 0 is set")
		case j.h.Version < 3:
			wrong("the zero flag is set in a version 2 image")
		}
	}
	host := int64(word & qcow2.OffsetMask)
	switch {
	case allocated&zero != 0:
		return wrong("subclusters 0x%x are both allocated and zero", allocated&zero)
	case host == 0 && allocated != 0:
		return wrong("subclusters 0x%x are allocated, but no cluster is", allocated)
	case host == 0:
		return nil
	case host&(j.h.ClusterSize()-1) != 0:
		return wrong("the cluster's offset 0x%x is no multiple of the cluster size", host)
	case host >= j.fileSize:
		return wrong("the cluster at 0x%x is behind the end of the file at 0x%x", host, j.fileSize)
	}
	cluster := host >> j.h.ClusterBits
	j.counts.add(cluster, cluster, usedByData|j.copied(word))
	return nil
}

// compressed judges an entry of a compressed cluster (qcow2 specification,
// "Compressed Clusters Descriptor"). Its data is not decompressed.
func (j l1Judge) compressed(wrong func(string, ...any) error, word, bitmap uint64) error {
	if word&qcow2.CopiedFlag != 0 {
		wrong("a compressed cluster has the COPIED flag")
	}
	if bitmap != 0 {
		return wrong("a compressed cluster has the subcluster bitmap 0x%x", bitmap)
	}
	f := &j.checker.l2
	offset, length := f.CompressedRange(word &^ (qcow2.CopiedFlag | qcow2.CompressedFlag))
	switch {
	case offset < j.h.ClusterSize():
		return wrong("the compressed data at 0x%x is inside the header", offset)
	case offset >= j.fileSize || offset+length-j.fileSize >= j.h.ClusterSize():
		return wrong("the compressed data at 0x%x, at most %d bytes, is behind the end of the file at 0x%x", offset, length, j.fileSize)
	}
	bits := j.h.ClusterBits
	j.counts.add(offset>>bits, (offset+length-1)>>bits, usedByData)
	return nil
}

// readRefcountTable reads the refcount table and looks where it points (qcow2
// specification, "Host cluster management").
func (c *checker) readRefcountTable() error {
	h := c.h
	at, bytes := h.RefcountTableOffset, int64(h.RefcountTableClusters)<<h.ClusterBits
	c.ranges = append(c.ranges, namedRange{"refcount table", at, bytes})
	piece := c.piece
	for i := 0; i < int(bytes/8); {
		n := min(int(bytes/8)-i, len(piece)/8)
		err := qcow2.ReadPieces(hostfs.ReadPadded, c.file, piece[:n*8], at+int64(i)*8, 8, func(first, n int64, reason error) error {
			return c.unread("refcount table", at+(int64(i)+first)*8, n*8, reason)
		})
		if err != nil {
			return fmt.Errorf("read refcount table at 0x%x of %s: %w", at, c.file.Name(), err)
		}
		for k := range n {
			// Most of a table is empty: what follows its last entry is left out.
			if e := binary.BigEndian.Uint64(piece[k*8:]); e != 0 {
				c.refcountTable = append(c.refcountTable, make([]uint64, i+k+1-len(c.refcountTable))...)
				c.refcountTable[i+k] = e
			}
		}
		i += n
	}
	c.badBlock = make([]bool, len(c.refcountTable))
	named := make(map[uint64]bool)
	for i, e := range c.refcountTable {
		if e == 0 {
			continue
		}
		c.badBlock[i] = true
		switch {
		case e&511 != 0:
			c.errorf(at+int64(i)*8, "refcount table: entry %d has reserved bits 0x%x set", i, e&511)
		case e&uint64(h.ClusterSize()-1) != 0:
			c.errorf(at+int64(i)*8, "refcount table: entry %d: the block's offset 0x%x is no multiple of the cluster size", i, e)
		case e >= uint64(c.fileSize):
			c.errorf(at+int64(i)*8, "refcount table: entry %d: the block at 0x%x is behind the end of the file at 0x%x", i, e, c.fileSize)
		case named[e]:
			c.errorf(at+int64(i)*8, "refcount table: entry %d: the block at 0x%x is named twice", i, e)
		default:
			c.badBlock[i], named[e] = false, true
		}
	}
	return nil
}
