package partition

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const mib = 1 << 20

// image is a disk in memory.
type image []byte

func (d image) ReadAt(p []byte, off int64) error {
	n, err := bytes.NewReader(d).ReadAt(p, off)
	clear(p[n:])
	if err == io.EOF {
		err = nil
	}
	return err
}

// made is a disk that sfdisk made by a script.
func made(t testing.TB, size int64, script string) image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sfdisk", "--quiet", "--no-tell-kernel", "--no-reread", path)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	d, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// bySfdisk is what sfdisk says of a disk.
func bySfdisk(t testing.TB, d image) []Partition {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, d, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sfdisk", "--json", path).Output()
	if err != nil {
		t.Fatalf("sfdisk --json: %v", err)
	}
	var told struct {
		Table struct {
			SectorSize int64
			Partitions []struct {
				Node        string
				Start, Size int64
				Type        string
			}
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal(out, &told); err != nil {
		t.Fatal(err)
	}
	var list []Partition
	for _, p := range told.Table.Partitions {
		n, err := strconv.Atoi(strings.TrimPrefix(p.Node, path))
		if err != nil {
			t.Fatalf("%q in %s", p.Node, out)
		}
		q := Partition{n, p.Start * told.Table.SectorSize, p.Size * told.Table.SectorSize}
		if p.Type == "5" || p.Type == "f" {
			q.Length = 1024 // as Linux shows it
		}
		list = append(list, q)
	}
	return list
}

const (
	extendedScript = "label: dos\nsize=1MiB,type=83\nsize=2MiB,type=82\nsize=6MiB,type=5\nsize=1MiB,type=83\nsize=1MiB\nsize=512KiB\nsize=1MiB\n"
	gptScript      = "label: gpt\nsize=1MiB,type=uefi,name=EFI\nsize=2MiB\nsize=3MiB,name=root\n"
)

func TestTables(t *testing.T) {
	for _, c := range []struct {
		name, script string
		count        int
	}{
		{"MBR", "label: dos\nstart=2048,size=4MiB,bootable\n", 1},
		{"MBR with gaps in the numbers", "label: dos\n2: start=2048,size=1MiB\n4: start=8192,size=1MiB\n", 2},
		{"MBR out of order", "label: dos\nstart=8192,size=1MiB\nstart=2048,size=1MiB\n", 2},
		{"MBR with logical partitions", extendedScript, 7},
		{"GPT", gptScript, 3},
		{"GPT with gaps in the numbers", "label: gpt\n2: size=1MiB\n7: size=1MiB\n128: size=1MiB\n", 3},
		{"GPT with many entries", "label: gpt\ntable-length: 512\n1: size=1MiB\n200: size=1MiB\n", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := made(t, 16*mib+512, c.script)
			want := bySfdisk(t, d)
			got, err := Read(d, int64(len(d)))
			if err != nil || !slices.Equal(got, want) || len(got) != c.count {
				t.Errorf("%v, %v\nsfdisk says %v", got, err, want)
			}
		})
	}
}

// sectors4096 is a disk with a GPT for sectors of 4,096 bytes, which sfdisk makes only
// of a device that has them.
func sectors4096(size int64, parts []Partition) image {
	const sector, entries = 4096, 128
	d := make(image, size)
	entry(d, 0, 0, 0xee, 1, uint32(size/sector-1))
	array := make([]byte, entries*gptEntrySize)
	for _, p := range parts {
		e := array[(p.Number-1)*gptEntrySize:]
		e[0], e[16] = 1, byte(p.Number) // type and id: anything but zeros
		binary.LittleEndian.PutUint64(e[32:], uint64(p.Start/sector))
		binary.LittleEndian.PutUint64(e[40:], uint64((p.Start+p.Length)/sector-1))
	}
	last := size/sector - 1
	for _, side := range []struct{ own, other, array int64 }{{1, last, 2}, {last, 1, last - 4}} {
		copy(d[side.array*sector:], array)
		h := d[side.own*sector:]
		copy(h, gptSignature)
		binary.LittleEndian.PutUint32(h[8:], 0x10000)
		binary.LittleEndian.PutUint32(h[12:], gptHeaderSize)
		for at, v := range map[int]int64{24: side.own, 32: side.other, 40: 6, 48: last - 5, 72: side.array} {
			binary.LittleEndian.PutUint64(h[at:], uint64(v))
		}
		binary.LittleEndian.PutUint32(h[gptCountAt:], entries)
		binary.LittleEndian.PutUint32(h[gptSizeAt:], gptEntrySize)
		binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(array))
		binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:gptHeaderSize]))
	}
	return d
}

func TestSectorsOf4096(t *testing.T) {
	want := []Partition{{1, 1 * mib, 2 * mib}, {4, 8 * mib, 4096}, {128, 4 * mib, 3 * mib}}
	slices.SortFunc(want, func(a, b Partition) int { return a.Number - b.Number })
	d := sectors4096(16*mib, want)
	for _, what := range []string{"whole", "without its front"} {
		if got, err := Read(d, int64(len(d))); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", what, got, err, want)
		}
		clear(d[4096 : 2*4096])
	}
}

// A front that is broken, by what it says or by what it points to, leaves the table
// at the end; a disk that has grown has no table at its end.
func TestBackupOfGPT(t *testing.T) {
	d := made(t, 16*mib, gptScript)
	want := bySfdisk(t, d)
	for what, change := range map[string]func(d image){
		"no front":                func(d image) { clear(d[512 : 34*512]) },
		"a wrong checksum":        func(d image) { d[512+60]++ },
		"a wrong entry":           func(d image) { d[1024+40]++ },
		"too many entries":        func(d image) { header(d, func(h []byte) { binary.LittleEndian.PutUint32(h[gptCountAt:], 1<<32-1) }) },
		"entries of 0 bytes":      func(d image) { header(d, func(h []byte) { binary.LittleEndian.PutUint32(h[gptSizeAt:], 0) }) },
		"entries of 2 GiB":        func(d image) { header(d, func(h []byte) { binary.LittleEndian.PutUint32(h[gptSizeAt:], 1<<31) }) },
		"entries past the end":    func(d image) { header(d, func(h []byte) { binary.LittleEndian.PutUint64(h[72:], 1<<40) }) },
		"entries at minus 1":      func(d image) { header(d, func(h []byte) { binary.LittleEndian.PutUint64(h[72:], 1<<64-1) }) },
		"entries where they wrap": func(d image) { header(d, func(h []byte) { binary.LittleEndian.PutUint64(h[72:], 1<<63/512-1) }) },
	} {
		t.Run(what, func(t *testing.T) {
			broken := bytes.Clone(d)
			change(broken)
			if got, err := Read(image(broken), int64(len(broken))); err != nil || !slices.Equal(got, want) {
				t.Errorf("%v, %v; want %v", got, err, want)
			}
			clear(broken[len(broken)-512:])
			if got, err := Read(image(broken), int64(len(broken))); !errors.Is(err, ErrBroken) {
				t.Errorf("without the end: %v, %v; want ErrBroken", got, err)
			}
		})
	}
	grown := append(bytes.Clone(d), make([]byte, 8*mib)...)
	if got, err := Read(image(grown), int64(len(grown))); err != nil || !slices.Equal(got, want) {
		t.Errorf("grown: %v, %v; want %v", got, err, want)
	}
}

// header changes the GPT header at the front and makes its checksum right.
func header(d image, change func(h []byte)) {
	h := d[512 : 512+gptHeaderSize]
	change(h)
	binary.LittleEndian.PutUint32(h[16:], 0)
	binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h))
}

// entry writes an entry of an MBR or of an extended partition's first sector.
func entry(d image, at int64, slot int, kind byte, start, count uint32) {
	e := d[at+entriesAt+int64(slot)*entrySize:]
	e[typeAt] = kind
	binary.LittleEndian.PutUint32(e[startAt:], start)
	binary.LittleEndian.PutUint32(e[startAt+4:], count)
	binary.LittleEndian.PutUint16(d[at+sector-2:], signature)
}

func TestHostileMBR(t *testing.T) {
	const size = 8 * mib
	for _, c := range []struct {
		name string
		make func(d image)
		want []Partition
		err  error
	}{
		{"blank", func(d image) {}, nil, ErrNone},
		{"a signature alone", func(d image) { d[510], d[511] = 0x55, 0xaa }, nil, nil},
		{"a boot sector", func(d image) { entry(d, 0, 0, 0x83, 1, 1); d[entriesAt] = 0xeb }, nil, ErrNone},
		{"over each other", func(d image) { entry(d, 0, 0, 0x83, 64, 200); entry(d, 0, 1, 0x83, 100, 200) },
			[]Partition{{1, 64 * 512, 200 * 512}, {2, 100 * 512, 200 * 512}}, nil},
		{"past the end", func(d image) {
			entry(d, 0, 0, 0x83, size/512-10, 20)
			entry(d, 0, 1, 0x83, size/512, 1)
			entry(d, 0, 2, 0x83, 1<<32-1, 1<<32-1)
			entry(d, 0, 3, 0x83, 7, 0)
		}, []Partition{{1, size - 10*512, 10 * 512}}, nil},
		{"from the table itself on", func(d image) { entry(d, 0, 2, 0x83, 0, 1<<32-1) }, []Partition{{3, 0, size}}, nil},
		{"an extended one that names itself", func(d image) {
			entry(d, 0, 0, 0x05, 100, 1000)
			entry(d, 100*512, 1, 0x05, 0, 1000)
		}, []Partition{{1, 100 * 512, 1024}}, nil},
		{"empty extended ones in a ring", func(d image) {
			entry(d, 0, 3, 0x0f, 100, 1000)
			entry(d, 100*512, 0, 0x83, 1, 5)
			entry(d, 100*512, 1, 0x05, 50, 10)
			entry(d, 150*512, 1, 0x85, 60, 10)
			entry(d, 160*512, 1, 0x85, 50, 10)
		}, []Partition{{4, 100 * 512, 1024}, {5, 101 * 512, 5 * 512}}, nil},
		{"all four entries", func(d image) {
			entry(d, 0, 0, 0x05, 100, 1000)
			entry(d, 100*512, 0, 0x83, 1, 5)
			entry(d, 100*512, 1, 0x05, 50, 100)
			entry(d, 100*512, 2, 0x83, 10, 5)
			entry(d, 100*512, 3, 0x82, 20, 980)
			entry(d, 150*512, 0, 0x05, 200, 10)
			entry(d, 150*512, 1, 0x83, 1, 6)
			entry(d, 150*512, 3, 0x83, 10, 90)
			entry(d, 300*512, 2, 0x83, 1, 9)
		}, []Partition{{1, 100 * 512, 1024}, {5, 101 * 512, 5 * 512}, {6, 110 * 512, 5 * 512}, {7, 120 * 512, 980 * 512},
			{8, 151 * 512, 6 * 512}, {9, 160 * 512, 90 * 512}, {10, 301 * 512, 9 * 512}}, nil},
		{"third and fourth entries that reach too far", func(d image) {
			entry(d, 0, 0, 0x05, 100, 1000)
			entry(d, 100*512, 1, 0x05, 50, 100)
			entry(d, 100*512, 2, 0x83, 1, 1000)
			entry(d, 100*512, 3, 0x83, 1<<32-5, 9)
			entry(d, 150*512, 1, 0x83, 1, 1000)
			entry(d, 150*512, 2, 0x83, 11, 90)
			entry(d, 150*512, 3, 0x83, 0, 101)
		}, []Partition{{1, 100 * 512, 1024}, {5, 151 * 512, 1000 * 512}}, nil},
		{"two extended entries in one", func(d image) {
			entry(d, 0, 0, 0x05, 100, 1000)
			entry(d, 100*512, 1, 0x05, 50, 100)
			entry(d, 100*512, 2, 0x05, 60, 100)
			entry(d, 150*512, 0, 0x83, 1, 1)
			entry(d, 160*512, 0, 0x83, 1, 2)
		}, []Partition{{1, 100 * 512, 1024}, {5, 151 * 512, 512}}, nil},
		{"an entry of an extended one that is neither bootable nor not", func(d image) {
			entry(d, 0, 0, 0x05, 100, 1000)
			entry(d, 100*512, 0, 0x83, 1, 5)
			d[100*512+entriesAt] = 0x17
		}, []Partition{{1, 100 * 512, 1024}, {5, 101 * 512, 5 * 512}}, nil},
		{"a logical one outside keeps its number", func(d image) {
			entry(d, 0, 0, 0x05, 100, 1000)
			entry(d, 100*512, 0, 0x83, size/512, 5)
			entry(d, 100*512, 1, 0x05, 50, 10)
			entry(d, 150*512, 0, 0x83, 1, 6)
		}, []Partition{{1, 100 * 512, 1024}, {6, 151 * 512, 6 * 512}}, nil},
		{"garbage in the third entry", func(d image) {
			entry(d, 0, 0, 0x05, 100, 1000)
			entry(d, 100*512, 0, 0x83, 1, 5)
			copy(d[100*512+entriesAt+2*entrySize:], "not an entry")
		}, []Partition{{1, 100 * 512, 1024}, {5, 101 * 512, 5 * 512}}, nil},
		{"an extended one past the end", func(d image) { entry(d, 0, 0, 0x05, size/512+8, 1000) }, nil, nil},
		{"two extended ones", func(d image) {
			entry(d, 0, 0, 0x05, 100, 100)
			entry(d, 100*512, 0, 0x83, 1, 5)
			entry(d, 0, 1, 0x05, 300, 100)
			entry(d, 300*512, 0, 0x83, 1, 5)
		}, []Partition{{1, 100 * 512, 1024}, {2, 300 * 512, 1024}, {5, 101 * 512, 5 * 512}, {6, 301 * 512, 5 * 512}}, nil},
		{"a protective one without a GPT", func(d image) { entry(d, 0, 0, 0xee, 1, 1<<32-1); entry(d, 0, 1, 0x83, 10, 10) }, nil, ErrBroken},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := make(image, size)
			c.make(d)
			got, err := Read(d, size)
			if !errors.Is(err, c.err) || !slices.Equal(got, c.want) {
				t.Errorf("%v, %v; want %v, %v", got, err, c.want, c.err)
			}
		})
	}
}

// A long chain of extended partitions ends with the numbers, and one of links that name
// none before them.
func TestManyLogicalPartitions(t *testing.T) {
	for name, c := range map[string]struct {
		make func(d image)
		want int // the highest number
	}{
		"300 partitions": {func(d image) {
			for i := range int64(300) {
				at := (1 + 4*i) * sector
				entry(d, at, 0, 0x83, 1, 1)
				entry(d, at, 1, 0x05, uint32(4*(i+1)), 4)
			}
		}, MaxNumber},
		"a ring": {func(d image) {
			entry(d, sector, 0, 0x83, 1, 1)
			entry(d, sector, 1, 0x05, 0, 4)
		}, MaxNumber},
		"a partition behind 99 empty links": {func(d image) { emptyLinks(d, 99) }, firstLogic},
		"a partition behind 100":            {func(d image) { emptyLinks(d, 100) }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			d := make(image, 8*mib)
			entry(d, 0, 0, 0x05, 1, 10000)
			c.make(d)
			got, err := Read(d, int64(len(d)))
			if err != nil || len(got) == 0 || got[len(got)-1].Number != c.want {
				t.Errorf("%d partitions, %v; want numbers up to %d", len(got), err, c.want)
			}
		})
	}
}

func emptyLinks(d image, count int64) {
	for i := range count {
		entry(d, (1+4*i)*sector, 1, 0x05, uint32(4*(i+1)), 4)
	}
	entry(d, (1+4*count)*sector, 0, 0x83, 1, 1)
}

// What the disk cannot read is told as that, not as a broken table.
func TestFailingDisk(t *testing.T) {
	d := made(t, 8*mib, gptScript)
	bad := errors.New("bad sector")
	for _, from := range []int64{0, 512, 1024} {
		reads := 0
		_, err := Read(ReadFunc(func(p []byte, off int64) error {
			reads++
			if off+int64(len(p)) > from {
				return bad
			}
			return d.ReadAt(p, off)
		}), int64(len(d)))
		if !errors.Is(err, bad) || errors.Is(err, ErrBroken) || reads > 4 {
			t.Errorf("from %d: %v after %d reads", from, err, reads)
		}
	}
}

func TestSmallDisks(t *testing.T) {
	d := made(t, 8*mib, gptScript)
	for _, size := range []int64{0, 1, 511, 512, 513, 1023, 1024, 1025, 4096, 8191, 8192, 20000} {
		got, err := Read(d[:size], size)
		// With 20,000 bytes there is a table, whose partitions lie outside.
		if len(got) != 0 || (err == nil) != (size == 20000) {
			t.Errorf("%d bytes: %v, %v", size, got, err)
		}
	}
}

// FuzzRead reads a table from a disk that begins and ends with any bytes.
func FuzzRead(f *testing.F) {
	const size = 4*mib + 512
	for _, script := range []string{extendedScript, gptScript, "label: dos\nstart=2048\n"} {
		d := made(f, 16*mib, script)
		f.Add([]byte(d[:40*512]), []byte(d[len(d)-40*512:]), int64(len(d)))
		f.Add([]byte(d[:40*512]), []byte{}, int64(size))
	}
	f.Add([]byte{}, []byte{}, int64(0))
	f.Fuzz(func(t *testing.T, front, end []byte, size int64) {
		size &= 1<<50 - 1
		read := int64(0)
		disk := ReadFunc(func(p []byte, off int64) error {
			if off < 0 || off+int64(len(p)) > size {
				return fmt.Errorf("%d bytes at %d of %d are asked for", len(p), off, size)
			}
			read += int64(len(p))
			for i := range p {
				switch at := off + int64(i); {
				case at < int64(len(front)):
					p[i] = front[at]
				case size-at <= int64(len(end)):
					p[i] = end[int64(len(end))-(size-at)]
				default:
					p[i] = 0
				}
			}
			return nil
		})
		list, err := Read(disk, size)
		if err != nil && !errors.Is(err, ErrNone) && !errors.Is(err, ErrBroken) {
			t.Fatal(err)
		}
		if err != nil && strings.Contains(err.Error(), "parsed") {
			t.Fatalf("the library panicked: %v", err)
		}
		if read > 8*mib {
			t.Fatalf("%d bytes were read", read)
		}
		last := 0
		for _, p := range list {
			if p.Number <= last || p.Number > MaxNumber || p.Start < 0 || p.Length <= 0 || p.Start > size-p.Length {
				t.Fatalf("%+v of %d bytes, after number %d", p, size, last)
			}
			last = p.Number
		}
	})
}
