package chain

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"varve/integration/turn"
	"varve/overlay/qcow2"
)

var damagedChain = flag.Int("damaged.chain", 0, "the one damaged chain to show, by its number; 0 for those whose turn it is")

// Pieces in which a damaged chain is read, and its size.
const (
	judgedPiece = 16 << 10
	judgedSize  = 6 << 20
)

// varveStricter are the reasons for which varve refuses a place that QEMU reads: what it
// reads there is not what was written, or may not be (overlay's readerStricter has the
// same).
var varveStricter = []string{
	"reserved bit",               // QEMU masks them off
	"behind the end of the file", // zeros to QEMU, and a table there says nothing to it
	"ends behind the end",
	"inside the header",               // compressed data there
	"no multiple of the cluster size", // of a zero cluster's place, which QEMU does not use
	"has the subcluster bitmap",       // of a compressed cluster
	"longer than a cluster",           // QEMU stops when a cluster is full
	"both allocated and zero",         // QEMU looks at the entry's other subclusters
	"are allocated, but no cluster",   //
	"holds a table",                   // the leaf: QEMU would read, and write, a table
	"behind the last one in use",      //
}

// chainSeed is a disk of three layers on two adopted images, one of them compressed, at
// rest. Its files name each other by relative paths, so that a copy is a disk too.
func chainSeed(t *testing.T) (parent string) {
	t.Helper()
	parent = t.TempDir()
	raw := filepath.Join(parent, "raw")
	content := make([]byte, judgedSize)
	for i := range content {
		content[i] = byte(i>>14)*3 + byte(i&1)
	}
	clear(content[2<<20 : 3<<20])
	must(t, os.WriteFile(raw, content, 0o600))
	qemuTool(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, filepath.Join(parent, "base.qcow2"))
	must(t, os.Remove(raw))
	top := filepath.Join(parent, "top.qcow2")
	qemuTool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", top)
	qemuTool(t, "qemu-io", "-c", "write -P 0x71 64k 192k", "-c", "write -P 0x72 5M 300k", "-c", "write -z 4M 128k", top)
	return parent
}

// damagedDisk makes a disk on the seed's images in a directory of its own.
func damagedDisk(t *testing.T, seed string) (dir string) {
	t.Helper()
	parent := t.TempDir()
	for _, name := range []string{"base.qcow2", "top.qcow2"} {
		data, err := os.ReadFile(filepath.Join(seed, name))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(parent, name), data, 0o600))
	}
	dir = filepath.Join(parent, "vm.varve")
	_, err := Create(dir, CreateOptions{Base: filepath.Join(parent, "top.qcow2")})
	must(t, err)
	d := openDisk(t, dir)
	put(t, d, 0x11, 100<<10, 400<<10)
	must(t, d.Snapshot("s1"))
	put(t, d, 0x12, 300<<10, 20<<10)
	must(t, d.Discard(1<<20, 256<<10))
	put(t, d, 0x13, 3<<20, 700<<10)
	must(t, d.Snapshot("s2"))
	put(t, d, 0x14, 3<<20+64<<10, 4<<10)
	put(t, d, 0x15, 5<<20, 200<<10)
	must(t, d.Close())
	return dir
}

// spoilAtRandom damages one file of a disk: mostly a bit or a word of its tables, and
// accepts that. It says what it did.
func spoilAtRandom(t *testing.T, dir string, rnd *rand.Rand) string {
	t.Helper()
	m := readManifest(t, dir)
	rec := m.Layers[rnd.IntN(len(m.Layers))]
	path := rec.Path(dir)
	data, err := os.ReadFile(path)
	must(t, err)
	word := func(off int64) int64 { return int64(binary.BigEndian.Uint64(data[off:])) }
	const mask = 0x00fffffffffffe00
	l1, refcounts := word(40), word(48)
	l2 := word(l1) & mask
	entries := map[string][2]int64{
		"L2 table": {l2, 96 * 16}, "L1 table": {l1, 8}, "refcount table": {refcounts, 8}, "refcount block": {word(refcounts), 64},
		"data": {l2 + 64<<10, int64(len(data)) - l2 - 64<<10},
	}
	what := "L2 table"
	switch rnd.IntN(8) {
	case 0:
		what = "L1 table"
	case 1:
		what = "refcount table"
	case 2:
		what = "refcount block"
	case 3:
		what = "data"
	}
	place := entries[what]
	if place[0] <= 0 || place[0]+place[1] > int64(len(data)) || place[1] <= 0 {
		place = [2]int64{l1, 8} // of a file that has none
	}
	said := fmt.Sprintf("%s (%s): %s at", rec.Label(), filepath.Base(path), what)
	for range 1 + rnd.IntN(3) {
		at := place[0] + rnd.Int64N(place[1])
		if rnd.IntN(3) == 0 {
			data[at] = byte(rnd.Uint32())
		} else {
			data[at] ^= 1 << rnd.IntN(8)
		}
		said += fmt.Sprintf(" 0x%x", at)
	}
	if rnd.IntN(12) == 0 {
		data = data[:max(l1+64<<10, int64(len(data))-rnd.Int64N(300<<10))]
		said += fmt.Sprintf(", cut at 0x%x", len(data))
	}
	must(t, os.WriteFile(path, data, 0o600))
	if rec.ID != m.Leaf {
		if err := Accept(dir, rec.Argument(), OpenOptions{}); err != nil {
			t.Fatalf("%s: %v", said, err)
		}
	}
	return said
}

// qemuReads says of each piece of an image's view whether qemu-io reads it, and what
// qemu-img makes of all.
func qemuReadsPieces(t *testing.T, path string) (readable []bool, content []byte) {
	t.Helper()
	pieces := judgedSize / judgedPiece
	args := []string{"-r", "-f", "qcow2"}
	for i := range pieces {
		args = append(args, "-c", fmt.Sprintf("read %d %d", i*judgedPiece, judgedPiece))
	}
	out, _ := exec.Command("qemu-io", append(args, path)...).CombinedOutput() // it fails where a read does
	readable = make([]bool, pieces)
	for i := range pieces {
		readable[i] = bytes.Contains(out, fmt.Appendf(nil, "read %d/%d bytes at offset %d\n", judgedPiece, judgedPiece, i*judgedPiece))
	}
	raw := filepath.Join(t.TempDir(), "raw")
	if exec.Command("qemu-img", "convert", "--salvage", "-f", "qcow2", "-O", "raw", path, raw).Run() != nil {
		return readable, nil
	}
	content, err := os.ReadFile(raw)
	must(t, err)
	must(t, os.Remove(raw))
	return readable, content
}

// TestDamagedChainsAgainstQEMU damages a file of a chain at random. varve opens the
// disk and tells all about it, and reads each piece that qemu-io reads, the same bytes.
func TestDamagedChainsAgainstQEMU(t *testing.T) {
	t.Parallel()
	const all = 600
	count := 4
	if os.Getenv("VARVE_LONG") != "" {
		count = all
	}
	first := 1 + turn.Window(count, all)
	if *damagedChain != 0 {
		first, count = *damagedChain, 1
	}
	seed := chainSeed(t)
	compared, lost, stricter, more := 0, 0, map[string]int{}, 0
	for number := first; number < first+count; number++ {
		dir := damagedDisk(t, seed)
		what := fmt.Sprintf("chain %d: %s", number, spoilAtRandom(t, dir, rand.New(rand.NewPCG(uint64(number), 16))))
		d, err := Open(dir, OpenOptions{ReadOnly: true})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		judgeTold(t, what, d)
		m, nodes := d.tree()
		top := nodes[m.Leaf]
		if number%3 == 0 {
			top = nodes[m.ByName("s2").ID]
		}
		path := top.Layer().Path
		readable, content := qemuReadsPieces(t, path)
		p := make([]byte, judgedPiece)
		for i := range readable {
			off := int64(i) * judgedPiece
			err := top.ReadAt(p, off)
			switch {
			case err == nil && readable[i] && content != nil:
				compared++
				theirs := content[off : off+judgedPiece]
				// A piece beside one that fails may be zeros there.
				if !bytes.Equal(p, theirs) && (isAllZero(theirs) && bytes.Count(boolBytes(readable), []byte{0}) > 0) == false {
					t.Errorf("%s: another content at %d", what, off)
				}
			case err == nil && !readable[i]:
				more++
			case err != nil && readable[i]:
				known := false
				for _, reason := range varveStricter {
					if strings.Contains(err.Error(), reason) {
						known = true
						stricter[reason]++
						break
					}
				}
				if !known || !qcow2.IsDamage(err) {
					t.Errorf("%s: qemu-io reads %d, varve says: %v", what, off, err)
				}
			case err != nil:
				lost++
			}
		}
		must(t, d.Close())
		// With the right to write it is a disk that a VM boots from.
		if d, err = Open(dir, OpenOptions{}); err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		judgeTold(t, what, d)
		must(t, d.Snapshot("after"))
		if err := d.Close(); err != nil {
			t.Errorf("%s: close: %v", what, err)
		}
	}
	t.Logf("%d pieces compared, %d lost to both, %d more than qemu-io, stricter %v", compared, lost, more, stricter)
}

// judgeTold asks for everything that is told of a disk.
func judgeTold(t *testing.T, what string, d *Disk) {
	t.Helper()
	if err := d.CountAll(t.Context()); err != nil {
		t.Errorf("%s: count: %v", what, err)
	}
	if _, err := d.Status(); err != nil {
		t.Errorf("%s: status: %v", what, err)
	}
	if _, _, err := d.AllocatedBytes(); err != nil {
		t.Errorf("%s: allocated bytes: %v", what, err)
	}
	if _, err := d.ExtentMap(t.Context(), 0); err != nil {
		t.Errorf("%s: map: %v", what, err)
	}
	if _, err := d.SeekData(0); err != nil {
		t.Errorf("%s: seek: %v", what, err)
	}
	d.Metrics()
}

func isAllZero(p []byte) bool { return len(bytes.Trim(p, "\x00")) == 0 }

func boolBytes(list []bool) []byte {
	p := make([]byte, len(list))
	for i, b := range list {
		if b {
			p[i] = 1
		}
	}
	return p
}
