package qcow2_test

import (
	"bytes"
	stdflate "compress/flate"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"

	"varve/integration/hostile"
	"varve/integration/imagetest"
	"varve/overlay/extent"
	"varve/overlay/qcow2"
)

// What hostile images must not do, whatever they say: crash, hang, cost more
// memory than the file is worth, make varve read elsewhere than in the file. Run
// these with `make fuzz`.

// Bounds of what is allocated. Opening costs a few times what the file has; a
// header that claims more than that costs nothing. Mapping fills a list that is
// as long as the entries of the range. Reading costs a cluster and its
// compressed data, and what a decompressor needs for itself.
const (
	openAllowance = 1 << 20
	mapAllowance  = 32 << 20
	readAllowance = 24 << 20
)

// explore opens an image and looks at all of it. It gives nil where that image
// is refused.
func explore(t *testing.T, data []byte) *qcow2.Image {
	t.Helper()
	var im *qcow2.Image
	var err error
	hostile.MayAllocate(t, "opening", openAllowance+8*len(data), func() {
		im, err = qcow2.NewImage(&hostile.WatchedFile{BytesFile: hostile.BytesFile{Data: data}, T: t}, qcow2.FormatQcow2)
	})
	if err != nil {
		if !errors.Is(err, qcow2.ErrCorrupt) && !errors.Is(err, qcow2.ErrUnsupported) {
			t.Fatalf("open: %v is neither", err)
		}
		return nil
	}
	total, ownErr := im.OwnBytes()
	if ownErr != nil && !errors.Is(ownErr, qcow2.ErrCorrupt) {
		t.Fatalf("own bytes: %v", ownErr)
	}
	const step, reach = 1 << 20, 16 << 20
	sum, left := int64(0), int64(8<<20) // bytes to read
	var extents []extent.Extent
	p := make([]byte, 64<<10)
	for at := int64(0); at < min(im.Size()+step, reach); at += step {
		var mapErr error
		hostile.MayAllocate(t, "mapping", mapAllowance, func() { extents, mapErr = im.Map(extents[:0], at, step) })
		if mapErr != nil {
			if !errors.Is(mapErr, qcow2.ErrCorrupt) || ownErr == nil {
				t.Fatalf("map: %v, but own bytes: %v", mapErr, ownErr)
			}
			continue
		}
		judgeCover(t, extents, at, step)
		for _, e := range extents {
			if e.Kind != extent.Unallocated && e.Start < im.Size() {
				sum += min(e.End(), im.Size()) - e.Start
			}
			if e.Kind == extent.Damaged && e.Start < im.Size() {
				if err := im.ReadExtent(p[:1], e, e.Start); !errors.Is(err, qcow2.ErrCorrupt) {
					t.Fatalf("read %+v: %v", e, err)
				}
			}
			if e.Kind != extent.Data && e.Kind != extent.Compressed || left <= 0 {
				continue
			}
			n := min(e.Length, int64(len(p)))
			left -= n + 4096
			hostile.MayAllocate(t, "reading", readAllowance, func() {
				if err := im.ReadExtent(p[:n], e, e.End()-n); err != nil && !errors.Is(err, qcow2.ErrCorrupt) {
					t.Fatalf("read %+v: %v", e, err)
				}
			})
		}
	}
	// The far end, where products overflow.
	if _, err := im.Map(nil, max(0, im.Size()-step), 2*step); err != nil && !errors.Is(err, qcow2.ErrCorrupt) && im.Size() < 1<<62 {
		t.Fatalf("map the end: %v", err)
	}
	if ownErr == nil && im.Size() <= reach && sum != total {
		t.Errorf("own bytes %d, extents have %d", total, sum)
	}
	return im
}

// FuzzImage opens, maps and reads whole images of any bytes.
func FuzzImage(f *testing.F) {
	for _, s := range hostile.QemuSeeds(f) {
		if len(s.Data) <= 256<<10 { // the engine is slow with long ones
			f.Add(s.Data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<20 {
			return
		}
		hostile.WatchForHang(t)
		explore(t, data)
	})
}

// FuzzTables changes entries of tables, fields of the header and compressed
// data of images that are right otherwise: see mutate.
func FuzzTables(f *testing.F) {
	seeds := hostile.QemuSeeds(f)
	for i := range seeds {
		for kind := range byte(16) {
			f.Add(byte(i), []byte{kind, 0, 1, 3, 0, 0, 0, 0, 0, 0, 0, 1})
			f.Add(byte(i), []byte{kind, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 5})
			f.Add(byte(i), append([]byte{kind, 0, 0, 0}, imagetest.BE64(qcow2.CopiedFlag|1<<40)...)) // far behind the end
		}
		// An L1 table of 32 MiB, and a disk that needs it: fields 6 and 4.
		f.Add(byte(i), append(append([]byte{0, 0, 6, 0}, imagetest.BE64(4<<20)...), append([]byte{0, 0, 4, 0}, imagetest.BE64(1<<34)...)...))
	}
	f.Fuzz(func(t *testing.T, which byte, script []byte) {
		if len(script) > 32*hostile.ChangeBytes {
			return
		}
		hostile.WatchForHang(t)
		explore(t, hostile.Mutate(seeds[int(which)%len(seeds)].Data, script))
	})
}

// FuzzSnapshotTable changes what a header says of internal snapshots, and the
// table of them. Nothing of the table is read; the active disk must stay what it
// was as long as the header is taken.
func FuzzSnapshotTable(f *testing.F) {
	var image hostile.Seed
	for _, s := range hostile.QemuSeeds(f) {
		if s.Name == "snapshots" {
			image = s
		}
	}
	m := hostile.MapImage(image.Data)
	table := int64(m.Word(64))
	read := func(t testing.TB, data []byte) []byte {
		im, err := qcow2.NewImage(&hostile.BytesFile{Data: data}, qcow2.FormatQcow2)
		if err != nil {
			if !errors.Is(err, qcow2.ErrCorrupt) && !errors.Is(err, qcow2.ErrUnsupported) {
				t.Fatal(err)
			}
			return nil
		}
		p := make([]byte, im.Size())
		if err := readThrough(im, p, 0); err != nil {
			t.Fatal(err)
		}
		return p
	}
	want := read(f, image.Data)
	f.Add(uint32(2), uint64(table), image.Data[table:min(table+256, int64(len(image.Data)))])
	f.Add(uint32(0), uint64(0), []byte{})
	f.Add(uint32(65536), uint64(table), bytes.Repeat([]byte{0xff}, 256))
	f.Add(uint32(65537), uint64(1<<63), []byte{})
	f.Add(uint32(1), uint64(len(image.Data)-40), []byte{})
	f.Add(uint32(1), ^uint64(0)-39, []byte{1})
	f.Fuzz(func(t *testing.T, count uint32, offset uint64, content []byte) {
		data := bytes.Clone(image.Data)
		copy(data[60:], append(imagetest.BE32(count), imagetest.BE64(offset)...))
		copy(data[table:min(table+int64(m.ClusterSize), int64(len(data)))], content)
		if got := read(t, data); got != nil && !bytes.Equal(got, want) {
			t.Error("the active disk has another content")
		}
	})
}

// FuzzCompressed reads one compressed cluster. plain is compressed, then
// damaged: pairs of a place and a byte. The judges are the standard library's
// inflate and, for zstd, the decoder's other mode.
func FuzzCompressed(f *testing.F) {
	for kind := range byte(2) {
		for _, bits := range []byte{9, 12, 16, 21} {
			f.Add(kind, bits, uint16(0xffff), uint16(0), []byte("varve"), []byte{})
			f.Add(kind, bits, uint16(0), uint16(77), []byte("layers of mud\n"), []byte{0, 3, 0xff})
			f.Add(kind|2, bits, uint16(5), uint16(1), []byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0}, []byte{})
			f.Add(kind|2, bits, uint16(9), uint16(9), []byte{0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff}, []byte{})
			var long bytes.Buffer
			if w, err := stdflate.NewWriter(&long, 9); err != nil {
				f.Fatal(err)
			} else if _, err := w.Write(make([]byte, 1<<(9+bits%13)+1)); err != nil || w.Close() != nil {
				f.Fatal(err)
			}
			f.Add(kind|2, bits, uint16(0xffff), uint16(0), long.Bytes(), []byte{})
			// Blocks that repeat one byte 128 Ki times: 30 MiB in 1 KB. Then with a
			// window of 2 TiB.
			blocks := append(bytes.Repeat([]byte{0x02, 0x00, 0x10, 'x'}, 239), 0x03, 0x00, 0x10, 'x')
			f.Add(kind|2, bits, uint16(1), uint16(0), append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0x58}, blocks...), []byte{})
			f.Add(kind|2, bits, uint16(1), uint16(0), []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0xf8, 0x03, 0x00, 0x10, 'x'}, []byte{})
		}
	}
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, kind, clusterBits byte, sectors, offset uint16, plain, damage []byte) {
		if len(plain) == 0 {
			return
		}
		hostile.WatchForHang(t)
		format := &qcow2.EntryFormat{ClusterBits: 9 + uint32(clusterBits)%(21-9+1)}
		size := int64(1) << format.ClusterBits
		compression := kind & 1
		data := plain
		if kind&2 == 0 {
			content := bytes.Repeat(plain, int(size)/len(plain)+1)[:size]
			if compression == qcow2.CompressionZstd {
				data = encoder.EncodeAll(content, nil)
			} else {
				var b bytes.Buffer
				w, err := stdflate.NewWriter(&b, int(plain[0])%9+1)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write(content); err != nil {
					t.Fatal(err)
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				data = b.Bytes()
			}
		} else {
			data = bytes.Clone(data)
		}
		for ; len(damage) >= 3; damage = damage[3:] {
			data[(int(damage[0])<<8|int(damage[1]))%len(data)] ^= damage[2]
		}
		// One cluster for the header, the offset, the data, and other data
		// behind it.
		file := append(make([]byte, size+int64(offset)%512), data...)
		at := int64(len(file) - len(data))
		file = append(file, bytes.Repeat([]byte{0xa5}, int(sectors)%700)...)
		format.FileSize = int64(len(file))
		count := uint64(sectors) % (1 << (format.ClusterBits - 8))
		descriptor := count<<(62-(format.ClusterBits-8)) | uint64(at)
		_, room := format.CompressedRange(descriptor)
		visible := file[at:min(int64(len(file)), at+room)]

		watched := &hostile.WatchedFile{BytesFile: hostile.BytesFile{Data: file}, T: t}
		read := qcow2.ReadCompressed(watched, format, compression)
		got := make([]byte, size)
		hostile.MayAllocate(t, "decompressing", readAllowance, func() { err = read(got, descriptor, 0) })
		if err != nil && !errors.Is(err, qcow2.ErrCorrupt) {
			t.Fatalf("%v is not a corrupt image", err)
		}
		piece := make([]byte, min(100, size))
		if pieceErr := read(piece, descriptor, size-int64(len(piece))); (pieceErr == nil) != (err == nil) {
			t.Fatalf("a piece: %v, the whole: %v", pieceErr, err)
		}
		if err == nil && !bytes.Equal(piece, got[size-int64(len(piece)):]) {
			t.Fatal("a piece differs from the whole")
		}
		want := make([]byte, size+1)
		if compression == qcow2.CompressionZlib {
			n, judgeErr := io.ReadFull(stdflate.NewReader(bytes.NewReader(visible)), want)
			// A stream that is cut or damaged behind the cluster's last byte is as
			// good as a whole one.
			whole := int64(n) == size && errors.Is(judgeErr, io.ErrUnexpectedEOF) && endsWhole(visible, size)
			if err == nil && int64(n) != size || err != nil && whole {
				t.Fatalf("%v; the standard library reads %d of %d bytes: %v", err, n, size, judgeErr)
			}
		} else if err == nil {
			decoder, newErr := zstd.NewReader(bytes.NewReader(visible), zstd.WithDecoderConcurrency(1))
			if newErr != nil {
				t.Fatal(newErr)
			}
			defer decoder.Close()
			n, judgeErr := io.ReadFull(decoder, want[:size])
			if int64(n) != size {
				t.Fatalf("no error; reading it as a stream gives %d of %d bytes: %v", n, size, judgeErr)
			}
		}
		if err == nil && !bytes.Equal(got, want[:size]) {
			t.Fatal("it is another content")
		}
	})
}

// endsWhole says whether a deflate stream ends, with its mark, after size bytes.
func endsWhole(data []byte, size int64) bool {
	n, err := io.Copy(io.Discard, io.LimitReader(stdflate.NewReader(bytes.NewReader(data)), size+1))
	return err == nil && n == size
}
