package qcow2

import (
	"fmt"
	"math/bits"

	"varve/overlay/extent"
)

// Bits of an L1 entry and of the first 64 bits of an L2 entry (qcow2
// specification, "Cluster mapping").
const (
	OffsetMask     = 0x00fffffffffffe00 // host offset of an L1 or L2 entry
	CopiedFlag     = uint64(1) << 63    // refcount is exactly 1
	CompressedFlag = uint64(1) << 62
	ZeroFlag       = uint64(1) // not with extended L2 entries

	L1Reserved = ^(OffsetMask | CopiedFlag)
	L2Reserved = ^(OffsetMask | CopiedFlag | CompressedFlag | ZeroFlag)

	EntrySize       = 16 // bytes of an extended L2 entry
	subclusterCount = 32
)

// EntryFormat is what one needs to know of an image to read its L2 entries.
type EntryFormat struct {
	Version     uint32
	ClusterBits uint32
	Extended    bool  // entries of 128 bits
	FileSize    int64 // bytes: what an entry names must start in there
}

func (f *EntryFormat) entryBytes() int64 {
	if f.Extended {
		return 16
	}
	return 8
}

// Add appends what an entry says about the guest cluster at start. word is
// the entry, bitmap its second half, if it has one.
//
// The order matters. A compressed entry is laid out differently: its bit 0 is
// part of an offset, not the zero flag. A zero cluster may have an offset
// (it is preallocated), and its zeros hide the backing file. An extended entry
// without an offset may still have zero subclusters.
func (f *EntryFormat) Add(list *extent.List, start int64, word, bitmap uint64) error {
	end := start + 1<<f.ClusterBits
	if word&CompressedFlag != 0 {
		if f.Extended && bitmap != 0 {
			return fmt.Errorf("a compressed cluster has the subcluster bitmap 0x%x: %w", bitmap, ErrCorrupt)
		}
		if err := f.checkDescriptor(word &^ (CopiedFlag | CompressedFlag)); err != nil {
			return err
		}
		list.Add(extent.Compressed, start, end, int64(word&^(CopiedFlag|CompressedFlag)))
		return nil
	}
	if word&L2Reserved != 0 {
		return fmt.Errorf("reserved bits 0x%x are set: %w", word&L2Reserved, ErrCorrupt)
	}
	host := int64(word & OffsetMask)
	if err := f.checkCluster(host); err != nil {
		return err
	}
	if f.Extended {
		if word&ZeroFlag != 0 {
			return fmt.Errorf("reserved bit 0 is set: %w", ErrCorrupt)
		}
		return f.addSubclusters(list, start, host, bitmap)
	}
	switch {
	case word&ZeroFlag != 0 && f.Version < 3:
		return fmt.Errorf("the zero flag is set in a version 2 image: %w", ErrCorrupt)
	case word&ZeroFlag != 0:
		list.Add(extent.Zero, start, end, 0)
	case host == 0:
		list.Add(extent.Unallocated, start, end, 0)
	default:
		list.Add(extent.Data, start, end, host)
	}
	return nil
}

// addSubclusters appends the runs of a subcluster bitmap: bit n of its low
// half says that subcluster n is allocated, of its high half that it reads as
// zeros (qcow2 specification, "Extended L2 Entries").
func (f *EntryFormat) addSubclusters(list *extent.List, start, host int64, bitmap uint64) error {
	allocated, zero := uint32(bitmap), uint32(bitmap>>32)
	if allocated&zero != 0 {
		return fmt.Errorf("subclusters 0x%x are both allocated and zero: %w", allocated&zero, ErrCorrupt)
	}
	if allocated != 0 && host == 0 {
		return fmt.Errorf("subclusters 0x%x are allocated, but no cluster is: %w", allocated, ErrCorrupt)
	}
	subBits := f.ClusterBits - 5
	for i := 0; i < subclusterCount; {
		kind, set := extent.Unallocated, ^(allocated | zero)
		switch {
		case allocated>>i&1 != 0:
			kind, set = extent.Data, allocated
		case zero>>i&1 != 0:
			kind, set = extent.Zero, zero
		}
		n := min(bits.TrailingZeros32(^(set >> i)), subclusterCount-i)
		at := int64(i) << subBits
		list.Add(kind, start+at, start+at+int64(n)<<subBits, host+at)
		i += n
	}
	return nil
}

// checkCluster checks the host offset of a data cluster. One that ends past
// the end of the file is legal: what is missing reads as zeros.
func (f *EntryFormat) checkCluster(host int64) error {
	switch {
	case host == 0:
	case host&(1<<f.ClusterBits-1) != 0:
		return fmt.Errorf("the cluster's offset 0x%x is no multiple of the cluster size: %w", host, ErrCorrupt)
	case host >= f.FileSize:
		return fmt.Errorf("the cluster at 0x%x is behind the end of the file at 0x%x: %w", host, f.FileSize, ErrCorrupt)
	}
	return nil
}

// CompressedRange splits a compressed cluster's descriptor into the offset of
// its data and the number of bytes that its sectors have at most; the data may
// end earlier (qcow2 specification, "Compressed Clusters Descriptor").
func (f *EntryFormat) CompressedRange(descriptor uint64) (offset, length int64) {
	sectorBits := f.ClusterBits - 8
	offsetBits := 62 - sectorBits
	offset = int64(descriptor & (1<<offsetBits - 1))
	sectors := int64(descriptor>>offsetBits&(1<<sectorBits-1)) + 1
	return offset, sectors*512 - offset&511
}

func (f *EntryFormat) checkDescriptor(descriptor uint64) error {
	offset, _ := f.CompressedRange(descriptor)
	switch {
	case offset < 1<<f.ClusterBits:
		return fmt.Errorf("the compressed data at 0x%x is inside the header: %w", offset, ErrCorrupt)
	case offset >= f.FileSize:
		return fmt.Errorf("the compressed data at 0x%x is behind the end of the file at 0x%x: %w", offset, f.FileSize, ErrCorrupt)
	}
	return nil
}
