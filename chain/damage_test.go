package chain

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// badDisk is a host with sectors that cannot be read.
type badDisk struct {
	hostfs.FS
	mu  sync.Mutex
	bad map[string][][2]int64 // by path: from, to
}

func newBadDisk() *badDisk {
	return &badDisk{FS: hostfs.OS(), bad: make(map[string][][2]int64)}
}

// spoil makes a range unreadable, and mend all of them readable again.
func (b *badDisk) spoil(path string, off, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bad[path] = append(b.bad[path], [2]int64{off, off + n})
}

func (b *badDisk) mend() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.bad)
}

func (b *badDisk) Open(path string, flag int, perm os.FileMode) (hostfs.File, error) {
	f, err := b.FS.Open(path, flag, perm)
	if err != nil {
		return nil, err
	}
	return &badFile{f, b, path}, nil
}

type badFile struct {
	hostfs.File
	disk *badDisk
	path string
}

func (f *badFile) ReadAt(p []byte, off int64) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	for _, r := range f.disk.bad[f.path] {
		if off < r[1] && off+int64(len(p)) > r[0] {
			return 0, &os.PathError{Op: "read", Path: f.path, Err: unix.EIO}
		}
	}
	return f.File.ReadAt(p, off)
}

// logLines collects what the log says.
type logLines struct {
	mu    sync.Mutex
	lines []string
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(p))
	return len(p), nil
}

func (l *logLines) count(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		n += strings.Count(line, text)
	}
	return n
}

func (l *logLines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// tablesAt reads a qcow2's first cluster: the L1 table, the refcount table, and the L2
// table that the first L1 entry names.
func tablesAt(t *testing.T, path string) (clusterSize, l1, refcounts, l2 int64) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	word := func(off int64) int64 { return int64(binary.BigEndian.Uint64(data[off:])) }
	l1, refcounts = word(40), word(48)
	return 1 << binary.BigEndian.Uint32(data[20:]), l1, refcounts, word(l1) & 0x00fffffffffffe00
}

// flip changes bits of a file in place and leaves its times alone, as a disk does that
// rots.
func flip(t *testing.T, path string, off int64, bits byte) {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	var p [1]byte
	_, err = f.ReadAt(p[:], off)
	must(t, err)
	p[0] ^= bits
	_, err = f.WriteAt(p[:], off)
	must(t, err)
	must(t, os.Chtimes(path, info.ModTime(), info.ModTime()))
}

// damagedWorld is a disk of three layers with 8 MiB each of content of its own: s1 has
// all of it, s2 the second half, the leaf the last quarter.
const damagedSize = 32 << 20

func damagedWorld(t *testing.T) (dir string, want []byte) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "vm.varve")
	_, err := Create(dir, CreateOptions{Size: damagedSize})
	must(t, err)
	d := openDisk(t, dir)
	want = make([]byte, damagedSize)
	write := func(from, to int64, salt byte) {
		for at := from; at < to; at += 4096 {
			for i := range int64(4096) {
				want[at+i] = byte(at>>12)*7 + salt
			}
		}
		must(t, d.WriteAt(want[from:to], from))
	}
	write(0, 8<<20, 1)
	must(t, d.Snapshot("s1"))
	write(4<<20, 8<<20, 2)
	must(t, d.Snapshot("s2"))
	write(6<<20, 8<<20, 3)
	must(t, d.Close())
	return dir, want
}

// fileOf is the file of a snapshot, or of the leaf for "".
func fileOf(t *testing.T, dir, name string) string {
	t.Helper()
	m := readManifest(t, dir)
	rec := m.Layer(m.Leaf)
	if name != "" {
		rec = m.ByName(name)
	}
	return filepath.Join(dir, rec.File)
}

// judgeDamage reads a view in sectors: those within lost fail with a reason, all
// others are what they were. Everything that tells of the disk works.
func judgeDamage(t *testing.T, d *Disk, read func(p []byte, off int64) error, want []byte, lost ...[2]int64) {
	t.Helper()
	p := make([]byte, 512)
	failed := 0
	for off := int64(0); off < int64(len(want)); off += 512 {
		if off >= 8<<20 && off%65536 != 0 {
			continue // zeros
		}
		err := read(p, off)
		within := slices.ContainsFunc(lost, func(l [2]int64) bool { return l[0] <= off && off < l[1] })
		switch {
		case within && !qcow2.IsDamage(err):
			t.Errorf("a read at %d, which is damaged: %v", off, err)
		case !within && err != nil:
			t.Errorf("a read at %d: %v", off, err)
		case !within && !bytes.Equal(p, want[off:off+512]):
			t.Errorf("at %d is %#x, want %#x", off, p[0], want[off])
		default:
			continue
		}
		if failed++; failed > 4 {
			t.FailNow()
		}
	}
	if err := d.CountAll(context.Background()); err != nil {
		t.Errorf("count: %v", err)
	}
	if _, _, err := d.AllocatedBytes(); err != nil {
		t.Errorf("allocated bytes: %v", err)
	}
	if _, err := d.ExtentMap(context.Background(), 0); err != nil {
		t.Errorf("map: %v", err)
	}
	d.Metrics()
	for pos := int64(0); ; {
		next, err := d.SeekData(pos)
		if err != nil {
			break
		}
		if pos, err = d.SeekHole(next); err != nil {
			t.Errorf("seek a hole: %v", err)
			break
		}
	}
	if _, err := d.Status(); err != nil {
		t.Errorf("status: %v", err)
	}
}

// damageOf is what status tells of a layer's damage.
func damageOf(t *testing.T, d *Disk, name string) (list [][2]int64) {
	t.Helper()
	st, err := d.Status()
	must(t, err)
	for _, l := range st.Layers {
		if l.Name == name && (name != "" || l.State == "leaf") {
			for _, x := range l.Damage {
				if x.Reason == "" {
					t.Errorf("the damage at %d has no reason", x.Start)
				}
				list = append(list, [2]int64{x.Start, x.End()})
			}
		}
	}
	return list
}

const damagedCluster = 128 << 10

// One damaged entry costs its own bytes: of a frozen layer and of the leaf, in an L2
// table, in the L1 table, and where the host cannot read.
func TestDamageStaysWhereItIs(t *testing.T) {
	whole := [2]int64{0, damagedSize}
	for _, c := range []struct {
		name, layer string
		damage      func(t *testing.T, host *badDisk, path string)
		leaf        [][2]int64 // of the leaf's view
		listed      [][2]int64
	}{
		{"an L2 entry", "s1", func(t *testing.T, _ *badDisk, path string) {
			_, _, _, l2 := tablesAt(t, path)
			flip(t, path, l2+16*5+6, 1<<4)
		}, [][2]int64{{5 * damagedCluster, 6 * damagedCluster}}, [][2]int64{{5 * damagedCluster, 6 * damagedCluster}}},
		{"an L2 entry that is hidden", "s1", func(t *testing.T, _ *badDisk, path string) {
			_, _, _, l2 := tablesAt(t, path)
			flip(t, path, l2+16*50+6, 1<<4)
		}, nil, [][2]int64{{50 * damagedCluster, 51 * damagedCluster}}},
		{"an L2 entry of the leaf", "", func(t *testing.T, _ *badDisk, path string) {
			_, _, _, l2 := tablesAt(t, path)
			flip(t, path, l2+16*50+6, 1<<4)
		}, [][2]int64{{50 * damagedCluster, 51 * damagedCluster}}, [][2]int64{{50 * damagedCluster, 51 * damagedCluster}}},
		{"an L2 entry without COPIED", "", func(t *testing.T, _ *badDisk, path string) {
			_, _, _, l2 := tablesAt(t, path)
			flip(t, path, l2+16*50, 1<<7)
		}, nil, nil},
		{"an L1 entry", "s2", func(t *testing.T, _ *badDisk, path string) {
			_, l1, _, _ := tablesAt(t, path)
			flip(t, path, l1+7, 1)
		}, [][2]int64{{0, 6 << 20}, {8 << 20, damagedSize}}, [][2]int64{whole}},
		{"a sector of an L2 table", "s1", func(t *testing.T, host *badDisk, path string) {
			_, _, _, l2 := tablesAt(t, path)
			host.spoil(path, l2+512, 512)
		}, [][2]int64{{32 * damagedCluster, 32 * damagedCluster}}, [][2]int64{{32 * damagedCluster, 64 * damagedCluster}}},
		{"a sector of the leaf's L2 table", "", func(t *testing.T, host *badDisk, path string) {
			_, _, _, l2 := tablesAt(t, path)
			host.spoil(path, l2+512, 512)
		}, [][2]int64{{32 * damagedCluster, 64 * damagedCluster}}, [][2]int64{{32 * damagedCluster, 64 * damagedCluster}}},
		{"a sector of the L1 table", "s2", func(t *testing.T, host *badDisk, path string) {
			_, l1, _, _ := tablesAt(t, path)
			host.spoil(path, l1, 512)
		}, [][2]int64{{0, 6 << 20}, {8 << 20, damagedSize}}, [][2]int64{whole}},
		{"a sector of data", "s1", func(t *testing.T, host *badDisk, path string) {
			cs, _, _, l2 := tablesAt(t, path)
			data, err := os.ReadFile(path)
			must(t, err)
			first := int64(binary.BigEndian.Uint64(data[l2:])) & 0x00fffffffffffe00
			host.spoil(path, first+cs/2, 1024)
		}, [][2]int64{{damagedCluster / 2, damagedCluster/2 + 1024}}, [][2]int64{{damagedCluster / 2, damagedCluster/2 + 1024}}},
		{"a sector of the header's cluster that is sampled", "s1", func(t *testing.T, host *badDisk, path string) {
			host.spoil(path, 1<<20, 512)
		}, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir, want := damagedWorld(t)
			host := newBadDisk()
			path := fileOf(t, dir, c.layer)
			c.damage(t, host, path)
			if c.layer != "" && strings.Contains(c.name, "entry") {
				must(t, Accept(dir, c.layer, OpenOptions{})) // the L1 table is sampled
			}
			var said logLines
			d, err := Open(dir, OpenOptions{FS: host, Log: said.logger()})
			must(t, err)
			defer d.Close()
			lost := c.leaf
			if c.name == "a sector of the header's cluster that is sampled" {
				// It is data of the guest as well.
				lost = lostBy(t, d, want)
				if len(lost) > 1 {
					t.Errorf("lost are %v", lost)
				}
			}
			judgeDamage(t, d, d.ReadAt, want, lost...)
			if c.listed != nil {
				if got := damageOf(t, d, c.layer); !slices.Equal(got, c.listed) {
					t.Errorf("status lists %v, want %v", got, c.listed)
				}
				if n := said.count("is damaged"); n != 1 {
					t.Errorf("the log says it %d times: %q", n, said.lines)
				}
			}
			// All else can be written.
			put(t, d, 0x77, 16<<20, 1<<20)
			if err := d.Flush(); err != nil {
				t.Fatal(err)
			}
			if c.name != "an L1 entry" {
				if got := at(t, d, 16<<20); got != 0x77 {
					t.Errorf("what was written reads as %#x", got)
				}
			}
			must(t, d.Snapshot("later"))
		})
	}
}

// lostBy are the sectors of the view that cannot be read, joined.
func lostBy(t *testing.T, d *Disk, want []byte) (lost [][2]int64) {
	t.Helper()
	p := make([]byte, 512)
	for off := int64(0); off < 8<<20; off += 512 {
		if err := d.ReadAt(p, off); err == nil {
			continue
		}
		if n := len(lost); n > 0 && lost[n-1][1] == off {
			lost[n-1][1] = off + 512
		} else {
			lost = append(lost, [2]int64{off, off + 512})
		}
	}
	return lost
}

// A leaf whose tables or refcounts cannot be trusted is kept as it is, byte for byte,
// under a new leaf.
func TestDamagedLeafIsCovered(t *testing.T) {
	entry := [2]int64{50 * damagedCluster, 51 * damagedCluster}
	for _, c := range []struct {
		name   string
		killed bool
		damage func(t *testing.T, path string)
		lost   [][2]int64
	}{
		{"an L1 entry", false, func(t *testing.T, path string) {
			_, l1, _, _ := tablesAt(t, path)
			flip(t, path, l1+7, 1)
		}, [][2]int64{{0, damagedSize}}},
		{"the refcount table", false, func(t *testing.T, path string) {
			_, _, refcounts, _ := tablesAt(t, path)
			flip(t, path, refcounts+6, 1)
		}, nil},
		{"no refcount block", false, func(t *testing.T, path string) {
			_, _, refcounts, _ := tablesAt(t, path)
			data, err := os.ReadFile(path)
			must(t, err)
			for i := refcounts; i < refcounts+8; i++ {
				flip(t, path, i, data[i])
			}
		}, nil},
		{"an L2 entry after a crash", true, func(t *testing.T, path string) {
			_, _, _, l2 := tablesAt(t, path)
			flip(t, path, l2+16*50+6, 1<<4)
		}, [][2]int64{entry}},
		{"the end of the file", false, func(t *testing.T, path string) {
			data, err := os.ReadFile(path)
			must(t, err)
			must(t, os.Truncate(path, int64(len(data))-damagedCluster))
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir, want := damagedWorld(t)
			path := fileOf(t, dir, "")
			if c.killed {
				killed := filepath.Join(t.TempDir(), "killed.varve")
				d := openDisk(t, dir)
				copyDir(t, dir, killed)
				must(t, d.Close())
				dir, path = killed, fileOf(t, killed, "")
			}
			c.damage(t, path)
			before, err := os.ReadFile(path)
			must(t, err)
			var said logLines
			d, err := Open(dir, OpenOptions{Log: said.logger()})
			must(t, err)
			if said.count("the leaf is damaged; it is kept as it is") != 1 {
				t.Errorf("the log says %q", said.lines)
			}
			lost := c.lost
			if c.name == "the end of the file" {
				if lost = lostBy(t, d, want); len(lost) != 1 || lost[0][1]-lost[0][0] != damagedCluster {
					t.Fatalf("lost are %v", lost)
				}
			}
			judgeDamage(t, d, d.ReadAt, want, lost...)
			// Whole pieces can be written over what is lost too.
			for _, off := range []int64{20 << 20, 50 * damagedCluster} {
				put(t, d, 0x55, off, damagedCluster)
				if got := at(t, d, off); got != 0x55 {
					t.Errorf("at %d is %#x after a write", off, got)
				}
			}
			must(t, d.Snapshot("later"))
			must(t, d.Close())
			after, err := os.ReadFile(path)
			must(t, err)
			if !bytes.Equal(before, after) {
				t.Error("the damaged file was written")
			}
			d = openDisk(t, dir)
			if got := at(t, d, 20<<20); got != 0x55 {
				t.Errorf("after another open: %#x", got)
			}
		})
	}
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
