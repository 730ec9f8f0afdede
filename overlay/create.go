package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// Geometry of the layers that varve writes; docs/cluster-size.md has the
// measurements behind the choice.
const (
	defaultClusterBits = 17 // 128 KiB clusters, 32 subclusters of 4 KiB
	// maxOwnClusterBits bounds what an entry of 8 bytes in a header's L1 table
	// can cost in memory when the layer is opened for writing.
	maxOwnClusterBits  = 18
	writeRefcountOrder = 4 // 16-bit refcounts, as qemu-img makes them
	ownHeaderLength    = 112
)

// Where a backing name stands in cluster 0. Two places, so that a new name is
// written beside the one in use and one sector write switches over (M15).
const (
	nameSlotA    = 1024
	nameSlotB    = 2048
	headerSector = 512
)

// CreateOptions are the options of Create.
type CreateOptions struct {
	Size          int64  // guest bytes, rounded up to whole sectors
	Backing       string // backing file name as it goes into the header; "" for none
	BackingFormat string // "raw" or "qcow2", with Backing
	ClusterBits   uint32 // 0 for the default; 14 (extended L2) to 18
}

// Create makes an empty layer: qcow2 version 3 with extended L2 entries. The
// file must not exist; it gets mode 0600 and is durable when Create returns
// (its name is not: sync the directory). A file that could not be finished is
// removed again.
func Create(fs hostfs.FS, path string, o CreateOptions) (err error) {
	if o.ClusterBits == 0 {
		o.ClusterBits = defaultClusterBits
	}
	if o.ClusterBits < qcow2.MinClusterBitsExtendedL2 || o.ClusterBits > maxOwnClusterBits {
		return fmt.Errorf("create %s: cluster_bits %d is not in %d..%d", path, o.ClusterBits, qcow2.MinClusterBitsExtendedL2, maxOwnClusterBits)
	}
	if o.Size < 0 || len(o.Backing) > qcow2.MaxBackingName {
		return fmt.Errorf("create %s: a size of %d bytes or a backing name of %d bytes is not possible", path, o.Size, len(o.Backing))
	}
	o.Size = extent.WholeSectors(o.Size)
	cs := int64(1) << o.ClusterBits
	entries := l1EntriesFor(o.Size, o.ClusterBits)
	if entries*8 > qcow2.MaxL1Bytes {
		return fmt.Errorf("create %s: %d bytes are more than qcow2 can hold with clusters of %d bytes", path, o.Size, cs)
	}
	l1Clusters := max(1, (entries*8+cs-1)/cs)
	const l1First = 3
	h := &qcow2.Header{
		Version:               3,
		ClusterBits:           o.ClusterBits,
		Size:                  o.Size,
		L1Entries:             uint32(entries),
		L1Offset:              l1First * cs,
		RefcountTableOffset:   1 * cs,
		RefcountTableClusters: 1,
		Incompatible:          qcow2.IncompatibleExtendedL2,
		RefcountOrder:         writeRefcountOrder,
		HeaderLength:          ownHeaderLength,
		BackingName:           o.Backing,
		BackingFormat:         o.BackingFormat,
	}
	if o.Backing != "" {
		h.BackingOffset = nameSlotA
		h.HasBackingFormat = true
	}
	sector, err := encodeHeader(h)
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	f, err := fs.Open(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, fs.Remove(path))
		}
	}()
	used := l1First + l1Clusters
	if used > cs/2 {
		return fmt.Errorf("create %s: the L1 table does not fit into one refcount block", path)
	}
	refs := make([]byte, used*2)
	for i := int64(0); i < used; i++ {
		binary.BigEndian.PutUint16(refs[i*2:], 1)
	}
	table := binary.BigEndian.AppendUint64(nil, uint64(2*cs))
	for _, w := range []struct {
		p   []byte
		off int64
	}{{sector, 0}, {[]byte(o.Backing), nameSlotA}, {table, cs}, {refs, 2 * cs}} {
		if len(w.p) == 0 {
			continue
		}
		if err := hostfs.WriteWhole(f, w.p, w.off); err != nil {
			return fmt.Errorf("create %s: %w", path, err)
		}
	}
	if err := f.Truncate(used * cs); err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	// The L1 table is written by flushes, which must not meet ENOSPC (M10).
	if err := f.Allocate(h.L1Offset, max(1, entries)*8); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("create %s: %w", path, err)
	}
	if err := f.Datasync(); err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	return nil
}

// l1EntriesFor is how many L1 entries a disk of size bytes needs with
// extended L2 entries of 16 bytes.
func l1EntriesFor(size int64, clusterBits uint32) int64 {
	perTable := int64(1) << (2*clusterBits - 4)
	return (size + perTable - 1) / perTable
}

// encodeHeader gives the first sector of a layer: header, extensions, and
// their end. It must fit into one sector, because one sector write is what
// makes a change of header atomic (M15). The feature name table is ours, not a
// preserved one; every other extension is kept. A size that QEMU would round is refused
// (M2): the layer has to grow to whole sectors first.
func encodeHeader(h *qcow2.Header) ([]byte, error) {
	if extent.Uneven(h.Size) {
		return nil, fmt.Errorf("a disk of %d bytes is no whole number of sectors: %w", h.Size, qcow2.ErrUnsupported)
	}
	be := binary.BigEndian
	p := make([]byte, ownHeaderLength, headerSector)
	be.PutUint32(p[0:], 0x514649fb)
	be.PutUint32(p[4:], 3)
	be.PutUint64(p[8:], h.BackingOffset)
	be.PutUint32(p[16:], uint32(len(h.BackingName)))
	be.PutUint32(p[20:], h.ClusterBits)
	be.PutUint64(p[24:], uint64(h.Size))
	be.PutUint32(p[32:], 0) // crypt_method
	be.PutUint32(p[36:], h.L1Entries)
	be.PutUint64(p[40:], uint64(h.L1Offset))
	be.PutUint64(p[48:], uint64(h.RefcountTableOffset))
	be.PutUint32(p[56:], h.RefcountTableClusters)
	be.PutUint32(p[60:], 0) // nb_snapshots
	be.PutUint64(p[64:], 0) // snapshots_offset
	be.PutUint64(p[72:], h.Incompatible)
	be.PutUint64(p[80:], h.Compatible)
	be.PutUint64(p[88:], 0) // autoclear: none that we keep true
	be.PutUint32(p[96:], h.RefcountOrder)
	be.PutUint32(p[100:], ownHeaderLength)
	p[104] = h.CompressionType

	ext := func(typ uint32, data []byte) {
		p = be.AppendUint32(p, typ)
		p = be.AppendUint32(p, uint32(len(data)))
		p = append(p, data...)
		p = append(p, make([]byte, (8-len(data)%8)%8)...)
	}
	if h.BackingName != "" {
		ext(qcow2.ExtensionBackingFormat, []byte(h.BackingFormat))
	}
	feature := make([]byte, 48)
	feature[0], feature[1] = 0, 4 // incompatible, bit 4
	copy(feature[2:], "extended L2 entries")
	ext(qcow2.ExtensionFeatureNames, feature)
	for _, e := range h.Extensions {
		if e.Type != qcow2.ExtensionBackingFormat && e.Type != qcow2.ExtensionFeatureNames {
			ext(e.Type, e.Data)
		}
	}
	ext(0, nil)
	if len(p) > headerSector {
		return nil, fmt.Errorf("header extensions of %d bytes do not fit into one sector: %w", len(p), qcow2.ErrUnsupported)
	}
	return p[:headerSector], nil
}
