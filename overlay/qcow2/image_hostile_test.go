package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"varve/integration/imagetest"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// l2At says where the first L2 table of an image is.
func l2At(tb testing.TB, path string) int64 {
	tb.Helper()
	data, err := os.ReadFile(path)
	must(tb, err)
	return int64(binary.BigEndian.Uint64(data[binary.BigEndian.Uint64(data[40:]):]) &^ (1 << 63))
}

// TestHostileTables changes the entry of the first cluster. The second one
// must stay readable.
func TestHostileTables(t *testing.T) {
	const ext, v2 = "extended_l2=on", "compat=0.10"
	const l1, l2 = true, false
	tests := []struct {
		name    string
		options string
		inL1    bool
		entry   []byte
		says    string
	}{
		{"L1: reserved bit 0", "", l1, imagetest.BE64(qcow2.CopiedFlag | 0x40000 | 1), "L1 entry 0 has reserved bits 0x1"},
		{"L1: reserved bit 56", "", l1, imagetest.BE64(0x40000 | 1<<56), "reserved bits 0x100000000000000"},
		{"L1: L2 table not aligned", "", l1, imagetest.BE64(qcow2.CopiedFlag | 0x40200), "0x40200"},
		{"L1: L2 table behind the end", "", l1, imagetest.BE64(qcow2.CopiedFlag | 1<<40), "0x10000000000 ends behind"},
		{"L1: L2 table at the very top", "", l1, imagetest.BE64(qcow2.OffsetMask &^ 0xffff), "0xffffffffff0000 ends behind"},
		{"L2: reserved bit 1", "", l2, imagetest.BE64(qcow2.CopiedFlag | 0x50000 | 2), "reserved bits 0x2"},
		{"L2: reserved bit 61", "", l2, imagetest.BE64(0x50000 | 1<<61), "reserved bits 0x2000000000000000"},
		{"L2: not aligned", "", l2, imagetest.BE64(qcow2.CopiedFlag | 0x50200), "0x50200"},
		{"L2: in the header's cluster", "", l2, imagetest.BE64(qcow2.CopiedFlag | 0x200), "0x200"},
		{"L2: behind the end", "", l2, imagetest.BE64(qcow2.CopiedFlag | 1<<45), "0x200000000000 is behind the end"},
		{"L2: zero with a bad offset", "", l2, imagetest.BE64(1<<45 | 1), "behind the end"},
		{"L2: zero flag in version 2", v2, l2, imagetest.BE64(1), "version 2"},
		{"L2: zero flag and offset in version 2", v2, l2, imagetest.BE64(qcow2.CopiedFlag | 0x50000 | 1), "version 2"},
		{"L2: zero flag with subclusters", ext, l2, append(imagetest.BE64(1), imagetest.BE64(0)...), "reserved bit 0"},
		{"L2: allocated and zero", ext, l2, append(imagetest.BE64(qcow2.CopiedFlag|0x50000), imagetest.BE64(0x1_00000003)...), "0x1 are both allocated and zero"},
		{"L2: allocated nowhere", ext, l2, append(imagetest.BE64(0), imagetest.BE64(0x80000000)...), "0x80000000 are allocated, but no cluster"},
		{"compressed: in the header", "", l2, imagetest.BE64(qcow2.CompressedFlag | 0x1000), "0x1000 is inside the header"},
		{"compressed: behind the end", "", l2, imagetest.BE64(qcow2.CompressedFlag | 1<<45), "0x200000000000 is behind the end"},
		{"compressed: with a bitmap", ext, l2, append(imagetest.BE64(qcow2.CompressedFlag|0x50000), imagetest.BE64(1)...), "subcluster bitmap 0x1"},
	}
	made := map[string]string{}
	for _, c := range tests {
		if made[c.options] == "" {
			made[c.options] = imagetest.New(t, c.options, "4M")
			imagetest.QemuIO(t, made[c.options], "write -P 1 0 128k")
		}
		t.Run(c.name, func(t *testing.T) {
			path := imagetest.CopyOf(t, made[c.options])
			h, err := qcow2.ReadHeader(hostfs.OS(), path)
			if err != nil {
				t.Fatal(err)
			}
			at := l2At(t, path)
			if c.inL1 {
				at = h.L1Offset
			}
			imagetest.Patch(t, path, at, c.entry...)
			im := openImage(t, path, "qcow2")
			extents, err := im.Map(nil, 0, im.Size())
			must(t, err)
			lost := int64(64 << 10) // what the entry maps, and no more
			if c.inL1 {
				lost = im.Size()
			}
			if want := (extent.Extent{Length: lost, Kind: extent.Damaged}); extents[0] != want {
				t.Fatalf("Map gives %+v, want %+v first", extents, want)
			}
			imagetest.JudgeError(t, im.ReadExtent(make([]byte, 512), extents[0], lost-512), qcow2.ErrCorrupt, c.says, path)
			if n, err := im.OwnBytes(); err != nil || n != max(lost, 128<<10) {
				t.Errorf("OwnBytes: %d, %v", n, err)
			}
			if c.inL1 {
				return
			}
			p := make([]byte, 64<<10)
			if err := readThrough(im, p, 64<<10); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{1}, len(p))) {
				t.Errorf("the next cluster: %v", err)
			}
		})
	}
}

// TestZeroBitsWithoutCluster: an entry whose first word is 0 can have zeros.
func TestZeroBitsWithoutCluster(t *testing.T) {
	path := imagetest.New(t, "extended_l2=on", "4M")
	imagetest.QemuIO(t, path, "write -P 1 0 128k")
	imagetest.Patch(t, path, l2At(t, path), append(imagetest.BE64(0), imagetest.BE64(0xf0<<32)...)...)
	im := openImage(t, path, "qcow2")
	extents, err := im.Map(nil, 0, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	want := []extent.Extent{
		{Start: 0, Length: 8 << 10, Kind: extent.Unallocated},
		{Start: 8 << 10, Length: 8 << 10, Kind: extent.Zero},
		{Start: 16 << 10, Length: 48 << 10, Kind: extent.Unallocated},
	}
	if len(extents) != len(want) {
		t.Fatalf("got %+v", extents)
	}
	for i := range want {
		if extents[i] != want[i] {
			t.Errorf("got %+v, want %+v", extents[i], want[i])
		}
	}
	judgeMap(t, im, path)
}

func TestTruncated(t *testing.T) {
	path := imagetest.New(t, "", "4M")
	imagetest.QemuIO(t, path, "write -P 1 0 128k")
	table := l2At(t, path)
	truncated := func(size int64) string {
		cut := imagetest.CopyOf(t, path)
		if err := os.Truncate(cut, size); err != nil {
			t.Fatal(err)
		}
		return cut
	}
	t.Run("within data", func(t *testing.T) {
		// The last cluster starts in the file: its missing end is zeros.
		cut := truncated(table + 3<<16 - 1000)
		im := openImage(t, cut, "qcow2")
		judgeContent(t, im, imagetest.Truth(t, cut))
		p := make([]byte, 2000)
		if err := readThrough(im, p, 128<<10-2000); err != nil ||
			!bytes.Equal(p, append(bytes.Repeat([]byte{1}, 1000), make([]byte, 1000)...)) {
			t.Errorf("the last bytes: %v", err)
		}
	})
	t.Run("before data", func(t *testing.T) {
		im := openImage(t, truncated(table+2<<16), "qcow2")
		imagetest.JudgeError(t, readThrough(im, make([]byte, 128<<10), 0), qcow2.ErrCorrupt, "behind the end")
	})
	t.Run("within the L2 table", func(t *testing.T) {
		im := openImage(t, truncated(table+1<<16-8), "qcow2")
		imagetest.JudgeError(t, readThrough(im, make([]byte, 512), 0), qcow2.ErrCorrupt, "L2 table", "behind the end")
	})
	t.Run("within the L1 table", func(t *testing.T) {
		_, err := qcow2.OpenImage(hostfs.OS(), truncated(0x30004), "qcow2", hostfs.LockFrozen)
		imagetest.JudgeError(t, err, qcow2.ErrCorrupt, "L1 table at 0x30000")
	})
	t.Run("while open", func(t *testing.T) {
		for _, format := range []string{"raw", "qcow2"} {
			cut := imagetest.CopyOf(t, path)
			im := openImage(t, cut, format)
			at := im.Size() - 4096 // of raw: the last data cluster
			if format == "qcow2" {
				at = 128<<10 - 4096
			}
			extents, err := im.Map(nil, at, 4096)
			if err != nil || extents[0].Kind != extent.Data {
				t.Fatal(extents, err)
			}
			if err := os.Truncate(cut, table+2<<16); err != nil {
				t.Fatal(err)
			}
			imagetest.JudgeError(t, im.ReadExtent(make([]byte, 4096), extents[0], at), qcow2.ErrCorrupt, "when it was opened")
		}
	})
}

func deflated(t *testing.T, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, 9)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstdFrameOf(t *testing.T, content []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(content, nil)
}

// TestHostileCompressed replaces the data of the first compressed cluster.
func TestHostileCompressed(t *testing.T) {
	raw := filepath.Join(t.TempDir(), "base.raw")
	content := make([]byte, 256<<10)
	for i := range content { // compresses to more than the tests put there
		content[i] = byte(i * i >> 7)
	}
	if err := os.WriteFile(raw, content, 0o600); err != nil {
		t.Fatal(err)
	}
	const size = 64 << 10
	pattern := bytes.Repeat([]byte("varve"), size)
	zlibData := func(n int) []byte { return deflated(t, pattern[:n]) }
	zstdData := func(n int) []byte { return zstdFrameOf(t, pattern[:n]) }
	half := zstdData(size / 2)
	// Window descriptor of 1 TiB and more, no content size.
	hugeWindow := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0xff}, zstdData(size)[6:]...)
	claims := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0}, imagetest.BE64(0xffffffffffffff7f)...)
	tests := []struct {
		name, kind string
		data       []byte
		says       string // "" when it is right
	}{
		{"exact", "zlib", zlibData(size), ""},
		{"not deflate", "zlib", bytes.Repeat([]byte{0xff}, 64), "flate"},
		{"too short", "zlib", zlibData(size - 1), "unexpected EOF"},
		{"too long", "zlib", zlibData(size + 1), "longer than a cluster"},
		{"far too long", "zlib", deflated(t, make([]byte, 16<<20)), "longer than a cluster"},
		{"exact", "zstd", zstdData(size), ""},
		{"two frames", "zstd", append(bytes.Clone(half), half...), ""},
		{"not zstd", "zstd", bytes.Repeat([]byte{0xff}, 64), "magic"},
		{"a skippable frame", "zstd", []byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}, "skippable"},
		{"too short", "zstd", append(zstdData(size-1), make([]byte, 16)...), "magic"},
		{"too long", "zstd", zstdData(size + 1), "longer than a cluster"},
		{"far too long", "zstd", zstdFrameOf(t, make([]byte, 16<<20)), "longer than a cluster"},
		{"two frames too long", "zstd", append(zstdData(size-1), zstdData(2)...), "longer than a cluster"},
		{"huge window", "zstd", hugeWindow, "window"},
		{"huge content size", "zstd", append(claims, 1, 0, 0), "longer than a cluster"},
		{"blocks behind the end", "zstd", []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0x58, 0xf8, 0xff, 0xff}, "unexpected EOF"},
	}
	made := map[string]string{}
	for _, kind := range []string{"zlib", "zstd"} {
		made[kind] = filepath.Join(t.TempDir(), kind+".qcow2")
		imagetest.QemuImg(t, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type="+kind, raw, made[kind])
	}
	for _, c := range tests {
		t.Run(c.kind+" "+c.name, func(t *testing.T) {
			path := imagetest.CopyOf(t, made[c.kind])
			table := l2At(t, path)
			entry := make([]byte, 8)
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.ReadAt(entry, table); err != nil {
				t.Fatal(err)
			}
			format := qcow2.EntryFormat{ClusterBits: 16}
			at, room := format.CompressedRange(binary.BigEndian.Uint64(entry) &^ (qcow2.CopiedFlag | qcow2.CompressedFlag))
			if int64(len(c.data)) > room {
				t.Fatalf("%d bytes do not fit in %d", len(c.data), room)
			}
			imagetest.Patch(t, path, at, c.data...)
			im := openImage(t, path, "qcow2")
			for _, length := range []int64{size, 100} { // straight into p, and through the cache
				p := make([]byte, length)
				err = readThrough(im, p, 0)
				switch {
				case c.says != "":
					imagetest.JudgeError(t, err, qcow2.ErrCorrupt, c.says, path)
				case err != nil:
					t.Error(err)
				case !bytes.Equal(p[:100], pattern[:100]):
					t.Errorf("content %q", p[:10])
				}
			}
			if err := readThrough(im, make([]byte, size), size); err != nil {
				t.Errorf("the next cluster: %v", err)
			}
		})
	}
}

// TestCompressedAtTheEnd: the last sector of compressed data may be missing in
// part, where the file ends with the data.
func TestCompressedAtTheEnd(t *testing.T) {
	path := imagetest.New(t, "", "4M")
	imagetest.QemuIO(t, path, "write -P 1 0 64k")
	table := l2At(t, path)
	content := bytes.Repeat([]byte("last"), 16<<10)
	info, err := os.Stat(path)
	must(t, err)
	at := info.Size() + 100
	imagetest.Patch(t, path, at, deflated(t, content)...)
	const sectors = 3 // more than the file has
	imagetest.Patch(t, path, table, imagetest.BE64(qcow2.CompressedFlag|(sectors-1)<<(62-8)|uint64(at))...)
	im := openImage(t, path, "qcow2")
	want := imagetest.Truth(t, path)
	if !bytes.Equal(want[:len(content)], content) {
		t.Error("qemu-img reads something else")
	}
	judgeContent(t, im, want)
}
