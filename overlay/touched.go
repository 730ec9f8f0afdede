package overlay

import (
	"errors"
	"io"

	"varve/overlay/hostfs"
)

// TouchedSpans is how many spans of ChangeSpan guest bytes Touched tells about.
const TouchedSpans = 64

const touchedBytes = TouchedSpans * ChangeSpan

// Touched says where a layer may map something, from the L1 table and the holes of
// the file alone: bit i is for the span of ChangeSpan guest bytes that begins at
// off+i*ChangeSpan. off is a multiple of ChangeSpan. What lies past the layer's
// size is not touched. Most of an L2 table of a layer that is written here and
// there was never written, and reading those zeros would be most of a count.
func (im *Image) Touched(off int64) (mask uint64, err error) {
	end := min(off+touchedBytes, im.size)
	if im.header == nil {
		for pos := off; pos < end; {
			start, stop, err := im.nextRawData(pos, end)
			if err != nil {
				return 0, err
			}
			mask |= spanMask(start-off, stop-off)
			pos = stop
		}
		return mask, nil
	}
	span := im.header.l2Bits() + im.header.ClusterBits
	for i := off >> span; i<<span < end; i++ {
		if im.l1[i] != 0 && im.badL1(i, im.l1[i]) != nil {
			mask |= spanMask(i<<span-off, (i+1)<<span-off)
		} else if table := int64(im.l1[i] & offsetMask); table != 0 {
			m, err := touchedTable(im.file, table, i<<span, im.l2.entryBytes(), im.header.ClusterBits, off)
			if err != nil {
				return 0, err
			}
			mask |= m
		}
	}
	return mask & spanMask(0, end-off), nil
}

// Touched is Image.Touched; what changes meanwhile TakeChanged tells.
func (o *Overlay) Touched(off int64) (mask uint64, err error) {
	end := min(off+touchedBytes, o.Size())
	span := o.tableBits + o.clusterBits
	tables := *o.tables.Load()
	for i := off >> span; i<<span < end && i < int64(len(tables)); i++ {
		t := tables[i].Load()
		if t == nil {
			continue
		}
		// First what is in memory: a slice that is not was written back.
		const sliceSpan = sliceEntries
		for si := range t.slices {
			if t.slices[si].Load() != nil {
				start := i<<span + int64(si)*sliceSpan<<o.clusterBits
				mask |= spanMask(start-off, start-off+sliceSpan<<o.clusterBits)
			}
		}
		m, err := touchedTable(o.file, t.host, i<<span, entrySize, o.clusterBits, off)
		if err != nil {
			return 0, err
		}
		mask |= m
	}
	return mask & spanMask(0, end-off), nil
}

// touchedTable looks for the pieces of an L2 table that are no holes. guest is what
// its first entry maps.
func touchedTable(f hostfs.File, table, guest, entryBytes int64, clusterBits uint32, off int64) (mask uint64, err error) {
	end := table + 1<<clusterBits
	for at := table; at < end; {
		start, err := f.SeekData(at)
		if errors.Is(err, io.EOF) {
			break
		}
		if hostfs.CannotRead(err) {
			start, err = at, nil // reading tells
		}
		if err != nil {
			return 0, err
		}
		// A host that forgets its holes gives data.
		if start = max(start, at); start >= end {
			break
		}
		stop, err := f.SeekHole(start)
		if err != nil && !errors.Is(err, io.EOF) && !hostfs.CannotRead(err) {
			return 0, err
		}
		if err != nil || stop <= start || stop > end {
			stop = end
		}
		first := guest + (start-table)/entryBytes<<clusterBits
		last := guest + (stop-table+entryBytes-1)/entryBytes<<clusterBits
		mask |= spanMask(first-off, last-off)
		at = stop
	}
	return mask, nil
}

// spanMask has the bits of the spans that [from, to) meets, both relative to the
// first one.
func spanMask(from, to int64) uint64 {
	from, to = max(0, from), min(touchedBytes, to)
	if from >= to {
		return 0
	}
	first, last := from/ChangeSpan, (to-1)/ChangeSpan
	return ^uint64(0) >> (63 - (last - first)) << first
}
