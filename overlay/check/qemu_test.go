package check

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"varve/integration/hostile"
	"varve/integration/imagetest"
	"varve/integration/turn"
	"varve/overlay"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// Verdicts on an image, ours and qemu-img check's.
const (
	verdictFine   = "fine"
	verdictLeaks  = "leaks"
	verdictErrors = "errors" // or it cannot even be opened
)

// ourVerdict checks an image in memory.
func ourVerdict(tb testing.TB, image []byte) (string, Result) {
	tb.Helper()
	r, err := Run(context.Background(), &hostile.BytesFile{Data: image}, "qcow2", Options{MaxProblems: 1000})
	switch {
	case errors.Is(err, qcow2.ErrCorrupt), errors.Is(err, qcow2.ErrUnsupported):
		return verdictErrors, Result{Errors: 1, Problems: []Problem{{Text: err.Error()}}}
	case err != nil:
		tb.Fatal(err)
	case r.Errors > 0:
		return verdictErrors, r
	case r.Leaks > 0:
		return verdictLeaks, r
	}
	return verdictFine, r
}

// qemuVerdict asks qemu-img check. Its exit code is 0, 2 for errors, 3 for
// leaks only, 1 for what it cannot check.
func qemuVerdict(tb testing.TB, path string) (string, string) {
	tb.Helper()
	out, err := exec.Command("qemu-img", "check", "-f", "qcow2", path).CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return verdictFine, string(out)
	case !errors.As(err, &exit):
		tb.Fatal(err)
	case exit.ExitCode() == 3:
		return verdictLeaks, string(out)
	case exit.ExitCode() == 1 || exit.ExitCode() == 2 || exit.ExitCode() == 63:
		return verdictErrors, string(out)
	default:
		tb.Fatalf("qemu-img check %s: %v\n%s", path, err, out)
	}
	return "", ""
}

// stricter lists what Check calls wrong on purpose and qemu-img check (7.2)
// does not. An image may differ from its verdict by these only.
//
// random marks what TestCheckDamage does not do on purpose.
var stricter = []struct {
	says, why string
	random    bool
}{
	{"reserved bit 0 is set", "with extended L2 entries bit 0 is reserved; QEMU ignores it, varve does not read the cluster", false},
	{"the zero flag is set in a version 2 image", "QEMU marks the image corrupt when it reads the cluster, but does not look here", false},
	{"the L2 table at 0x[0-9a-f]+ ends behind the end of the file", "QEMU takes the missing part of a table as empty, so the backing file shows through; varve reads no such table", false},
	{"entry \\d+ has the COPIED flag and names no L2 table|entry \\d+ has reserved bits .* set$", "an L1 entry of flags alone: QEMU takes offset 0 for a table in one place and for none in another", true},
	{"metadata stands in it, and it is used", "QEMU looks for overlaps of refcount blocks only; what else lies over a table is damaged, or damages it, at the next write", false},
	{"used as an L2 table and for guest data", "the same: the guest's write would change the table", false},
	{"compressed data at 0x[0-9a-f]+, at most .* is behind the end of the file", "QEMU lets it begin less than a cluster behind the end; there is nothing to decompress", false},
	{"marked corrupt", "QEMU checks such an image and finds it in order; varve does not read it until qemu-img check -r all took the mark away", false},
	{"refcount table has .* clusters|L1 table has .* entries|header:|unknown incompatible|internal snapshots, more|unsupported", "varve refuses the header; qemu-img check looks past some of what qemu-img info refuses", true},
	{"refcount [0-9]+, used not at all", "a refcount behind the end of the file: QEMU looks only as far as the file goes; varve calls it a leak, and no writer will use the place", false},
	{"bitmap", "QEMU takes damaged bitmap names and lengths for right here, and refuses them when it opens the image for writing", true},
}

// laxer lists what qemu-img check finds wrong and Check does not, by what it
// prints.
var laxer = []struct{ prints, why string }{}

// agree compares the verdicts on an image.
func agree(tb testing.TB, image []byte, path, what string) {
	tb.Helper()
	if err := os.WriteFile(path, image, 0o600); err != nil {
		tb.Fatal(err)
	}
	ours, result := ourVerdict(tb, image)
	qemus, out := qemuVerdict(tb, path)
	if ours == qemus {
		return
	}
	if rank(ours) > rank(qemus) {
		// Everything beyond what QEMU saw must be of the table.
		unexplained := ""
		for _, p := range result.Problems {
			if p.Leak && qemus != verdictFine {
				continue
			}
			known := false
			for _, s := range stricter {
				known = known || regexp.MustCompile(s.says).MatchString(p.Text)
			}
			if !known {
				unexplained += p.Text + "\n"
			}
		}
		if unexplained == "" {
			return
		}
		tb.Errorf("%s: Check says %s, qemu-img check %s\nunexplained:\n%squemu-img:\n%s", what, ours, qemus, unexplained, out)
		return
	}
	for _, l := range laxer {
		if regexp.MustCompile(l.prints).MatchString(out) {
			return
		}
	}
	tb.Errorf("%s: Check says %s, qemu-img check %s\n%+v\n%s", what, ours, qemus, result, out)
}

func rank(verdict string) int {
	return strings.Index(verdictFine+verdictLeaks+verdictErrors, verdict)
}

// checkedImage is an image of one mode, with content.
type checkedImage struct {
	name string
	// create makes it and gives its path, and the content of base.raw beside it,
	// nil for none.
	create func(t *testing.T) (path string, base []byte)
}

// bytes makes the image.
func (im checkedImage) bytes(t *testing.T) (data, base []byte) {
	t.Helper()
	path, base := im.create(t)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data, base
}

// checkedImages are images of all modes that qemu-img can make, and a layer of
// ours.
func checkedImages() []checkedImage {
	writes := []string{"write -P 1 0 200k", "write -P 2 1M 64k", "write -z 300k 100k", "write -P 3 2M 1k", "discard 1M 32k"}
	var list []checkedImage
	add := func(name string, create func(t *testing.T) string) {
		list = append(list, checkedImage{name, func(t *testing.T) (string, []byte) { return create(t), nil }})
	}
	for _, o := range []string{
		"compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=4k,refcount_bits=1",
		"cluster_size=4k,refcount_bits=2", "cluster_size=8k,refcount_bits=4", "refcount_bits=8",
		"refcount_bits=32", "refcount_bits=64", "lazy_refcounts=on", "extended_l2=on,cluster_size=16k",
		"extended_l2=on", "preallocation=metadata,cluster_size=16k", "cluster_size=128k,extended_l2=on",
	} {
		add(o, func(t *testing.T) string {
			path := imagetest.New(t, o, "4M")
			imagetest.QemuIO(t, path, writes...)
			return path
		})
	}
	for _, o := range []string{"compression_type=zlib", "compression_type=zstd,cluster_size=16k", "extended_l2=on,cluster_size=32k", "compat=0.10,cluster_size=4k"} {
		add("compressed,"+o, func(t *testing.T) string {
			source := filepath.Join(t.TempDir(), "source.raw")
			content := make([]byte, 4<<20)
			rnd := rand.New(rand.NewPCG(1, 1))
			for i := range 1 << 20 {
				content[i] = byte(rnd.IntN(16)) // compresses to half
			}
			if err := os.WriteFile(source, content, 0o600); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "compressed.qcow2")
			imagetest.QemuImg(t, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", o, source, path)
			imagetest.QemuIO(t, path, "write -P 9 100k 50k")
			return path
		})
	}
	for _, o := range []string{"", "compat=0.10", "cluster_size=4k", "extended_l2=on,cluster_size=16k"} {
		add("snapshots,"+o, func(t *testing.T) string {
			path := imagetest.New(t, o, "4M")
			imagetest.QemuIO(t, path, writes...)
			imagetest.QemuImg(t, "snapshot", "-c", "one", path)
			imagetest.QemuIO(t, path, "write -P 7 64k 128k")
			imagetest.QemuImg(t, "snapshot", "-c", "two", path)
			imagetest.QemuIO(t, path, "write -P 8 96k 128k")
			return path
		})
	}
	for _, o := range []string{"", "cluster_size=4k"} {
		add("bitmaps,"+o, func(t *testing.T) string {
			path := imagetest.New(t, o, "4M")
			imagetest.QemuImg(t, "bitmap", "--add", "-g", "4k", path, "one")
			imagetest.QemuImg(t, "bitmap", "--add", path, "two")
			imagetest.QemuIO(t, path, writes...)
			return path
		})
	}
	return append(list, checkedImage{"ours", func(t *testing.T) (string, []byte) {
		return ownLayer(t)
	}})
}

// ownLayer is a settled layer of ours, 8 MiB on a base.raw of 3 MiB, and the content of
// that.
func ownLayer(t *testing.T) (path string, base []byte) {
	t.Helper()
	rnd, dir := rand.New(rand.NewPCG(5, 1)), t.TempDir()
	base = make([]byte, 3<<20)
	for i := range base {
		base[i] = byte(rnd.Uint32())
	}
	path = filepath.Join(dir, "layer.qcow2")
	must(t, os.WriteFile(filepath.Join(dir, "base.raw"), base, 0o600))
	must(t, overlay.Create(hostfs.OS(), path, overlay.CreateOptions{Size: 8 << 20, Backing: "base.raw", BackingFormat: "raw"}))
	o, err := overlay.OpenOverlay(hostfs.OS(), path, overlay.OverlayOptions{})
	must(t, err)
	for i := range 60 {
		off, n := rnd.Int64N(8<<20-300_000), 1+rnd.Int64N(300_000)
		switch {
		case i%4 == 3:
			must(t, o.Discard(off&^4095, n&^4095, ownBase(base)))
		case i%20 == 10:
			must(t, o.Flush())
		default:
			must(t, o.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, int(n)), off, ownBase(base)))
		}
	}
	must(t, errors.Join(o.Settle(), o.Close()))
	return path, base
}

// ownBase is what stands below a layer.
type ownBase []byte

func (b ownBase) ReadAt(p []byte, off int64) error {
	clear(p)
	if off < int64(len(b)) {
		copy(p, b[off:])
	}
	return nil
}

func (b ownBase) IsZero(off, _ int64) (bool, error) { return off >= int64(len(b)), nil }

// tableWords finds where in an image tables stand, in pieces with a name.
func tableWords(t *testing.T, image []byte) map[string][]int64 {
	t.Helper()
	h, err := qcow2.HeaderOf(&hostile.BytesFile{Data: image}, int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	words := map[string][]int64{}
	add := func(name string, off, length int64) {
		for at := off; at < off+length && at+8 <= int64(len(image)); at += 8 {
			words[name] = append(words[name], at)
		}
	}
	c := newChecker(context.Background(), &hostile.BytesFile{Data: image}, h, int64(len(image)), Options{})
	if err := errors.Join(c.readRefcountTable(), c.readDirectories()); err != nil {
		t.Fatal(err)
	}
	add("header", 0, int64(h.HeaderLength))
	for _, r := range c.ranges {
		add(r.name, r.offset, r.length)
	}
	for _, e := range c.refcountTable {
		if e != 0 {
			add("refcount block", int64(e), h.ClusterSize())
		}
	}
	for _, l1 := range c.l1Tables {
		add("L1 table", l1.offset, l1.entries*8)
		for i := range l1.entries {
			if e := binary.BigEndian.Uint64(image[l1.offset+i*8:]); e != 0 {
				add("L2 table", int64(e&qcow2.OffsetMask), h.ClusterSize())
			}
		}
	}
	return words
}

// TestCheckAgainstQEMU compares the verdict on images of all modes, as they
// are and with random damage to their tables, with qemu-img check's. It also
// sees that several passes find what one does, and what progress tells.
func TestCheckAgainstQEMU(t *testing.T) {
	const all = 200
	rounds := 5
	switch {
	case os.Getenv("VARVE_LONG") != "":
		rounds = all
	case testing.Short():
		rounds = 1
	}
	first := turn.Window(rounds, all)
	for number, im := range checkedImages() {
		t.Run(im.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "damaged.qcow2")
			data, base := im.bytes(t)
			if err := os.WriteFile(filepath.Join(filepath.Dir(path), "base.raw"), base, 0o600); err != nil {
				t.Fatal(err)
			}
			checkInPasses(t, data)
			checkProgress(t, data)
			if verdict, r := ourVerdict(t, data); verdict != verdictFine {
				t.Errorf("as it was made: %s, %+v", verdict, r)
			}
			agree(t, data, path, "as it was made")
			words := tableWords(t, data)
			names := make([]string, 0, len(words))
			for name := range words {
				names = append(names, name)
			}
			// A map's order is random, the seeds are not.
			slices.Sort(names)
			for round := first; round < first+rounds; round++ {
				rnd := rand.New(rand.NewPCG(uint64(number), uint64(round)))
				image := append([]byte(nil), data...)
				what := ""
				for range 1 + rnd.IntN(2) {
					name := names[rnd.IntN(len(names))]
					what += damage(rnd, image, name, words[name])
				}
				agree(t, image, path, fmt.Sprintf("%s, round %d:%s", im.name, round, what))
			}
		})
	}
}

// damage changes one word of a table, most often one that says something.
func damage(rnd *rand.Rand, image []byte, name string, words []int64) string {
	at := words[rnd.IntN(len(words))]
	for range 200 {
		if binary.BigEndian.Uint64(image[at:]) != 0 || rnd.IntN(20) == 0 {
			break
		}
		at = words[rnd.IntN(len(words))]
	}
	p := image[at : at+8]
	old := binary.BigEndian.Uint64(p)
	word := old
	switch rnd.IntN(6) {
	case 0:
		word ^= 1 << rnd.IntN(64)
	case 1:
		word = 0
	case 2: // another place in the file
		word = old&^qcow2.OffsetMask | uint64(rnd.IntN(len(image)))&qcow2.OffsetMask&^4095
	case 3: // what another word of the table says
		word = binary.BigEndian.Uint64(image[words[rnd.IntN(len(words))]:])
	case 4:
		word = rnd.Uint64()
	case 5:
		p[rnd.IntN(8)] = byte(rnd.Uint32())
		word = binary.BigEndian.Uint64(p)
	}
	binary.BigEndian.PutUint64(p, word)
	return fmt.Sprintf(" %s at 0x%x: 0x%x to 0x%x;", name, at, old, word)
}
