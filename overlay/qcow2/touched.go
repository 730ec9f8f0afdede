package qcow2

import (
	"errors"
	"io"

	"varve/overlay/hostfs"
)

// ChangeSpan is the unit, in guest bytes, in which Touched tells what a layer may map,
// and a layer that is written what has changed. No cluster crosses it.
const ChangeSpan = 16 << 20

// TouchedSpans is how many spans of ChangeSpan guest bytes Touched tells about.
const TouchedSpans = 64

const TouchedBytes = TouchedSpans * ChangeSpan

// Touched says where a layer may map something, from the L1 table and the holes of
// the file alone: bit i is for the span of ChangeSpan guest bytes that begins at
// off+i*ChangeSpan. off is a multiple of ChangeSpan. What lies past the layer's
// size is not touched. Most of an L2 table of a layer that is written here and
// there was never written, and reading those zeros would be most of a count.
func (im *Image) Touched(off int64) (mask uint64, err error) {
	end := min(off+TouchedBytes, im.size)
	if im.header == nil {
		for pos := off; pos < end; {
			start, stop, err := im.nextRawData(pos, end)
			if err != nil {
				return 0, err
			}
			mask |= SpanMask(start-off, stop-off)
			pos = stop
		}
		return mask, nil
	}
	span := im.header.l2Bits() + im.header.ClusterBits
	for i := off >> span; i<<span < end; i++ {
		if im.l1[i] != 0 && im.badL1(i, im.l1[i]) != nil {
			mask |= SpanMask(i<<span-off, (i+1)<<span-off)
		} else if table := int64(im.l1[i] & OffsetMask); table != 0 {
			m, err := TouchedTable(im.file, table, i<<span, im.l2.entryBytes(), im.header.ClusterBits, off)
			if err != nil {
				return 0, err
			}
			mask |= m
		}
	}
	return mask & SpanMask(0, end-off), nil
}

// TouchedTable looks for the pieces of an L2 table that are no holes. guest is what
// its first entry maps.
func TouchedTable(f hostfs.File, table, guest, entryBytes int64, clusterBits uint32, off int64) (mask uint64, err error) {
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
		mask |= SpanMask(first-off, last-off)
		at = stop
	}
	return mask, nil
}

// SpanMask has the bits of the spans that [from, to) meets, both relative to the
// first one.
func SpanMask(from, to int64) uint64 {
	from, to = max(0, from), min(TouchedBytes, to)
	if from >= to {
		return 0
	}
	first, last := from/ChangeSpan, (to-1)/ChangeSpan
	return ^uint64(0) >> (63 - (last - first)) << first
}
