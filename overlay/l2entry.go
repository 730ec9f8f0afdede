package overlay

import (
	"fmt"
	"math/bits"
)

// Bits of an L1 entry and of the first 64 bits of an L2 entry (qcow2
// specification, "Cluster mapping"). offsetMask has the host offset of both.
const (
	compressedFlag = uint64(1) << 62
	zeroFlag       = uint64(1) // not with extended L2 entries

	l1Reserved = ^(offsetMask | copiedFlag)
	l2Reserved = ^(offsetMask | copiedFlag | compressedFlag | zeroFlag)

	subclusterCount = 32
)

// l2Format is what one needs to know of an image to read its L2 entries.
type l2Format struct {
	version     uint32
	clusterBits uint32
	extended    bool  // entries of 128 bits
	fileSize    int64 // bytes: what an entry names must start in there
}

func (f *l2Format) entryBytes() int64 {
	if f.extended {
		return 16
	}
	return 8
}

// add appends what an entry says about the guest cluster at start. word is
// the entry, bitmap its second half, if it has one.
//
// The order matters. A compressed entry is laid out differently: its bit 0 is
// part of an offset, not the zero flag. A zero cluster may have an offset
// (it is preallocated), and its zeros hide the backing file. An extended entry
// without an offset may still have zero subclusters.
func (f *l2Format) add(list *extentList, start int64, word, bitmap uint64) error {
	end := start + 1<<f.clusterBits
	if word&compressedFlag != 0 {
		if f.extended && bitmap != 0 {
			return fmt.Errorf("a compressed cluster has the subcluster bitmap 0x%x: %w", bitmap, ErrCorrupt)
		}
		if err := f.checkDescriptor(word &^ (copiedFlag | compressedFlag)); err != nil {
			return err
		}
		list.add(Compressed, start, end, int64(word&^(copiedFlag|compressedFlag)))
		return nil
	}
	if word&l2Reserved != 0 {
		return fmt.Errorf("reserved bits 0x%x are set: %w", word&l2Reserved, ErrCorrupt)
	}
	host := int64(word & offsetMask)
	if err := f.checkCluster(host); err != nil {
		return err
	}
	if f.extended {
		if word&zeroFlag != 0 {
			return fmt.Errorf("reserved bit 0 is set: %w", ErrCorrupt)
		}
		return f.addSubclusters(list, start, host, bitmap)
	}
	switch {
	case word&zeroFlag != 0 && f.version < 3:
		return fmt.Errorf("the zero flag is set in a version 2 image: %w", ErrCorrupt)
	case word&zeroFlag != 0:
		list.add(Zero, start, end, 0)
	case host == 0:
		list.add(Unallocated, start, end, 0)
	default:
		list.add(Data, start, end, host)
	}
	return nil
}

// addSubclusters appends the runs of a subcluster bitmap: bit n of its low
// half says that subcluster n is allocated, of its high half that it reads as
// zeros (qcow2 specification, "Extended L2 Entries").
func (f *l2Format) addSubclusters(list *extentList, start, host int64, bitmap uint64) error {
	allocated, zero := uint32(bitmap), uint32(bitmap>>32)
	if allocated&zero != 0 {
		return fmt.Errorf("subclusters 0x%x are both allocated and zero: %w", allocated&zero, ErrCorrupt)
	}
	if allocated != 0 && host == 0 {
		return fmt.Errorf("subclusters 0x%x are allocated, but no cluster is: %w", allocated, ErrCorrupt)
	}
	subBits := f.clusterBits - 5
	for i := 0; i < subclusterCount; {
		kind, set := Unallocated, ^(allocated | zero)
		switch {
		case allocated>>i&1 != 0:
			kind, set = Data, allocated
		case zero>>i&1 != 0:
			kind, set = Zero, zero
		}
		n := min(bits.TrailingZeros32(^(set >> i)), subclusterCount-i)
		at := int64(i) << subBits
		list.add(kind, start+at, start+at+int64(n)<<subBits, host+at)
		i += n
	}
	return nil
}

// checkCluster checks the host offset of a data cluster. One that ends past
// the end of the file is legal: what is missing reads as zeros.
func (f *l2Format) checkCluster(host int64) error {
	switch {
	case host == 0:
	case host&(1<<f.clusterBits-1) != 0:
		return fmt.Errorf("the cluster's offset 0x%x is no multiple of the cluster size: %w", host, ErrCorrupt)
	case host >= f.fileSize:
		return fmt.Errorf("the cluster at 0x%x is behind the end of the file at 0x%x: %w", host, f.fileSize, ErrCorrupt)
	}
	return nil
}

// compressedRange splits a compressed cluster's descriptor into the offset of
// its data and the number of bytes that its sectors have at most; the data may
// end earlier (qcow2 specification, "Compressed Clusters Descriptor").
func (f *l2Format) compressedRange(descriptor uint64) (offset, length int64) {
	sectorBits := f.clusterBits - 8
	offsetBits := 62 - sectorBits
	offset = int64(descriptor & (1<<offsetBits - 1))
	sectors := int64(descriptor>>offsetBits&(1<<sectorBits-1)) + 1
	return offset, sectors*512 - offset&511
}

func (f *l2Format) checkDescriptor(descriptor uint64) error {
	offset, _ := f.compressedRange(descriptor)
	switch {
	case offset < 1<<f.clusterBits:
		return fmt.Errorf("the compressed data at 0x%x is inside the header: %w", offset, ErrCorrupt)
	case offset >= f.fileSize:
		return fmt.Errorf("the compressed data at 0x%x is behind the end of the file at 0x%x: %w", offset, f.fileSize, ErrCorrupt)
	}
	return nil
}

// extentList collects extents, clipped to [low, high), neighbours merged.
type extentList struct {
	list      []Extent
	first     int // what is before belongs to the caller
	low, high int64
	strict    bool // see broken
}

// add appends [start, end). host counts for Data, where it moves with a
// clipped start, and Compressed, where it stays.
func (l *extentList) add(kind Kind, start, end, host int64) {
	if kind != Data && kind != Compressed {
		host = 0
	}
	if start < l.low {
		if kind == Data {
			host += l.low - start
		}
		start = l.low
	}
	end = min(end, l.high)
	if start >= end {
		return
	}
	if n := len(l.list); n > l.first {
		last := &l.list[n-1]
		if last.Kind == kind && kind != Compressed && (kind != Data || last.Host+last.Length == host) {
			last.Length += end - start
			return
		}
	}
	l.list = append(l.list, Extent{Start: start, Length: end - start, Host: host, Kind: kind})
}
