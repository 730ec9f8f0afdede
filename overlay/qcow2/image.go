package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"

	"varve/overlay/extent"
	"varve/overlay/hostfs"
)

// Image is an image file opened for reading: raw, or any qcow2 without
// encryption or an external data file. Of a qcow2 file it keeps the L1 table
// in memory (at most 32 MiB, and never more than the file has) and no L2
// table: callers remember what Map says. All methods are safe for concurrent
// use, Close only when no other is running.
type Image struct {
	file     hostfs.File
	format   string
	size     int64 // guest bytes
	fileSize int64 // when it was opened; a frozen file does not change

	// Of qcow2 only.
	header     *Header
	l1         []uint64
	l1Unread   map[int64]error // entries that the host cannot read; nil for none
	index      *TableIndex     // of l1
	l2         EntryFormat
	compressed compressedReader
	hidden     extent.Extent // see HideTail
}

// Formats of images, as in a qcow2 header's backing format.
const (
	FormatRaw   = "raw"
	FormatQcow2 = "qcow2"
)

// OpenImage opens an image, "raw" or "qcow2", read-only and takes the lock
// (none with LockNone). The format is never guessed from the content. Errors
// wrap ErrCorrupt, ErrUnsupported, ErrLocked or those of the host.
func OpenImage(fs hostfs.FS, path, format string, lock hostfs.LockMode) (*Image, error) {
	f, err := OpenFile(fs, path)
	if err != nil {
		return nil, err
	}
	if lock != hostfs.LockNone {
		if err := f.Lock(lock); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	im, err := NewImage(f, format)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return im, nil
}

// NewImage reads an image from a file that is open, and locked where it has to
// be. Close of the image closes the file; when NewImage fails, the file is
// left open and the caller's. Errors are those of OpenImage.
func NewImage(f hostfs.File, format string) (*Image, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	im := &Image{file: f, format: format, fileSize: info.Size}
	switch format {
	case FormatRaw:
		im.size = info.Size
		return im, nil
	case FormatQcow2:
	default:
		return nil, fmt.Errorf("%s: image format %q: %w", f.Name(), format, ErrUnsupported)
	}
	if im.header, err = HeaderOf(f, info.Size); err != nil {
		return nil, err
	}
	h := im.header
	im.size = h.Size
	im.l2 = EntryFormat{Version: h.Version, ClusterBits: h.ClusterBits, Extended: h.ExtendedL2(), FileSize: info.Size}
	im.compressed = compressedReader{file: f, format: &im.l2, compression: h.CompressionType}
	if im.l1, im.l1Unread, err = ReadL1(f, h); err != nil {
		return nil, err
	}
	im.index = NewTableIndex(len(im.l1))
	for i, entry := range im.l1 {
		if entry != 0 {
			im.index.Set(i)
		}
	}
	return im, nil
}

// tableBuffers are for pieces of tables while they are decoded. 64 KiB hold
// the L2 entries of 256 MiB of guest, at clusters of 64 KiB with subclusters.
var tableBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// ReadL1 reads the part of the L1 table that the disk's size needs; entries
// behind it (of a disk that was shrunk, or for a saved machine's state) map no
// guest bytes. Entries that the host cannot read are unreadL1, with the reason in
// unread.
func ReadL1(f hostfs.File, h *Header) (l1 []uint64, unread map[int64]error, err error) {
	buf := tableBuffers.Get().(*[64 << 10]byte)
	defer tableBuffers.Put(buf)
	l1 = make([]uint64, h.L1EntriesFor(h.Size))
	for i := int64(0); i < int64(len(l1)); {
		n := min(int64(len(l1))-i, int64(len(buf)/8))
		at := h.L1Offset + i*8
		var broken []int64
		err := ReadPieces(hostfs.ReadWhole, f, buf[:n*8], at, 8, func(first, n int64, reason error) error {
			if unread == nil {
				unread = make(map[int64]error)
			}
			for k := first; k < first+n; k++ {
				unread[i+k], broken = reason, append(broken, i+k)
			}
			return nil
		})
		if err != nil {
			return nil, nil, fmt.Errorf("read L1 table at 0x%x of %s: %w", at, f.Name(), err)
		}
		for k := range n {
			l1[i+k] = binary.BigEndian.Uint64(buf[k*8:])
		}
		for _, k := range broken {
			l1[k] = unreadL1
		}
		i += n
	}
	return l1, unread, nil
}

// unreadL1 stands for an L1 entry that the host cannot read.
const unreadL1 = ^uint64(0)

// Header is the qcow2 header; nil for raw. It must not be changed.
func (im *Image) Header() *Header { return im.header }

// File is the file that the image reads.
func (im *Image) File() hostfs.File { return im.file }

// Format is "raw" or "qcow2".
func (im *Image) Format() string { return im.format }

// Size is the guest size in bytes; of a raw image the file's size or the block
// device's capacity.
func (im *Image) Size() int64 { return im.size }

// Close closes the file and with it drops its locks.
func (im *Image) Close() error { return im.file.Close() }

// Map is Layer.Map. Of a qcow2 image it reads the L2 entries of the range, of
// a raw one it asks the host for holes. It allocates nothing but what dst
// needs to grow. An entry that breaks a rule, or stands where the host cannot read,
// costs what it maps, which is Damaged. Errors are those of the host otherwise.
func (im *Image) Map(dst []extent.Extent, off, length int64) ([]extent.Extent, error) {
	if off < 0 || length < 0 || off > math.MaxInt64-length {
		return dst, fmt.Errorf("map %d bytes at %d of %s: %w", length, off, im.file.Name(), os.ErrInvalid)
	}
	if im.hidden.Length > 0 && off < im.hidden.End() && off+length > im.hidden.Start {
		return im.mapHidden(dst, off, length)
	}
	return im.mapShown(dst, off, length)
}

// mapShown is Map where nothing is hidden.
func (im *Image) mapShown(dst []extent.Extent, off, length int64) ([]extent.Extent, error) {
	end := off + length
	limit := min(end, im.size)
	list := extent.List{Extents: dst, First: len(dst), Low: off, High: limit}
	if off < limit {
		var err error
		if im.header == nil {
			err = im.mapRaw(&list, off, limit)
		} else {
			err = im.mapTables(&list, off, limit)
		}
		if err != nil {
			return dst, err
		}
	}
	list.High = end
	list.Add(extent.Zero, max(off, im.size), end, 0) // M2
	return list.Extents, nil
}

// Next implements Layer. Of a qcow2 image it looks at the L1 table in memory, and so
// gives where the reach of an L2 table begins; of a raw one it asks the host once.
func (im *Image) Next(off int64) (int64, error) {
	if off >= im.size {
		return im.size, nil
	}
	if im.header == nil {
		start, _, err := im.nextRawStart(off, im.size)
		return start, err
	}
	next := im.index.NextReach(off, im.size, im.header.l2Bits()+im.header.ClusterBits)
	if im.hidden.Length > 0 && off < im.hidden.End() { // zeros, which no table says
		next = min(next, max(off, im.hidden.Start))
	}
	return next, nil
}

// mapTables maps [pos, limit), which is not empty and lies within the disk.
func (im *Image) mapTables(list *extent.List, pos, limit int64) error {
	span := im.header.l2Bits() + im.header.ClusterBits
	for pos < limit {
		i := pos >> span
		end := min((i+1)<<span, limit)
		entry := im.l1[i]
		if entry == 0 { // the hot case: a layer that says nothing here
			if end < limit {
				end = im.index.NextReach(end, limit, span)
			}
			list.Add(extent.Unallocated, pos, end, 0)
		} else if err := im.mapTable(list, entry, i, pos, end); err != nil {
			return err
		}
		pos = end
	}
	return nil
}

// mapTable maps [pos, end), all within the reach of L1 entry number i.
func (im *Image) mapTable(list *extent.List, l1Entry uint64, i, pos, end int64) error {
	if err := im.badL1(i, l1Entry); err != nil {
		return list.Broken(pos, end, err)
	}
	table := int64(l1Entry & OffsetMask)
	if table == 0 {
		list.Add(extent.Unallocated, pos, end, 0)
		return nil
	}
	clusterBits := im.header.ClusterBits
	buf := tableBuffers.Get().(*[64 << 10]byte)
	defer tableBuffers.Put(buf)
	entryBytes := im.l2.entryBytes()
	tableStart := i << (clusterBits + im.header.l2Bits())
	first := (pos - tableStart) >> clusterBits
	last := (end - 1 - tableStart) >> clusterBits
	for first <= last {
		n := min(last-first+1, int64(len(buf))/entryBytes)
		piece := tablePiece{at: table + first*entryBytes, start: tableStart + first<<clusterBits, entries: buf[:n*entryBytes]}
		err := hostfs.ReadWhole(im.file, piece.entries, piece.at)
		switch {
		case err == nil:
			err = im.mapEntries(list, piece)
		case errors.Is(err, hostfs.ErrUnreadable):
			err = im.mapSectors(list, piece)
		default:
			err = fmt.Errorf("read L2 table at 0x%x of %s: %w", piece.at, im.file.Name(), err)
		}
		if err != nil {
			return err
		}
		first += n
	}
	return nil
}

// tablePiece is a piece of an L2 table as it was read from a file offset; its first
// entry maps the guest cluster at start.
type tablePiece struct {
	at, start int64
	entries   []byte
}

// mapEntries maps what the entries of a piece say.
func (im *Image) mapEntries(list *extent.List, p tablePiece) error {
	entryBytes, start := im.l2.entryBytes(), p.start
	for k := int64(0); k < int64(len(p.entries)); k += entryBytes {
		entry := p.entries[k:]
		word, bitmap := binary.BigEndian.Uint64(entry), uint64(0)
		if im.l2.Extended {
			bitmap = binary.BigEndian.Uint64(entry[8:])
		}
		end := start + 1<<im.header.ClusterBits
		if word|bitmap == 0 {
			list.Add(extent.Unallocated, start, end, 0)
		} else if err := im.l2.Add(list, start, word, bitmap); err != nil {
			err = fmt.Errorf("%s: L2 entry at 0x%x, of guest offset 0x%x: %w", im.file.Name(), p.at+k, start, err)
			if err = list.Broken(start, end, err); err != nil {
				return err
			}
		}
		start = end
	}
	return nil
}

// mapSectors maps a piece of a table that the host cannot read as a whole.
func (im *Image) mapSectors(list *extent.List, p tablePiece) error {
	entryBytes, clusterBits := im.l2.entryBytes(), im.header.ClusterBits
	mapped := int64(0) // bytes of entries
	upTo := func(end int64) error {
		part := tablePiece{p.at + mapped, p.start + mapped/entryBytes<<clusterBits, p.entries[mapped:end]}
		mapped = end
		return im.mapEntries(list, part)
	}
	err := ReadPieces(hostfs.ReadWhole, im.file, p.entries, p.at, entryBytes, func(first, n int64, reason error) error {
		if err := upTo(first * entryBytes); err != nil {
			return err
		}
		mapped = (first + n) * entryBytes
		reason = fmt.Errorf("read L2 table at 0x%x of %s: %w", p.at+first*entryBytes, im.file.Name(), reason)
		return list.Broken(p.start+first<<clusterBits, p.start+(first+n)<<clusterBits, reason)
	})
	if err != nil {
		return err
	}
	return upTo(int64(len(p.entries)))
}

// badL1 says what is wrong with an L1 entry by its number, nil for nothing.
func (im *Image) badL1(i int64, entry uint64) error {
	table := int64(entry & OffsetMask)
	switch {
	case entry == unreadL1 && im.l1Unread[i] != nil:
		return fmt.Errorf("read L1 entry %d of %s: %w", i, im.file.Name(), im.l1Unread[i])
	case entry&L1Reserved != 0:
		return im.corrupt("L1 entry %d has reserved bits 0x%x set", i, entry&L1Reserved)
	case table == 0:
		return nil
	case table&(1<<im.header.ClusterBits-1) != 0:
		return im.corrupt("L1 entry %d: the L2 table's offset 0x%x is no multiple of the cluster size", i, table)
	case table > im.fileSize-1<<im.header.ClusterBits:
		// Unlike data, a table whose end is missing is not taken as zeros:
		// that would let the backing file show through.
		return im.corrupt("L1 entry %d: the L2 table at 0x%x ends behind the end of the file at 0x%x", i, table, im.fileSize)
	}
	return nil
}

func (im *Image) corrupt(format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", im.file.Name(), fmt.Sprintf(format, args...), ErrCorrupt)
}

// ReadExtent is Layer.ReadExtent. For Data it is one read of the file. A file
// that has become shorter since it was opened is an error, not zeros.
func (im *Image) ReadExtent(p []byte, e extent.Extent, off int64) error {
	if off < e.Start || int64(len(p)) > e.End()-off {
		return fmt.Errorf("read %d bytes at %d of %s: not within the extent: %w", len(p), off, im.file.Name(), os.ErrInvalid)
	}
	switch {
	case e.Kind == extent.Data:
		return im.readData(p, e.Host+off-e.Start)
	case e.Kind == extent.Compressed && im.header != nil:
		return im.compressed.read(p, uint64(e.Host), off&(im.header.ClusterSize()-1))
	case e.Kind == extent.Damaged && im.header != nil:
		return im.whyDamaged(off, int64(len(p)))
	}
	return fmt.Errorf("read %d bytes at %d of %s: the extent has no data: %w", len(p), off, im.file.Name(), os.ErrInvalid)
}

func (im *Image) readData(p []byte, host int64) error {
	n, err := im.file.ReadAt(p, host)
	if n == len(p) {
		return nil
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %d bytes at 0x%x of %s: %w", len(p), host, im.file.Name(), hostfs.ReadError(err))
	}
	if host+int64(n) < min(host+int64(len(p)), im.fileSize) {
		return im.corrupt("it ends at 0x%x, but had %d bytes when it was opened", host+int64(n), im.fileSize)
	}
	clear(p[n:])
	return nil
}

// OwnBytes counts the guest bytes that the layer itself maps: data, zeros and
// compressed clusters, and what may be that since it is damaged; of a raw image what
// the host holds as data. It reads all L2 tables, in memory that does not depend on
// their number.
func (im *Image) OwnBytes() (int64, error) {
	if im.header == nil {
		return im.rawDataBytes()
	}
	const clustersAtOnce = 1024
	span := im.header.l2Bits() + im.header.ClusterBits
	step := min(int64(clustersAtOnce)<<im.header.ClusterBits, int64(1)<<span)
	total := int64(0)
	var extents []extent.Extent
	for i, ok := im.index.Next(0); ok; i, ok = im.index.Next(i + 1) {
		start := i << span
		for end := min(start+1<<span, im.size); start < end; start += step {
			var err error
			if extents, err = im.Map(extents[:0], start, min(step, end-start)); err != nil {
				return 0, err
			}
			for _, e := range extents {
				if e.Kind != extent.Unallocated {
					total += e.Length
				}
			}
		}
	}
	return total, nil
}
