package hostile

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"varve/integration/imagetest"
	"varve/overlay/qcow2"
)

// Seed is a small image that a hostile one starts from.
type Seed struct {
	Name string
	Data []byte
	// backing is the content of base.raw, on which the image stands; nil for
	// none.
	Backing []byte
}

// QemuSeeds are images as qemu-img makes them, of every kind that it can make
// and that varve reads. Fuzz targets name them by their place in the list: new
// ones go to the end.
func QemuSeeds(tb testing.TB) []Seed {
	tb.Helper()
	dir := tb.TempDir()
	path, base, plain := filepath.Join(dir, "seed.qcow2"), filepath.Join(dir, "base.raw"), filepath.Join(dir, "plain.raw")
	below := bytes.Repeat([]byte("what stands below\n"), 10000)[:160<<10]
	clear(below[32<<10 : 48<<10])
	text := make([]byte, 128<<10)
	copy(text[8<<10:], bytes.Repeat([]byte("layers of mud\n"), 4000))
	for i := range 6 << 10 { // does not compress
		text[90<<10+i] = byte(i*i>>3 ^ i*2654435761>>11)
	}
	for file, content := range map[string][]byte{base: below, plain: text} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	var seeds []Seed
	take := func(name string, backing []byte) {
		tb.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			tb.Fatal(err)
		}
		seeds = append(seeds, Seed{name, data, backing})
	}
	create := func(options, size string, more ...string) {
		tb.Helper()
		args := append([]string{"create", "-q", "-f", "qcow2"}, more...)
		if options != "" {
			args = append(args, "-o", options)
		}
		imagetest.QemuImg(tb, append(args, path, size)...)
	}
	written := []string{"write -P 1 0 20k", "write -P 2 40k 3k", "write -z 60k 10k", "discard 16k 1k", "write -z -u 96k 32k", "write -P 3 100k 512"}
	for _, options := range []string{
		"compat=0.10,cluster_size=512", "compat=0.10,cluster_size=4k", "cluster_size=512", "cluster_size=4k", "",
		"extended_l2=on,cluster_size=16k", "extended_l2=on,cluster_size=32k", "extended_l2=on",
		"lazy_refcounts=on,cluster_size=4k", "refcount_bits=1,cluster_size=4k", "refcount_bits=64,cluster_size=4k",
		"preallocation=metadata,cluster_size=4k", "preallocation=falloc,cluster_size=512", "preallocation=full,extended_l2=on,cluster_size=16k",
	} {
		create(options, "131584") // ends within a cluster
		imagetest.QemuIO(tb, path, written...)
		take(options, nil)
	}
	for _, options := range []string{"compat=0.10,cluster_size=512", "cluster_size=4k", "extended_l2=on,cluster_size=16k"} {
		create(options, "160k", "-b", base, "-F", "raw")
		imagetest.QemuImg(tb, "rebase", "-u", "-b", "base.raw", "-F", "raw", path)
		imagetest.QemuIO(tb, path, written...)
		take("on base.raw,"+options, below)
	}
	for _, options := range []string{
		"compat=0.10,cluster_size=512", "cluster_size=512", "cluster_size=4k", "", "extended_l2=on,cluster_size=16k",
		"compression_type=zstd,cluster_size=512", "compression_type=zstd,cluster_size=4k", "compression_type=zstd", "compression_type=zstd,extended_l2=on,cluster_size=16k",
	} {
		args := []string{"convert", "-c", "-f", "raw", "-O", "qcow2"}
		if options != "" {
			args = append(args, "-o", options)
		}
		imagetest.QemuImg(tb, append(args, plain, path)...)
		take("compressed,"+options, nil)
	}
	create("cluster_size=4k", "128k")
	imagetest.QemuIO(tb, path, written[0])
	imagetest.QemuImg(tb, "snapshot", "-c", "one", path)
	imagetest.QemuIO(tb, path, written[1:]...)
	imagetest.QemuImg(tb, "snapshot", "-c", "two", path)
	take("snapshots", nil)
	create("cluster_size=4k", "128k")
	imagetest.QemuImg(tb, "bitmap", "--add", "--enable", path, "one")
	imagetest.QemuIO(tb, path, written...)
	take("bitmaps", nil)
	return seeds
}

// imageMap says where things are in an image that is whole: of the header's
// fields nothing but the magic is believed to be more than a number.
type imageMap struct {
	data        []byte
	ClusterSize uint64
	entry       uint64   // bytes of an L2 entry
	L1          []uint64 // file offsets of the L1 entries
	L2          []uint64 // file offsets of the L2 entries that are not empty, then some that are
	compressed  []uint64 // file offsets of compressed data
	refcounts   []uint64 // file offsets of refcount table entries, blocks' first refcounts, snapshot table
}

func MapImage(data []byte) *imageMap {
	m := &imageMap{data: data, entry: 8}
	bits := binary.BigEndian.Uint32(data[20:])
	m.ClusterSize = 1 << bits
	if binary.BigEndian.Uint32(data[4:]) == 3 && binary.BigEndian.Uint64(data[72:])&qcow2.IncompatibleExtendedL2 != 0 {
		m.entry = 16
	}
	at := binary.BigEndian.Uint64(data[40:])
	var empty []uint64
	for i := range uint64(binary.BigEndian.Uint32(data[36:])) {
		m.L1 = append(m.L1, at+i*8)
		table := m.Word(at+i*8) & qcow2.OffsetMask
		if table == 0 {
			continue
		}
		for off := table; off < table+m.ClusterSize; off += m.entry {
			word := m.Word(off)
			switch {
			case word&qcow2.CompressedFlag != 0:
				f := qcow2.EntryFormat{ClusterBits: bits}
				host, _ := f.CompressedRange(word &^ (qcow2.CopiedFlag | qcow2.CompressedFlag))
				m.compressed = append(m.compressed, uint64(host))
			case word == 0 && (m.entry == 8 || m.Word(off+8) == 0):
				if len(empty) < 64 {
					empty = append(empty, off)
				}
				continue
			}
			m.L2 = append(m.L2, off)
		}
	}
	m.L2 = append(m.L2, empty...)
	table := binary.BigEndian.Uint64(data[48:])
	for i := range uint64(4) {
		m.refcounts = append(m.refcounts, table+i*8)
		if block := m.Word(table + i*8); block != 0 && block < uint64(len(data)) {
			m.refcounts = append(m.refcounts, block, block+8)
		}
	}
	if snapshots := binary.BigEndian.Uint64(data[64:]); snapshots != 0 {
		for off := uint64(0); off < 64; off += 8 {
			m.refcounts = append(m.refcounts, snapshots+off)
		}
	}
	return m
}

func (m *imageMap) Word(off uint64) uint64 {
	if off+8 > uint64(len(m.data)) {
		return 0
	}
	return binary.BigEndian.Uint64(m.data[off:])
}

// headerFields are where the header's fields stand and how long they are.
var headerFields = [...]struct{ at, length uint64 }{
	{4, 4}, {8, 8}, {16, 4}, {20, 4}, {24, 8}, {32, 4}, {36, 4}, {40, 8}, {48, 8}, {56, 4}, {60, 4}, {64, 8},
	{72, 8}, {80, 8}, {88, 8}, {96, 4}, {100, 4}, {104, 8}, {112, 4}, {116, 4}, {120, 8}, {128, 8},
}

// ChangeBytes is how long one change of a script is: what kind of place, which
// one of them, how, and with what value.
const ChangeBytes = 1 + 2 + 1 + 8

// Mutate changes an image as a script says, which any bytes are. Changes aim at
// what readers follow: entries of tables, fields of the header, compressed data,
// the file's length.
func Mutate(original, script []byte) []byte {
	m := MapImage(original)
	data := bytes.Clone(original)
	for ; len(script) >= ChangeBytes; script = script[ChangeBytes:] {
		which := uint64(binary.BigEndian.Uint16(script[1:]))
		how, value := script[3], binary.BigEndian.Uint64(script[4:])
		pick := func(from []uint64) uint64 {
			if len(from) == 0 {
				return 8 * which
			}
			return from[which%uint64(len(from))]
		}
		at, length := uint64(0), uint64(8)
		switch script[0] % 16 {
		case 0, 1:
			f := headerFields[which%uint64(len(headerFields))]
			at, length = f.at, f.length
		case 2, 3:
			at = pick(m.L1)
		case 4, 5, 6, 7:
			at = pick(m.L2)
		case 8, 9:
			at = pick(m.L2) + m.entry - 8 // the bitmap, where there is one
		case 10:
			at, length = pick(m.compressed)+value>>56, 1
		case 11:
			at = pick(m.compressed) + value>>58
		case 12:
			at = pick(m.refcounts)
		case 13:
			at, length = which*uint64(len(data))/65536, 1
		case 14: // cut
			if n := which * uint64(len(data)) / 65536; n >= 72 {
				data = data[:n]
			}
			continue
		case 15: // append
			data = append(data, bytes.Repeat([]byte{byte(value)}, int(which%4096))...)
			continue
		}
		if at+length > uint64(len(data)) {
			continue
		}
		field := data[at : at+length]
		old := uint64(0)
		for _, b := range field {
			old = old<<8 | uint64(b)
		}
		now := m.change(old, how, value)
		for i := range field {
			field[i] = byte(now >> (8 * (length - 1 - uint64(i))))
		}
	}
	return data
}

// change gives another value of an entry or a field.
func (m *imageMap) change(old uint64, how byte, value uint64) uint64 {
	switch how % 12 {
	case 0:
		return value
	case 1:
		return old ^ 1<<(value%64)
	case 2:
		return old ^ 1<<(value%64) ^ 1<<(value>>8%64)
	case 3: // another cluster of the file, its flags kept
		return old&^qcow2.OffsetMask | value%(uint64(len(m.data))/m.ClusterSize+2)*m.ClusterSize
	case 4:
		return old + m.ClusterSize
	case 5:
		return old + value%1024 - 512
	case 6: // another entry
		if len(m.L2) > 0 {
			return m.Word(m.L2[value%uint64(len(m.L2))])
		}
		return 0
	case 7:
		return [...]uint64{0, 1, 1 << 31, 1 << 32, 1 << 62, 1 << 63, qcow2.OffsetMask, ^uint64(0), 0xffffffff, 1<<63 - 1, uint64(len(m.data)), 1 << 56}[value%12]
	case 8: // a compressed cluster
		return qcow2.CompressedFlag | value>>2
	case 9: // data
		return qcow2.CopiedFlag | value%(uint64(len(m.data))/m.ClusterSize+2)*m.ClusterSize
	case 10: // zeros
		return old | qcow2.ZeroFlag
	default:
		return old >> (value % 64)
	}
}
