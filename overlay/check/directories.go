package check

import (
	"encoding/binary"
	"fmt"

	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// Limits of the directories of internal snapshots and bitmaps, those of QEMU.
const (
	snapshotHeaderBytes = 40 // the fixed part of a snapshot table entry
	maxSnapshotExtra    = 1024
	snapshotExtraV3     = 16 // what version 3 wants of extra data

	maxBitmaps           = 65535
	maxBitmapName        = 1023
	maxBitmapTable       = 0x8000000 // entries
	bitmapHeaderBytes    = 24        // the fixed part of a bitmap directory entry
	bitmapExtensionBytes = 24
	bitmapReserved       = ^uint64(qcow2.OffsetMask | bitmapAllOnes)
	bitmapAllOnes        = 1
	bitmapInUse          = 1 << 0 // a flag of a directory entry: not written back
	bitmapFlagsReserved  = ^uint32(3)
	bitmapDirtyTracking  = 1 // the one type there is
	minBitmapGranularity = 9
	maxBitmapGranularity = 31
	maxBitmapBytes       = 512 << 20
)

// bitmapTable is where the table of a bitmap stands.
type bitmapTable struct{ offset, entries int64 }

// readDirectories finds all that the header names beside the refcount table:
// L1 tables and bitmaps.
func (c *checker) readDirectories() error {
	h := c.h
	if h.Autoclear&qcow2.AutoclearRawExternalData != 0 {
		c.errorf(0, "header: autoclear feature bit 1 (raw external data) is set, but there is no data file")
	}
	c.l1Tables = append(c.l1Tables, l1Table{"L1 table", h.L1Offset, int64(h.L1Entries), true})
	if err := c.readSnapshots(); err != nil {
		return err
	}
	return c.readBitmaps()
}

// readSnapshots reads the table of internal snapshots (qcow2 specification,
// "Snapshots").
func (c *checker) readSnapshots() error {
	at := c.h.SnapshotsOffset
	var fixed [snapshotHeaderBytes]byte
	for i := range c.h.Snapshots {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		at = (at + 7) &^ 7
		if at > c.fileSize-snapshotHeaderBytes {
			c.errorf(at, "snapshot table: entry %d at 0x%x is behind the end of the file", i, at)
			break
		}
		if err := hostfs.ReadPadded(c.file, fixed[:], at); err != nil {
			return fmt.Errorf("read snapshot table at 0x%x of %s: %w", at, c.file.Name(), err)
		}
		be := binary.BigEndian
		table := l1Table{
			name:   fmt.Sprintf("L1 table of internal snapshot %d", i),
			offset: int64(be.Uint64(fixed[:])), entries: int64(be.Uint32(fixed[8:])),
		}
		extra := int64(be.Uint32(fixed[36:]))
		if extra > maxSnapshotExtra {
			c.errorf(at, "snapshot table: entry %d has %d bytes of extra data, more than %d", i, extra, maxSnapshotExtra)
			break // where the next one is, nobody can say
		}
		if c.h.Version >= 3 && extra < snapshotExtraV3 {
			c.errorf(at, "snapshot table: entry %d has %d bytes of extra data, less than %d", i, extra, snapshotExtraV3)
		}
		switch {
		case table.offset&(c.h.ClusterSize()-1) != 0:
			c.errorf(at, "snapshot table: entry %d: the L1 table's offset 0x%x is no multiple of the cluster size", i, uint64(table.offset))
		case table.entries*8 > qcow2.MaxL1Bytes:
			c.errorf(at, "snapshot table: entry %d: the L1 table has %d entries, more than %d", i, table.entries, qcow2.MaxL1Bytes/8)
		case table.offset < 0 || table.offset > c.fileSize:
			c.errorf(at, "snapshot table: entry %d: the L1 table at 0x%x is behind the end of the file", i, uint64(table.offset))
		default:
			c.l1Tables = append(c.l1Tables, table)
		}
		at += snapshotHeaderBytes + extra + int64(be.Uint16(fixed[12:])) + int64(be.Uint16(fixed[14:]))
	}
	if at > c.h.SnapshotsOffset {
		c.ranges = append(c.ranges, namedRange{"snapshot table", c.h.SnapshotsOffset, at - c.h.SnapshotsOffset})
	}
	return nil
}

// readBitmaps reads the directory of bitmaps (qcow2 specification, "Bitmaps").
// Without the autoclear bit the extension says nothing that is true, and what
// it names counts as not in use.
func (c *checker) readBitmaps() error {
	if c.h.Autoclear&qcow2.AutoclearBitmaps == 0 {
		return nil
	}
	for _, e := range c.h.Extensions {
		if e.Type == qcow2.ExtensionBitmaps {
			return c.readBitmapDirectory(e.Data)
		}
	}
	return nil
}

func (c *checker) readBitmapDirectory(extension []byte) error {
	be := binary.BigEndian
	if len(extension) != bitmapExtensionBytes {
		c.errorf(0, "header: the bitmaps extension is %d bytes long, not %d", len(extension), bitmapExtensionBytes)
		return nil
	}
	count, size, start := be.Uint32(extension), be.Uint64(extension[8:]), be.Uint64(extension[16:])
	switch {
	case be.Uint32(extension[4:]) != 0:
		c.errorf(0, "header: the reserved field of the bitmaps extension is 0x%x", be.Uint32(extension[4:]))
		return nil
	case count == 0 || count > maxBitmaps:
		c.errorf(0, "header: the bitmaps extension counts %d bitmaps, not 1 to %d", count, maxBitmaps)
		return nil
	case start == 0 || start&uint64(c.h.ClusterSize()-1) != 0:
		c.errorf(0, "header: the bitmap directory's offset 0x%x is no multiple of the cluster size", start)
		return nil
	case start >= uint64(c.fileSize) || size > uint64(c.fileSize)-start:
		c.errorf(0, "header: the bitmap directory at 0x%x, %d bytes long, ends behind the end of the file", start, size)
		return nil
	}
	c.ranges = append(c.ranges, namedRange{"bitmap directory", int64(start), int64(size)})
	at, end := int64(start), int64(start+size)
	var fixed [bitmapHeaderBytes]byte
	for i := range count {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if end-at < bitmapHeaderBytes {
			c.errorf(at, "bitmap directory: entry %d at 0x%x ends behind its end", i, at)
			return nil
		}
		if err := hostfs.ReadPadded(c.file, fixed[:], at); err != nil {
			return fmt.Errorf("read bitmap directory at 0x%x of %s: %w", at, c.file.Name(), err)
		}
		table := bitmapTable{int64(be.Uint64(fixed[:])), int64(be.Uint32(fixed[8:]))}
		name := int64(be.Uint16(fixed[18:]))
		length := bitmapHeaderBytes + int64(be.Uint32(fixed[20:])) + name
		switch length = (length + 7) &^ 7; {
		case length > end-at:
			c.errorf(at, "bitmap directory: entry %d at 0x%x ends behind its end", i, at)
			return nil
		case name == 0 || name > maxBitmapName:
			c.errorf(at, "bitmap directory: the name of entry %d is %d bytes long, not 1 to %d", i, name, maxBitmapName)
		case be.Uint32(fixed[12:])&bitmapFlagsReserved != 0:
			c.errorf(at, "bitmap directory: entry %d has the reserved flags 0x%x", i, be.Uint32(fixed[12:])&bitmapFlagsReserved)
		case fixed[16] != bitmapDirtyTracking || fixed[17] < minBitmapGranularity || fixed[17] > maxBitmapGranularity:
			c.errorf(at, "bitmap directory: entry %d has the type %d and the granularity %d", i, fixed[16], fixed[17])
		case be.Uint32(fixed[12:])&bitmapInUse == 0 && !c.bitmapCovers(table, fixed[17]):
			c.errorf(at, "bitmap directory: entry %d: a table of %d entries does not fit the disk", i, table.entries)
		case table.offset <= 0 || table.offset&(c.h.ClusterSize()-1) != 0:
			c.errorf(at, "bitmap directory: entry %d: the table's offset 0x%x is no multiple of the cluster size", i, uint64(table.offset))
		case table.entries > maxBitmapTable || table.offset > c.fileSize-table.entries*8:
			c.errorf(at, "bitmap directory: entry %d: the table at 0x%x with %d entries ends behind the end of the file", i, table.offset, table.entries)
		default:
			c.ranges = append(c.ranges, namedRange{"bitmap table", table.offset, table.entries * 8})
			c.bitmaps = append(c.bitmaps, table)
		}
		at += length
	}
	if at != end {
		c.errorf(at, "bitmap directory: it is %d bytes long, its entries %d", size, uint64(at)-start)
	}
	return nil
}

// bitmapCovers says whether a bitmap has a bit for each part of the disk, of
// 1<<granularity bytes, no cluster more, and not more than QEMU reads.
func (c *checker) bitmapCovers(t bitmapTable, granularity uint8) bool {
	size := c.h.Size &^ 511 // QEMU leaves out what is less than a sector
	bits := size >> granularity
	if size&(1<<granularity-1) != 0 {
		bits++
	}
	perCluster := c.h.ClusterSize() * 8
	return t.entries == (bits+perCluster-1)/perCluster && t.entries<<c.h.ClusterBits <= maxBitmapBytes
}

// countBitmap counts the clusters that a bitmap's table names.
func (c *checker) countBitmap(t bitmapTable) error {
	piece := c.piece
	for i := int64(0); i < t.entries; {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n := min(t.entries-i, int64(len(piece))/8)
		if err := hostfs.ReadPadded(c.file, piece[:n*8], t.offset+i*8); err != nil {
			return fmt.Errorf("read bitmap table at 0x%x of %s: %w", t.offset, c.file.Name(), err)
		}
		for k := range n {
			entry := binary.BigEndian.Uint64(piece[k*8:])
			at, offset := t.offset+(i+k)*8, int64(entry&qcow2.OffsetMask)
			switch {
			case entry&bitmapReserved != 0 || offset != 0 && entry&bitmapAllOnes != 0:
				c.entryError(at, "bitmap table: the entry at 0x%x, 0x%x, has reserved bits set", at, entry)
			case offset&(c.h.ClusterSize()-1) != 0:
				c.entryError(at, "bitmap table: the entry at 0x%x: the offset 0x%x is no multiple of the cluster size", at, offset)
			case offset != 0:
				c.use("bitmap data", offset, c.h.ClusterSize(), usedByTable)
			}
		}
		i += n
	}
	return nil
}
