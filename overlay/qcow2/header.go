package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"varve/overlay/hostfs"
)

// Magic numbers and bits of the header (qcow2 specification, "Header" and
// "Header extensions").
const (
	qcow2Magic = "QFI\xfb"

	IncompatibleDirty       = 1 << 0 // refcounts may be wrong; the tables are right
	IncompatibleCorrupt     = 1 << 1 // the tables may be wrong
	IncompatibleDataFile    = 1 << 2 // guest data stands in another file
	IncompatibleCompression = 1 << 3 // the compression type is not zlib
	IncompatibleExtendedL2  = 1 << 4 // L2 entries of 128 bits, with subclusters

	// CompatibleLazyRefcounts lets a writer set IncompatibleDirty; it does not
	// say that refcounts are wrong.
	CompatibleLazyRefcounts = 1 << 0

	AutoclearBitmaps         = 1 << 0 // the bitmaps extension is up to date
	AutoclearRawExternalData = 1 << 1

	// Header extensions (section "Header extensions"). overlay/create.go writes them, and
	// overlay.Plain refuses to write a layer that has one that it does not know.
	ExtensionEnd              = 0
	ExtensionBackingFormat    = 0xe2792aca
	ExtensionFeatureNames     = 0x6803f857
	ExtensionBitmaps          = 0x23852875
	ExtensionExternalDataFile = 0x44415441

	CompressionZlib = 0
	CompressionZstd = 1
)

const (
	knownIncompatible = IncompatibleDirty | IncompatibleCorrupt | IncompatibleDataFile |
		IncompatibleCompression | IncompatibleExtendedL2

	headerLengthV2    = 72
	minHeaderLengthV3 = 104

	minClusterBits           = 9
	maxClusterBits           = 21
	MinClusterBitsExtendedL2 = 14

	// Limits that QEMU has too; what exceeds them is no image that it made.
	MaxL1Bytes            = 32 << 20
	maxRefcountTableBytes = 8 << 20
	maxSnapshots          = 65536
	minSnapshotBytes      = 40
	maxBackingFormat      = 15
	MaxBackingName        = 1023 // qcow2 specification, "Header", backing_file_size
)

// Header is what the first cluster of a qcow2 file says (qcow2 specification,
// "Header"). Offsets and sizes are bytes unless the name says otherwise. Of a
// version 2 file the fields that it does not have hold what it implies.
type Header struct {
	Version               uint32
	BackingOffset         uint64 // 0 when there is no backing file
	BackingName           string // as written in the file; "" for none
	BackingFormat         string
	HasBackingFormat      bool
	ClusterBits           uint32
	Size                  int64 // guest bytes
	CryptMethod           uint32
	L1Entries             uint32
	L1Offset              int64
	RefcountTableOffset   int64
	RefcountTableClusters uint32
	Snapshots             uint32
	SnapshotsOffset       int64
	Incompatible          uint64
	Compatible            uint64
	Autoclear             uint64
	RefcountOrder         uint32 // a refcount is 1<<RefcountOrder bits wide
	HeaderLength          uint32
	CompressionType       uint8
	Extensions            []Extension // in the file's order, without the end
}

// Extension is one header extension, known or not, without its padding.
type Extension struct {
	Type uint32
	Data []byte
}

// ErrMarkedCorrupt is the ErrCorrupt of an image with the corrupt bit, which whoever
// found its tables wrong has set.
var ErrMarkedCorrupt error = markedCorrupt{}

type markedCorrupt struct{}

func (markedCorrupt) Error() string   { return ErrCorrupt.Error() }
func (markedCorrupt) Is(e error) bool { return e == ErrCorrupt }

// ClusterSize is the size of a cluster in bytes.
func (h *Header) ClusterSize() int64 { return 1 << h.ClusterBits }

// ExtendedL2 says whether L2 entries have 128 bits and clusters 32
// subclusters (qcow2 specification, "Extended L2 Entries").
func (h *Header) ExtendedL2() bool { return h.Incompatible&IncompatibleExtendedL2 != 0 }

// Is says whether the file begins with the magic number of qcow2,
// whatever follows it. Guests can write it into a raw disk: it may make an
// opening fail, never choose a format.
func Is(fs hostfs.FS, path string) (bool, error) {
	f, err := OpenFile(fs, path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	magic := make([]byte, len(qcow2Magic))
	if _, err := f.ReadAt(magic, 0); err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("read the start of %s: %w", path, err)
	}
	return HasMagic(magic), nil
}

// HasQcow2Magic is Is for the first bytes of what is no file.
func HasMagic(first []byte) bool {
	return bytes.HasPrefix(first, []byte(qcow2Magic))
}

// ReadHeader reads the header of a qcow2 file without taking a lock. Errors
// are those of ParseHeader and of the file.
func ReadHeader(fs hostfs.FS, path string) (*Header, error) {
	f, err := OpenFile(fs, path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return HeaderOf(f, info.Size)
}

// OpenFile opens for reading. It looks first at what it opens: opening a
// FIFO would wait for a writer for ever.
func OpenFile(fs hostfs.FS, path string) (hostfs.File, error) {
	info, err := fs.Stat(path)
	if err != nil {
		return nil, err
	}
	block := info.Mode&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice
	switch {
	case info.Mode.IsDir():
		return nil, fmt.Errorf("%s is a directory, not an image: %w", path, ErrUnsupported)
	case !info.Mode.IsRegular() && !block:
		return nil, fmt.Errorf("%s is neither a file nor a block device: %w", path, ErrUnsupported)
	}
	return fs.Open(path, os.O_RDONLY, 0)
}

// headerStart is what is read of a file at first. The headers that varve and QEMU
// write end in there, backing name and all; the whole first cluster, 128 KiB of a
// layer of ours, would be most of what opening a chain reads.
const headerStart = 4 << 10

// HeaderOf reads the first cluster, as far as the header goes and the file is
// long, and parses it.
func HeaderOf(f hostfs.File, fileSize int64) (*Header, error) {
	start := make([]byte, min(fileSize, headerStart))
	if err := hostfs.ReadWhole(f, start, 0); err != nil {
		return nil, fmt.Errorf("read the header of %s: %w", f.Name(), err)
	}
	if len(start) >= headerLengthV2 && !headerEnds(start) {
		bits := binary.BigEndian.Uint32(start[20:])
		if bits <= maxClusterBits && int64(len(start)) < min(fileSize, 1<<bits) {
			start = make([]byte, min(fileSize, 1<<bits))
			if err := hostfs.ReadWhole(f, start, 0); err != nil {
				return nil, fmt.Errorf("read the first cluster of %s: %w", f.Name(), err)
			}
		}
	}
	return ParseHeader(f.Name(), start, fileSize)
}

// headerEnds says whether all that ParseHeader looks at lies within the start of a
// file: the backing file's name, or without one the end mark of the extensions.
func headerEnds(start []byte) bool {
	size, at := uint64(len(start)), uint64(headerLengthV2)
	if binary.BigEndian.Uint32(start[4:]) > 2 {
		if size < minHeaderLengthV3 {
			return false
		}
		at = uint64(binary.BigEndian.Uint32(start[100:]))
	}
	if name := binary.BigEndian.Uint64(start[8:]); name != 0 {
		return at <= size && name < size && uint64(binary.BigEndian.Uint32(start[16:])) <= size-name
	}
	for at+8 <= size {
		if binary.BigEndian.Uint32(start[at:]) == ExtensionEnd {
			return true
		}
		at += 8 + (uint64(binary.BigEndian.Uint32(start[at+4:]))+7)&^7
	}
	return false
}

// ParseHeader decodes the header of the qcow2 file called name from its first
// cluster, which may be cut where the file ends, and checks all that it says
// against the file's size in bytes (D23). It does no I/O. Errors wrap ErrCorrupt, or
// ErrUnsupported for what varve does not read.
func ParseHeader(name string, cluster0 []byte, fileSize int64) (*Header, error) {
	p := headerParser{name: name, data: cluster0, fileSize: fileSize}
	h, err := p.fixedFields()
	if err != nil {
		return nil, err
	}
	// What the extensions say (feature names, the data file) goes into the
	// messages about features; so they are read first, whatever the features.
	if err := p.extensions(h); err != nil {
		return nil, err
	}
	if err := p.features(h); err != nil {
		return nil, err
	}
	if err := p.backing(h); err != nil {
		return nil, err
	}
	return h, p.tables(h)
}

type headerParser struct {
	name     string
	data     []byte
	fileSize int64
}

func (p *headerParser) corrupt(format string, args ...any) error {
	return fmt.Errorf("%s: header: %s: %w", p.name, fmt.Sprintf(format, args...), ErrCorrupt)
}

func (p *headerParser) unsupported(format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", p.name, fmt.Sprintf(format, args...), ErrUnsupported)
}

// fixedFields decodes up to the end of the header proper and checks what the
// rest of the decoding relies on.
func (p *headerParser) fixedFields() (*Header, error) {
	d := p.data
	if len(d) < len(qcow2Magic) || string(d[:len(qcow2Magic)]) != qcow2Magic {
		return nil, p.corrupt("no qcow2 magic number at its start")
	}
	if len(d) < headerLengthV2 {
		return nil, p.corrupt("the file ends after %d bytes, within it", len(d))
	}
	u32, u64 := binary.BigEndian.Uint32, binary.BigEndian.Uint64
	h := &Header{
		Version:               u32(d[4:]),
		BackingOffset:         u64(d[8:]),
		ClusterBits:           u32(d[20:]),
		Size:                  int64(u64(d[24:])),
		CryptMethod:           u32(d[32:]),
		L1Entries:             u32(d[36:]),
		L1Offset:              int64(u64(d[40:])),
		RefcountTableOffset:   int64(u64(d[48:])),
		RefcountTableClusters: u32(d[56:]),
		Snapshots:             u32(d[60:]),
		SnapshotsOffset:       int64(u64(d[64:])),
		RefcountOrder:         4,
		HeaderLength:          headerLengthV2,
	}
	switch h.Version {
	case 2:
	case 3:
		if len(d) < minHeaderLengthV3 {
			return nil, p.corrupt("the file ends after %d bytes, within it", len(d))
		}
		h.Incompatible, h.Compatible, h.Autoclear = u64(d[72:]), u64(d[80:]), u64(d[88:])
		h.RefcountOrder, h.HeaderLength = u32(d[96:]), u32(d[100:])
	default:
		return nil, p.unsupported("qcow2 version %d", h.Version)
	}
	if h.ClusterBits < minClusterBits || h.ClusterBits > maxClusterBits {
		return nil, p.corrupt("cluster_bits is %d, not %d to %d", h.ClusterBits, minClusterBits, maxClusterBits)
	}
	if h.Version > 2 && h.HeaderLength < minHeaderLengthV3 {
		return nil, p.corrupt("its length is %d, less than %d", h.HeaderLength, minHeaderLengthV3)
	}
	if int64(h.HeaderLength) > min(h.ClusterSize(), int64(len(d))) {
		return nil, p.corrupt("its length is %d, more than the file's first cluster has", h.HeaderLength)
	}
	if h.HeaderLength > minHeaderLengthV3 {
		h.CompressionType = d[minHeaderLengthV3]
	}
	if h.BackingOffset > uint64(h.ClusterSize()) {
		return nil, p.corrupt("the backing file's name is at 0x%x, outside the first cluster", h.BackingOffset)
	}
	return h, nil
}

// extensions reads the list behind the header, up to its end mark, the backing
// file's name or the end of the cluster.
func (p *headerParser) extensions(h *Header) error {
	end := min(h.ClusterSize(), int64(len(p.data)))
	if h.BackingOffset != 0 {
		end = min(end, int64(h.BackingOffset))
	}
	for at := int64(h.HeaderLength); end-at >= 8; {
		kind := binary.BigEndian.Uint32(p.data[at:])
		length := int64(binary.BigEndian.Uint32(p.data[at+4:]))
		if kind == ExtensionEnd {
			return nil
		}
		if length > end-at-8 {
			return p.corrupt("extension 0x%08x at 0x%x is %d bytes long, %d fit", kind, at, length, end-at-8)
		}
		data := append([]byte(nil), p.data[at+8:at+8+length]...)
		if kind == ExtensionBackingFormat {
			if length > maxBackingFormat {
				return p.corrupt("the backing format's name is %d bytes long, more than %d", length, maxBackingFormat)
			}
			h.BackingFormat, h.HasBackingFormat = string(data), true
		}
		h.Extensions = append(h.Extensions, Extension{Type: kind, Data: data})
		at += 8 + (length+7)&^7
	}
	return nil
}

// features refuses what varve does not read.
func (p *headerParser) features(h *Header) error {
	switch h.CryptMethod {
	case 0:
	case 1:
		return p.unsupported("it is encrypted (AES)")
	case 2:
		return p.unsupported("it is encrypted (LUKS)")
	default:
		return p.unsupported("it is encrypted (unknown method %d)", h.CryptMethod)
	}
	if unknown := h.Incompatible &^ knownIncompatible; unknown != 0 {
		return p.unsupported("unknown incompatible feature: %s", h.featureNames(unknown))
	}
	if h.Incompatible&IncompatibleDataFile != 0 {
		for _, e := range h.Extensions {
			if e.Type == ExtensionExternalDataFile {
				return p.unsupported("its data is in an external data file, %q", e.Data)
			}
		}
		return p.unsupported("its data is in an external data file that the header does not name")
	}
	if h.Incompatible&IncompatibleCorrupt != 0 {
		return fmt.Errorf("%s: it is marked corrupt; qemu-img check -r all may repair it: %w", p.name, ErrMarkedCorrupt)
	}
	marked := h.Incompatible&IncompatibleCompression != 0
	switch {
	case h.CompressionType > CompressionZstd:
		return p.unsupported("unknown compression type %d", h.CompressionType)
	case marked != (h.CompressionType != CompressionZlib):
		return p.corrupt("compression type %d and incompatible feature bit 3 contradict each other", h.CompressionType)
	case h.ExtendedL2() && h.ClusterBits < MinClusterBitsExtendedL2:
		return p.corrupt("extended L2 entries with cluster_bits %d, less than %d", h.ClusterBits, MinClusterBitsExtendedL2)
	case h.RefcountOrder > 6:
		return p.corrupt("refcount_order is %d, more than 6", h.RefcountOrder)
	}
	return nil
}

// backing reads the backing file's name.
func (p *headerParser) backing(h *Header) error {
	if h.BackingOffset == 0 {
		return nil
	}
	length := int64(binary.BigEndian.Uint32(p.data[16:]))
	at := int64(h.BackingOffset)
	if limit := min(h.ClusterSize()-at, MaxBackingName); length > limit {
		return p.corrupt("the backing file's name is %d bytes long, more than %d", length, limit)
	}
	if at+length > int64(len(p.data)) {
		return p.corrupt("the backing file's name at 0x%x ends behind the end of the file", at)
	}
	name := p.data[at : at+length]
	for _, c := range name {
		if c == 0 {
			return p.corrupt("the backing file's name %q has a NUL byte", name)
		}
	}
	h.BackingName = string(name)
	return nil
}

// tables checks where the tables are and that the L1 table, of which all
// memory for reading depends, is neither too large, nor too small for the
// disk, nor longer than the file.
func (p *headerParser) tables(h *Header) error {
	if h.Size < 0 {
		return p.corrupt("the disk's size 0x%x is too large", uint64(h.Size))
	}
	l1Bytes := int64(h.L1Entries) * 8
	if l1Bytes > MaxL1Bytes {
		return p.corrupt("the L1 table has %d entries, more than %d", h.L1Entries, MaxL1Bytes/8)
	}
	if need := h.L1EntriesFor(h.Size); int64(h.L1Entries) < need {
		return p.corrupt("the L1 table has %d entries, a disk of %d bytes needs %d", h.L1Entries, h.Size, need)
	}
	refcountBytes := int64(h.RefcountTableClusters) << h.ClusterBits
	if refcountBytes > maxRefcountTableBytes {
		return p.corrupt("the refcount table has %d clusters, more than %d bytes", h.RefcountTableClusters, maxRefcountTableBytes)
	}
	if refcountBytes == 0 {
		return p.corrupt("there is no refcount table")
	}
	if h.Snapshots > maxSnapshots {
		return p.corrupt("it has %d internal snapshots, more than %d", h.Snapshots, maxSnapshots)
	}
	for _, t := range []struct {
		name          string
		offset, bytes int64
	}{
		{"L1 table", h.L1Offset, l1Bytes},
		// Of these two nothing is read, so only their start must exist.
		{"refcount table", h.RefcountTableOffset, 1},
		{"snapshot table", h.SnapshotsOffset, min(int64(h.Snapshots), 1) * minSnapshotBytes},
	} {
		if err := p.table(h, t.name, t.offset, t.bytes); err != nil {
			return err
		}
	}
	return nil
}

func (p *headerParser) table(h *Header, what string, offset, bytes int64) error {
	switch {
	case offset&(h.ClusterSize()-1) != 0:
		return p.corrupt("the %s's offset 0x%x is no multiple of the cluster size", what, uint64(offset))
	case bytes == 0 && offset >= 0: // there is none
		return nil
	case offset == 0:
		return p.corrupt("the %s's offset 0 is the header's", what)
	case offset < 0 || offset > p.fileSize-bytes:
		return p.corrupt("the %s at 0x%x, %d bytes long, ends behind the end of the file at 0x%x",
			what, uint64(offset), bytes, p.fileSize)
	}
	return nil
}

// l2Bits is the binary logarithm of the number of entries in an L2 table.
func (h *Header) l2Bits() uint32 {
	if h.ExtendedL2() {
		return h.ClusterBits - 4
	}
	return h.ClusterBits - 3
}

// L1EntriesFor says how many L1 entries a disk of size bytes needs.
func (h *Header) L1EntriesFor(size int64) int64 {
	bits := h.ClusterBits + h.l2Bits()
	n := size >> bits
	if size&(1<<bits-1) != 0 {
		n++
	}
	return n
}

// featureNames lists incompatible bits by the names that the file's feature
// name table gives them (qcow2 specification, "Feature name table"), or else
// by number.
func (h *Header) featureNames(bits uint64) string {
	const entry = 48 // type, bit number, 46 bytes of name
	names := map[uint8]string{}
	for _, e := range h.Extensions {
		if e.Type != ExtensionFeatureNames {
			continue
		}
		for d := e.Data; len(d) >= entry; d = d[entry:] {
			if d[0] != 0 {
				continue
			}
			name := d[2:entry]
			for i, c := range name {
				if c == 0 {
					name = name[:i]
					break
				}
			}
			if len(name) > 0 {
				names[d[1]] = fmt.Sprintf("%q (bit %d)", name, d[1])
			}
		}
	}
	list := ""
	for bit := uint8(0); bit < 64; bit++ {
		if bits>>bit&1 == 0 {
			continue
		}
		if list != "" {
			list += ", "
		}
		if name, ok := names[bit]; ok {
			list += name
		} else {
			list += fmt.Sprintf("bit %d", bit)
		}
	}
	return list
}
