package check

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"varve/integration/hostile"
	"varve/integration/imagetest"
	"varve/overlay"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// damagedImage is an image in which a test changes one thing.
type damagedImage struct {
	data                  []byte
	l1, l2, table, block  int64 // first L1 entry, first L2 entry, refcount table, first block
	clusterSize, l2Offset int64 // l2Offset is the first L2 table
}

func (d *damagedImage) word(at int64) uint64       { return binary.BigEndian.Uint64(d.data[at:]) }
func (d *damagedImage) set(at int64, value uint64) { binary.BigEndian.PutUint64(d.data[at:], value) }
func (d *damagedImage) refcount(host int64, value uint16) {
	binary.BigEndian.PutUint16(d.data[d.block+host/d.clusterSize*2:], value)
}

func newDamagedImage(t *testing.T, data []byte) *damagedImage {
	t.Helper()
	data = append([]byte(nil), data...)
	h, err := qcow2.HeaderOf(&hostile.BytesFile{Data: data}, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	d := &damagedImage{data: data, l1: h.L1Offset, table: h.RefcountTableOffset, clusterSize: h.ClusterSize()}
	d.block = int64(d.word(d.table))
	d.l2 = int64(d.word(d.l1) & qcow2.OffsetMask)
	d.l2Offset = d.l2
	return d
}

// TestCheckDamage does one kind of damage at a time. qemu is what qemu-img
// check says of it, where that differs.
func TestCheckDamage(t *testing.T) {
	tests := []struct {
		name    string
		image   string // of checkedImages
		do      func(d *damagedImage)
		verdict string
		says    string
		qemu    string
	}{
		{"nothing", "compat=1.1", func(*damagedImage) {}, verdictFine, "", ""},
		{"refcount too high", "compat=1.1", func(d *damagedImage) { d.refcount(d.l2Offset, 2); d.set(d.l1, d.word(d.l1)&^qcow2.CopiedFlag) },
			verdictLeaks, "refcount 2, used once", ""},
		{"leaked cluster", "compat=1.1", func(d *damagedImage) { d.set(d.l2, 0) }, verdictLeaks, "refcount 1, used not at all", ""},
		{"refcount too low", "compat=1.1", func(d *damagedImage) { d.refcount(d.l2Offset, 0) }, verdictErrors, "refcount 0, used once", ""},
		{"header's refcount", "compat=1.1", func(d *damagedImage) { d.refcount(0, 0) }, verdictErrors, "cluster at 0x0: refcount 0", ""},
		{"L1: COPIED missing", "compat=1.1", func(d *damagedImage) { d.set(d.l1, d.word(d.l1)&^qcow2.CopiedFlag) }, verdictErrors, "lacks the COPIED flag", ""},
		{"L2: COPIED missing", "compat=1.1", func(d *damagedImage) { d.set(d.l2, d.word(d.l2)&^qcow2.CopiedFlag) }, verdictErrors, "lacks the COPIED flag", ""},
		{"COPIED and refcount 2", "compat=1.1", func(d *damagedImage) { d.refcount(int64(d.word(d.l2)&qcow2.OffsetMask), 2) },
			verdictErrors, "refcount 2, but its entry has the COPIED flag", ""},
		{"used twice", "compat=1.1", func(d *damagedImage) { d.set(d.l2+8, d.word(d.l2)) }, verdictErrors, "refcount 1, used 2 times", ""},
		{"L1: reserved bit", "compat=1.1", func(d *damagedImage) { d.set(d.l1, d.word(d.l1)|1<<57) }, verdictErrors, "L1 table: entry 0 has reserved bits", ""},
		{"L1: not aligned", "compat=1.1", func(d *damagedImage) { d.set(d.l1, d.word(d.l1)+512) }, verdictErrors, "no multiple of the cluster size", ""},
		{"L1: behind the end", "compat=1.1", func(d *damagedImage) { d.set(d.l1, qcow2.CopiedFlag|1<<40) }, verdictErrors, "L2 table at 0x10000000000 ends behind", ""},
		{"L1: flags alone", "compat=1.1", func(d *damagedImage) { d.set(d.l1, qcow2.CopiedFlag) }, verdictErrors, "names no L2 table", ""},
		{"L2: reserved bit", "compat=1.1", func(d *damagedImage) { d.set(d.l2, d.word(d.l2)|1<<60) }, verdictErrors, "reserved bits 0x1000000000000000", ""},
		{"L2: not aligned", "compat=1.1", func(d *damagedImage) { d.set(d.l2, d.word(d.l2)+512) }, verdictErrors, "no multiple of the cluster size", ""},
		{"L2: behind the end", "compat=1.1", func(d *damagedImage) { d.set(d.l2, qcow2.CopiedFlag|1<<40) }, verdictErrors, "behind the end of the file", ""},
		{"L2 table over data", "compat=1.1", func(d *damagedImage) {
			d.set(d.l2, uint64(d.l2Offset))
			d.set(d.l1, uint64(d.l2Offset))
			d.refcount(d.l2Offset, 2)
		}, verdictErrors, "used as an L2 table and for guest data", verdictLeaks},
		{"data over the L1 table", "compat=1.1", func(d *damagedImage) {
			d.set(d.l2, uint64(d.l1))
			d.refcount(d.l1, 2)
		}, verdictErrors, "metadata stands in it, and it is used 2 times", verdictLeaks},
		{"cut file", "compat=1.1", func(d *damagedImage) { d.data = d.data[:len(d.data)-int(2*d.clusterSize)] }, verdictErrors, "behind the end", ""},
		{"cut table", "compat=1.1", func(d *damagedImage) {
			// The L2 table goes to the end and is cut there.
			at := (int64(len(d.data)) + d.clusterSize - 1) &^ (d.clusterSize - 1)
			d.data = append(d.data, make([]byte, at+d.clusterSize-int64(len(d.data)))...)
			copy(d.data[at:], d.data[d.l2Offset:d.l2Offset+d.clusterSize])
			d.data = d.data[:at+d.clusterSize/2]
			d.set(d.l1, uint64(at)|qcow2.CopiedFlag)
			d.refcount(at, 1)
			d.refcount(d.l2Offset, 0)
		}, verdictErrors, "ends behind the end of the file", verdictFine},
		{"no refcount block", "compat=1.1", func(d *damagedImage) { d.set(d.table, 0) }, verdictErrors, "refcount 0", ""},
		{"refcount block: reserved bit", "compat=1.1", func(d *damagedImage) { d.set(d.table, d.word(d.table)|1) }, verdictErrors, "refcount table: entry 0 has reserved bits", ""},
		{"refcount block: not aligned", "compat=1.1", func(d *damagedImage) { d.set(d.table, d.word(d.table)+1024) }, verdictErrors, "no multiple of the cluster size", ""},
		{"refcount block: behind the end", "compat=1.1", func(d *damagedImage) { d.set(d.table+8, 1<<40) }, verdictErrors, "the block at 0x10000000000 is behind", ""},
		{"refcount block: used twice", "compat=1.1", func(d *damagedImage) { d.set(d.table+8, d.word(d.table)) }, verdictErrors, "named twice", ""},
		{"refcount behind the end", "compat=1.1", func(d *damagedImage) { d.refcount(int64(len(d.data))+16*d.clusterSize, 1) },
			verdictLeaks, "refcount 1, used not at all", verdictFine},
		{"marked corrupt", "compat=1.1", func(d *damagedImage) { d.data[79] |= qcow2.IncompatibleCorrupt }, verdictErrors, "marked corrupt", verdictFine},
		{"dirty, and right", "compat=1.1", func(d *damagedImage) { d.data[79] |= qcow2.IncompatibleDirty }, verdictFine, "", ""},
		{"snapshots' offset without snapshots", "compat=1.1", func(d *damagedImage) { d.set(64, 512) }, verdictErrors, "snapshot table's offset 0x200 is no multiple", ""},
		{"raw external data", "compat=1.1", func(d *damagedImage) { d.data[95] |= qcow2.AutoclearRawExternalData }, verdictErrors, "no data file", ""},
		{"unknown incompatible feature", "compat=1.1", func(d *damagedImage) { d.data[72] |= 1 }, verdictErrors, "unknown incompatible feature", ""},
		{"v2: zero flag", "compat=0.10", func(d *damagedImage) { d.set(d.l2, d.word(d.l2)|qcow2.ZeroFlag) }, verdictErrors, "version 2 image", verdictFine},
		{"subcluster allocated and zero", "extended_l2=on", func(d *damagedImage) { d.set(d.l2+8, 1<<32|1) }, verdictErrors, "both allocated and zero", ""},
		{"subcluster allocated nowhere", "extended_l2=on", func(d *damagedImage) { d.set(d.l2+16*40, 0); d.set(d.l2+16*40+8, 1) }, verdictErrors, "but no cluster is", ""},
		{"extended: bit 0", "extended_l2=on", func(d *damagedImage) { d.set(d.l2, d.word(d.l2)|1) }, verdictErrors, "reserved bit 0", verdictFine},
		{"compressed: COPIED", "compressed,compression_type=zlib", func(d *damagedImage) { d.set(d.l2, d.word(d.l2)|qcow2.CopiedFlag) }, verdictErrors, "a compressed cluster has the COPIED flag", ""},
		{"compressed: behind the end", "compressed,compression_type=zlib", func(d *damagedImage) { d.set(d.l2, qcow2.CompressedFlag|1<<40) }, verdictErrors, "compressed data at 0x10000000000", ""},
		{"compressed: in the header", "compressed,compression_type=zlib", func(d *damagedImage) { d.set(d.l2, qcow2.CompressedFlag|4096) }, verdictErrors, "inside the header", ""},
		{"compressed: gone", "compressed,compression_type=zlib", func(d *damagedImage) { d.set(d.l2, 0) }, verdictLeaks, "refcount", ""},
		{"compressed: with a bitmap", "compressed,extended_l2=on,cluster_size=32k", func(d *damagedImage) { d.set(d.l2+8, 1) }, verdictErrors, "subcluster bitmap", ""},
		{"compressed: begins behind the end", "compressed,compression_type=zlib", func(d *damagedImage) {
			// A cluster behind the end whose refcount is right.
			end := (int64(len(d.data)) + d.clusterSize - 1) &^ (d.clusterSize - 1)
			d.set(d.l2+8*63, qcow2.CompressedFlag|uint64(end))
			d.data = append(d.data, make([]byte, end-int64(len(d.data)))...)
			d.refcount(end, 1)
		}, verdictErrors, "at most 512 bytes, is behind the end", verdictFine},
		{"snapshot: extra data missing", "snapshots,", func(d *damagedImage) {
			binary.BigEndian.PutUint32(d.data[d.word(64)+36:], 8)
		}, verdictErrors, "extra data, less than 16", ""},
		{"snapshot: too much extra data", "snapshots,", func(d *damagedImage) {
			binary.BigEndian.PutUint32(d.data[d.word(64)+36:], 1<<20)
		}, verdictErrors, "extra data, more than 1024", ""},
		{"snapshot: L1 not aligned", "snapshots,", func(d *damagedImage) { d.set(int64(d.word(64)), 512) }, verdictErrors, "snapshot table: entry 0: the L1 table's offset", ""},
		{"snapshot: L1 behind the end", "snapshots,", func(d *damagedImage) { d.set(int64(d.word(64)), 1<<40) }, verdictErrors, "behind the end", ""},
		{"snapshot: L1 too long", "snapshots,", func(d *damagedImage) { binary.BigEndian.PutUint32(d.data[d.word(64)+8:], 1<<30) }, verdictErrors, "entries, more than", ""},
		{"snapshot: refcount too low", "snapshots,", func(d *damagedImage) {
			l1 := int64(d.word(int64(d.word(64))))
			d.refcount(int64(d.word(l1)&qcow2.OffsetMask), 0)
		}, verdictErrors, "used", ""},
		{"bitmaps without their autoclear bit", "bitmaps,", func(d *damagedImage) { d.data[95] &^= qcow2.AutoclearBitmaps }, verdictLeaks, "used not at all", ""},
	}
	images := map[string]checkedImage{}
	for _, im := range checkedImages() {
		images[im.name] = im
	}
	made := map[string][]byte{}
	hit := make([]bool, len(stricter))
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			im, ok := images[c.image]
			if !ok {
				t.Fatalf("no image %q", c.image)
			}
			if made[im.name] == nil {
				made[im.name], _ = im.bytes(t)
			}
			d := newDamagedImage(t, made[im.name])
			c.do(d)
			got, r := ourVerdict(t, d.data)
			if got != c.verdict {
				t.Errorf("Check says %s (%+v), want %s", got, r, c.verdict)
			}
			if text := fmt.Sprint(r.Problems); !strings.Contains(text, c.says) {
				t.Errorf("it does not say %q:\n%s", c.says, text)
			}
			path := filepath.Join(t.TempDir(), "damaged.qcow2")
			if err := os.WriteFile(path, d.data, 0o600); err != nil {
				t.Fatal(err)
			}
			want := c.qemu
			if want == "" {
				want = c.verdict
			}
			if qemus, out := qemuVerdict(t, path); qemus != want {
				t.Errorf("qemu-img check says %s, not %s\n%s", qemus, want, out)
			}
			if want != c.verdict {
				for i, s := range stricter {
					for _, p := range r.Problems {
						hit[i] = hit[i] || regexp.MustCompile(s.says).MatchString(p.Text)
					}
				}
			}
		})
	}
	for i, s := range stricter {
		if !hit[i] && !s.random {
			t.Errorf("no damage shows that Check is stricter about %q", s.says)
		}
	}
}

// checkInPasses: several passes over a file find what one finds.
func checkInPasses(t *testing.T, data []byte) {
	t.Helper()
	d := newDamagedImage(t, data)
	d.set(d.l2, 1<<40)
	f := &hostile.BytesFile{Data: d.data}
	want, err := Run(context.Background(), f, "qcow2", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if want.Errors == 0 {
		t.Errorf("%+v", want)
	}
	for _, n := range []int64{1, 7, 1000} {
		got, err := Run(context.Background(), f, "qcow2", Options{maxClusters: n})
		if err != nil || got.Errors != want.Errors || got.Leaks != want.Leaks || got.UsedClusters != want.UsedClusters {
			t.Errorf("%d clusters at a time: %+v, %v, want %+v", n, got, err, want)
		}
	}
}

// checkProgress: it never goes back, never over the sum, and ends at it.
func checkProgress(t *testing.T, data []byte) {
	t.Helper()
	for _, n := range []int64{0, 10} {
		last, total := int64(0), int64(-1)
		_, err := Run(context.Background(), &hostile.BytesFile{Data: data}, "qcow2", Options{maxClusters: n, Progress: func(done, sum int64) {
			if done <= last || done > sum || total >= 0 && sum != total {
				t.Errorf("progress: %d of %d after %d of %d", done, sum, last, total)
			}
			last, total = done, sum
		}})
		if err != nil || last != total {
			t.Errorf("progress: ended at %d of %d, %v", last, total, err)
		}
	}
}

func TestCheckCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	path := imagetest.New(t, "cluster_size=4k,preallocation=metadata", "64M")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	_, err = Run(ctx, &hostile.BytesFile{Data: data}, "qcow2", Options{Progress: func(int64, int64) {
		if calls++; calls == 2 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) || calls > 3 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

// The list is bounded, the counts are not; leaks that follow each other are one
// problem.
func TestCheckListIsBounded(t *testing.T) {
	path := imagetest.New(t, "cluster_size=4k,preallocation=metadata", "4M")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := newDamagedImage(t, data)
	for i := range int64(100) {
		d.set(d.l2+i*8, 0) // a run of leaks
		d.set(d.l2+(200+2*i)*8, d.word(d.l2+(200+2*i)*8)|2)
	}
	r, err := Run(context.Background(), &hostile.BytesFile{Data: d.data}, "qcow2", Options{MaxProblems: 101})
	if err != nil || r.Errors != 100 || r.Leaks != 100 || len(r.Problems) != 101 {
		t.Fatalf("%d errors, %d leaks, %d problems, %v", r.Errors, r.Leaks, len(r.Problems), err)
	}
	if last := r.Problems[100]; !last.Leak || !strings.HasPrefix(last.Text, "100 clusters from") {
		t.Errorf("%+v", last)
	}
	if r, err = Run(context.Background(), &hostile.BytesFile{Data: d.data}, "qcow2", Options{MaxProblems: 3}); err != nil || len(r.Problems) != 3 || r.Leaks != 100 {
		t.Errorf("%+v, %v", r, err)
	}
}

// What reading gives is an error, not a verdict.
func TestCheckReadError(t *testing.T) {
	path := imagetest.New(t, "", "4M")
	imagetest.QemuIO(t, path, "write -P 1 0 200k")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := newDamagedImage(t, data)
	for _, at := range []int64{0, d.l1, d.l2, d.table, d.block} {
		f := &failingReads{hostile.BytesFile{Data: data}, at}
		if _, err := Run(context.Background(), f, "qcow2", Options{}); !errors.Is(err, errReading) {
			t.Errorf("reading at 0x%x fails: %v", at, err)
		}
	}
	if _, err := Run(context.Background(), &hostile.BytesFile{Data: data}, "vdi", Options{}); !errors.Is(err, qcow2.ErrUnsupported) {
		t.Error(err)
	}
	if r, err := Run(context.Background(), &hostile.BytesFile{Data: data}, "raw", Options{}); err != nil || r.Errors != 0 {
		t.Error(r, err)
	}
}

var errReading = errors.New("the disk is broken there")

type failingReads struct {
	hostile.BytesFile
	at int64
}

func (f *failingReads) ReadAt(p []byte, off int64) (int, error) {
	if off <= f.at && f.at < off+int64(len(p)) {
		return 0, errReading
	}
	return f.BytesFile.ReadAt(p, off)
}

// FuzzCheck: nothing that a file can hold makes it, or CutOff, panic or hang.
func FuzzCheck(f *testing.F) {
	f.Add([]byte("QFI\xfb"))
	for _, version := range []string{"compat=0.10", "extended_l2=on,cluster_size=16k"} {
		path := imagetest.New(f, version, "1M")
		imagetest.QemuIO(f, path, "write 0 64k")
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(_ *testing.T, data []byte) {
		_, _ = Run(context.Background(), &hostile.BytesFile{Data: data}, "qcow2", Options{})
		_, _ = cutOff(&hostile.BytesFile{Data: data})
	})
}

// BenchmarkCheckSmall is what a crash state of a test harness costs.
func BenchmarkCheckSmall(b *testing.B) {
	path := filepath.Join(b.TempDir(), "layer.qcow2")
	if err := overlay.Create(hostfs.OS(), path, overlay.CreateOptions{Size: 64 << 20}); err != nil {
		b.Fatal(err)
	}
	o, err := overlay.OpenOverlay(hostfs.OS(), path, overlay.OverlayOptions{})
	if err != nil {
		b.Fatal(err)
	}
	for i := range int64(35) {
		if err := o.WriteAt(make([]byte, 4096), i<<17, nil); err != nil {
			b.Fatal(err)
		}
	}
	if err := errors.Join(o.Settle(), o.Close()); err != nil {
		b.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if r, err := Run(context.Background(), &hostile.BytesFile{Data: data}, "qcow2", Options{}); err != nil || r.Errors+r.Leaks > 0 {
			b.Fatal(r, err)
		}
	}
}

// Check goes on where the host cannot read a piece of a table, and lists it.
func TestCheckOfUnreadableTables(t *testing.T) {
	path, _ := ownLayer(t)
	l2 := imageL2(t, path)
	h, err := qcow2.ReadHeader(hostfs.OS(), path)
	must(t, err)
	f, err := hostfs.OS().Open(path, os.O_RDONLY, 0)
	must(t, err)
	defer f.Close()
	data, err := os.ReadFile(path)
	must(t, err)
	block := int64(binary.BigEndian.Uint64(data[h.RefcountTableOffset:]))
	for _, c := range []struct {
		at   int64
		says string
	}{
		{l2 + 512, fmt.Sprintf("L2 table: 512 bytes at 0x%x cannot be read", l2+512)},
		{h.L1Offset, fmt.Sprintf("L1 table: 8 bytes at 0x%x cannot be read", h.L1Offset)},
		{block, fmt.Sprintf("refcount block at 0x%x: it cannot be read", block)},
		{h.RefcountTableOffset, "refcount table: 512 bytes at"},
	} {
		result, err := Run(t.Context(), &hostile.SpotFile{File: f, Bad: [][2]int64{{c.at, c.at + 512}}}, qcow2.FormatQcow2, Options{})
		must(t, err)
		if !slices.ContainsFunc(result.Problems, func(p Problem) bool { return bytes.Contains([]byte(p.Text), []byte(c.says)) }) {
			t.Errorf("want %q in %+v", c.says, result.Problems)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// imageL2 is where the first L2 table of an image stands.
func imageL2(t *testing.T, path string) int64 {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return newDamagedImage(t, data).l2
}
