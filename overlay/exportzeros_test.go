package overlay

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"varve/integration/imagetest"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
)

// writtenZeros is content of which the tables say that most of it is data: holes are
// where the map says so, and there only.
type writtenZeros struct {
	memory
	holes map[int64]bool // by sector of 512 bytes
	reads int64          // bytes
}

func (s *writtenZeros) Map(dst []extent.Extent, off, length int64) ([]extent.Extent, error) {
	for end := off + length; off < end; {
		n := min(end-off, 512-off%512)
		kind := extent.Data
		if s.holes[off/512] {
			kind = extent.Zero
		}
		dst = extent.Append(dst, extent.Extent{Start: off, Length: n, Host: off, Kind: kind})
		off += n
	}
	return dst, nil
}

func (s *writtenZeros) ReadAt(p []byte, off int64) error {
	s.reads += int64(len(p))
	return s.memory.ReadAt(p, off)
}

// randomZeros makes content of runs of data and of zeros, which begin and end
// anywhere or at blocks, some of them holes of the map.
func randomZeros(random *rand.Rand, size int64) *writtenZeros {
	s := &writtenZeros{memory: make(memory, size), holes: map[int64]bool{}}
	for off := int64(0); off < size; {
		n := 1 + random.Int64N(300<<10)
		if random.IntN(3) > 0 {
			n = (n + 4095) &^ 4095
		}
		n = min(n, size-off)
		if random.IntN(2) == 0 {
			for i := off; i < off+n; i++ {
				s.memory[i] = byte(random.Uint32())
			}
		} else if random.IntN(3) == 0 {
			for sector := (off + 511) / 512; (sector+1)*512 <= off+n; sector++ {
				s.holes[sector] = true
			}
		}
		off += n
	}
	return s
}

// dataUnits is how many bytes of the content lie in units of that size, from the
// start on, that are not all zeros: what a copy has to hold.
func (s *writtenZeros) dataUnits(unit int64) (n int64) {
	for off := int64(0); off < int64(len(s.memory)); off += unit {
		part := s.memory[off:min(off+unit, int64(len(s.memory)))]
		if len(bytes.Trim(part, "\x00")) > 0 {
			n += unit
		}
	}
	return n
}

// Zeros that were written are holes in an export, whatever they begin and end with;
// no other byte changes, and nothing is read twice.
func TestExportFindsWrittenZeros(t *testing.T) {
	for seed := range uint64(12) {
		random := rand.New(rand.NewPCG(seed, 5))
		s := randomZeros(random, 2<<20+random.Int64N(3<<20)/512*512)
		dir := t.TempDir()
		want := filepath.Join(dir, "want")
		if err := os.WriteFile(want, s.memory, 0o600); err != nil {
			t.Fatal(err)
		}
		e := Export{Source: s, Size: int64(len(s.memory))}
		for _, format := range []string{"raw", "qcow2"} {
			out := filepath.Join(dir, format)
			f, err := hostfs.OS().Open(out, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			s.reads = 0
			if format == "raw" {
				err = e.Raw(t.Context(), f)
			} else {
				err = e.Qcow2(t.Context(), f, false)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if s.reads > e.Size {
				t.Errorf("seed %d, %s: %d bytes were read of %d", seed, format, s.reads, e.Size)
			}
			imagetest.QemuImg(t, "compare", "-q", "-f", "raw", "-F", format, want, out)
			if format == "qcow2" {
				imagetest.QemuImg(t, "check", "-q", out)
				var list []struct {
					Length int64
					Data   bool
				}
				if err := json.Unmarshal([]byte(imagetest.QemuImg(t, "map", "-f", format, "--output", "json", out)), &list); err != nil {
					t.Fatal(err)
				}
				var data int64
				for _, x := range list {
					if x.Data {
						data += x.Length
					}
				}
				if most := s.dataUnits(exportCluster); data > most {
					t.Errorf("seed %d: %d bytes are data of the qcow2, want at most %d", seed, data, most)
				}
				continue
			}
			var st unix.Stat_t
			if err := unix.Stat(out, &st); err != nil {
				t.Fatal(err)
			}
			// A run of zeros that begins within a block has its own blocks counted
			// from there on, so its last one may be written: two blocks for each.
			if most := s.dataUnits(4096); st.Blocks*512 > most+most/10+64<<10 {
				t.Errorf("seed %d: the raw image takes %d bytes, want at most %d", seed, st.Blocks*512, most)
			}
		}
	}
}

func TestEachRun(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 9))
	for range 300 {
		p := make([]byte, random.IntN(40<<10))
		for range random.IntN(5) {
			if len(p) > 0 {
				p[random.IntN(len(p))] = 1
			}
		}
		end, last := int64(0), -1
		err := EachRun(p, func(off, n int64, zero bool) error {
			part := p[off : off+n]
			state := 0
			if zero {
				state = 1
			}
			if off != end || n <= 0 || state == last || off%ZeroUnit != 0 {
				t.Fatalf("a run of %d at %d, zero %v, behind %d", n, off, zero, end)
			}
			for at := 0; at < len(part); at += ZeroUnit {
				unit := part[at:min(at+ZeroUnit, len(part))]
				if (bytes.Count(unit, []byte{0}) == len(unit)) != zero {
					t.Fatalf("the unit at %d is not as its run says: %v", off+int64(at), zero)
				}
			}
			end, last = off+n, state
			return nil
		})
		if err != nil || end != int64(len(p)) {
			t.Fatalf("it ends at %d of %d (%v)", end, len(p), err)
		}
	}
}

func BenchmarkEachRun(b *testing.B) {
	for name, fill := range map[string]byte{"zeros": 0, "data": 1} {
		b.Run(name, func(b *testing.B) {
			p := bytes.Repeat([]byte{fill}, copyPiece)
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				if err := EachRun(p, func(_, _ int64, _ bool) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// device is a block device that makes zeros by no call, or not by all of them.
type device struct {
	*memFile
	punches, zeroes bool
	asked           int64 // bytes of zeros that were not written
}

func (d *device) PunchHole(off, length int64) error {
	if !d.punches {
		return errors.ErrUnsupported
	}
	return d.ZeroOut(off, length)
}

func (d *device) ZeroOut(off, length int64) error {
	if !d.zeroes || (off|length)&(ZeroUnit-1) != 0 {
		return unix.EINVAL
	}
	d.asked += length
	return d.memFile.PunchHole(off, length)
}

// Whatever a device can do, it gets the view and nothing more.
func TestExportToADevice(t *testing.T) {
	for seed := range uint64(12) {
		random := rand.New(rand.NewPCG(seed, 6))
		s := randomZeros(random, 1<<20+random.Int64N(3<<20))
		size := int64(len(s.memory))
		old := bytes.Repeat([]byte{0xee}, int(size)+9000)
		d := &device{memFile: &memFile{now: memContent{pages: map[int64]*[memPage]byte{}}, durable: memContent{pages: map[int64]*[memPage]byte{}}}, punches: seed%3 == 0, zeroes: seed%3 < 2}
		d.now.write(old, 0)
		d.durable.write(old, 0)
		e := Export{Source: s, Size: size}
		if err := e.Device(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(old))
		if _, err := d.durable.read(got, 0); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if want := append(bytes.Clone(s.memory), old[size:]...); !bytes.Equal(got, want) {
			t.Errorf("seed %d: the device has something else", seed)
		}
		if asked := d.asked > 0; asked != d.zeroes {
			t.Errorf("seed %d: zeros were asked for: %v", seed, asked)
		}
	}
}
